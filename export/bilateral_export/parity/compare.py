"""Comparison of runners with the FP64 model, on the error budget of eager PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.decision_loss import DecisionLoss, StatedLoss, decision_loss
from bilateral_export.metadata import Precision
from bilateral_export.parity import measure
from bilateral_export.parity.budget import (
    DEFAULT_FACTOR,
    Budget,
    Quotient,
    quotient,
    worst_error,
)
from bilateral_export.parity.decision import decided, judge_decisions
from bilateral_export.parity.inputs.samples import Sample
from bilateral_export.parity.reference import ReferenceSpec
from bilateral_export.parity.report.document import Decision, ParityReport, ParityRow, WorstInput
from bilateral_export.parity.scores import largest_difference, scores_of, tipped
from bilateral_export.runners.base import Runner
from bilateral_export.tensors import Array

# Fewer real items say too little of a loss of decisions.
FEWEST = 100

# One array per sample.
Outputs = dict[str, list[Array]]


@dataclass(frozen=True)
class Candidate:
    """A runner to be judged.

    Attributes:
        runner: The runner.
        precision: The precision it computes in, whose eager error sets the budget.
        widened: Whether it computes in float32 with weights that were rounded to `precision`: it
            is then compared with that model, and its budget is eager PyTorch's in float32.
        stage: What the report calls it; the runner's name where nothing is given.
        stated: The loss of decisions that its 8-bit file states, which it is held to instead of the
            error of eager PyTorch.
    """

    runner: Runner
    precision: Precision
    widened: bool = False
    stage: str = ""
    stated: StatedLoss | None = None

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.stage or self.runner.name

    @property
    def reference_spec(self) -> ReferenceSpec:
        """Which weights and which rounding it is compared with."""
        return ReferenceSpec(self.precision if self.widened else "fp32", self.rounding)

    @property
    def rounding(self) -> Precision:
        """The precision of its arithmetic."""
        return "fp32" if self.widened else self.precision


@dataclass(frozen=True)
class Truth:
    """The reference's and eager PyTorch's outputs on the same samples."""

    reference: Outputs
    eager: Outputs


def compare(
    checkpoint: Checkpoint,
    candidates: Sequence[Candidate],
    samples: Sequence[Sample],
    factor: float = DEFAULT_FACTOR,
) -> ParityReport:
    """Return the report on each candidate, on every sample, against the FP64 model.

    A correct implementation rounds differently than eager PyTorch, not worse. A runner passes when
    its error is typically, with confidence over the items, at most half of `factor` times that of
    eager PyTorch in the same precision, its largest at most `factor` times eager PyTorch's
    (`budget.largest_error`), and when it takes the same decision wherever the reference's margin is
    beyond what such an error could turn.

    Args:
        checkpoint: The trained weights.
        candidates: What to judge.
        samples: Inputs that fit the model.
        factor: How much larger than the eager error the largest error may be.

    Raises:
        UserError: A sample does not fit an input.
    """
    truths: dict[ReferenceSpec, Truth] = {}
    rows: list[ParityRow] = []
    for candidate in candidates:
        spec = candidate.reference_spec
        if spec not in truths:
            truths[spec] = truth_of(checkpoint, spec, samples)
        with candidate.runner as runner:
            outputs = outputs_of(runner, samples)
        rows += judge(candidate, outputs, truths[spec], samples, factor)
    return report_of(checkpoint, samples, rows, factor)


def report_of(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    rows: Sequence[ParityRow],
    factor: float = DEFAULT_FACTOR,
    judged: Sequence[str] = (),
) -> ParityReport:
    """Return a report with rows, to which checks and bisections may be added."""
    return ParityReport(
        model=checkpoint.card.name,
        family=checkpoint.card.model.family,
        checkpoint_sha256=checkpoint.sha256,
        judged=tuple(judged),
        factor=factor,
        typical_budget=Budget.of(factor).typical,
        ulp_edges=measure.ULP_EDGES,
        samples=tuple(sample.origin for sample in samples),
        rows=tuple(rows),
    )


def truth_of(checkpoint: Checkpoint, spec: ReferenceSpec, samples: Sequence[Sample]) -> Truth:
    """Return what the reference and eager PyTorch answer on every sample."""
    with spec.reference(checkpoint) as runner:
        reference = outputs_of(runner, samples)
    with spec.eager(checkpoint) as runner:
        return Truth(reference, outputs_of(runner, samples))


def outputs_of(runner: Runner, samples: Sequence[Sample]) -> Outputs:
    """Return every output of every sample, as float64, integers as int64."""
    results = [runner.run(sample.arrays) for sample in samples]
    return {name: [_wide(result[name]) for result in results] for name in results[0]}


def _wide(array: Array) -> Array:
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def judge(
    candidate: Candidate,
    outputs: Outputs,
    truth: Truth,
    samples: Sequence[Sample],
    factor: float = DEFAULT_FACTOR,
) -> list[ParityRow]:
    """Return one row per output."""
    budget = Budget.of(factor)
    rows = []
    for name, reference in truth.reference.items():
        if name not in outputs:  # scores, which this runner does not give
            continue
        errors, furthest = measure.pooled_errors(outputs[name], reference)
        eager, _ = measure.pooled_errors(truth.eager[name], reference)
        floor = measure.error_floor(reference[0], candidate.rounding)
        found = quotient(errors, eager, floor)
        limit = worst_error(eager, floor, factor)
        decision = judge_decisions(name, outputs[name], reference, limit)
        if decision and (scores := truth.reference.get(scores_of(name))):
            usual = largest_difference(truth.eager[scores_of(name)], scores)
            beyond = tipped(outputs[name], reference, scores, factor * usual)
            decision = decision.model_copy(update={"flipped": beyond})
        pairs = list(zip(outputs[name], reference, strict=True))
        distances = [measure.ulps(mine, true, candidate.rounding).ravel() for mine, true in pairs]
        items = sum(map(len, reference))
        loss = None
        if candidate.stated is None:
            reason = _reason(found, budget, decision, items)
        elif decision is None:
            reason = ""
        else:
            loss = _real_loss(outputs[name], reference, samples)
            reason = _loss_reason(loss, candidate.stated, float(errors.max()))
        rows.append(
            ParityRow(
                stage=candidate.name,
                precision=candidate.precision,
                output=name,
                error=float(errors.max()),
                eager_error=float(eager.max()),
                budget=limit if candidate.stated is None else math.inf,
                typical=found.typical,
                typical_low=found.typical_low,
                typical_high=found.typical_high,
                cosine=min(float(measure.cosines(*pair).min()) for pair in pairs),
                ulp_histogram=measure.ulp_histogram(np.concatenate(distances)),
                decision=decision,
                loss=loss,
                stated_loss=candidate.stated.max_loss if candidate.stated and loss else None,
                items=items,
                worst=_worst(float(errors.max()), int(furthest[errors.argmax()]), samples),
                passed=not reason,
                reason=reason,
            )
        )
    return rows


def _reason(found: Quotient, budget: Budget, decision: Decision | None, items: int) -> str:
    """Return why a row does not pass, in words; empty where it does."""
    reasons = []
    if not found.worst <= budget.worst:
        reasons.append(
            f"its largest error is {found.worst:.3g} times eager PyTorch's,"
            f" allowed {budget.worst:g}"
        )
    if not found.typical_high <= budget.typical:
        interval = f"({found.typical_low:.2g} to {found.typical_high:.2g} with 99 % confidence)"
        text = f"its typical error is {found.typical:.2g} times eager PyTorch's {interval}"
        text += f", allowed {budget.typical:g}"
        if enough := found.enough(budget):
            wanted = math.ceil(enough * items / found.count)
            text += f": too few items to tell, give --items {wanted}"
        reasons.append(text)
    if decision and decision.flipped:
        reasons.append(
            f"{decision.flipped} of {decision.decisions} decisions differ beyond what rounding"
            " explains"
        )
    return "; ".join(reasons)


def _real_loss(
    got: Sequence[Array], reference: Sequence[Array], samples: Sequence[Sample]
) -> DecisionLoss:
    """Return what is lost of the reference's decisions on the real samples."""
    rows = [
        (decided(true), decided(mine), sample.labels)
        for true, mine, sample in zip(reference, got, samples, strict=True)
        if sample.real
    ]
    wanted, mine = (np.concatenate([row[place] for row in rows]) for place in (0, 1))
    known = [row[2] for row in rows if row[2] is not None]
    return decision_loss(wanted, mine, np.concatenate(known) if known else None)


def _loss_reason(loss: DecisionLoss, stated: StatedLoss, error: float) -> str:
    """Return why a stated loss does not hold, in words; empty where it can be true.

    Where more are lost than stated, but the items are too few to tell it from chance, it can.
    """
    if not math.isfinite(error):
        return "it answers NaN or infinity"
    if loss.low <= stated.max_loss:
        return ""
    what = "its right decisions" if loss.labelled else "decisions"
    return f"it loses {loss} of {what}, and its file states at most {stated.max_loss:.2%}"


def _worst(error: float, item: int, samples: Sequence[Sample]) -> WorstInput:
    for sample in samples:
        if item < sample.items:
            return WorstInput(sample=sample.origin, item=item, error=error)
        item -= sample.items
    raise AssertionError("every error belongs to a sample")
