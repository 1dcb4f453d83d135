"""What every family of models offers, and the one place that knows all families."""

from __future__ import annotations

from typing import Annotated, Protocol, cast

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from bilateral_export.models.classifier import ImageClassifier, ImageClassifierConfig
from bilateral_export.models.language import LanguageModel, LanguageModelConfig
from bilateral_export.models.segmenter import Segmenter, SegmenterConfig
from bilateral_export.models.sequence import SequenceClassifier, SequenceClassifierConfig
from bilateral_export.tensors import Array, TensorSpec

# Pydantic tells the families apart by their `family` field.
ModelConfig = Annotated[
    ImageClassifierConfig | SequenceClassifierConfig | LanguageModelConfig | SegmenterConfig,
    Field(discriminator="family"),
]


class Exportable(Protocol):
    """What the exporter, the runners and the checkpoint reader need of a model."""

    config: ModelConfig

    def inputs(self) -> tuple[TensorSpec, ...]:
        """The exported graph's inputs, in the order of `forward`'s arguments."""

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The exported graph's outputs, in the order `forward` returns them."""

    def example(self, batch: int, generator: np.random.Generator, **dims: int) -> dict[str, Array]:
        """Random valid inputs, by name; `dims` gives the sizes of dynamic dimensions."""

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the model."""


def build(config: ModelConfig) -> nn.Module:
    """Build the model of a configuration, with fresh weights, in evaluation mode.

    The result is an `nn.Module` that is also `Exportable`.
    """
    match config:
        case ImageClassifierConfig():
            return ImageClassifier(config).eval()
        case SequenceClassifierConfig():
            return SequenceClassifier(config).eval()
        case LanguageModelConfig():
            return LanguageModel(config).eval()
        case SegmenterConfig():
            return Segmenter(config).eval()


def pads(model: object) -> bool:
    """Whether id 0 of a model's tokens is padding; elsewhere it is a token like any other."""
    return isinstance(model, SequenceClassifier) and model.config.grid is None


def corners_of(model: object) -> tuple[dict[str, int], ...]:
    """Sizes of the dynamic dimensions but the batch, by name, at their ends; usual ones last.

    A language model's: the whole context without a past, one token with the longest past, and one
    without any. A sequence classifier's: the longest, twice, and one token; half the longest is
    usual.
    """
    match model:
        case LanguageModel():
            context = model.config.context
            longest = {"past": 0, "length": context}
            return longest, {"past": context - 1, "length": 1}, {"past": 0, "length": 1}, {}
        case SequenceClassifier() if model.config.grid is None:
            length = model.config.length
            half = max(1, length // 2)
            return {"length": length}, {"length": length}, {"length": 1}, {"length": half}
        case _:
            return ({},)


def tracing_example(model: Exportable) -> dict[str, Array]:
    """Inputs to trace a model with: at least 2 along every dynamic dimension.

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


def exportable(model: nn.Module) -> Exportable:
    """The same model, typed by what the exporter needs of it."""
    return cast(Exportable, model)
