"""Every stage judged on the same inputs: the whole answer to whether the served is the trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bilateral_export.artifact import load_graph
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UnsupportedError, UserError
from bilateral_export.metadata import ArtifactMetadata, Precision
from bilateral_export.parity import compare as comparison
from bilateral_export.parity.bisection.reproducer import write_reproducer
from bilateral_export.parity.bisection.search import NodeError, Walk, bisect
from bilateral_export.parity.budget import DEFAULT_FACTOR
from bilateral_export.parity.checks import Limit, behaviour_checks, extreme_checks
from bilateral_export.parity.compare import Truth, judge, outputs_of
from bilateral_export.parity.identity import (
    body_check,
    identity_checks,
    interface_check,
    plugin_check,
    random_check,
    softmax_check,
)
from bilateral_export.parity.inputs.adversarial import Forward, Found, box_of, search
from bilateral_export.parity.inputs.differentiable import DifferentiableGraph
from bilateral_export.parity.inputs.extremes import extreme_samples, token_extremes
from bilateral_export.parity.inputs.samples import Sample
from bilateral_export.parity.measure import error_floor, magnitude
from bilateral_export.parity.reference import Ground
from bilateral_export.parity.report.document import (
    Bisection,
    Check,
    Node,
    ParityReport,
    ParityRow,
    Skipped,
)
from bilateral_export.parity.scores import scores_of, with_scores
from bilateral_export.parity.stages import Stage
from bilateral_export.runners.base import Runner
from bilateral_export.runners.torch_eager import TorchRunner

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to compare, on what.

    Attributes:
        checkpoint: The trained weights.
        stages: What to judge, from `stages.stages` and further runners.
        samples: Random and real inputs.
        metadata: What the file says of itself; None leaves its identity unchecked.
        onnx: The exported file, whose operator bodies are checked.
        skipped: Stages that cannot run here.
        factor: The budget.
        adversarial: Steps of the search for inputs that disagree most; 0 searches none.
        layers: Whether to report the error at every node of the first stage with a graph, even
            when it passes.
        reproducers: Directory to write reproducers of failing nodes in; None writes none.
        bisect: Whether to look for the first node at fault where a stage fails.
    """

    checkpoint: Checkpoint
    stages: Sequence[Stage]
    samples: Sequence[Sample]
    metadata: ArtifactMetadata | None = None
    onnx: Path | None = None
    skipped: Sequence[Skipped] = ()
    factor: float = DEFAULT_FACTOR
    adversarial: int = 0
    layers: bool = False
    reproducers: Path | None = None
    bisect: bool = True


@dataclass
class _Grounds:
    """References and eager outputs, computed once however many stages are compared with them."""

    plan: Plan
    extremes: Sequence[Sample]
    references: dict[tuple[Precision, bool], comparison.Outputs] = field(default_factory=dict)
    eagers: dict[tuple[Ground, bool], comparison.Outputs] = field(default_factory=dict)
    maxima: dict[Ground, float] = field(default_factory=dict)

    def truth(self, ground: Ground, extreme: bool = False) -> Truth:
        """Reference and eager outputs on the samples, or on the extremes."""
        samples = self.extremes if extreme else self.plan.samples
        checkpoint = with_scores(self.plan.checkpoint)
        if (ground.weights, extreme) not in self.references:
            with ground.reference(checkpoint) as runner:
                self.references[ground.weights, extreme] = outputs_of(runner, samples)
        if (ground, extreme) not in self.eagers:
            with ground.eager(checkpoint) as runner:
                self.eagers[ground, extreme] = outputs_of(runner, samples)
        return Truth(self.references[ground.weights, extreme], self.eagers[ground, extreme])

    def eager_maximum(self, ground: Ground) -> float:
        """The largest error that the adversarial search finds against eager PyTorch."""
        if ground not in self.maxima:
            with ground.eager(self.plan.checkpoint) as eager:
                self.maxima[ground] = _search(self.plan, eager, ground, eager.forward).error
        return self.maxima[ground]


