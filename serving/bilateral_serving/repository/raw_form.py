"""A model's raw form in its configuration: files beside the tensors of its graph."""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.artifact import Artifact
from bilateral_export.errors import UserError
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_serving import raw


def add_raw(config: pb.ModelConfig, artifact: Artifact) -> None:
    """Make a model of target python take files too.

    Raises:
        UserError: Its file does not say how they are prepared, its batch is fixed, or a tensor has
            a name of the raw form.
    """
    about = artifact.metadata
    if config.backend != "python":
        raise UserError(
            f"target {config.backend} takes tensors only",
            "Leave --raw out, or use target python.",
        )
    if about is None or not _says_how(about):
        raise UserError(
            f"{artifact.path} does not say how a file becomes its input",
            "Leave --raw out, or export it with a card that has a preprocessing or vocabulary.",
        )
    if not config.max_batch_size:
        raise UserError(
            f"--raw needs batches, and {artifact.path} is served without",
            "Export it with a dynamic batch, and do not set --max-batch-size 0.",
        )
    assert about.preprocessing is not None
    form = raw.interface(about.preprocessing, [spec.name for spec in artifact.outputs])
    if clash := _taken(artifact, form):
        raise UserError(
            f"{artifact.path} has a tensor '{clash[0]}', as the raw form of a model has",
            "Leave --raw out, or rename it.",
        )
    for tensor in config.input:
        tensor.optional = True
    config.MergeFrom(form)
    config.parameters[raw.PARAMETER].string_value = form.input[0].name
    config.parameters[raw.MAX_PIXELS_PARAMETER].string_value = str(raw.MAX_PIXELS)


def takes_files(artifact: Artifact) -> bool:
    """Return whether a model file can be served in raw form by target python."""
    about = artifact.metadata
    if about is None or about.preprocessing is None or not _says_how(about):
        return False
    form = raw.interface(about.preprocessing, [spec.name for spec in artifact.outputs])
    return artifact.has_free_batch and not _taken(artifact, form)


def _says_how(about: ArtifactMetadata) -> bool:
    how = about.preprocessing
    return bool(how.vocabulary) if isinstance(how, TextPreprocessing) else how is not None


def _taken(artifact: Artifact, form: pb.ModelConfig) -> list[str]:
    """Return the names of a file's tensors that the raw form needs for its own."""
    names = {one.name for one in (*form.input, *form.output)}
    return sorted(names.intersection(spec.name for spec in artifact.tensors))
