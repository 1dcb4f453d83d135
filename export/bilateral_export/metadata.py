"""Metadata of an exported model: the JSON document under one ONNX metadata key."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bilateral_export.preprocessing import ImagePreprocessing, Preprocessing

__all__ = [
    "LOWERING_KEY",
    "METADATA_KEY",
    "ArtifactMetadata",
    "ImagePreprocessing",
    "Precision",
]

METADATA_KEY = "bilateral"
# Of what `bilateral lower` did to a file.
LOWERING_KEY = "bilateral.lowering"

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
        """Smallest, own and largest size of the axes `height` and `width`, where these are free.

        Empty for a model of one size, and for one that takes no images.
        """
        sizes, own = self.model.get("sizes"), self.model.get("image_size")
        if not sizes or own is None:
            return {}
        usual = (own, own) if isinstance(own, int) else own
        return {
            name: (min(found), usual[axis], max(found))
            for axis, name in enumerate(("height", "width"))
            if (found := [size[axis] for size in sizes])
        }
