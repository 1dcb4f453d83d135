"""Preprocessing documents: how an input file becomes a model's input, one per kind of input."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

# Token ids that every family of token models shares.
PADDING = 0


_Mean = Annotated[float, Field(allow_inf_nan=False)]
_Side = Annotated[int, Field(gt=0)]
_Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSizes(_Document):
    """The images that a model of several sizes takes.

    Attributes:
        multiple: Heights and widths are multiples of this: the side of a patch.
        smallest: Height and width, each the smallest.
        largest: Height and width, each the largest.
    """

    multiple: _Side
    smallest: tuple[_Side, _Side]
    largest: tuple[_Side, _Side]

    def __str__(self) -> str:
        (low, left), (high, right) = self.smallest, self.largest
        return f"{low} to {high} x {left} to {right} pixels, multiples of {self.multiple}"

    def refused(self, height: int, width: int) -> str:
        """Return why an image of this size is not one of them; empty if it is."""
        fits = all(
            low <= side <= high and side % self.multiple == 0
            for low, side, high in zip(self.smallest, (height, width), self.largest, strict=True)
        )
        return "" if fits else f"{height}x{width} is not of {self}"


class ImagePreprocessing(_Document):
    """How a decoded image becomes an input tensor `[C, H, W]`, float32.

    Resize so that the shorter side is `resize` pixels, crop the centre to `height` x `width`, scale
    to 0..1, then subtract `mean` and divide by `std` per channel.

    Where an odd number of pixels is cropped, `crop` says where half of one goes: "round" to the
    nearest even offset, as torchvision's CenterCrop, timm and DeiT do; "floor", as transformers'
    image processors do (`image_transforms.center_crop`). One pixel changes a photograph's values
    by 10 of 255 on average.

    A model of several sizes gets images of `height` x `width` too, the size its accuracy is known
    at, unless one is asked for: see `at`.

    Attributes:
        resize: The shorter side, which keeps the aspect ratio; or height and width, which does not.
        sizes: What else a model of several sizes takes; None for a model of one size.
    """

    kind: Literal["image"] = "image"
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    channels: Literal[1, 3] = 3
    resize: _Side | tuple[_Side, _Side]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop: Literal["round", "floor"] = "round"
    mean: tuple[_Mean, ...]
    std: tuple[_Deviation, ...]
    sizes: ImageSizes | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `sizes` where there are none: readers of earlier versions do not know it."""
        written: dict[str, Any] = fields(self)
        if written.get("sizes", ...) is None:
            del written["sizes"]
        return written

    def at(self, height: int, width: int) -> ImagePreprocessing:
        """Return the same for images of another size; its resize grows in proportion."""
        shorter, wanted = min(self.height, self.width), min(height, width)
        resize: int | tuple[int, int]
        if self.resize == shorter * 8 // 7:
            resize = wanted * 8 // 7  # DeiT's int(size / 0.875)
        elif isinstance(self.resize, int):
            resize = round(self.resize * wanted / shorter)
        else:
            rows, columns = self.resize
            resize = round(rows * height / self.height), round(columns * width / self.width)
        return self.model_copy(update={"height": height, "width": width, "resize": resize})

    def keeping_aspect(self, height: int, width: int) -> ImagePreprocessing:
        """Return the same for one image, of which as much is kept as the model's sizes allow.

        The shorter side stays the model's own. The longer one is as long as the image's aspect
        ratio makes it, in whole patches, and at most the largest that the model takes; what is
        longer is cropped.

        Args:
            height: Of the image.
            width: Likewise.

        Raises:
            ValueError: The model takes one size only.
        """
        if self.sizes is None:
            raise ValueError("the model takes images of one size")
        side, step = min(self.height, self.width), self.sizes.multiple
        kept = [
            min(max(step * round(side * length / min(height, width) / step), low), high)
            for low, length, high in zip(
                self.sizes.smallest, (height, width), self.sizes.largest, strict=True
            )
        ]
        return self.at(*kept)

    @model_validator(mode="after")
    def _every_channel_is_normalised(self) -> ImagePreprocessing:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"{self.channels} channels, {len(self.mean)} means and {len(self.std)} deviations"
            )
        return self


