"""The model that scores: its file, what the file says, and the runtime that runs it."""

from __future__ import annotations

import contextlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilateral_export.artifact import read_onnx
from bilateral_export.engine.plan.manifest import verify_plan
from bilateral_export.errors import UserError
from bilateral_export.files import require_file, sha256
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.preprocessing import (
    ImagePreprocessing,
    PixelsPreprocessing,
    Preprocessing,
    SegmentationPreprocessing,
    TextPreprocessing,
)
from bilateral_export.runners.base import BaseRunner
from bilateral_export.runners.registry import DEFAULT, RUNTIMES
from bilateral_export.tensors import FEATURES, TensorSpec
from bilateral_serving.client.inputs.files import documents
from bilateral_serving.scoring.items import IMAGES, TEXTS

PARITY_UNKNOWN = "not judged"
_LARGEST_CPU, _LARGEST_GPU = 16, 64


@dataclass(frozen=True)
class Model:
    """A model file and all that rows say of it; goes to every worker.

    Attributes:
        path: The file, absolute: workers on other machines find it at the same place.
        runtime: The runtime's name in the registry.
        sha256: Of the file, and of the files of its weights.
        judged_as: Hashes by which a parity report may name it.
        metadata: What the file says of itself.
        inputs, outputs: Its tensors.
        max_batch: The largest batch; None where it sets no limit.
        fixed_batch: The only batch it takes; 0 where the batch is free.
        bytes: Size of the file, weights included.
        lowered: Whether it needs no lowering to be fast on its runtime.
        parity: "passed", "failed: STAGES", or `PARITY_UNKNOWN`.
        versions: Of this package and of the runtime, such as "bilateral-serve 0.1.0".
    """

    path: Path
    runtime: str
    sha256: str
    judged_as: tuple[str, ...]
    metadata: ArtifactMetadata
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int | None
    fixed_batch: int
    bytes: int
    lowered: bool
    parity: str
    versions: tuple[str, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        """How an item becomes its input."""
        assert self.metadata.preprocessing is not None
        return self.metadata.preprocessing

    @property
    def output(self) -> str:
        """The output that is kept: features, or logits."""
        names = [spec.name for spec in self.outputs]
        return next((name for name in (FEATURES, "logits") if name in names), names[0])

    @property
    def gives_features(self) -> bool:
        """Whether it has no head, so that nothing is decided."""
        return self.output == FEATURES

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        runtime = RUNTIMES[self.runtime]
        return runtime.reads == "plan" or runtime.provider.startswith("CUDA")

    @property
    def endings(self) -> tuple[str, ...]:
        """Endings of the files in a folder that it can score."""
        images = isinstance(self.preprocessing, ImagePreprocessing | PixelsPreprocessing)
        return IMAGES if images else TEXTS

    @property
    def batch(self) -> int:
        """Items in one inference, unless another number is wanted."""
        usual = _LARGEST_GPU if self.on_gpu else _LARGEST_CPU
        return self.fixed_batch or min(usual, self.max_batch or usual)

    @property
    def identity(self) -> dict[str, Any]:
        """What one output folder's rows must share."""
        return {
            "model": self.metadata.name,
            "model_sha256": self.sha256,
            "runtime": self.runtime,
            "parity": self.parity,
        }

    def runner(self, threads: int) -> BaseRunner[Any]:
        """Return its runner, not open yet.

        Raises:
            UserError: The file is another than the one that was read, or cannot be run here.
        """
        if _sha256(self.path) != self.sha256:
            raise UserError(
                f"{self.path} is not the file that this run began with",
                "Give every machine the same file, and start again.",
            )
        options = {} if self.on_gpu else {"threads": threads}
        return RUNTIMES[self.runtime].load(self.path, **options)


def load_model(path: Path, runtime: str = "", parity: Path | None = None) -> Model:
    """Return what an exported or lowered ONNX file, or a TensorRT plan, says of itself.

    Args:
        path: The file.
        runtime: A name of the registry; "": TensorRT for a plan, else what the file was lowered
            for, else ONNX Runtime.
        parity: The report of `bilateral parity --json` about it.

    Raises:
        UserError: It cannot be read, does not say how a file becomes its input, does neither
            classify nor give features, or the report is of another file.
    """
    path = require_file(path, "model").absolute()
    is_plan = path.suffix != ".onnx" and (path.parent / f"{path.name}.json").exists()
    found = _read_plan(path) if is_plan else _read_onnx(path, runtime)
    _check(found)
    known = RUNTIMES[found.runtime]
    known.require()
    versions = []
    for name in ("bilateral-serve", "numpy", "pillow", *known.distributions):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    said = _verdict(parity, found) if parity else PARITY_UNKNOWN
    return Model(**(vars(found) | {"parity": said, "versions": tuple(versions)}))


def _read_onnx(path: Path, runtime: str) -> Model:
    artifact = read_onnx(path)
    lowered_for = (artifact.lowering or {}).get("runtime", "")
    names = {each.lowering: name for name, each in RUNTIMES.items() if each.lowering}
    runtime = runtime or names.get(lowered_for, DEFAULT)
    usable = [n for n, each in RUNTIMES.items() if each.reads == "onnx" and not each.diagnostic]
    if runtime not in usable:
        raise UserError(f"unknown runtime '{runtime}'", f"Use {' or '.join(usable)}.")
    if artifact.metadata is None:
        raise UserError(
            f"{path} does not say how a file becomes its input",
            "Score what `bilateral export` wrote.",
        )
    first = artifact.inputs[0].shape[0] if artifact.inputs[0].shape else 0
    return Model(
        path=path,
        runtime=runtime,
        sha256=artifact.sha256,
        judged_as=artifact.judged_as,
        metadata=artifact.metadata,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        max_batch=artifact.max_batch,
        fixed_batch=first if isinstance(first, int) else 0,
        bytes=artifact.bytes,
        lowered=artifact.lowering is not None or not artifact.attention,
        parity=PARITY_UNKNOWN,
        versions=(),
    )


def _read_plan(path: Path) -> Model:
    manifest = verify_plan(path)
    if manifest.metadata is None:
        raise UserError(
            f"{path} does not say how a file becomes its input",
            "Build it from a file that `bilateral export` wrote.",
        )
    digest = sha256(path)
    return Model(
        path=path,
        runtime="tensorrt",
        sha256=digest,
        judged_as=(digest,),
        metadata=ArtifactMetadata.model_validate(manifest.metadata),
        inputs=tuple(manifest.inputs),
        outputs=tuple(manifest.outputs),
        max_batch=manifest.max_batch or None,
        fixed_batch=0 if manifest.max_batch else int(manifest.inputs[0].shape[0]),
        bytes=path.stat().st_size,
        lowered=True,
        parity=PARITY_UNKNOWN,
        versions=(),
    )


def _check(model: Model) -> None:
    how = model.metadata.preprocessing
    name = model.metadata.name
    if how is None:
        raise UserError(
            f"model '{name}' was exported without preprocessing",
            "Export it again with --model CARD.json, a card that has one.",
        )
    if isinstance(how, SegmentationPreprocessing | TextPreprocessing) or documents(how) > 1:
        raise UserError(
            f"model '{name}' neither classifies single files nor gives features of them",
            "For a segmenter use infer, for a language model score, for pairs of texts infer.",
        )
    if len(model.inputs) != 1:
        raise UserError(f"model '{name}' has {len(model.inputs)} inputs", "A file makes one.")


def _verdict(report: Path, model: Model) -> str:
    from bilateral_export.parity.report.document import read_report

    found = read_report(report)
    found.require_about(str(model.path), model.judged_as)
    return found.verdict


def _sha256(path: Path) -> str:
    return read_onnx(path).sha256 if path.suffix == ".onnx" else sha256(path)