def run_matrix(plan: Plan, progress: Progress = lambda _: None) -> ParityReport:
    """Judge every stage; where one that reads a graph fails, find the first node at fault.

    Args:
        plan: What to do.
        progress: Told the name of each stage as it starts.

    Raises:
        UserError: An input does not fit, a required stage cannot run, or no stage that
            reads the file could open it.
    """
    for stage in plan.stages:
        if stage.required:
            with stage.candidate.runner:
                pass  # that it cannot run is said now, and not after a minute's work
    model = plan.checkpoint.build_model()
    grounds = _Grounds(plan, [*extreme_samples(model), *token_extremes(model)])
    rows: list[ParityRow] = []
    checks: list[Check] = []
    skipped: list[Skipped] = list(plan.skipped)
    refusals: list[UserError] = []
    bisections: list[Bisection] = []
    if plan.metadata is not None:
        checks += identity_checks(plan.checkpoint, plan.metadata)
    fits = True
    if plan.onnx is not None:
        file = load_graph(plan.onnx, weights=False)
        interface = interface_check(file, model)
        checks += [interface, body_check(file), plugin_check(file)]
        checks += [softmax_check(file), random_check(file)]
        fits = interface.passed
    for stage in plan.stages:
        if stage.graph is not None and not fits:
            reason = "the file's inputs or outputs are not the model's"
            skipped.append(Skipped(stage=stage.candidate.name, reason=reason))
            continue
        progress(stage.candidate.name)
        try:
            opened = stage.candidate.runner.__enter__()
        except UserError as error:
            if stage.required:  # it could be opened a moment ago
                raise
            name, reason = stage.candidate.name, str(error)
            refusals += [error] if stage.graph else []
            if isinstance(error, UnsupportedError):
                skipped.append(Skipped(stage=name, reason=reason))
            else:
                checks.append(Check(stage=name, name="opens", detail=reason, passed=False))
            continue
        with opened:
            judged = _judge_stage(stage, plan, grounds)
        rows += judged.rows
        checks += judged.checks
        skipped += _labels_only(stage, judged.rows, grounds)
        sample = judged.failed_on
        if sample is None and plan.layers and not bisections:
            sample = _several(plan)
        if sample and plan.bisect and stage.graph is not None and stage.open_runner is not None:
            progress(f"{stage.candidate.name}: walking the graph")
            try:
                budgets = {row.output: row.budget for row in judged.rows}
                walked = _walk(stage, plan, sample, budgets, judged.failed_on is not None)
                bisections.append(walked)
                if walked.culprit is not None and judged.failed_on is None:
                    checks.append(_broken_node(stage, walked.culprit))
            except UserError as error:  # the verdict stands without it
                walk = f"{stage.candidate.name}, node by node"
                skipped.append(Skipped(stage=walk, reason=str(error)))
    if refusals and len(refusals) == sum(stage.graph is not None for stage in plan.stages):
        raise refusals[0]
    report = comparison.report_of(plan.checkpoint, plan.samples, rows, plan.factor)
    return report.model_copy(
        update={
            "checks": tuple(checks),
            "skipped": tuple(skipped),
            "bisections": tuple(bisections),
        }
    )


@dataclass(frozen=True)
class _Judged:
    """A stage's rows and checks, and the input that shows what fails; None where nothing does."""

    rows: Sequence[ParityRow]
    checks: Sequence[Check]
    failed_on: Sample | None


def _judge_stage(stage: Stage, plan: Plan, grounds: _Grounds) -> _Judged:
    grounds.truth(stage.candidate.ground)  # what the reference cannot take is no stage's fault
    try:
        rows, checks, found = _run_stage(stage, plan, grounds)
    except UserError as error:
        if stage.required:
            raise
        name = stage.candidate.name
        check = Check(stage=name, name="runs on every input", detail=str(error), passed=False)
        return _Judged([], [check], _refused(stage, plan.samples))
    failed = [row for row in rows if not row.passed]
    if failed:
        return _Judged(rows, checks, _worst(failed, plan))
    # A fault that no ordinary input meets: an input that a check has found.
    by_origin = {f"extreme: {sample.origin}": sample for sample in grounds.extremes} | found
    met = (
        by_origin[check.name]
        for check in checks[::-1]
        if not check.passed and check.name in by_origin
    )
    return _Judged(rows, checks, next(met, None))


def _several(plan: Plan) -> Sample:
    """The sample that has most in it."""
    return max(plan.samples, key=lambda sample: next(iter(sample.arrays.values())).size)


def _labels_only(stage: Stage, rows: Sequence[ParityRow], grounds: _Grounds) -> list[Skipped]:
    """The scores that are not judged, where a runner gives labels only."""
    given = {row.output for row in rows}
    known = grounds.truth(stage.candidate.ground).reference
    reason = (
        "it gives labels only: none may differ where the margin in FP64 is beyond rounding, and of"
        " the others a few thousandths"
    )
    return [
        Skipped(stage=f"{stage.candidate.name}, {scores_of(row.output)}", reason=reason)
        for row in rows
        if scores_of(row.output) in known.keys() - given
    ]


def _broken_node(stage: Stage, node: Node) -> Check:
    """No stage passes while one of its nodes is beyond its limit."""
    detail = f"{node.node} is off by {node.error:.1e}, allowed {node.limit:.1e}"
    return Check(stage=stage.candidate.name, name="node by node", detail=detail, passed=False)


def _worst(rows: Sequence[ParityRow], plan: Plan) -> Sample | None:
    return next((s for s in plan.samples if rows and s.origin == rows[0].worst.sample), None)


def _refused(stage: Stage, samples: Sequence[Sample]) -> Sample | None:
    """The first sample that a stage cannot run, opened anew: one failure may bring others on."""
    if stage.graph is None or stage.open_runner is None:
        return None
    with stage.open_runner(stage.graph) as runner:
        for sample in samples:
            try:
                runner.run(sample.arrays)
            except UserError:
                return sample
    return None


