"""Compare runners with the FP64 model; the budget is what eager PyTorch needs in that dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.metadata import Precision
from bilateral_export.parity.samples import Sample
from bilateral_export.precision import DTYPES
from bilateral_export.runners.base import Runner
from bilateral_export.runners.torch_runner import TorchRunner
from bilateral_export.tensors import Array

DEFAULT_FACTOR = 4.0
SCHEMA_VERSION = 1

Reference = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A runner to be judged, and the precision its graph was exported in."""

    runner: Runner
    precision: Precision


class ParityRow(BaseModel):
    """The verdict on one output of one runner.

    Attributes:
        runner: The runner's name.
        precision: The precision whose eager error sets the budget.
        output: The output's name.
        error: Largest relative error against FP64 over all items of all samples: the Euclidean
            norm of the difference over that of the reference.
        eager_error: The same for eager PyTorch in the same precision.
        budget: What `error` may be: the factor times `eager_error`.
        agreement: Share of items whose largest entry (the top-1 class) is FP64's.
        flipped: Items with another top-1 although FP64's margin is larger than the budget explains.
        items: How many items were compared.
        passed: Whether error is within budget and nothing flipped.
    """

    model_config = ConfigDict(frozen=True)

    runner: str
    precision: Precision
    output: str
    error: float
    eager_error: float
    budget: float
    agreement: float
    flipped: int
    items: int
    passed: bool


class ParityReport(BaseModel):
    """All verdicts of one comparison; what `bilateral parity --json` prints."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    checkpoint_sha256: str
    factor: float
    samples: tuple[str, ...]
    rows: tuple[ParityRow, ...]

    @property
    def passed(self) -> bool:
        """Whether every row passed."""
        return all(row.passed for row in self.rows)


def compare(
    checkpoint: Checkpoint,
    candidates: Sequence[Candidate],
    samples: Sequence[Sample],
    factor: float = DEFAULT_FACTOR,
) -> ParityReport:
    """Judge each candidate, on every sample, against the FP64 model.

    A runner passes when its error is at most `factor` times that of eager PyTorch in the same
    precision: a correct implementation rounds differently, not worse. It must also take the same
    top-1 decision wherever the reference's margin is beyond what that error could turn.

    Args:
        checkpoint: The trained weights.
        candidates: What to judge.
        samples: Inputs that fit the model.
        factor: How much larger than the eager error an error may be.

    Raises:
        UserError: A sample does not fit an input.
    """
    reference = _run_all(TorchRunner(checkpoint, torch.float64), samples)
    eager = {
        precision: _run_all(TorchRunner(checkpoint, DTYPES[precision]), samples)
        for precision in {candidate.precision for candidate in candidates}
    }
    rows = []
    for candidate in candidates:
        outputs = _run_all(candidate.runner, samples)
        for name in reference:
            rows.append(
                _judge(
                    candidate,
                    name,
                    outputs[name],
                    eager[candidate.precision][name],
                    reference[name],
                    factor,
                )
            )
    return ParityReport(
        checkpoint_sha256=checkpoint.sha256,
        factor=factor,
        samples=tuple(sample.origin for sample in samples),
        rows=tuple(rows),
    )


def _run_all(runner: Runner, samples: Sequence[Sample]) -> dict[str, Reference]:
    """Every output over all samples, items along the first axis."""
    with runner:
        results = [runner.run(sample.arrays) for sample in samples]
    return {
        name: np.concatenate([np.asarray(result[name], dtype=np.float64) for result in results])
        for name in results[0]
    }


def _judge(
    candidate: Candidate,
    output: str,
    got: Reference,
    eager: Reference,
    reference: Reference,
    factor: float,
) -> ParityRow:
    error, eager_error = relative_error(got, reference), relative_error(eager, reference)
    # A model may happen to be exact in eager PyTorch; one rounding is always allowed.
    budget = factor * max(eager_error, float(torch.finfo(DTYPES[candidate.precision]).eps))
    agrees = got.argmax(-1) == reference.argmax(-1)
    flipped = int((~agrees & (_margin(reference) > 2 * budget * _norm(reference))).sum())
    return ParityRow(
        runner=candidate.runner.name,
        precision=candidate.precision,
        output=output,
        error=error,
        eager_error=eager_error,
        budget=budget,
        agreement=float(agrees.mean()),
        flipped=flipped,
        items=len(reference),
        passed=bool(error <= budget) and flipped == 0,
    )


def relative_error(got: Array, reference: Reference) -> float:
    """Largest `|got - reference| / |reference|` over the items of the first axis (L2 norms).

    NaN or infinity in `got` gives infinity, so that it can pass no budget.
    """
    difference = np.asarray(got, dtype=np.float64) - reference
    flat = difference.reshape(len(difference), -1)
    norms = np.linalg.norm(reference.reshape(len(reference), -1), axis=-1)
    errors = np.linalg.norm(flat, axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return float(errors.max()) if np.isfinite(errors).all() else float("inf")


def _margin(reference: Reference) -> Reference:
    """Distance between the largest and the second largest entry."""
    if reference.shape[-1] < 2:
        return np.zeros(reference.shape[:-1])
    top = np.partition(reference, -2, axis=-1)[..., -2:]
    return np.asarray(top[..., 1] - top[..., 0])


def _norm(reference: Reference) -> Reference:
    return np.asarray(np.linalg.norm(reference, axis=-1))
