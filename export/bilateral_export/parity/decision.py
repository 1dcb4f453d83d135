"""Decisions in a model's output: class, next token, class of each pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bilateral_export.parity.measure import Reference
from bilateral_export.parity.report.document import Decision
from bilateral_export.tensors import FEATURES, Array

# The output of a language model with the log-probability of each given token.
LOG_LIKELIHOOD = "log_likelihood"


def judge_decisions(
    output: str,
    got: Sequence[Array],
    reference: Sequence[Array],
    budget: float,
) -> Decision | None:
    """Return how what one output decides agrees with what FP64 decides.

    Integers are decisions. Scores `[B, C]` decide a class (or the next token),
    `[B, C, H, W]` the class of each pixel; a `log_likelihood` `[B, N]` of given tokens decides
    nothing, but sums up to the perplexity.
    Other outputs, such as a cache or features, have no decision: None.

    Args:
        output: The output's name.
        got: The output per sample.
        reference: FP64's.
        budget: Relative error that may turn a decision: one with a larger margin must not flip.
    """
    if output == LOG_LIKELIHOOD:
        return _perplexity(got, reference)
    if reference[0].dtype.kind != "f":
        return _labels(got, reference)
    rank = reference[0].ndim
    if rank not in (2, 4) or output == FEATURES:
        return None
    agree, flipped, decisions = 0, 0, 0
    for mine, truth in zip(got, reference, strict=True):
        alike = decided(mine) == decided(truth)
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
        summary_value=_iou_of_scores(got, reference) if rank == 4 else None,
    )


def decided(output: Array) -> Array:
    """Return the decisions of an output that decides: as they are, or the largest of axis 1."""
    return output.argmax(1) if output.dtype.kind == "f" else output


def _perplexity(got: Sequence[Array], reference: Sequence[Array]) -> Decision:
    """Return the perplexity over that of FP64, on the same tokens; every token counts once."""
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


def _labels(got: Sequence[Array], reference: Sequence[Array]) -> Decision:
    """Return the agreement of decisions that the graph takes itself, without a margin."""
    pairs = list(zip(got, reference, strict=True))
    decisions = sum(truth.size for truth in reference)
    return Decision(
        metric="pixel class",
        agreement=sum(int((mine == truth).sum()) for mine, truth in pairs) / decisions,
        flipped=0,
        decisions=decisions,
        summary="mIoU",
        summary_value=_mean_iou(got, reference),
    )


def _mean_iou(got: Sequence[Array], reference: Sequence[Array]) -> float:
    """Return the mean intersection over union of FP64's classes, its decision as the truth.

    Args:
        got: Labels of any shape.
        reference: FP64's.
    """
    mine = np.concatenate([labels.ravel() for labels in got]).astype(np.int64)
    true = np.concatenate([labels.ravel() for labels in reference]).astype(np.int64)
    classes = int(max(mine.max(), true.max())) + 1
    both = np.bincount(true[mine == true], minlength=classes)
    ours, theirs = (np.bincount(labels, minlength=classes) for labels in (mine, true))
    present = theirs > 0
    return float((both[present] / (ours + theirs - both)[present]).mean())


def _iou_of_scores(got: Sequence[Array], reference: Sequence[Array]) -> float:
    return _mean_iou([scores.argmax(1) for scores in got], [s.argmax(1) for s in reference])


def _margin(scores: Array) -> Reference:
    """Return the distance between the largest and the second largest score."""
    reference = scores.astype(np.float64)
    if reference.shape[1] < 2:
        return np.zeros(reference.sum(1).shape)
    top = np.partition(np.moveaxis(reference, 1, -1), -2, axis=-1)[..., -2:]
    return np.asarray(top[..., 1] - top[..., 0])
