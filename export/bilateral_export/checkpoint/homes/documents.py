"""The JSON documents that lie beside weights: configuration, image processor, timm's config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bilateral_export.checkpoint.card import describe
from bilateral_export.checkpoint.formats.folder import CONFIG, DOCUMENTS, PROCESSOR
from bilateral_export.checkpoint.formats.text import printable, read_json
from bilateral_export.errors import UserError
from bilateral_export.preprocessing import ImagePreprocessing

# PIL's resampling filters, as image processors number them.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
# These resize to height and width whatever the aspect ratio, also where `size` is one number.
_SQUASHING = ("ViT", "DeiT")
_CORRECT = "Correct it, or give --model a card with the preprocessing."


def read_documents(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the documents of a folder that are there.

    Raises:
        UserError: One is not a JSON object.
    """
    found = {}
    for name in DOCUMENTS:
        path = folder / name
        if not path.is_file():
            continue
        document = read_json(path, "configuration")
        if not isinstance(document, dict):
            raise UserError(f"configuration {path} is not a JSON object", "Correct it.")
        found[name] = document
    return found


def whole(document: Mapping[str, Any], name: str, default: int | None = None) -> int | None:
    """A whole number of a document; a wrong one is refused."""
    value = document.get(name, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise UserError(
            f"{CONFIG} has {name} {printable(value)}, which is not a number", "Correct it."
        )
    return value


def size_of(value: Any) -> tuple[int, int] | None:
    """Height and width out of a number, a pair, or a dictionary of both; None for anything else."""
    if isinstance(value, Mapping):
        value = (value.get("height"), value.get("width"))
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if isinstance(value, list | tuple) and len(value) == 2:
        height, width = value
        if all(isinstance(side, int) and 0 < side < 1 << 16 for side in (height, width)):
            return height, width
    return None


def labels_of(config: Mapping[str, Any], classes: int, path: Path) -> tuple[str, ...]:
    """Class names of a `config.json`; empty where it has none but "LABEL_0" and so on.

    Raises:
        UserError: There are as many as the weights have no classes.
    """
    names = config.get("id2label")
    if not isinstance(names, Mapping) or not classes:
        return ()
    try:
        by_index = {int(index): str(name) for index, name in names.items()}
    except ValueError as error:
        raise UserError(
            f"{CONFIG} beside {path} has an id2label whose keys are not numbers", "Correct it."
        ) from error
    if set(by_index) != set(range(classes)):
        raise UserError(
            f"{CONFIG} beside {path} names {len(by_index)} classes, the weights have {classes}",
            "Give the weights and the configuration of one model.",
        )
    if all(name == f"LABEL_{index}" for index, name in by_index.items()):
        return ()
    return tuple(by_index[index] for index in range(classes))


def processor_preprocessing(
    document: Mapping[str, Any], channels: int
) -> tuple[ImagePreprocessing | None, str]:
    """What an image processor does, and why it cannot be done here where it cannot.

    Args:
        document: A `preprocessor_config.json`.
        channels: Of the model.

    Raises:
        UserError: The document contradicts itself.
    """
    kind = str(document.get("image_processor_type") or document.get("feature_extractor_type") or "")
    size, crop = document.get("size"), document.get("crop_size")
    interpolation = _RESAMPLE.get(document.get("resample", 2))
    if interpolation is None:
        return None, f"resample {printable(document['resample'])} is neither bilinear nor bicubic"
    if not document.get("do_resize", True):
        return None, "do_resize is off"
    factor = document.get("rescale_factor", 1 / 255)
    if not document.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        return None, f"it scales by {printable(factor)}, not by 1/255"
    squashed: tuple[int, int] | None = None
    shorter = None
    if isinstance(size, Mapping) and isinstance(size.get("shortest_edge"), int):
        shorter = size["shortest_edge"]
    elif isinstance(size, int) and not kind.startswith(_SQUASHING):
        shorter = size
    else:
        squashed = size_of(size)
    # ViTImageProcessor never crops; DeiT's and DINOv2's do where do_center_crop says so.
    cropped = size_of(crop) if document.get("do_center_crop") else None
    kept = cropped or squashed
    resize = shorter or squashed
    if kept is None or resize is None:
        return None, "it does not make images of one size"
    normalised = document.get("do_normalize", True)
    mean = document.get("image_mean") if normalised else [0.0] * channels
    std = document.get("image_std") if normalised else [1.0] * channels
    return _validated(
        {
            "height": kept[0],
            "width": kept[1],
            "channels": channels,
            "resize": resize,
            "interpolation": interpolation,
            "crop": "floor",  # as transformers' center_crop rounds
            "mean": mean,
            "std": std,
        },
        PROCESSOR,
    )


def pretrained_cfg_preprocessing(
    document: Mapping[str, Any], channels: int, size: tuple[int, int]
) -> tuple[ImagePreprocessing | None, str]:
    """What timm's evaluation does by a `pretrained_cfg`, and why it cannot be done here.

    timm scales the shorter side to `floor(size / crop_pct)` (crop_mode "squash": both sides) and
    keeps the centre.
    """
    interpolation = document.get("interpolation", "bicubic")
    crop = document.get("crop_pct", 0.875)
    if interpolation not in _RESAMPLE.values():
        return None, f"interpolation {printable(interpolation)} is neither bilinear nor bicubic"
    if not isinstance(crop, int | float) or not 0.01 <= crop <= 1:
        raise UserError(f"{CONFIG} has crop_pct {printable(crop)}, which is not a share", _CORRECT)
    mode = document.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        return None, f"crop_mode {printable(mode)} is neither center nor squash"
    both = (int(size[0] / crop), int(size[1] / crop))
    return _validated(
        {
            "height": size[0],
            "width": size[1],
            "channels": channels,
            "resize": both if mode == "squash" or size[0] != size[1] else both[0],
            "interpolation": interpolation,
            "mean": document.get("mean"),
            "std": document.get("std"),
        },
        CONFIG,
    )


def _validated(values: Mapping[str, Any], name: str) -> tuple[ImagePreprocessing | None, str]:
    if values["channels"] not in (1, 3):
        return None, f"images of {values['channels']} channels cannot be read from files"
    try:
        return ImagePreprocessing.model_validate(values), ""
    except ValidationError as error:
        raise UserError(
            f"{name} does not say how images are prepared: {describe(error)}", _CORRECT
        ) from error
