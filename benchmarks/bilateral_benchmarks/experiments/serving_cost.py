"""The cost of serving, with the front door and without, against the same file in process.

What a caller waits for beyond the model, what the server gives when it is saturated, and how its
latency spreads at 70 % of that.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.experiments.contenders import checkpoint_of
from bilateral_benchmarks.experiments.in_process import bench_runner
from bilateral_benchmarks.experiments.served import bench_served
from bilateral_benchmarks.load.inputs import made_up
from bilateral_benchmarks.load.others import QUIET_SHARE, Others
from bilateral_benchmarks.load.ports import free_port
from bilateral_benchmarks.load.report import Report
from bilateral_benchmarks.load.run import RunFailedError
from bilateral_benchmarks.load.schedule import Arrivals, Load, require_positive
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.result import Quantity, Result
from bilateral_benchmarks.report.tables import Table, between, number
from bilateral_benchmarks.statistics.interleave import PAUSE_S
from bilateral_benchmarks.statistics.percentiles import percentile
from bilateral_export.graph.export import export_onnx
from bilateral_export.runners.base import Runner
from bilateral_export.runners.lowered import LoweredRunner
from bilateral_export.tensors import Array
from bilateral_serving import repository
from bilateral_serving.client import Client
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running

SATURATION = 8
BATCHES = (1, 2, 4, 8)
LOAD_SHARE = 0.7
# What was aimed at.
OVERHEAD_MS, SHARE, SPREAD = 0.8, 0.97, 1.5
ARRIVALS: tuple[Arrivals, ...] = ("constant", "poisson")
_IN_PROCESS = "in process"
_BLOCKS = 5  # of each call in a round
_TRIES = 6  # for one that nothing else disturbs
Value = TypeVar("Value")
Values = NDArray[np.float64]


class Median(BaseModel):
    """The median over the rounds, with its 95% interval; no ends with fewer than six rounds."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float | None
    high: float | None

    @staticmethod
    def of(values: Values) -> Median:
        """Return that of one value a round."""
        ends = percentile(values, 50.0)  # in thousandths: it is made for seconds
        low, high = (None if end is None else end / 1e3 for end in (ends.low_ms, ends.high_ms))
        return Median(value=float(np.median(values)), low=low, high=high)

    def __str__(self) -> str:
        ends = between(self.low, self.high)
        return number(self.value) + (f" ({ends})" if ends else "")


class Loaded(BaseModel):
    """Latency at a share of the saturated throughput.

    Attributes:
        rate: Requests a second.
        spread: p99 over p50; None where the sample does not support it.
        floor: The same of a server that takes for each request exactly what the model takes in
            process, one after the other, with the same arrivals: no server without batches or
            further instances can do better.
    """

    model_config = ConfigDict(frozen=True)

    arrivals: Arrivals
    rate: float
    p50_ms: float | None
    p99_ms: float | None
    p99_low_ms: float | None
    p99_high_ms: float | None
    spread: float | None
    floor: float
    problems: tuple[str, ...] = ()


