"""Behaviour checks of a runner: batching, memory layout, repetition, concurrency, extremes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bilateral_export.errors import UserError
from bilateral_export.parity.budget import worst_error
from bilateral_export.parity.compare import Candidate, Truth
from bilateral_export.parity.inputs.samples import Sample
from bilateral_export.parity.measure import error_floor, item_errors
from bilateral_export.parity.report.document import Check
from bilateral_export.runners.base import Runner
from bilateral_export.tensors import Array

CONCURRENT = 8
REPEATS = 3

Answer = dict[str, Array]


@dataclass(frozen=True)
class Limit:
    """How wrong one item of an output may be.

    Attributes:
        error: Largest relative error: the budget of the output's row.
        size: What the output's numbers count as at least (`measure.magnitude`).
    """

    error: float
    size: float


def behaviour_checks(
    candidate: Candidate, sample: Sample, limits: Mapping[str, Limit]
) -> list[Check]:
    """Check an open runner on one sample of several items.

    Answers may differ by rounding (a runtime may choose other kernels for another batch size), so
    each is held to the stage's own budget.

    Args:
        candidate: Its runner is open.
        sample: Two items or more.
        limits: How wrong each output may be.
    """
    runner = candidate.runner
    items = [
        {name: array[number : number + 1] for name, array in sample.arrays.items()}
        for number in range(sample.items)
    ]
    alone = [runner.run(item) for item in items]

    def check(name: str, got: Callable[[], Sequence[Answer]], wanted: Sequence[Answer]) -> Check:
        try:
            answers = got()
        except UserError as error:
            return Check(stage=candidate.name, name=name, detail=str(error), passed=False)
        return _compare(candidate, name, answers, wanted, limits)

    together = _joined(alone)
    return [
        check("batch of items", lambda: [runner.run(sample.arrays)], [together]),
        check("reversed batch", lambda: [_reversed(runner, sample)], [together]),
        check(
            "strided memory",
            lambda: [
                runner.run({name: _strided(array) for name, array in sample.arrays.items()}),
                runner.run({name: _fortran(array) for name, array in sample.arrays.items()}),
            ],
            [together] * 2,
        ),
        check(
            "repeated calls",
            lambda: [runner.run(sample.arrays) for _ in range(REPEATS)],
            [together] * REPEATS,
        ),
        check("concurrent calls", lambda: _at_once(runner, items), _cycle(alone)),
    ]


def extreme_checks(
    candidate: Candidate,
    samples: Sequence[Sample],
    truth: Truth,
    factor: float,
    limits: Mapping[str, Limit],
) -> list[Check]:
    """Check an open runner on extreme inputs.

    Where FP64 is finite and eager PyTorch in the precision too, the error must be within `factor`
    times the eager error on such inputs, or within what ordinary ones may have. Where FP64 is not
    finite, neither may the runner be: it propagates NaN and infinity, or refuses the input with a
    `UserError`. Items beside the extreme one must not notice. Of a file that states a loss, only
    the last is checked: 8-bit numbers end where calibration ended, and have no NaN.

    Args:
        candidate: Its runner is open.
        samples: From `extremes`.
        truth: Reference and eager outputs on them.
        factor: See above.
        limits: How wrong an ordinary item of each output may be.
    """
    checks = []
    for number, sample in enumerate(samples):
        if candidate.stated is not None and _finite(sample):
            continue
        try:
            answer = candidate.runner.run(sample.arrays)
        except UserError as error:
            finite = all(np.isfinite(pieces[number]).all() for pieces in truth.reference.values())
            text = f"refused: {error.problem}"
            checks.append(_check(candidate, f"extreme: {sample.origin}", text, not finite))
            continue
        problems = []
        for name, limit in limits.items():
            pieces = truth.reference[name]
            if pieces[number].dtype.kind != "f" and not _finite(sample):
                continue  # which class NaN scores decide is nobody's promise
            eager = truth.eager[name][number]
            shown = answer[name], pieces[number], eager
            problems += _at_extreme(candidate, *shown, factor, limit)
        text = "; ".join(problems) or "as FP64"
        checks.append(_check(candidate, f"extreme: {sample.origin}", text, not problems))
    return checks


def _at_extreme(
    candidate: Candidate,
    got: Array,
    reference: Array,
    eager: Array,
    factor: float,
    ordinary: Limit,
) -> list[str]:
    problems = []
    finite, usual = (np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in (reference, eager))
    judged = finite & usual
    limit = ordinary.error
    if judged.any():
        errors = item_errors(eager[judged], reference[judged], ordinary.size)
        floor = error_floor(reference, candidate.rounding)
        limit = max(limit, worst_error(errors, floor, factor))
    for item, (mine, true) in enumerate(zip(got, reference, strict=True)):
        if not finite[item]:
            if np.isfinite(mine).all() and candidate.stated is None:
                problems.append(f"item {item} is finite where FP64 is not")
        elif judged[item]:
            error = item_errors(mine[None], true[None], ordinary.size)
            # A few items have no distribution to be typical of: rounding may favour one twofold.
            if error[0] > 2 * limit:
                problems.append(f"item {item}: error {error[0]:.1e}, allowed {2 * limit:.1e}")
    return problems


def _finite(sample: Sample) -> bool:
    return all(np.isfinite(array).all() for array in sample.arrays.values())


def _compare(
    candidate: Candidate,
    name: str,
    answers: Sequence[Answer],
    wanted: Sequence[Answer],
    limits: Mapping[str, Limit],
) -> Check:
    worst, exact = 0.0, True
    passed = True
    for answer, truth in zip(answers, wanted, strict=True):
        for output, limit in limits.items():
            if answer[output].shape != truth[output].shape:
                return _check(candidate, name, f"{output} has another shape", False)
            error = float(item_errors(answer[output], truth[output], limit.size).max())
            worst, exact = max(worst, error), exact and error == 0
            # Both sides may be off by the budget, in opposite directions.
            passed = passed and error <= 2 * limit.error
    text = "equal to the last bit" if exact else f"differs by {worst:.1e} at most"
    return _check(candidate, name, text, passed)


def _check(candidate: Candidate, name: str, detail: str, passed: bool) -> Check:
    return Check(stage=candidate.name, name=name, detail=detail, passed=passed)


def _joined(answers: Sequence[Answer]) -> Answer:
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _reversed(runner: Runner, sample: Sample) -> Answer:
    answer = runner.run({name: array[::-1] for name, array in sample.arrays.items()})
    return {name: array[::-1] for name, array in answer.items()}


def _strided(array: Array) -> Array:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def _fortran(array: Array) -> Array:
    return np.asfortranarray(array)


def _cycle(alone: Sequence[Answer]) -> list[Answer]:
    return [alone[number % len(alone)] for number in range(4 * CONCURRENT)]


def _at_once(runner: Runner, items: Sequence[Answer]) -> list[Answer]:
    """Many calls from several threads, each with another item."""
    calls = [items[number % len(items)] for number in range(4 * CONCURRENT)]
    with ThreadPoolExecutor(CONCURRENT) as pool:
        return list(pool.map(runner.run, calls))
