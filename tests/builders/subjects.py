"""The models that faults are seeded in, with what they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.parity.bisection.oracle import Oracle
from bilateral_export.parity.compare import Truth
from bilateral_export.parity.inputs.samples import Sample


@dataclass(frozen=True)
class Subject:
    checkpoint: Checkpoint
    onnx: Path
    lengths: dict[str, tuple[int, ...]]
    samples: list[Sample]
    truth: Truth
    reference: Oracle
    eager: Oracle
