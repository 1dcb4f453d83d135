"""The model file that is to be served: whether Triton can serve it, and what it lacks."""

from __future__ import annotations

from pathlib import Path

from bilateral_export.artifact import Artifact, OnnxArtifact, read_onnx
from bilateral_export.errors import UserError
from bilateral_serving.datatypes import TRITON_NAMES

_SERVED = [dtype for dtype in TRITON_NAMES if dtype != "object"]


def read_served(path: Path) -> OnnxArtifact:
    """Return what an ONNX file takes, gives and says about itself.

    Raises:
        UserError: As `read_onnx`; or a tensor cannot be served, or weights lie elsewhere.
    """
    artifact = read_onnx(path)
    for tensor in artifact.tensors:
        if tensor.dtype not in _SERVED:
            raise UserError(
                f"{path}: tensor '{tensor.name}' has element type {tensor.dtype}, which is not"
                " served",
                f"Export it as one of {', '.join(_SERVED)}.",
            )
        if not tensor.shape:
            raise UserError(
                f"{path}: tensor '{tensor.name}' is a scalar or of unknown rank, which Triton"
                " cannot pass on",
                "Export it with a known rank, a scalar with shape [1].",
            )
    for file in artifact.external_files:
        if file.parent != path.parent:
            raise UserError(
                f"{path} keeps weights in '{file}', which is not a file beside it",
                "Export it again with its external data in the same directory.",
            )
    return artifact


def remarks(artifact: Artifact) -> tuple[str, ...]:
    """Return what a served file lacks, or has become in another tool; one line each."""
    about, found = artifact.metadata, []
    if about is None:
        found.append(
            "it has no metadata, which other tools drop: clients can neither prepare inputs for it"
            " nor name classes"
        )
    else:
        if about.preprocessing is None:
            found.append("it says no preprocessing: clients cannot prepare inputs from files")
        if not about.labels and about.family.endswith(("classifier", "segmenter")):
            found.append("it says no labels: clients can only number classes")
        if artifact.precision and artifact.precision != about.precision:
            found.append(
                f"its weights are {artifact.precision}, though it was exported as {about.precision}"
            )
    if not artifact.has_free_batch:
        found.append("its batch is fixed: requests are not batched")
    return tuple(found)
