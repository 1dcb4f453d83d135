"""What an exported model says about itself: the JSON document under one ONNX metadata key."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

METADATA_KEY = "bilateral"
SCHEMA_VERSION = 1

Precision = Literal["fp32", "fp16", "bf16"]


class ImagePreprocessing(BaseModel):
    """How a decoded image becomes an input tensor `[C, H, W]`, float32.

    Resize so that the shorter side is `resize` pixels, crop the centre to `height` x `width`, scale
    to 0..1, then subtract `mean` and divide by `std` per channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["image"] = "image"
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    channels: Literal[1, 3] = 3
    resize: int = Field(gt=0)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, ...]
    std: tuple[float, ...]


class ArtifactMetadata(BaseModel):
    """Everything a server or a client needs to know of an exported model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    family: str
    name: str
    model: dict[str, Any]
    precision: Precision
    labels: tuple[str, ...] = ()
    preprocessing: ImagePreprocessing | None = None
    checkpoint_sha256: str
    license: str
    versions: dict[str, str] = Field(default_factory=dict)