def _run_stage(
    stage: Stage, plan: Plan, grounds: _Grounds
) -> tuple[list[ParityRow], list[Check], dict[str, Sample]]:
    candidate = stage.candidate
    truth = grounds.truth(candidate.ground)
    if type(candidate.runner) is TorchRunner and not candidate.widened:
        outputs = truth.eager  # this stage is what the budget is measured by
    else:
        outputs = outputs_of(candidate.runner, plan.samples)
    if problem := _unlike(outputs, truth.reference):
        check = Check(stage=candidate.name, name="outputs", detail=problem, passed=False)
        return [], [check], {}
    rows = judge(candidate, outputs, truth, plan.samples, plan.factor)
    if not stage.checked:
        # Eager PyTorch is what the others are held against.
        if not plan.adversarial or outputs is truth.eager or candidate.widened:
            return rows, [], {}
        check, found = _adversarial_check(stage, plan, grounds.eager_maximum(candidate.ground))
        return rows, [check], {check.name: found}
    limits = {row.output: Limit(row.budget, magnitude(truth.reference[row.output])) for row in rows}
    checks = behaviour_checks(candidate, _several(plan), limits)
    truth = grounds.truth(candidate.ground, extreme=True)
    checks += extreme_checks(candidate, grounds.extremes, truth, plan.factor, limits)
    if not plan.adversarial:
        return rows, checks, {}
    check, found = _adversarial_check(stage, plan, grounds.eager_maximum(candidate.ground))
    return rows, [*checks, check], {check.name: found}


def _unlike(outputs: comparison.Outputs, reference: comparison.Outputs) -> str:
    """How answers differ from the reference's before any number is compared; empty if not."""
    for name, wanted in reference.items():
        if name not in outputs:
            if name in map(scores_of, outputs):
                continue
            return f"there is no output {name}"
        for mine, true in zip(outputs[name], wanted, strict=True):
            if mine.shape != true.shape:
                return f"{name} has shape {list(mine.shape)} instead of {list(true.shape)}"
            if mine.dtype != true.dtype:
                return f"{name} is not {'whole' if true.dtype.kind == 'i' else 'floating'} numbers"
    return ""


def _adversarial_check(stage: Stage, plan: Plan, eager: float) -> tuple[Check, Sample]:
    """Whether the worst input found is no worse than what is found against eager PyTorch."""
    candidate = stage.candidate
    forward, how = _derivatives(stage, plan)
    found = _search(plan, candidate.runner, candidate.ground, forward)
    empty = [np.zeros(0, spec.dtype) for spec in candidate.runner.outputs]
    floor = max(error_floor(output, candidate.rounding) for output in empty)
    limit = plan.factor * max(eager, floor)
    grew = f"error grew from {found.start:.1e} to {found.error:.1e}, allowed {limit:.1e}"
    check = Check(
        stage=candidate.name,
        name="adversarial inputs",
        detail=f"{grew}; {how}, {found.climbed} steps along it",
        passed=found.error <= limit,
    )
    return check, found.sample


def _derivatives(stage: Stage, plan: Plan) -> tuple[Forward | None, str]:
    """The stage as a PyTorch function, or a stand-in for it, and what to say of it."""
    runner = stage.candidate.runner
    if isinstance(runner, TorchRunner):
        return runner.forward, "its own gradient"
    path = stage.graph or plan.onnx
    if path is None:
        return None, "no gradient without the file"
    try:
        return DifferentiableGraph(load_graph(path)), "gradient of the file's graph"
    except UserError as error:
        return None, error.problem


def _search(plan: Plan, runner: Runner, ground: Ground, forward: Forward | None) -> Found:
    checkpoint = plan.checkpoint
    model = checkpoint.build_model()
    box = box_of(model, checkpoint.card.preprocessing)
    with ground.reference(checkpoint) as reference:
        return search(model, runner, reference, plan.adversarial, box=box, forward=forward)


def _walk(
    stage: Stage, plan: Plan, sample: Sample, budgets: Mapping[str, float], failed: bool
) -> Bisection:
    assert stage.graph is not None
    assert stage.open_runner is not None
    reference, eager = stage.candidate.ground.oracles(plan.checkpoint)
    graph = load_graph(stage.graph)
    walk = bisect(
        graph,
        stage.open_runner,
        sample.arrays,
        reference,
        eager,
        stage.candidate.rounding,
        factor=plan.factor,
        to_the_end=plan.layers,
        budgets=budgets,
    )
    reproducer = ""
    if failed and walk.culprit is not None and plan.reproducers is not None:
        directory = plan.reproducers / _file_name(stage.candidate.name)
        write_reproducer(directory, graph, walk.culprit)
        reproducer = str(directory)
    return _bisection(stage.candidate.name, sample, walk, reproducer)


def _bisection(stage: str, sample: Sample, walk: Walk, reproducer: str) -> Bisection:
    culprit = walk.culprit
    return Bisection(
        stage=stage,
        sample=sample.origin,
        culprit=_node(culprit.at) if culprit else None,
        before=culprit.before if culprit else 0.0,
        reproducer=reproducer,
        nodes=tuple(map(_node, walk.nodes)),
        peak_bytes=walk.peak_bytes,
    )


def _node(at: NodeError) -> Node:
    values: Mapping[str, object] = vars(at)
    return Node.model_validate(values)


def _file_name(stage: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in stage)
