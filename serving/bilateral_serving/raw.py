"""The raw form of a served model: files as they are, beside the tensors of its graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.errors import UserError
from bilateral_export.preprocessing import (
    Preprocessing,
    SegmentationPreprocessing,
    TextPreprocessing,
)
from bilateral_export.tensors import FEATURES, Array

# Parameters of a configuration: the name of the input for files, and what is decoded at most.
PARAMETER = "raw"
MAX_PIXELS_PARAMETER = "max_pixels"
MAX_PIXELS = 64_000_000
INPUT = "file"
# Outputs beside those of the graph.
LABELS, PROBABILITIES, INDICES, MASK, WORDS = (
    "labels",
    "probabilities",
    "indices",
    "mask",
    "words",
)
DEFAULT_TOP_K = 5


def interface(how: Preprocessing, outputs: Sequence[str]) -> pb.ModelConfig:
    """Return the inputs and outputs that the raw form adds to a graph's, and nothing else.

    Args:
        how: The model's preprocessing.
        outputs: The names of the graph's outputs.
    """
    config = pb.ModelConfig()
    files = getattr(how, "documents", 1)
    config.input.add(name=INPUT, data_type=pb.TYPE_STRING, dims=[files], optional=True)
    added = {LABELS: pb.TYPE_STRING, PROBABILITIES: pb.TYPE_FP32, INDICES: pb.TYPE_INT64}
    if isinstance(how, SegmentationPreprocessing):
        config.output.add(name=MASK, data_type=pb.TYPE_STRING, dims=[1])
    elif isinstance(how, TextPreprocessing):
        config.output.add(name=WORDS, data_type=pb.TYPE_STRING, dims=[-1])
    elif FEATURES not in outputs:
        for output, kind in added.items():
            config.output.add(name=output, data_type=kind, dims=[-1])
    return config


def input_name(config: pb.ModelConfig) -> str:
    """Return the input for files; "" for a model that takes tensors only."""
    return config.parameters[PARAMETER].string_value if PARAMETER in config.parameters else ""


def of_graph(config: pb.ModelConfig) -> tuple[list[Any], list[Any]]:
    """Return the inputs and outputs of a configuration that are its graph's."""
    name = input_name(config)
    if not name:
        return list(config.input), list(config.output)
    extra = {LABELS, PROBABILITIES, INDICES, MASK, WORDS}
    return (
        [tensor for tensor in config.input if tensor.name != name],
        [tensor for tensor in config.output if tensor.name not in extra],
    )


def required(config: pb.ModelConfig) -> list[Any]:
    """Return the inputs of a request of tensors: those of the graph, or all but the options."""
    if input_name(config):
        return of_graph(config)[0]
    return [tensor for tensor in config.input if not tensor.optional]


def check_top_k(k: int) -> int:
    """Return how many classes are wanted.

    Raises:
        UserError: Fewer than one.
    """
    if k < 1:
        raise UserError(f"top-k {k}", "It must be at least 1.")
    return k


def probabilities_of(logits: Array) -> NDArray[np.float64]:
    """Return the softmax over the last axis."""
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def best(probabilities: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the `k` most probable classes of each row, best first."""
    return np.argsort(-probabilities, axis=-1, kind="stable")[:, :k].astype(np.int64)
