"""The checkpoint that an exported file was made from, as it was exported, to compare the two."""

from __future__ import annotations

from pathlib import Path

from bilateral_export.checkpoint.checkpoint import Checkpoint
from bilateral_export.checkpoint.features import with_output
from bilateral_export.checkpoint.formats.recognise import identify
from bilateral_export.checkpoint.formats.text import printable
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.checkpoint.several_sizes import for_sizes
from bilateral_export.errors import UserError
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.models.definition import ModelDefinition
from bilateral_export.models.user_model import FAMILY as USER_FAMILY


def load_exported(
    path: Path,
    metadata: ArtifactMetadata,
    model: str | ModelDefinition | None = None,
    weights: str | None = None,
) -> Checkpoint:
    """Return the weights that an artifact was exported from, as it was exported.

    Args:
        path: The checkpoint.
        metadata: What the artifact says of itself.
        model: As in `load_checkpoint`.
        weights: Which weights, for artifacts that do not say (older ones). It must not contradict
            those that do.

    Raises:
        UserError: As `load_checkpoint`, or the artifact was exported from other weights.
    """
    if metadata.family == USER_FAMILY and model is None:
        source = metadata.model.get("source", "my_model.py:build")
        raise UserError(
            f"the file was exported from a model of your own, whose code is {printable(source)}",
            f"Give --model {printable(source)}, with its path; this runs that file's code.",
        )
    exported = metadata.weights
    if exported is not None and weights not in (None, exported):
        raise UserError(
            f"the file was exported from the weights {exported!r}, and --weights says {weights!r}",
            "Leave --weights out, or export those.",
        )
    if weights is None and exported and (exported.endswith(".") or identify(path) != "safetensors"):
        weights = exported
    return as_exported(load_checkpoint(path, model=model, weights=weights), metadata)


def as_exported(checkpoint: Checkpoint, metadata: ArtifactMetadata) -> Checkpoint:
    """Return the checkpoint at the resolutions and with the output of an artifact."""
    size = metadata.model.get("image_size")
    if size is None or checkpoint.card.model.image is None:
        return checkpoint
    checkpoint = at_resolution(checkpoint, size if isinstance(size, int) else (size[0], size[1]))
    output = metadata.model.get("output", "logits")
    checkpoint = checkpoint if output == "logits" else with_output(checkpoint, output)
    sizes = metadata.model.get("sizes")
    return for_sizes(checkpoint, [(size[0], size[1]) for size in sizes]) if sizes else checkpoint
