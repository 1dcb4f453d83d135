"""What a model's output decides, per family: class, next token, class of each pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bilateral_export.parity.measure import Reference
from bilateral_export.parity.report import Decision
from bilateral_export.parity.samples import Sample
from bilateral_export.tensors import Array

Labels = NDArray[np.int64]


def judge_decisions(
    got: Sequence[Array],
    reference: Sequence[Reference],
    samples: Sequence[Sample],
    budget: float,
) -> Decision:
    """Compare the decisions that one output takes with FP64's.

    The output's rank says what is decided: `[B, C]` a class, `[B, N, C]` the next token at each
    position, `[B, C, H, W]` the class of each pixel.

    Args:
        got: The output per sample.
        reference: FP64's.
        samples: The inputs; token ids are needed for the perplexity.
        budget: Relative error that may turn a decision: one with a larger margin must not flip.
    """
    rank = reference[0].ndim
    axis = 1 if rank == 4 else -1
    agree, flipped, decisions = 0, 0, 0
    for mine, truth in zip(got, reference, strict=True):
        alike = mine.argmax(axis) == truth.argmax(axis)
        size = np.linalg.norm(truth.reshape(len(truth), -1), axis=-1)
        size = size.reshape(-1, *[1] * (alike.ndim - 1))
        agree += int(alike.sum())
        flipped += int((~alike & (_margin(truth, axis) > 2 * budget * size)).sum())
        decisions += alike.size
    name, value = "", None
    if rank == 3:
        name, value = "perplexity ratio", perplexity_ratio(got, reference, samples)
    if rank == 4:
        name, value = "mIoU", _mean_iou(got, reference)
    return Decision(
        metric={3: "next token", 4: "pixel class"}.get(rank, "top-1"),
        agreement=agree / decisions,
        flipped=flipped,
        decisions=decisions,
        summary=name,
        summary_value=value,
    )


def perplexity_ratio(
    got: Sequence[Array], reference: Sequence[Reference], samples: Sequence[Sample]
) -> float | None:
    """Perplexity of the samples' own token ids under the candidate, over that under FP64.

    None where no input holds one token id per position.
    """
    difference, count = 0.0, 0
    for mine, truth, sample in zip(got, reference, samples, strict=True):
        ids = next(
            (
                array
                for array in sample.arrays.values()
                if array.dtype.kind == "i" and array.shape == truth.shape[:2]
            ),
            None,
        )
        if ids is None or ids.shape[1] < 2:
            continue
        targets = ids[:, 1:, None]
        for logits, sign in ((mine, 1), (truth, -1)):
            wide = np.asarray(logits[:, :-1], dtype=np.float64)
            peak = wide.max(-1, keepdims=True)
            normaliser = peak + np.log(np.exp(wide - peak).sum(-1, keepdims=True))
            difference += sign * float((normaliser - np.take_along_axis(wide, targets, -1)).sum())
        count += targets.size
    return float(np.exp(difference / count)) if count else None


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


def _margin(reference: Reference, axis: int) -> Reference:
    """Distance between the largest and the second largest entry."""
    if reference.shape[axis] < 2:
        return np.zeros(reference.sum(axis).shape)
    top = np.partition(np.moveaxis(reference, axis, -1), -2, axis=-1)[..., -2:]
    return np.asarray(top[..., 1] - top[..., 0])
