"""Metadata of an exported model: the JSON document under one ONNX metadata key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bilateral_export.preprocessing import ImagePreprocessing, Preprocessing

__all__ = [
    "LOWERING_KEY",
    "METADATA_KEY",
    "QUANTIZATION_KEY",
    "ArtifactMetadata",
    "ImagePreprocessing",
    "Precision",
    "image_sizes",
]

METADATA_KEY = "bilateral"
# Of what `bilateral lower` did to a file.
LOWERING_KEY = "bilateral.lowering"
# Of the loss that `bilateral quantize` states.
QUANTIZATION_KEY = "bilateral.quantization"

Precision = Literal["fp32", "fp16", "bf16"]


class ArtifactMetadata(BaseModel):
    """Everything a server or a client needs to know of an exported model.

    Attributes:
        preprocessing_source: Who says how inputs are prepared, such as "the checkpoint's card";
            empty where nothing is said, and in files of version 0.1.0.
        weights: The entry of a training checkpoint that was exported, such as "model_ema"; None
            where the checkpoint held nothing else, and in files of older versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    family: str
    name: str
    model: dict[str, Any]
    precision: Precision
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    preprocessing_source: str = ""
    checkpoint_sha256: str
    weights: str | None = None
    license: str
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def image_sizes(self) -> dict[str, tuple[int, int, int]]:
        """Smallest, own and largest size of the image axes that are free."""
        return image_sizes(self.model)


def image_sizes(model: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Return the smallest, own and largest size of the image axes that are free, by their name.

    Empty for a model of one size, and for one that takes no images.

    Args:
        model: A configuration, as metadata has it.
    """
    sizes, own = model.get("sizes"), model.get("image_size")
    if not sizes or own is None:
        return {}
    usual = (own, own) if isinstance(own, int) else own
    axes = zip(("height", "width"), zip(*sizes, strict=True), usual, strict=True)
    return {name: (min(found), size, max(found)) for name, found, size in axes}