class SegmentationPreprocessing(_Document):
    """How an image of any size becomes windows `[3, window, window]`, float32, and classes colours.

    Scale so that the shorter side is `window` pixels where it is shorter, cut windows every
    `stride` pixels (the last ones flush with the edge), scale to 0..1, subtract `mean`, divide by
    `std`. Class i is drawn in `palette[i]` (red, green, blue).
    """

    kind: Literal["segmentation"] = "segmentation"
    window: int = Field(gt=0)
    stride: int = Field(gt=0)
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Deviation, _Deviation, _Deviation]
    palette: tuple[tuple[int, int, int], ...]


class BytesPreprocessing(_Document):
    """UTF-8 text to token ids: byte + 1, cut after `length`; 0 pads.

    With two documents, an input is a pair of texts.
    """

    kind: Literal["bytes"] = "bytes"
    length: int = Field(gt=0)
    documents: Literal[1, 2] = 1


class ListOpsPreprocessing(_Document):
    """An expression such as `[MAX 2 [MIN 4 7 ] 0 ]` to token ids; 0 pads."""

    kind: Literal["listops"] = "listops"
    length: int = Field(gt=0)


class PixelsPreprocessing(_Document):
    """An image to its grey levels (0..255), row by row, as token ids.

    Resize so that the shorter side fits, crop the centre to `height` x `width`, take the luma.
    """

    kind: Literal["pixels"] = "pixels"
    height: int = Field(gt=0)
    width: int = Field(gt=0)


class TextPreprocessing(_Document):
    """Text to the ids of words, and back; `bilateral_export.text` does it.

    Attributes:
        vocabulary: The words by id; empty where the vocabulary lies in a file of its own, as in a
            model repository.
        vocabulary_sha256: Of the words, joined by newlines.
        split: "words" cuts at spaces and around punctuation; "spaces" at spaces only, for text
            that is tokenised already, such as WikiText.
        context: Longest window the model is run on.
    """

    kind: Literal["text"] = "text"
    vocabulary: tuple[str, ...] = ()
    vocabulary_sha256: str
    split: Literal["words", "spaces"] = "words"
    context: int = Field(gt=1)

    @model_validator(mode="after")
    def _vocabulary_is_whole(self) -> TextPreprocessing:
        digest = hashlib.sha256("\n".join(self.vocabulary).encode()).hexdigest()
        if self.vocabulary and digest != self.vocabulary_sha256:
            raise ValueError(f"the vocabulary's SHA-256 is {digest}, not {self.vocabulary_sha256}")
        if broken := next((word for word in self.vocabulary if "\n" in word), None):
            raise ValueError(f"the word {broken!r} is more than one line")
        return self


Preprocessing = Annotated[
    ImagePreprocessing
    | SegmentationPreprocessing
    | BytesPreprocessing
    | ListOpsPreprocessing
    | PixelsPreprocessing
    | TextPreprocessing,
    Field(discriminator="kind"),
]


def preprocessing_text(how: Preprocessing | None, source: str = "") -> str:
    """Return one line for a person: what is done to an input file, and who said so.

    Args:
        how: The model's preprocessing.
        source: Where it comes from, such as "the checkpoint's card"; may be empty.
    """
    if how is None:
        return (
            "none: `bilateral infer` cannot prepare files; export with --model CARD.json, a"
            ' document {"schema_version": 1, "name": ..., "model": the configuration,'
            ' "preprocessing": {"kind": "image", ...}}'
        )
    shown = how.model_dump(exclude={"kind", "palette", "vocabulary", "vocabulary_sha256", "sizes"})
    if isinstance(how, ImagePreprocessing) and how.sizes is not None:
        shown["sizes"] = str(how.sizes)
    values = {
        name: " ".join(f"{one:.4g}" for one in value) if isinstance(value, tuple) else str(value)
        for name, value in shown.items()
    }
    text = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"{how.kind}: {text}" + (f"; from {source}" if source else "")
