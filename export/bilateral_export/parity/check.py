"""The parity check of an exported file: every stage from training to serving in one report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bilateral_export.artifact import read_metadata, read_onnx
from bilateral_export.checkpoint.exported import load_exported
from bilateral_export.decision_loss import read_stated_loss
from bilateral_export.errors import UserError
from bilateral_export.files import sha256
from bilateral_export.models.family import Family
from bilateral_export.parity.budget import DEFAULT_FACTOR
from bilateral_export.parity.compare import FEWEST, Candidate
from bilateral_export.parity.identity import check_graph
from bilateral_export.parity.inputs.samples import (
    DEFAULT_BATCHES,
    Sample,
    random_samples,
    real_samples,
)
from bilateral_export.parity.matrix import ParityJob, Progress, run_matrix
from bilateral_export.parity.report.baseline import regressions, require_same_model
from bilateral_export.parity.report.document import ParityReport, Skipped, read_report
from bilateral_export.parity.report.html import write_html
from bilateral_export.parity.stages import Stage, stages
from bilateral_export.runners.base import Runner
from bilateral_export.runners.registry import RUNTIMES
from bilateral_export.tensors import BATCH


def check(
    checkpoint: Path,
    onnx: Path,
    *,
    served: Runner | None = None,
    plan: Path | None = None,
    inputs: Path | None = None,
    factor: float = DEFAULT_FACTOR,
    batches: Sequence[int] = DEFAULT_BATCHES,
    lengths: Mapping[str, Sequence[int]] | None = None,
    items: int | None = None,
    seed: int = 0,
    adversarial: int = 0,
    compiled: bool = False,
    layers: bool = False,
    reproducers: Path | None = None,
    html: Path | None = None,
    baseline: Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Return the report on whether what is served computes what was trained.

    A file of `bilateral quantize` is held to the loss of decisions that it states, on real inputs.

    Args:
        checkpoint: The trained checkpoint.
        onnx: The ONNX file exported from it.
        served: The served model, such as `bilateral_serving.client.runner.TritonRunner`.
        plan: A TensorRT plan of the file; it needs the GPU it was built for.
        inputs: Real preprocessed inputs: an .npz file with one array per input, and where they are
            known their classes as `labels`.
        factor: The budget of the largest error, as a multiple of eager PyTorch's.
        batches: Batch sizes, such as the corners of a TensorRT profile.
        lengths: Sizes to visit of other dynamic dimensions, by name.
        items: Random inputs to compare at least; None: `samples.enough_items`.
        seed: Of the random inputs.
        adversarial: Steps of the search for the inputs that disagree most; 0 searches none.
        compiled: Whether to run torch.compile too, which takes a minute.
        layers: Whether to report the error at every node, even when all passes.
        reproducers: Directory for the first failing node alone; None writes none.
        html: File for a self-contained page; None writes none.
        baseline: An earlier report as JSON, for `ParityReport.regressions`.
        model: As in `load_checkpoint`.
        weights: As in `load_checkpoint`, where the ONNX file does not say.
        progress: Told the name of each stage as it starts.

    Raises:
        UserError: An argument, a file or an input does not fit, `served` or `plan` cannot run, no
            stage that reads the file could open it, or a file that states a loss has too few real
            inputs to be judged on.
    """
    earlier = read_report(baseline) if baseline is not None else None
    if not 0 < factor < float("inf"):
        raise UserError(f"factor {factor} is not a positive finite number", "Give one such as 4.")
    if reproducers is not None and reproducers.exists() and not _is_empty(reproducers):
        raise UserError(f"{reproducers} exists already", "Remove it or choose another name.")
    metadata = read_metadata(onnx)
    loaded = load_exported(checkpoint, metadata, model=model, weights=weights)
    if earlier is not None:
        require_same_model(earlier, loaded.card)
    described = loaded.build_model()
    check_graph(onnx, metadata, loaded.card.model.family)
    _check_dimensions(described, lengths or {})
    samples = random_samples(described, batches, lengths, items, seed)
    if inputs is not None:
        samples += real_samples(described.inputs(), inputs, batches)
    stated = read_stated_loss(onnx)
    if stated is not None:
        _check_enough(onnx, samples)
    with tempfile.TemporaryDirectory() as scratch:
        made, skipped = stages(
            loaded, onnx, metadata.precision, Path(scratch), compiled=compiled, stated=stated
        )
        for runner, name, reason in (
            (served, "served over gRPC", "give --served NAME"),
            (
                None if plan is None else RUNTIMES["tensorrt"].load(plan),
                "TensorRT, function body or plugin",
                "give --plan; it needs an NVIDIA GPU",
            ),
        ):
            if runner is None:
                skipped.append(Skipped(stage=name, reason=reason))
            else:
                candidate = Candidate(runner, metadata.precision, stated=stated)
                made.append(Stage(candidate, True, required=True))
        job = ParityJob(
            loaded,
            made,
            samples,
            metadata,
            onnx,
            skipped,
            factor=factor,
            adversarial=adversarial,
            layers=layers or html is not None,
            reproducers=reproducers,
        )
        report = run_matrix(job, progress)
    judged = (read_onnx(onnx).sha256, *([sha256(plan)] if plan is not None else ()))
    report = report.model_copy(update={"judged": judged})
    if earlier is not None:
        worse = tuple(regressions(report, earlier))
        report = report.model_copy(update={"regressions": worse})
    if html is not None:
        write_html(html, report, samples)
    return report


def _check_enough(onnx: Path, samples: Sequence[Sample]) -> None:
    if (items := sum(sample.items for sample in samples if sample.real)) < FEWEST:
        raise UserError(
            f"{onnx} states a loss of decisions on real inputs, and {items or 'none'} are given",
            f"Give --inputs with {FEWEST} or more, and their classes as 'labels' if known.",
        )


def _check_dimensions(model: Family, lengths: Mapping[str, Sequence[int]]) -> None:
    sizes = (size for spec in model.inputs() for size in spec.shape)
    known = [size for size in dict.fromkeys(sizes) if isinstance(size, str) and size != BATCH]
    if unknown := sorted(lengths.keys() - known):
        raise UserError(
            f"the model has no dimension {', '.join(unknown)}",
            f"It has {', '.join(known) or 'none'}.",
        )


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
