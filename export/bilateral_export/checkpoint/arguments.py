"""Training arguments: the model and the image preprocessing that DeiT and timm scripts record."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bilateral_export.checkpoint.formats.text import printable
from bilateral_export.errors import UserError
from bilateral_export.preprocessing import ImagePreprocessing

_LARGEST_IMAGE = 1 << 16


@dataclass(frozen=True)
class TrainingArguments:
    """The arguments of DeiT's `main.py` and timm's `train.py` that an export needs.

    Attributes:
        model: Name of the architecture.
        image_size: Side of the model's images: `input_size` or `img_size`.
        num_classes: `nb_classes` or `num_classes`.
        crop: Share of the resized shorter side that is kept: `eval_crop_ratio` or `crop_pct`.
        interpolation: Of the resize.
        mean, std: Of each channel, of values from 0 to 1.
    """

    model: str | None = None
    image_size: int | None = None
    num_classes: int | None = None
    crop: float | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def prepare(self, before: ImagePreprocessing) -> ImagePreprocessing:
        """Return the preprocessing with everything that the arguments say of it.

        Both scripts make the shorter side `int(input_size / crop)` pixels.
        """
        said: dict[str, Any] = dict(self._of_images())
        if crop := said.pop("crop", None):
            said["resize"] = int(before.height / crop)
        return ImagePreprocessing.model_validate(before.model_dump() | said)

    def complete(self, image_size: int, channels: int) -> ImagePreprocessing | None:
        """Return the preprocessing that `prepare` starts from, where the arguments say all of it.

        Raises:
            ValidationError: They speak of another number of channels.
        """
        if self.crop and self.interpolation and self.mean and self.std and channels in (1, 3):
            return ImagePreprocessing.model_validate(
                {
                    "height": image_size,
                    "width": image_size,
                    "channels": channels,
                    "resize": image_size,
                    "mean": self.mean,
                    "std": self.std,
                }
            )
        return None

    def said(self) -> list[str]:
        """Return what they say of images, for people."""
        return [f"{name} {value}" for name, value in self._of_images().items()]

    def _of_images(self) -> dict[str, Any]:
        names = ("crop", "interpolation", "mean", "std")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def training_arguments(arguments: object, path: Path) -> TrainingArguments:
    """Return the arguments in a Namespace or a dictionary; what is absent or None says nothing.

    Raises:
        UserError: An argument is not of its type or has a value that no image can be prepared by.
    """
    if isinstance(arguments, Mapping):
        said = dict(arguments)
    else:
        said = dict(getattr(arguments, "__dict__", {}))
    reader = _Reader(said, path)
    name = said.get("model")
    image_size = reader.whole("input_size", "img_size")
    crop = reader.crop("eval_crop_ratio", "crop_pct")
    if said.get("eval_crop_ratio") is not None and image_size is not None and image_size <= 32:
        crop = 1.0  # DeiT's build_transform takes images of 32 pixels and less as they are
    return TrainingArguments(
        model=name if isinstance(name, str) and name else None,
        image_size=image_size,
        num_classes=reader.whole("nb_classes", "num_classes"),
        crop=crop,
        interpolation=reader.interpolation(),
        mean=reader.channels("mean", least=-math.inf),
        std=reader.channels("std", least=0.0),
    )


@dataclass(frozen=True)
class _Reader:
    said: Mapping[str, Any]
    path: Path

    def whole(self, *names: str) -> int | None:
        name, value = self._first(*names)
        if isinstance(value, list | tuple) and value:
            value = value[-1]  # timm's channels, height, width
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _LARGEST_IMAGE:
            raise self._wrong(name, "is not a size")
        return value

    def crop(self, *names: str) -> float | None:
        name, value = self._first(*names)
        if value is None:
            return None
        if not _is_number(value) or not 0.01 <= value <= 1:
            raise self._wrong(name, "is not a share from 0.01 to 1")
        return float(value)

    def interpolation(self) -> Literal["bilinear", "bicubic"] | None:
        for name, known in (("interpolation", ("bilinear", "bicubic")), ("crop_mode", ("center",))):
            value = self.said.get(name)
            if value and value not in known:
                raise self._wrong(name, f"is not {' or '.join(known)}, all that is served")
        value = self.said.get("interpolation")
        return value if value in ("bilinear", "bicubic") else None

    def channels(self, name: str, least: float) -> tuple[float, ...] | None:
        value = self.said.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) not in (1, 3):
            raise self._wrong(name, "is not a number for each channel")
        if not all(_is_number(item) and least < item < math.inf for item in value):
            raise self._wrong(name, "is not a number for each channel")
        return tuple(map(float, value))

    def _first(self, *names: str) -> tuple[str, Any]:
        """The first of several names that says something, and its value."""
        return next(
            ((name, self.said[name]) for name in names if self.said.get(name) is not None),
            (names[0], None),
        )

    def _wrong(self, name: str, problem: str) -> UserError:
        return UserError(
            f"checkpoint {self.path}: its training arguments have {name}"
            f" {printable(reprlib.repr(self.said[name]))}, which {problem}",
            "Save the state_dict alone and give --model a card with the preprocessing.",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