class Served(BaseModel):
    """One way to the model.

    Attributes:
        p50_ms: Latency of one caller that uses `Client`, from array to array.
        overhead_ms: The same less the in-process median of the same round.
        throughput: Items a second with SATURATION callers.
        share: Of what two callers get in process with the same requests, paired by round.
        loaded: At LOAD_SHARE of the throughput.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    p50_ms: Median
    overhead_ms: Median
    throughput: Median
    share: Median
    loaded: tuple[Loaded, ...]


class ServingCost(Result):
    """Both ways against the same file in process.

    Attributes:
        batches: Items a second in process with one caller, by batch.
        measured: Measurements, each repeated where other processes took more than QUIET_SHARE of a
            core.
        disturbed: Those of which no repetition was quiet.
    """

    kind: Literal["serving cost"] = "serving cost"
    subject: str
    rounds: int
    in_process_p50_ms: Median
    in_process_throughput: Median
    batches: dict[int, float]
    ways: tuple[Served, ...]
    measured: int
    disturbed: int
    context: Context

    def tables(self) -> list[Table]:
        """Return the cost, the spread under load, and what batches give."""
        first = (str(self.in_process_p50_ms), "", str(self.in_process_throughput), "1")
        rows = [(_IN_PROCESS, *first)]
        rows += [
            (w.name, str(w.p50_ms), str(w.overhead_ms), str(w.throughput), str(w.share))
            for w in self.ways
        ]
        columns = ("", ">p50 ms", ">overhead ms", ">items/s, saturated", ">of in process")
        goals = (
            *(note for way in self.ways for note in _goals(way)),
            f"Other processes took more than {QUIET_SHARE:.0%} of a core during {self.disturbed} of"
            f" {self.measured} measurements.",
        )
        cost = Table(f"Cost of serving: {self.subject}", columns, tuple(rows), goals)
        curve = tuple(
            (str(batch), number(rate), f"{rate / self.batches[BATCHES[0]]:.2f}")
            for batch, rate in self.batches.items()
        )
        by_batch = Table(
            "In process by batch, one caller", (">batch", ">items/s", ">of batch 1"), curve
        )
        return [cost, self._under_load(), by_batch]

    def _under_load(self) -> Table:
        found = [(way.name, one) for way in self.ways for one in way.loaded]
        rows = tuple(
            (
                f"{name}, {one.arrivals} arrivals",
                *map(number, (one.rate, one.p50_ms, one.p99_ms, one.spread, one.floor)),
            )
            for name, one in found
        )
        notes = (
            "The floor is that of a server which takes exactly the model's time for each request,"
            " one after the other, at the same arrivals.",
            *(f"{name}, {one.arrivals}: {why}" for name, one in found for why in one.problems),
        )
        columns = ("", ">requests/s", ">p50 ms", ">p99 ms", ">p99 / p50", ">floor of it")
        return Table(f"Latency at {LOAD_SHARE:.0%} load", columns, rows, notes)

    def quantities(self) -> list[Quantity]:
        """Return latency, overhead, throughput and the p99 under load of each way."""
        found = []
        for way in self.ways:
            name = f"{self.subject}, {way.name}"
            for measure, median in (("p50, ms", way.p50_ms), ("overhead, ms", way.overhead_ms)):
                found.append(self._quantity(name, measure, median, more=False))
            found.append(self._quantity(name, "items/s", way.throughput, more=True))
            for one in way.loaded:
                if one.p99_ms is not None:
                    tail = Median(value=one.p99_ms, low=one.p99_low_ms, high=one.p99_high_ms)
                    measure = f"p99 at {LOAD_SHARE:.0%} load, {one.arrivals}, ms"
                    found.append(self._quantity(name, measure, tail, more=False))
        return [one for one in found if one.value > 0 and (one.low is None or one.low > 0)]

    def _quantity(self, name: str, measure: str, median: Median, more: bool) -> Quantity:
        return Quantity(
            name, measure, median.value, median.low, median.high, self.context, more_is_better=more
        )


def measure_serving_cost(
    name: str,
    *,
    rounds: int = 8,
    seconds: float = 1.0,
    loaded_s: float = 15.0,
    on_step: Callable[[str], None] | None = None,
) -> ServingCost:
    """Export a model, serve it with the front door and without, and measure both.

    Args:
        name: A checkpoint, or the name of a known model.
        rounds: How often latency and throughput are measured, interleaved.
        seconds: Of one measurement of latency; one of throughput takes twice as long.
        loaded_s: Of one measurement under load.
        on_step: Called with what is being done.

    Raises:
        RunFailedError: A request failed.
        UserError: There is no such model, or a duration is not a positive number.
    """
    require_positive(seconds, f"{seconds:g} s for a measurement")
    require_positive(loaded_s, f"{loaded_s:g} s for a measurement under load")
    say = on_step or (lambda what: None)
    context = Context.now()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        say(f"exporting {name}")
        exported = folder / "model.onnx"
        export_onnx(checkpoint_of(name, folder, None), exported)
        repository.add("model", exported, folder / "models", settings=Settings())
        runner = stack.enter_context(LoweredRunner(exported))
        say("starting the servers")
        urls = {
            way: stack.enter_context(_server(folder / "models", direct))
            for way, direct in (("direct", True), ("front door", False))
        }
        return _measure(name, context, runner, urls, rounds, seconds, loaded_s, say)


@contextlib.contextmanager
def _server(models: Path, direct: bool) -> Iterator[str]:
    options = ServerOptions(models, grpc_port=free_port(), metrics_port=None, direct=direct)
    with running(options) as server:
        yield server.url


def _measure(
    subject: str,
    context: Context,
    runner: Runner,
    urls: Mapping[str, str],
    rounds: int,
    seconds: float,
    loaded_s: float,
    say: Callable[[str], None],
) -> ServingCost:
    arrays = made_up(runner.inputs)
    names = [_IN_PROCESS, *urls]
    latency, throughput = np.empty((len(names), rounds)), np.empty((len(names), rounds))
    quiet = _Quiet()
    with contextlib.ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {_IN_PROCESS: lambda: runner.run(arrays)}
        for way, url in urls.items():
            client = stack.enter_context(Client(url, timeout_s=60.0))
            calls[way] = functools.partial(client.infer, "model", arrays)
        block = functools.partial(_block, list(calls.values()), seconds / _BLOCKS)
        for number_ in range(rounds):
            turn = number_ % len(names)
            for name in (*names[turn:], *names[:turn]):
                say(f"round {number_ + 1} of {rounds}, {name}")
                row, one = names.index(name), urls.get(name)
                throughput[row, number_] = quiet.measure(
                    functools.partial(_saturated, runner, one, arrays, 2 * seconds)
                )
            say(f"round {number_ + 1} of {rounds}, one caller")
            latency[:, number_] = np.median([quiet.measure(block) for _ in range(_BLOCKS)], axis=0)
    ways = []
    for way, url in urls.items():
        row = names.index(way)
        rate = LOAD_SHARE * float(np.median(throughput[row]))
        alone_s = float(np.median(latency[0])) / 1e3
        loaded = []
        for arrivals in ARRIVALS:
            say(f"{way} at {rate:.0f} requests/s, {arrivals} arrivals")
            load = Load(rate=rate, arrivals=arrivals)
            loaded.append(
                quiet.measure(functools.partial(_loaded, url, arrays, load, loaded_s, alone_s))
            )
        ways.append(
            Served(
                name=way,
                p50_ms=Median.of(latency[row]),
                overhead_ms=Median.of(latency[row] - latency[0]),
                throughput=Median.of(throughput[row]),
                share=Median.of(throughput[row] / throughput[0]),
                loaded=tuple(loaded),
            )
        )
    say("batches in process")
    return ServingCost(
        subject=subject,
        rounds=rounds,
        in_process_p50_ms=Median.of(latency[0]),
        in_process_throughput=Median.of(throughput[0]),
        batches={
            batch: quiet.measure(functools.partial(_per_second, runner, batch, seconds))
            for batch in BATCHES
        },
        measured=quiet.measured,
        disturbed=quiet.disturbed,
        ways=tuple(ways),
        context=context,
    )


class _Quiet:
    """Repeats what other processes have disturbed, a few times; counts what stayed disturbed."""

    def __init__(self) -> None:
        self.measured = self.disturbed = 0

    def measure(self, once: Callable[[], Value]) -> Value:
        """Return the first quiet measurement, or the one that was disturbed least."""
        self.measured += 1
        found: list[tuple[float, Value]] = []
        for _ in range(_TRIES):
            with Others() as others:
                value = once()
            if others.were_quiet:
                return value
            found.append((others.share, value))
        self.disturbed += 1
        return min(found, key=lambda one: one[0])[1]


def _block(calls: Sequence[Callable[[], object]], seconds: float) -> Values:
    """Return the median ms of each call, one after the other."""
    return np.array([1e3 * _median_s(call, seconds) for call in calls])


def _saturated(
    runner: Runner, url: str | None, arrays: Mapping[str, Array], seconds: float
) -> float:
    """Return items a second: two callers in process, SATURATION of a server."""
    if url is None:
        report = bench_runner(
            runner, arrays, duration_s=seconds, warmup_s=seconds / 5, concurrency=2
        )
    else:
        report = bench_served(
            url,
            "model",
            arrays,
            duration_s=seconds,
            warmup_s=seconds / 5,
            concurrency=SATURATION,
        )
    return _sound(report).items_per_s


def _loaded(
    url: str, arrays: Mapping[str, Array], load: Load, seconds: float, alone_s: float
) -> Loaded:
    assert load.rate is not None
    report = bench_served(url, "model", arrays, duration_s=seconds, warmup_s=seconds / 5, load=load)
    _sound(report)
    found = {one.percent: one for one in report.response.percentiles}
    p50, p99 = found[50.0].value_ms, found[99.0].value_ms
    return Loaded(
        arrivals=load.arrivals,
        rate=load.rate,
        p50_ms=p50,
        p99_ms=p99,
        p99_low_ms=found[99.0].low_ms,
        p99_high_ms=found[99.0].high_ms,
        spread=p99 / p50 if p50 and p99 else None,
        floor=queue_spread(load, alone_s),
        problems=report.doubts,
    )


def queue_spread(load: Load, service_s: float, requests: int = 100_000) -> float:
    """Return p99 over p50 of the time in a queue whose server takes the same time for each request.

    Lindley's recursion (1952): a request waits for what is left of the work before it.

    Args:
        load: An open loop.
        service_s: The time of one request.
        requests: How many are simulated.
    """
    arrivals = np.fromiter(load.offsets(), float, count=requests)
    waited, times = 0.0, np.empty(requests)
    for index, gap in enumerate(np.diff(arrivals, prepend=arrivals[0])):
        waited = max(0.0, waited + (service_s if index else 0.0) - gap)
        times[index] = waited + service_s
    median, tail = np.percentile(times, (50.0, 99.0))
    return float(tail / median)


def _sound(report: Report) -> Report:
    if report.errors:
        raise RunFailedError(f"{report.subject}: {report.problems[0]}", "Nothing was measured.")
    return report


def _per_second(runner: Runner, batch: int, seconds: float) -> float:
    arrays = made_up(runner.inputs, batch)
    return batch / _median_s(lambda: runner.run(arrays), seconds)


def _median_s(call: Callable[[], object], seconds: float) -> float:
    """Return the median seconds of a call, after one that finds the caches cold."""
    time.sleep(PAUSE_S)
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def _goals(way: Served) -> list[str]:
    """Return what became of each goal, in a sentence."""
    constant = (one for one in way.loaded if one.arrivals == "constant" and not one.problems)
    spread = next((one.spread for one in constant), None)
    judged = [
        (f"at most {OVERHEAD_MS:g} ms over in process", way.overhead_ms.value <= OVERHEAD_MS),
        (f"at least {SHARE:g} of in process saturated", way.share.value >= SHARE),
    ]
    if spread is not None:
        goal = f"p99 at most {SPREAD:g} times p50 at {LOAD_SHARE:.0%} load (constant arrivals)"
        judged.append((goal, spread <= SPREAD))
    return [f"{way.name}: {goal}: {'met' if met else 'missed'}." for goal, met in judged]
