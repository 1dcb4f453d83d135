"""The scores behind labels: where a graph returns integers, the last floating value before.

Labels hide what is wrong: a share of the pixels that differ says little of the scores, and rounding
may always tip those whose best classes are all but equal. So the scores are compared too, as a
further output of the model and of the file, on a grid of pixels: whole, those of one batch would
take gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bilateral_export.artifact import load_graph
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.files import atomic_file
from bilateral_export.models.family import Family
from bilateral_export.tensors import Array, TensorSpec

# Of each side, so many pixels are kept, the first and the last among them.
GRID = 64

# Operators behind an ArgMax that leave its decisions as they are.
_RESHAPING = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def scores_of(output: str) -> str:
    """Return the name of the scores behind an output of labels."""
    return f"{output}.scores"


def grid(side: int) -> NDArray[np.int64]:
    """Return which rows, or columns, of an image of this side are compared."""
    return np.linspace(0, side - 1, min(side, GRID)).round().astype(np.int64)


def on_grid(labels: Array) -> Array:
    """Return labels `[B, H, W]` where their scores are compared."""
    return np.asarray(labels[:, grid(labels.shape[1])][:, :, grid(labels.shape[2])])


@dataclass(frozen=True)
class ScoredCheckpoint(Checkpoint):
    """A segmenter's checkpoint whose model returns the scores on the grid beside the labels."""

    def build_model(self) -> WithScores:
        """Return the model with these weights, in evaluation mode, in the dtype of the file."""
        return WithScores(super().build_model())


def with_scores(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with a model that returns the scores behind its labels, if any."""
    if not checkpoint.build_model().decides:
        return checkpoint
    return ScoredCheckpoint(
        **{each.name: getattr(checkpoint, each.name) for each in fields(checkpoint)}
    )


class WithScores(Family):
    """Images `[B, 3, S, S]` in; labels, and scores `[B, classes, G, G]` on the grid, out."""

    def __init__(self, model: Family) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        (labels,) = model.outputs()
        self.register_buffer("grid", torch.from_numpy(grid(labels.with_batch(1)[1])), False)
        self.grid: Tensor

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels as the model gives them, and scores, float32 or wider."""
        scores = self.model.scores(image)
        seen = scores.index_select(2, self.grid).index_select(3, self.grid)
        return self.model.decide(scores), seen if seen.dtype == torch.float64 else seen.float()

    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self.model.inputs()

    def example(self, batch: int, generator: np.random.Generator, **dims: int) -> dict[str, Array]:
        """Random inputs as the model's family draws them."""
        return self.model.example(batch, generator, **dims)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the model's outputs and the scores."""
        (labels,) = self.model.outputs()
        shape = ("batch", self.config.classes, len(self.grid), len(self.grid))
        return labels, TensorSpec(scores_of(labels.name), "float32", shape)


def expose_scores(path: Path, checkpoint: Checkpoint, target: Path) -> Path:
    """Write a file that returns the scores behind its labels too; nothing else of it changes.

    Args:
        path: An exported file.
        checkpoint: From `with_scores`.
        target: The file to write.

    Returns:
        The target; the path itself where no output is labels, or the graph takes them from nothing
        that is recognised.
    """
    model = checkpoint.build_model()
    if not isinstance(model, WithScores):
        return path
    labels, scores = model.outputs()
    proto = load_graph(path)
    decision = _decision(proto.graph, labels.name)
    if decision is None:
        return path
    places = [f"{scores.name}.rows", f"{scores.name}.columns"]
    steps = [decision.input[0], f"{scores.name}.of_rows", f"{scores.name}.of_both", scores.name]
    proto.graph.initializer.extend(
        numpy_helper.from_array(model.grid.numpy(), name) for name in places
    )
    proto.graph.node.extend(
        [
            helper.make_node("Gather", [steps[0], places[0]], [steps[1]], axis=2),
            helper.make_node("Gather", [steps[1], places[1]], [steps[2]], axis=3),
            helper.make_node("Cast", [steps[2]], [steps[3]], to=TensorProto.FLOAT),
        ]
    )
    value = helper.make_tensor_value_info(scores.name, TensorProto.FLOAT, scores.shape)
    proto.graph.output.append(value)
    with atomic_file(target) as temporary:
        onnx.save(proto, temporary)
    return target


def _decision(graph: onnx.GraphProto, output: str) -> onnx.NodeProto | None:
    """Return the ArgMax over classes that an output's labels come from."""
    made = {name: node for node in graph.node for name in node.output}
    node = made.get(output)
    while node is not None and node.op_type in _RESHAPING:
        node = made.get(node.input[0])
    if node is None or node.op_type != "ArgMax":
        return None
    axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
    return node if axis in (1, -3) else None


def decided(graph: onnx.GraphProto) -> set[str]:
    """Return the values of a graph that are labels: decisions, which rounding may flip."""
    names: set[str] = set()
    for node in graph.node:
        if node.op_type == "ArgMax" or (node.op_type in _RESHAPING and node.input[0] in names):
            names |= set(node.output)
    return names


def tipped(
    got: Sequence[Array], labels: Sequence[Array], scores: Sequence[Array], largest: float
) -> int:
    """Return how many labels differ from the reference's though its margin is beyond rounding.

    Args:
        got: Labels `[B, H, W]` per sample.
        labels: The reference's.
        scores: The reference's `[B, classes, G, G]`, on the grid.
        largest: How far any score may be off.
    """
    found = 0
    for mine, true, wide in zip(got, labels, scores, strict=True):
        if wide.shape[1] < 2:
            continue
        second, first = np.moveaxis(np.partition(wide, -2, axis=1)[:, -2:], 1, 0)
        differs = on_grid(mine) != on_grid(true)
        found += int((differs & (first - second > 2 * largest)).sum())
    return found


def largest_difference(got: Sequence[Array], reference: Sequence[Array]) -> float:
    """Return the largest absolute difference; infinite where a number is not finite."""
    pairs = zip(got, reference, strict=True)
    most = np.array([np.abs(np.subtract(mine, true)).max() for mine, true in pairs])
    return float(most.max()) if np.isfinite(most).all() else math.inf
