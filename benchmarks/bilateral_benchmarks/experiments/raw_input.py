"""Files prepared by the server against files prepared by the client, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Bar, Plot, bar_plot
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table, number
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.tensors import Array
from bilateral_serving.client import Client, requests

CALLERS = 8
CLIENT, SERVER = "prepared by the client", "prepared by the server"
READY = "tensors that were prepared before"


class Way(BaseModel):
    """One way to send a file: medians over the rounds.

    Attributes:
        p50_ms: Median latency of one caller.
        per_s: Files per second with CALLERS callers.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    p50_ms: float
    per_s: float


class RawInput(Result):
    """What it costs to prepare a file, and where.

    Attributes:
        prepare_ms: Median time to decode and prepare the file, in a process of its own.
        share: Of the latency of a request that the server prepares.
    """

    kind: Literal["raw input"] = "raw input"
    subject: str
    rounds: int
    file_bytes: int
    tensor_bytes: int
    prepare_ms: float
    share: float
    ways: tuple[Way, ...]
    context: Context

    def tables(self) -> list[Table]:
        """Return a row for each way."""
        rows = tuple((way.name, number(way.p50_ms), number(way.per_s)) for way in self.ways)
        columns = ("", ">p50 ms, one caller", f">files/s, {CALLERS} callers")
        notes = (
            f"A file of {self.file_bytes} bytes, a tensor of {self.tensor_bytes}. To prepare it"
            f" takes {self.prepare_ms:.2f} ms, {self.share:.0%} of a request that the server"
            " prepares.",
        )
        return [Table(f"Raw input: {self.subject}", columns, rows, notes)]

    def plots(self) -> list[Plot]:
        """Return the median latencies."""
        bars = [Bar(way.name, [way.p50_ms]) for way in self.ways]
        return [Plot("Median latency of one caller", bar_plot(bars, [], "ms"))]


def measure_raw_input(
    url: str,
    model: str,
    path: Path,
    *,
    rounds: int = 6,
    seconds: float = 1.0,
    on_step: Callable[[str], None] | None = None,
) -> RawInput:
    """Measure a classifier's answers about one file, prepared here and by the server.

    Args:
        url: "host:port" of the gRPC service.
        model: A served model that takes files (`repository add --raw`).
        path: The file.
        rounds: How often everything is measured, interleaved.
        seconds: Of one measurement.
        on_step: Called with what is being done.

    Raises:
        UserError: The model takes tensors only or is not a classifier, or a request failed.
    """
    context, content = Context.now(), require_file(path, "input").read_bytes()
    with Client(url) as client:
        info = client.model_metadata(model)
        if info.raw is None:
            raise UserError(
                f"model '{model}' takes tensors only",
                "Add it with `bilateral repository add --raw`.",
            )
        source, target = requests.classifier_input(info), requests.classifier_output(info)

        def prepare() -> dict[str, Array]:
            return {source: requests.input_batch(info, [content])}

        tensors, file = prepare(), requests.file_batch(info, [content])
        ways: dict[str, Callable[[], object]] = {
            CLIENT: lambda: client.infer(model, prepare(), outputs=[target]),
            SERVER: lambda: client.infer(model, file, outputs=[target]),
            READY: lambda: client.infer(model, tensors, outputs=[target]),
        }
        latency, rate = np.empty((len(ways), rounds)), np.empty((len(ways), rounds))
        alone = []
        for index in range(rounds):
            alone.append(_median_s(prepare, seconds / 4))
            for turn in range(len(ways)):
                row = (turn + index) % len(ways)
                name, call = list(ways.items())[row]
                if on_step:
                    on_step(f"round {index + 1} of {rounds}, {name}")
                latency[row, index] = _median_s(call, seconds)
                rate[row, index] = _per_s(call, seconds)
    medians = np.median(latency, axis=1)
    return RawInput(
        subject=f"{path.name} to {model} at {url}",
        rounds=rounds,
        file_bytes=len(content),
        tensor_bytes=sum(array.nbytes for array in tensors.values()),
        prepare_ms=1e3 * float(np.median(alone)),
        share=float(np.median(alone) / medians[list(ways).index(SERVER)]),
        ways=tuple(
            Way(name=name, p50_ms=1e3 * float(medians[row]), per_s=float(np.median(rate[row])))
            for row, name in enumerate(ways)
        ),
        context=context,
    )


def _median_s(call: Callable[[], object], seconds: float) -> float:
    """Return the median seconds of a call, called again and again after a first one."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def _per_s(call: Callable[[], object], seconds: float) -> float:
    """Return the calls per second of CALLERS threads."""
    begun = time.perf_counter()
    end = begun + seconds

    def caller(_: int) -> int:
        done = 0
        while time.perf_counter() < end:
            call()
            done += 1
        return done

    with ThreadPoolExecutor(CALLERS) as pool:
        done = sum(pool.map(caller, range(CALLERS)))
    return done / (time.perf_counter() - begun)
