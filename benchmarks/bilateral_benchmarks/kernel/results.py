"""What was measured of the fused kernel: kept in a file after every case, so that a run can go on.

A GPU is often lent for minutes, and one baseline may hang or leave the device in error. So the file
also says what is being measured: a run that finds that mark takes it for the reason the last one
ended, and does not try it again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bilateral_benchmarks.kernel.baselines import OURS, Shape
from bilateral_benchmarks.kernel.timing import Timing
from bilateral_export.errors import UserError
from bilateral_export.files import to_json, write_text
from bilateral_export.op.kernel.launch_config import TABLE

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_NAMED = {name: dtype for dtype, name in DTYPES.items()}
UNFINISHED = "an earlier run ended while this was measured"
# What a point of the curves is called among the ways.
CURVE = "fused, by bandwidth"


def kernel_hash() -> str:
    """Of the fused kernel's code and block sizes: what its times belong to."""
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


@dataclass
class Results:
    """Everything measured on one device.

    Attributes:
        device: Its name, with the versions that decide the times.
        rows: One for each way and shape.
        curves: One for each bandwidth.
        peaks: TFLOP/s of one large matrix product, by type.
        current: What is being measured, way and shape, or nothing.
        kernel: `kernel_hash` of the fused kernel that was measured.
    """

    device: str
    rows: list[Row] = field(default_factory=list)
    curves: list[BandwidthRow] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    current: str = ""
    kernel: str = field(default_factory=kernel_hash)

    def has(self, shape: Shape, way: str) -> bool:
        """Whether a way was tried on a shape; `CURVE` asks for a point of the curves."""
        point = way == CURVE and any(row.shape == shape for row in self.curves)
        return point or any(row.shape == shape and row.way == way for row in self.rows)

    def add(self, row: Row | BandwidthRow) -> None:
        """Keep what came out of one case."""
        if isinstance(row, Row):
            self.rows.append(row)
        else:
            self.curves.append(row)

    def save(self, folder: Path | None, facts: Mapping[str, Any] | None = None) -> None:
        """Write `kernel.json`, with more facts beside the results."""
        if folder is None:
            return
        document = {
            **(facts or {}),
            "device": self.device,
            "current": self.current,
            "kernel": self.kernel,
            "gemm_peak_tflops": self.peaks,
            "rows": [_written(asdict(row)) for row in self.rows],
            "bandwidth": [_written(asdict(row)) for row in self.curves],
        }
        write_text(folder / "kernel.json", to_json(document))


def begin(folder: Path | None, device: str) -> Results:
    """What an earlier run on the same device left in a folder, or nothing yet.

    What it measured of another state of the fused kernel is left out.

    Raises:
        UserError: The folder holds results of another device or another version, or something else.
    """
    path = folder / "kernel.json" if folder else None
    if path is None or not path.exists():
        return Results(device)
    try:
        results = _read(json.loads(path.read_text(encoding="utf-8")), path, device)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{path} does not hold results of this command ({type(error).__name__}: {error})",
            "Move it away, or give another --output.",
        ) from error
    if results.kernel != kernel_hash():
        results.rows = [row for row in results.rows if row.way not in (*OURS, CURVE)]
        results.curves = []
        results.kernel = kernel_hash()
    return results


def _read(document: dict[str, Any], path: Path, device: str) -> Results:
    if document["device"] != device:
        raise UserError(
            f"{path} was measured on {document['device']}, this is {device}",
            "Move it away, or give another --output.",
        )
    results = Results(
        device,
        [_row(row) for row in document["rows"]],
        [BandwidthRow(**{**row, "shape": _shape(row["shape"])}) for row in document["bandwidth"]],
        document["gemm_peak_tflops"],
        kernel=document["kernel"],
    )
    if document["current"]:
        way, _, shape = document["current"].partition(" on ")
        results.rows.append(Row(_shape(json.loads(shape)), way, None, UNFINISHED))
    return results


def mark(way: str, shape: Shape) -> str:
    """What `Results.current` says while a way is measured."""
    return f"{way} on {json.dumps(_written({'shape': asdict(shape)})['shape'])}"


def _row(row: dict[str, Any]) -> Row:
    timing = row["timing"]
    made = Row(**{**row, "shape": _shape(row["shape"]), "timing": None})
    return replace(made, timing=Timing(**timing)) if timing else made


def _written(row: dict[str, Any]) -> dict[str, Any]:
    shape = row["shape"]
    bandwidth = shape["bandwidth"]
    return {
        **row,
        "shape": {
            **shape,
            "dtype": DTYPES[shape["dtype"]],
            "bandwidth": "inf" if math.isinf(bandwidth) else bandwidth,
        },
    }


def _shape(shape: dict[str, Any]) -> Shape:
    return Shape(
        **{**shape, "dtype": _NAMED[shape["dtype"]], "bandwidth": float(shape["bandwidth"])}
    )
