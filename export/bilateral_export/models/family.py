"""The interface of a model family: what export, parity and serving ask of a model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.residual import ResidualConfig
from bilateral_export.preprocessing import Preprocessing
from bilateral_export.tensors import Array, TensorSpec


@dataclass(frozen=True)
class ImageTokens:
    """How an image `[channels, height, width]` becomes prefix tokens and a grid of patches."""

    height: int
    width: int
    channels: int
    patch_size: int
    prefix: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch_size, self.width // self.patch_size


class FamilyConfig(BaseModel):
    """Base of a family's configuration: sizes and kernels, as a checkpoint's card stores them.

    A family adds its fields; `family` becomes a literal with a default, its name in files.

    Attributes:
        family: The family's name.
        attention: The two kernels of its attention.
        residual: The coefficients of its residual connections.
        generative: Whether the model continues a text, word by word, from a cache.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    generative: ClassVar[bool] = False
    family: str
    attention: AttentionConfig = AttentionConfig()
    residual: ResidualConfig = ResidualConfig()

    @property
    def classes(self) -> int:
        """Number of classes that labels can name; 0 where the outputs have none."""
        return getattr(self, "num_classes", 0)

    @property
    def pads(self) -> bool:
        """Whether token id 0 is padding; elsewhere it is a token like any other."""
        return False

    @property
    def image(self) -> ImageTokens | None:
        """The image that a classifier reads in one piece; None for every other family.

        Where there is one, the model can be moved to another resolution (`resized`), its attention
        can be shown as heat maps, and training arguments say how images were preprocessed.
        """
        return None

    def resized(self, height: int, width: int) -> FamilyConfig:
        """Return this configuration for images of another size; only where there is an `image`."""
        raise NotImplementedError

    def with_output(self, output: str) -> FamilyConfig:
        """Return this configuration for another output of the model, without a head.

        Raises:
            ValueError: The model has no such output.
        """
        raise ValueError(f"the family {self.family!r} has one output")

    def check_preprocessing(self, how: Preprocessing) -> None:
        """Check that a preprocessing makes this model's input.

        Raises:
            ValueError: It makes another, and how it differs.
        """
        raise ValueError(
            f"preprocessing of the kind {how.kind!r} is not for the family {self.family!r}"
        )


class Family(nn.Module):
    """A model that can be exported, compared and served.

    `forward` takes the tensors of `inputs` in their order and returns those of `outputs`: one
    tensor, or a tuple. The class is called with its configuration.

    Attributes:
        decides: Whether the one output is labels `[B, S, S]`, decided from `scores` by `decide`.
        scope: What the names of an adapter's modules begin with, and an exported file leaves out.
        source_directory: Where the model's code is, for the source lines of its nodes; None for
            this package's.
    """

    decides: ClassVar[bool] = False
    scope: ClassVar[str] = ""
    source_directory: Path | None = None
    config: FamilyConfig

    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the exported graph's inputs, in the order of `forward`'s arguments."""

    @abstractmethod
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the exported graph's outputs, in the order `forward` returns them."""

    @abstractmethod
    def example(self, batch: int, generator: np.random.Generator, **dims: int) -> dict[str, Array]:
        """Return random valid inputs by name, in the shapes and dtypes of `inputs`.

        Args:
            batch: Number of items.
            generator: Source of randomness.
            dims: Sizes of the dynamic dimensions but the batch, by name; the family's choice where
                one is left out.
        """

    def corners(self) -> tuple[dict[str, int], ...]:
        """Return the extreme sizes of the dynamic dimensions but the batch; usual ones last."""
        return ({},)

    def scores(self, *inputs: Tensor) -> Tensor:
        """Return the score of every class for every pixel, `[B, classes, S, S]`, floating point."""
        raise NotImplementedError

    def decide(self, scores: Tensor) -> Tensor:
        """Return the labels `[B, S, S]`, integers, of scores `[B, classes, S, S]`."""
        raise NotImplementedError


def tracing_example(model: Family) -> dict[str, Array]:
    """Return inputs to trace a model with: at least 2 along every dynamic dimension.

    A tracer takes a size of 0 or 1 for a constant. No values are looked up while it traces, so that
    they may be longer than the model allows.
    """
    drawn = model.example(2, np.random.default_rng(0))
    sizes = {
        name: max(2, size)
        for spec in model.inputs()
        for name, size in zip(spec.shape, drawn[spec.name].shape, strict=True)
        if isinstance(name, str) and name != "batch"
    }
    return model.example(2, np.random.default_rng(0), **sizes)
