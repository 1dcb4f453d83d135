"""The explanation of one image by one model, a checkpoint or an exported file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bilateral_export.artifact import read_metadata
from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.explain.graph import exported_image, onnx_maps, require_image
from bilateral_export.explain.maps import AttentionMaps, Weights
from bilateral_export.explain.page import Subject, View, write_explanation
from bilateral_export.explain.torch_maps import torch_maps
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.preprocessing import ImagePreprocessing

Prepare = Callable[[ImagePreprocessing], Weights]


def explain(
    image_name: str,
    prepare: Prepare,
    model: Path,
    directory: Path,
    view: View,
    *,
    name: str | None = None,
    weights: str | None = None,
) -> Path:
    """Write heat maps of where a model looks in an image; return the path of their page.

    Args:
        image_name: The image's name, for the page.
        prepare: Makes the model's input `[C, H, W]` of the image, given the model's preprocessing.
        model: A checkpoint, run by PyTorch, or an exported .onnx file, run by ONNX Runtime.
        directory: The directory to make.
        view: Which part of the attention is shown.
        name: As `model` in `load_checkpoint`; of a checkpoint only.
        weights: As in `load_checkpoint`; of a checkpoint only.

    Raises:
        UserError: The model is not an image classifier, does not say how an image becomes its
            input, or has no such layer or patch; or the directory exists.
    """
    about: ArtifactMetadata | CheckpointCard
    if model.suffix == ".onnx":
        if name is not None or weights is not None:
            raise UserError(
                f"{model} is an exported file, which says itself what it is",
                "Leave --model and --weights out.",
            )
        about = read_metadata(model)
        exported_image(model)
        maps: Callable[[Weights], AttentionMaps] = partial(onnx_maps, model)
        kind = f"{about.precision}, weights {about.weights}" if about.weights else about.precision
        runtime = f"ONNX Runtime from {model.name} ({kind})"
    else:
        loaded = load_checkpoint(model, model=name, weights=weights)
        about = loaded.card
        tokens = require_image(about.model, model)
        maps = partial(torch_maps, loaded.build_model(), tokens)
        runtime = f"PyTorch from {model.name}{f' ({loaded.weights})' if loaded.weights else ''}"
    how = about.preprocessing
    if not isinstance(how, ImagePreprocessing):
        raise UserError(
            f"{model} does not say how an image becomes its input",
            "Write the preprocessing into the checkpoint's card.",
        )
    tensor = prepare(how)
    subject = Subject(about.name, runtime, image_name, tensor, how, about.labels, maps(tensor))
    write_explanation(subject, view, directory)
    return directory / "index.html"
