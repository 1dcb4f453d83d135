"""What a model's output decides, per family: class, next token, class of each pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bilateral_export.parity.measure import Reference
from bilateral_export.parity.report import Decision
from bilateral_export.tensors import Array

# The output of a language model with the log-probability of each given token.
LOG_LIKELIHOOD = "log_likelihood"


def judge_decisions(
    output: str,
    got: Sequence[Array],
    reference: Sequence[Reference],
    budget: float,
) -> Decision | None:
    """Compare what one output decides with what FP64 decides.

    Scores `[B, C]` decide a class (or the next token), `[B, C, H, W]` the class of each pixel;
    a `log_likelihood` `[B, N]` of given tokens decides nothing, but sums up to the perplexity.
    Other outputs, such as a cache, have no decision: None.

    Args:
        output: The output's name.
        got: The output per sample.
        reference: FP64's.
        budget: Relative error that may turn a decision: one with a larger margin must not flip.
    """
    if output == LOG_LIKELIHOOD:
        return _perplexity(got, reference)
    rank = reference[0].ndim
    if rank not in (2, 4) or reference[0].dtype.kind != "f":
        return None
    agree, flipped, decisions = 0, 0, 0
    for mine, truth in zip(got, reference, strict=True):
        alike = mine.argmax(1) == truth.argmax(1)
        size = np.linalg.norm(truth.reshape(len(truth), -1), axis=-1)
        size = size.reshape(-1, *[1] * (alike.ndim - 1))
        agree += int(alike.sum())
        flipped += int((~alike & (_margin(truth) > 2 * budget * size)).sum())
        decisions += alike.size
    return Decision(
        metric="pixel class" if rank == 4 else "top-1",
        agreement=agree / decisions,
        flipped=flipped,
        decisions=decisions,
        summary="mIoU" if rank == 4 else "",
        summary_value=_mean_iou(got, reference) if rank == 4 else None,
    )


def _perplexity(got: Sequence[Array], reference: Sequence[Reference]) -> Decision:
    """Perplexity over that of FP64, on the same tokens; every token counts once."""
    tokens = sum(truth.size for truth in reference)
    difference = sum(
        float((truth - np.asarray(mine, dtype=np.float64)).sum())
        for mine, truth in zip(got, reference, strict=True)
    )
    return Decision(
        metric="perplexity",
        agreement=1.0,
        flipped=0,
        decisions=tokens,
        summary="perplexity ratio",
        summary_value=float(np.exp(difference / tokens)),
    )


def _mean_iou(got: Sequence[Array], reference: Sequence[Reference]) -> float:
    """Mean over FP64's classes of intersection over union, FP64's decision taken as the truth."""
    classes = reference[0].shape[1]
    both, either = np.zeros(classes), np.zeros(classes)
    for mine, truth in zip(got, reference, strict=True):
        a, b = mine.argmax(1), truth.argmax(1)
        for number in range(classes):
            both[number] += np.sum((a == number) & (b == number))
            either[number] += np.sum((a == number) | (b == number))
    return float((both[either > 0] / either[either > 0]).mean())


def _margin(reference: Reference) -> Reference:
    """Distance between the largest and the second largest score."""
    if reference.shape[1] < 2:
        return np.zeros(reference.sum(1).shape)
    top = np.partition(np.moveaxis(reference, 1, -1), -2, axis=-1)[..., -2:]
    return np.asarray(top[..., 1] - top[..., 0])
