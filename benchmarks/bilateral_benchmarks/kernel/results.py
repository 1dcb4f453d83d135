"""Times of the fused kernel, kept in a file after every case, so that a run can be resumed.

A GPU is often lent for minutes, and one baseline may hang or leave the device in error. So the file
also says what is being measured: a run that finds that mark takes it for the reason the last one
ended, and does not try it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, computed_field
from pydantic.dataclasses import dataclass as validated

from bilateral_benchmarks.kernel.baselines import DTYPES, OURS, Shape
from bilateral_benchmarks.kernel.timing import Timing
from bilateral_benchmarks.report.files import read, write_json
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table
from bilateral_export.errors import UserError
from bilateral_export.op.kernel.launch_config import TABLE

_SHAPE = TypeAdapter(Shape)
UNFINISHED = "an earlier run ended while this was measured"
# What a point of the curves is called among the baselines.
CURVE = "fused, by bandwidth"


def kernel_hash() -> str:
    """Return a hash of the fused kernel's code and block sizes: what its times belong to."""
    files = sorted(file for file in TABLE.parent.iterdir() if file.suffix in (".py", ".csv"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@dataclass(frozen=True)
class Row:
    """One way on one shape; `timing` is missing where it does not run, and `why` says why."""

    shape: Shape
    way: str
    timing: Timing | None
    why: str = ""
    error: float | None = None

    @property
    def tflops(self) -> float:
        """TFLOP/s of the two products, warm."""
        return self.shape.flops / (self.timing.warm_ms * 1e-3) / 1e12 if self.timing else 0.0


@dataclass(frozen=True)
class BandwidthRow:
    """The fused kernel in its exact form at one bandwidth (a share of the extent).

    Attributes:
        skipped: Share of the whole key tiles that no program read.
        error: Largest difference from the same kernel without skipping, over the largest value.
    """

    shape: Shape
    warm_ms: float
    without_skipping_ms: float
    skipped: float
    error: float


@validated(frozen=True)
class Target:
    """One promise, and what came out: `ratio` has to be at most (or at least) `limit`."""

    name: str
    ratio: float | None
    limit: float
    at_most: bool

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether it was measured and kept."""
        if self.ratio is None:
            return False
        return self.ratio <= self.limit if self.at_most else self.ratio >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        got = "not measured" if self.ratio is None else f"{self.ratio:.2f}"
        return f"{'pass' if self.passed else 'MISS'}  {self.name}: {got} ({sign} {self.limit:.2f})"


class Results(Result):
    """Everything measured on one device.

    Attributes:
        device: Its name, with the versions that decide the times.
        current: What is being measured, baseline and shape, or nothing.
        kernel: `kernel_hash` of the fused kernel that was measured.
        gemm_peak_tflops: TFLOP/s of one large matrix product, by type.
        rows: One for each baseline and shape.
        bandwidth: One for each bandwidth.
        complete: Whether nothing is missing; None while it is measured.
        targets: What was promised, judged once the run is over.
    """

    model_config = ConfigDict(frozen=False)  # it grows case by case
    page_title: ClassVar[str] = "The fused kernel against its baselines"

    kind: Literal["kernel"] = "kernel"
    device: str
    current: str = ""
    kernel: str
    gemm_peak_tflops: dict[str, float] = Field(default_factory=dict)
    rows: list[Row] = Field(default_factory=list)
    bandwidth: list[BandwidthRow] = Field(default_factory=list)
    complete: bool | None = None
    targets: list[Target] = Field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything was measured and every target was met."""
        return bool(self.complete) and all(target.passed for target in self.targets)

    def has(self, shape: Shape, way: str) -> bool:
        """Return whether a baseline was tried on a shape; `CURVE` asks for a curve's point."""
        point = way == CURVE and any(row.shape == shape for row in self.bandwidth)
        return point or any(row.shape == shape and row.way == way for row in self.rows)

    def add(self, row: Row | BandwidthRow) -> None:
        """Keep what came out of one case."""
        if isinstance(row, Row):
            self.rows.append(row)
        else:
            self.bandwidth.append(row)

    def save(self, folder: Path | None) -> None:
        """Write `kernel.json`."""
        if folder is not None:
            write_json(self, folder / "kernel.json")

    def facts(self) -> list[str]:
        """Return the device, the GEMM peaks, and what is known of the run."""
        peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in self.gemm_peak_tflops.items())
        return [f"device: {self.device}", f"GEMM peak, TFLOP/s: {peaks}", *super().facts()]

    def tables(self) -> list[Table]:
        """Return the times, the curves of time against bandwidth, and the targets."""
        times = ("shape", "kernels", "way", ">warm ms", ">cold ms", ">TFLOP/s", ">of peak")
        curves = (">N", "kernels", ">sigma / extent", ">ms", ">without skipping", ">tiles skipped")
        points = tuple(
            (
                f"{row.shape.tokens}",
                f"{row.shape.range_kernel}/gaussian",
                f"{row.shape.bandwidth:g}",
                f"{row.warm_ms:.3f}",
                f"{row.without_skipping_ms:.3f}",
                f"{row.skipped:.0%}",
                f"{row.error:.1e}",
            )
            for row in self.bandwidth
        )
        judged = tuple((str(target),) for target in self.targets)
        notes = ("Not complete: the same command goes on.",) if self.complete is False else ()
        return [
            Table("Times", (*times, ">peak MiB", ">error"), tuple(self._cells())),
            Table("Time against bandwidth", (*curves, ">error"), points),
            Table("Targets", ("verdict",), judged, notes),
        ]

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for row in self.rows:
            shape, timing = row.shape, row.timing
            dtype = DTYPES[shape.dtype]
            what = (
                f"{shape.name} B{shape.batch} H{shape.heads} N{shape.tokens} D{shape.head_dim}",
                f"{shape.range_kernel}/{shape.spatial_kernel} {dtype}",
                row.way,
            )
            if timing is None:
                yield (*what, f"does not run: {row.why}", "", "", "", "", "")
                continue
            yield (
                *what,
                f"{timing.warm_ms:.3f}",
                f"{timing.cold_ms:.3f}",
                f"{row.tflops:.0f}",
                f"{row.tflops / self.gemm_peak_tflops[dtype]:.0%}",
                f"{timing.peak_bytes / 2**20:.1f}",
                "" if row.error is None else f"{row.error:.1e}",
            )


def begin(folder: Path | None, device: str) -> Results:
    """Return what an earlier run on the same device left in a folder, or nothing yet.

    What it measured of another state of the fused kernel is left out.

    Raises:
        UserError: The folder holds results of another device or another version, or something else.
    """
    path = folder / "kernel.json" if folder else None
    if path is None or not path.exists():
        return Results(device=device, kernel=kernel_hash())
    move = "Move it away, or give another --output."
    found = read(Results, path, "does not hold results of this command", move)
    if found.device != device:
        raise UserError(f"{path} was measured on {found.device}, this is {device}", move)
    results = found.model_copy(update={"complete": None, "targets": [], "current": ""})
    if found.current:
        way, _, shape = found.current.partition(" on ")
        results.add(Row(_SHAPE.validate_json(shape), way, None, UNFINISHED))
    if results.kernel != kernel_hash():
        results.rows = [row for row in results.rows if row.way not in (*OURS, CURVE)]
        results.bandwidth = []
        results.kernel = kernel_hash()
    return results


def mark(way: str, shape: Shape) -> str:
    """Return what `Results.current` says while a baseline is measured."""
    return f"{way} on {_SHAPE.dump_json(shape).decode()}"
