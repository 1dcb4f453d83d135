"""Latency breakdown of a served request, from the client's array to the client's array."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from tritonclient.grpc import service_pb2

from bilateral_benchmarks.experiments.served import DEFAULT_TIMEOUT_S, try_out
from bilateral_benchmarks.load.answers import Expected, parse
from bilateral_benchmarks.load.generator import TICK_S
from bilateral_benchmarks.load.request import is_shared, offsets_of, registered, serialise
from bilateral_benchmarks.load.run import OnProgress, RunFailedError
from bilateral_benchmarks.load.schedule import require_positive
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Bar, Plot, bar_plot
from bilateral_benchmarks.report.result import Quantity, Result
from bilateral_benchmarks.report.tables import Table, number
from bilateral_benchmarks.statistics.percentiles import percentile
from bilateral_export.errors import UserError
from bilateral_export.tensors import Array
from bilateral_serving.access import call_metadata
from bilateral_serving.client.shared_memory import Region
from bilateral_serving.credentials import open_channel

_SERVICE = "/inference.GRPCInferenceService"
_NOWHERE = "no-such-model"
# Into so many the measurement is cut, for an interval of each mean.
_SLICES = 10
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Part(BaseModel):
    """One part of the mean latency, in milliseconds.

    Attributes:
        low_ms: Lower end of the 95% interval of the part's mean in a tenth of the requests; None in
            older files.
        high_ms: Upper end.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    mean_ms: float
    source: str
    low_ms: float | None = None
    high_ms: float | None = None


class Breakdown(Result):
    """The parts of the mean latency of requests that were sent one after the other.

    Attributes:
        measured_ms: Mean latency, from array to array, by this process's clock.
        parts: Each measured by itself; none is what is left over.
        unexplained: The share of `measured_ms` that the parts do not add up to; negative if they
            add up to more.
        in_process_ms: The same model called in a process without a server; None if not measured.
    """

    kind: Literal["breakdown"] = "breakdown"
    subject: str
    batch: int
    requests: int
    measured_ms: float
    parts: tuple[Part, ...]
    unexplained: float
    in_process_ms: float | None = None
    context: Context

    def tables(self) -> list[Table]:
        """Return the parts of the mean latency."""
        whole = self.measured_ms
        rows = [
            (part.name, number(part.mean_ms), f"{part.mean_ms / whole:.1%}", part.source)
            for part in self.parts
        ]
        rows.append(("not explained", "", f"{self.unexplained:+.1%}", ""))
        rows.append(("measured", number(whole), "100.0%", "client clock"))
        if self.in_process_ms is not None:
            rows.append(("the model in process", number(self.in_process_ms), "", "this process"))
        title = f"Where the time goes: {self.subject}, batch {self.batch}"
        return [Table(title, ("part", ">mean ms", ">share", "source"), tuple(rows))]

    def quantities(self) -> list[Quantity]:
        """Return the parts."""
        name = f"{self.subject.partition(' at ')[0]}, batch {self.batch}"
        return [
            Quantity(
                name, f"{part.name}, ms", part.mean_ms, part.low_ms, part.high_ms, self.context
            )
            for part in self.parts
            if part.mean_ms > 0
        ]

    def plots(self) -> list[Plot]:
        """Return the parts as one bar."""
        labels = [f"{part.name}, {part.mean_ms:.3g} ms" for part in self.parts]
        bars = [Bar(self.subject.partition(" at ")[0], [part.mean_ms for part in self.parts])]
        if self.in_process_ms is not None:
            bars.append(Bar("in process", [self.in_process_ms]))
        return [Plot("Mean latency by part", bar_plot(bars, labels, "ms"))]


