"""The matrix of a parity check: every stage, judged on the same inputs."""

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
from bilateral_export.parity.bisection.search import bisect
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
from bilateral_export.parity.reference import ReferenceSpec
from bilateral_export.parity.report.document import (
    Bisection,
    Check,
    NodeError,
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
class ParityJob:
    """A parity check to run: what to compare, on which inputs.

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
class _References:
    """References and eager outputs, computed once however many stages are compared with them."""

    job: ParityJob
    extremes: Sequence[Sample]
    references: dict[tuple[Precision, bool], comparison.Outputs] = field(default_factory=dict)
    eagers: dict[tuple[ReferenceSpec, bool], comparison.Outputs] = field(default_factory=dict)
    maxima: dict[ReferenceSpec, float] = field(default_factory=dict)

    def truth(self, spec: ReferenceSpec, extreme: bool = False) -> Truth:
        """Return reference and eager outputs on the samples, or on the extremes."""
        samples = self.extremes if extreme else self.job.samples
        checkpoint = with_scores(self.job.checkpoint)
        if (spec.weights, extreme) not in self.references:
            with spec.reference(checkpoint) as runner:
                self.references[spec.weights, extreme] = outputs_of(runner, samples)
        if (spec, extreme) not in self.eagers:
            with spec.eager(checkpoint) as runner:
                self.eagers[spec, extreme] = outputs_of(runner, samples)
        return Truth(self.references[spec.weights, extreme], self.eagers[spec, extreme])

    def eager_maximum(self, spec: ReferenceSpec) -> float:
        """Return the largest error that the adversarial search finds against eager PyTorch."""
        if spec not in self.maxima:
            with spec.eager(self.job.checkpoint) as eager:
                self.maxima[spec] = _search(self.job, eager, spec, eager.forward).error
        return self.maxima[spec]


def run_matrix(job: ParityJob, progress: Progress = lambda _: None) -> ParityReport:
    """Return the report on every stage, with the first node at fault of those that fail.

    Args:
        job: What to do.
        progress: Told the name of each stage as it starts.

    Raises:
        UserError: An input does not fit, a required stage cannot run, or no stage that
            reads the file could open it.
    """
    for stage in job.stages:
        if stage.required:
            with stage.candidate.runner:
                pass  # that it cannot run is said now, and not after a minute's work
    model = job.checkpoint.build_model()
    references = _References(job, [*extreme_samples(model), *token_extremes(model)])
    rows: list[ParityRow] = []
    checks: list[Check] = []
    skipped: list[Skipped] = list(job.skipped)
    refusals: list[UserError] = []
    bisections: list[Bisection] = []
    if job.metadata is not None:
        checks += identity_checks(job.checkpoint, job.metadata)
    fits = True
    if job.onnx is not None:
        file = load_graph(job.onnx, weights=False)
        interface = interface_check(file, model)
        checks += [interface, body_check(file), plugin_check(file)]
        checks += [softmax_check(file), random_check(file)]
        fits = interface.passed
    for stage in job.stages:
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
            judged = _judge_stage(stage, job, references)
        rows += judged.rows
        checks += judged.checks
        skipped += _labels_only(stage, judged.rows, references)
        if stage.candidate.stated is not None:
            skipped += _not_by_error(stage)
            continue
        sample = judged.failed_on
        if sample is None and job.layers and not bisections:
            sample = _several(job)
        if sample and job.bisect and stage.graph is not None and stage.open_runner is not None:
            progress(f"{stage.candidate.name}: searching the graph")
            try:
                budgets = {row.output: row.budget for row in judged.rows}
                walked = _walk(stage, job, sample, budgets, judged.failed_on is not None)
                bisections.append(walked)
                if walked.culprit is not None and judged.failed_on is None:
                    checks.append(_broken_node(stage, walked.culprit))
            except UserError as error:  # the rows stand without it
                walk = f"{stage.candidate.name}, node by node"
                skipped.append(Skipped(stage=walk, reason=str(error)))
    if refusals and len(refusals) == sum(stage.graph is not None for stage in job.stages):
        raise refusals[0]
    report = comparison.report_of(job.checkpoint, job.samples, rows, job.factor)
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


def _judge_stage(stage: Stage, job: ParityJob, references: _References) -> _Judged:
    spec = stage.candidate.reference_spec
    references.truth(spec)  # an input that the reference cannot take is not the stage's fault
    try:
        rows, checks, found = _run_stage(stage, job, references)
    except UserError as error:
        if stage.required:
            raise
        name = stage.candidate.name
        check = Check(stage=name, name="runs on every input", detail=str(error), passed=False)
        return _Judged([], [check], _refused(stage, job.samples))
    failed = [row for row in rows if not row.passed]
    if failed:
        return _Judged(rows, checks, _worst(failed, job))
    # A fault that no ordinary input meets: an input that a check has found.
    by_origin = {f"extreme: {sample.origin}": sample for sample in references.extremes} | found
    met = (
        by_origin[check.name]
        for check in checks[::-1]
        if not check.passed and check.name in by_origin
    )
    return _Judged(rows, checks, next(met, None))


def _several(job: ParityJob) -> Sample:
    """Return the sample that has most in it."""
    return max(job.samples, key=lambda sample: next(iter(sample.arrays.values())).size)


def _labels_only(stage: Stage, rows: Sequence[ParityRow], references: _References) -> list[Skipped]:
    """Return the scores that are not judged, where a runner gives labels only."""
    given = {row.output for row in rows}
    known = references.truth(stage.candidate.reference_spec).reference
    reason = (
        "it gives labels only: none may differ where the margin in FP64 is beyond rounding, and of"
        " the others a few thousandths"
    )
    return [
        Skipped(stage=f"{stage.candidate.name}, {scores_of(row.output)}", reason=reason)
        for row in rows
        if scores_of(row.output) in known.keys() - given
    ]


def _not_by_error(stage: Stage) -> list[Skipped]:
    """Return what is not looked at where a stated loss is judged, not an error."""
    reason = "the file states a loss of decisions, and 8-bit numbers end where calibration ended"
    what = "extremes, adversarial inputs and single nodes"
    return [Skipped(stage=f"{stage.candidate.name}, {what}", reason=reason)]


def _broken_node(stage: Stage, node: NodeError) -> Check:
    """Return the failed check of a stage that passes while one of its nodes does not."""
    detail = f"{node.node} is off by {node.error:.1e}, allowed {node.limit:.1e}"
    return Check(stage=stage.candidate.name, name="node by node", detail=detail, passed=False)


def _worst(rows: Sequence[ParityRow], job: ParityJob) -> Sample | None:
    return next((s for s in job.samples if rows and s.origin == rows[0].worst.sample), None)


def _refused(stage: Stage, samples: Sequence[Sample]) -> Sample | None:
    """Return the first sample that a stage, opened anew, cannot run: failures may cause others."""
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
    stage: Stage, job: ParityJob, references: _References
) -> tuple[list[ParityRow], list[Check], dict[str, Sample]]:
    candidate = stage.candidate
    truth = references.truth(candidate.reference_spec)
    if type(candidate.runner) is TorchRunner and not candidate.widened:
        outputs = truth.eager  # this stage is what the budget is measured by
    else:
        outputs = outputs_of(candidate.runner, job.samples)
    if problem := _unlike(outputs, truth.reference):
        check = Check(stage=candidate.name, name="outputs", detail=problem, passed=False)
        return [], [check], {}
    rows = judge(candidate, outputs, truth, job.samples, job.factor)
    checks: list[Check] = []
    if stage.checked:
        sizes = {row.output: magnitude(truth.reference[row.output]) for row in rows}
        # Rounding may tip a number to its neighbour of 8 bits: that is what quantising does anyway.
        errors = {row.output: row.budget if row.loss is None else row.error for row in rows}
        limits = {row.output: Limit(errors[row.output], sizes[row.output]) for row in rows}
        checks += behaviour_checks(candidate, _several(job), limits)
        extreme = references.truth(candidate.reference_spec, extreme=True)
        checks += extreme_checks(candidate, references.extremes, extreme, job.factor, limits)
    # The search against eager PyTorch is what the others are held against.
    elif outputs is truth.eager or candidate.widened:
        return rows, checks, {}
    if not job.adversarial or candidate.stated is not None:
        return rows, checks, {}
    usual = references.eager_maximum(candidate.reference_spec)
    check, found = _adversarial_check(stage, job, usual)
    return rows, [*checks, check], {check.name: found}


def _unlike(outputs: comparison.Outputs, reference: comparison.Outputs) -> str:
    """Return how answers differ from the reference's in names, shapes or types; empty if not."""
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


def _adversarial_check(stage: Stage, job: ParityJob, eager: float) -> tuple[Check, Sample]:
    """Check that the worst input found is no worse than what is found against eager PyTorch."""
    candidate = stage.candidate
    forward, how = _derivatives(stage, job)
    found = _search(job, candidate.runner, candidate.reference_spec, forward)
    empty = [np.zeros(0, spec.dtype) for spec in candidate.runner.outputs]
    floor = max(error_floor(output, candidate.rounding) for output in empty)
    limit = job.factor * max(eager, floor)
    grew = f"error grew from {found.start:.1e} to {found.error:.1e}, allowed {limit:.1e}"
    check = Check(
        stage=candidate.name,
        name="adversarial inputs",
        detail=f"{grew}; {how}, {found.climbed} steps along it",
        passed=found.error <= limit,
    )
    return check, found.sample


def _derivatives(stage: Stage, job: ParityJob) -> tuple[Forward | None, str]:
    """Return the stage as a PyTorch function, or a stand-in for it, and what to say of it."""
    runner = stage.candidate.runner
    if isinstance(runner, TorchRunner):
        return runner.forward, "its own gradient"
    path = stage.graph or job.onnx
    if path is None:
        return None, "no gradient without the file"
    try:
        return DifferentiableGraph(load_graph(path)), "gradient of the file's graph"
    except UserError as error:
        return None, error.problem


def _search(job: ParityJob, runner: Runner, spec: ReferenceSpec, forward: Forward | None) -> Found:
    checkpoint = job.checkpoint
    model = checkpoint.build_model()
    box = box_of(model, checkpoint.card.preprocessing)
    with spec.reference(checkpoint) as reference:
        return search(model, runner, reference, job.adversarial, box=box, forward=forward)


def _walk(
    stage: Stage, job: ParityJob, sample: Sample, budgets: Mapping[str, float], failed: bool
) -> Bisection:
    assert stage.graph is not None
    assert stage.open_runner is not None
    reference, eager = stage.candidate.reference_spec.oracles(job.checkpoint)
    graph = load_graph(stage.graph)
    walk = bisect(
        graph,
        stage.open_runner,
        sample.arrays,
        reference,
        eager,
        stage.candidate.rounding,
        factor=job.factor,
        to_the_end=job.layers,
        budgets=budgets,
    )
    reproducer = ""
    if failed and walk.culprit is not None and job.reproducers is not None:
        directory = job.reproducers / _file_name(stage.candidate.name)
        write_reproducer(directory, graph, walk.culprit)
        reproducer = str(directory)
    culprit = walk.culprit
    return Bisection(
        stage=stage.candidate.name,
        sample=sample.origin,
        culprit=culprit.at if culprit else None,
        before=culprit.before if culprit else 0.0,
        reproducer=reproducer,
        nodes=walk.nodes,
        peak_bytes=walk.peak_bytes,
    )


def _file_name(stage: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in stage)