def measure_breakdown(
    url: str,
    model: str,
    arrays: Mapping[str, Array],
    *,
    duration_s: float = 5.0,
    in_process: Callable[[], object] | None = None,
    on_progress: OnProgress | None = None,
) -> Breakdown:
    """Send requests one at a time and ask the server how long each of its steps took.

    What the network takes is measured by itself: with every request goes one of the same size for
    a model that does not exist, which the server reads and refuses.

    Args:
        url: "host:port" of the gRPC service.
        model: The model's name. Nobody else may use it meanwhile: Triton's counters are shared.
        arrays: One request.
        duration_s: How long.
        in_process: Calls the same model without a server; timed after the requests.
        on_progress: Called about ten times a second while requests are sent.

    Raises:
        UserError: The server or model is not there or goes away, refuses the arrays, answers
            wrongly, or served others too; the duration is not a positive number.
    """
    require_positive(duration_s, f"a duration of {duration_s:g} s")
    context = Context.now()
    expected = try_out(url, model, arrays, DEFAULT_TIMEOUT_S)
    shared = is_shared(url, arrays, None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_answering(url))
        channel = stack.enter_context(open_channel(url, _OPTIONS))
        region = stack.enter_context(registered(url, offsets_of(arrays)[1])) if shared else None
        metadata = call_metadata(url)
        infer = partial(channel.unary_unary(f"{_SERVICE}/ModelInfer"), metadata=metadata)
        for _ in range(20):
            _request(infer, model, arrays, region, expected)
        marks = [(0, _statistics(channel, model, metadata))]
        times: list[tuple[float, float, float]] = []
        network: list[float] = []
        begun = shown = time.monotonic()
        while (now := time.monotonic()) < begun + duration_s or not times:
            if on_progress and now - shown >= TICK_S:
                on_progress(
                    now - begun, float(np.median(np.sum(times[-100:], axis=1))) if times else None
                )
                shown = time.monotonic()
            times.append(_request(infer, model, arrays, region, expected))
            network.append(_refused(infer, arrays, region))
            if time.monotonic() >= begun + len(marks) * duration_s / _SLICES:
                marks.append((len(times), _statistics(channel, model, metadata)))
        if marks[-1][0] < len(times):
            marks.append((len(times), _statistics(channel, model, metadata)))
    served = marks[-1][1].success.count - marks[0][1].success.count
    if served != len(times):
        raise UserError(
            f"model {model} served {served} requests, but {len(times)} were sent",
            "Measure on a server that nobody else uses.",
        )
    seconds = np.column_stack((np.array(times), network))
    means = _means(seconds, marks[0], marks[-1])
    sliced = [_means(seconds, one, other) for one, other in itertools.pairwise(marks)]
    parts = []
    for name, (mean_ms, source) in means.items():
        ends = percentile(np.array([each[name][0] for each in sliced]) / 1e3, 50.0)
        parts.append(
            Part(
                name=name, mean_ms=mean_ms, source=source, low_ms=ends.low_ms, high_ms=ends.high_ms
            )
        )
    measured = 1e3 * float(np.sum(times)) / len(times)
    return Breakdown(
        subject=f"{model} at {url}" + (", inputs in shared memory" if shared else ""),
        batch=max(len(array) for array in arrays.values()),
        requests=len(times),
        measured_ms=measured,
        parts=tuple(parts),
        unexplained=1 - sum(part.mean_ms for part in parts) / measured,
        in_process_ms=None if in_process is None else _mean_ms(in_process, duration_s / 2),
        context=context,
    )


_Mark: TypeAlias = tuple[int, Any]
"""How many requests had been sent, and Triton's statistics then."""


def _means(seconds: NDArray[np.float64], begin: _Mark, end: _Mark) -> dict[str, tuple[float, str]]:
    """Return each part's mean in ms between two marks, and where it comes from, in order.

    Args:
        seconds: Of each request: serialising, the call, parsing; and of a refused one.
        begin: The first mark.
        end: The last.
    """
    (first, before), (last, after) = begin, end
    serialise_ms, _, parse_ms, refused_ms = 1e3 * seconds[first:last].mean(axis=0)
    steps = {
        name: (getattr(after, field).ns - getattr(before, field).ns) / (last - first) / 1e6
        for name, field in (
            ("server: queue", "queue"),
            ("server: compute input", "compute_input"),
            ("server: compute infer", "compute_infer"),
            ("server: compute output", "compute_output"),
        )
    }
    whole = (after.success.ns - before.success.ns) / (last - first) / 1e6
    steps["server: between the steps"] = max(0.0, whole - sum(steps.values()))
    return {
        "client: serialise": (float(serialise_ms), "client clock"),
        "network and gRPC": (float(refused_ms), "refused requests"),
        **{name: (value, "Triton statistics") for name, value in steps.items()},
        "client: parse": (float(parse_ms), "client clock"),
    }


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    """Says in one line that a server stopped answering."""
    try:
        yield
    except grpc.RpcError as error:
        raise UserError(
            f"{url} stopped answering ({error.code().name}: {error.details()})",
            "See what the server says.",
        ) from error


def _request(
    infer: Any,
    model: str,
    arrays: Mapping[str, Array],
    region: Region | None,
    expected: Expected,
) -> tuple[float, float, float]:
    """Return the seconds of serialising, of the call and of parsing."""
    start = time.perf_counter()
    message = serialise(model, arrays, region)
    sent = time.perf_counter()
    answer = infer(message)
    received = time.perf_counter()
    with contextlib.suppress(ValueError):  # said below
        parse(answer)
    parsed = time.perf_counter()
    if problem := expected.problem(answer):
        raise RunFailedError(f"model {model}: {problem}", "Nothing was measured.")
    return sent - start, received - sent, parsed - received


def _refused(infer: Any, arrays: Mapping[str, Array], region: Region | None) -> float:
    """Return the seconds until the server has refused a request of the same size."""
    message = serialise(_NOWHERE, arrays, region)
    start = time.perf_counter()
    try:
        infer(message)
    except grpc.RpcError as error:
        if _NOWHERE in (error.details() or ""):
            return time.perf_counter() - start
        raise  # no refusal: nobody is there
    raise UserError(f"the server serves a model named {_NOWHERE}", "Rename it.")


def _statistics(channel: Any, model: str, metadata: tuple[tuple[str, str], ...]) -> Any:
    call = channel.unary_unary(
        f"{_SERVICE}/ModelStatistics",
        request_serializer=service_pb2.ModelStatisticsRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStatisticsResponse.FromString,
    )
    answer = call(service_pb2.ModelStatisticsRequest(name=model), metadata=metadata)
    return answer.model_stats[-1].inference_stats


def _mean_ms(call: Callable[[], object], seconds: float) -> float:
    for _ in range(5):
        call()
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.mean(times))
