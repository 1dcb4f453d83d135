"""Small ONNX models, built by hand, whose answers can be computed by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bilateral_export.metadata import METADATA_KEY, ArtifactMetadata, ImagePreprocessing
from bilateral_export.preprocessing import TextPreprocessing

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
PREPROCESSING = ImagePreprocessing(
    height=2, width=2, channels=1, resize=2, interpolation="bilinear", mean=(0.0,), std=(1.0,)
)


def metadata(**changes: Any) -> ArtifactMetadata:
    return ArtifactMetadata(
        **{
            "family": "image_classifier",
            "name": "quadrants",
            "model": {},
            "precision": "fp32",
            "labels": QUADRANTS,
            "preprocessing": PREPROCESSING,
            "checkpoint_sha256": "0" * 64,
            "license": "Apache-2.0",
            **changes,
        }
    )


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, tuple[int, list[Any]]],
    weights: Mapping[str, np.ndarray] | None = None,
    about: ArtifactMetadata | None = None,
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    if about is not None:
        helper.set_model_props(model, {METADATA_KEY: about.model_dump_json()})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def quadrants(path: Path, *, batch: int | str = "batch", gain: float = 8.0, **changes: Any) -> Path:
    """Logits of a 2x2 image = `gain` times its pixels: the class is the brightest quadrant."""
    return save(
        path,
        [
            helper.make_node("Flatten", ["pixel_values"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        {"pixel_values": (TensorProto.FLOAT, [batch, 1, 2, 2])},
        {"logits": (TensorProto.FLOAT, [batch, 4])},
        {"weight": np.eye(4, dtype=np.float32) * np.float32(gain)},
        metadata(**changes),
    )


def features(path: Path) -> Path:
    """Features of a 2x2 image: its pixels, as they are."""
    return save(
        path,
        [helper.make_node("Flatten", ["pixel_values"], ["features"])],
        {"pixel_values": (TensorProto.FLOAT, ["batch", 1, 2, 2])},
        {"features": (TensorProto.FLOAT, ["batch", 4])},
        about=metadata(labels=()),
    )


def sum_and_product(path: Path) -> Path:
    """Two inputs of any length and two outputs; without metadata."""
    shape = ["batch", "length"]
    return save(
        path,
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Mul", ["a", "b"], ["product"]),
        ],
        {"a": (TensorProto.FLOAT, shape), "b": (TensorProto.FLOAT, shape)},
        {"sum": (TensorProto.FLOAT, shape), "product": (TensorProto.FLOAT, shape)},
    )


def lookup(path: Path) -> Path:
    """Rows of a table of ten; an index beyond it makes the runtime fail."""
    return save(
        path,
        [helper.make_node("Gather", ["table", "ids"], ["rows"])],
        {"ids": (TensorProto.INT64, ["batch", 2])},
        {"rows": (TensorProto.FLOAT, ["batch", 2])},
        {"table": np.arange(10, dtype=np.float32) * 10},
    )


def reciprocal(path: Path) -> Path:
    """One over a number less 1: infinite for 1."""
    return save(
        path,
        [
            helper.make_node("Sub", ["x", "one"], ["less"]),
            helper.make_node("Reciprocal", ["less"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, ["batch", 1])},
        {"y": (TensorProto.FLOAT, ["batch", 1])},
        {"one": np.ones(1, dtype=np.float32)},
    )


def words(path: Path, likely: tuple[float, float, float] = (1, 1, 1)) -> Path:
    """The tensors of a language model, and a vocabulary of three words, as likely as `likely`."""
    vocabulary = ("<eos>", "<unk>", "word")
    digest = hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()
    text = TextPreprocessing(vocabulary=vocabulary, vocabulary_sha256=digest, context=4)
    ids = (TensorProto.INT64, ["batch", "length"])
    past = (TensorProto.FLOAT, ["batch", 1, 1, "past", 1])
    return save(
        path,
        [
            helper.make_node("Cast", ["targets"], ["zeros"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["zeros", "nothing"], ["log_likelihood"]),
            helper.make_node("ReduceSum", ["log_likelihood", "axis"], ["one"], keepdims=1),
            helper.make_node("Add", ["one", "row"], ["log_probabilities"]),
            helper.make_node("Identity", ["past_keys"], ["keys"]),
            helper.make_node("Identity", ["past_values"], ["values"]),
        ],
        {"tokens": ids, "targets": ids, "past_keys": past, "past_values": past},
        {
            "log_likelihood": (TensorProto.FLOAT, ["batch", "length"]),
            "log_probabilities": (TensorProto.FLOAT, ["batch", 3]),
            "keys": past,
            "values": past,
        },
        {
            "nothing": np.zeros(1, dtype=np.float32),
            "axis": np.array([1]),
            "row": np.log(np.maximum(likely, 1e-30) / np.sum(likely)).astype(np.float32),
        },
        metadata(
            family="language-model",
            name="words",
            model={"depth": 1, "heads": 1, "dim": 1, "context": 4},
            labels=(),
            preprocessing=text,
        ),
    )


def slow(path: Path) -> Path:
    """Multiplies a 256x256 matrix as often as `turns` says: as slow as one wants; for batch 1."""
    return save(
        path,
        _turning(),
        {"turns": (TensorProto.INT64, ["batch", 1])},
        {"total": (TensorProto.FLOAT, ["batch", 1])},
        {"rotation": np.eye(256, dtype=np.float32)},
    )


def slow_sum(path: Path) -> Path:
    """The sum of two rows of any length, after as many turns as `slow`."""
    row = (TensorProto.FLOAT, ["batch", "length"])
    return save(
        path,
        [*_turning(), helper.make_node("Add", ["a", "b"], ["sum"])],
        {"turns": (TensorProto.INT64, ["batch", 1]), "a": row, "b": row},
        {"total": (TensorProto.FLOAT, ["batch", 1]), "sum": row},
        {"rotation": np.eye(256, dtype=np.float32)},
    )


def _turning() -> list[onnx.NodeProto]:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("MatMul", ["state", "rotation"], ["next_state"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [256, 256]),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_state", TensorProto.FLOAT, [256, 256]),
        ],
    )
    return [
        helper.make_node("Squeeze", ["turns"], ["count"]),
        helper.make_node("Loop", ["count", "", "rotation"], ["last"], body=body),
        helper.make_node("ReduceSum", ["last"], ["total"], keepdims=1),
    ]


def copies(path: Path) -> Path:
    """One input and one equal output for every element type that is served."""
    kinds = [
        "FLOAT16",
        "DOUBLE",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "BOOL",
    ]
    types = {kind.lower(): int(TensorProto.DataType.Value(kind)) for kind in kinds}
    return save(
        path,
        [helper.make_node("Identity", [name], [f"{name}_copy"]) for name in types],
        {name: (kind, ["batch", 2]) for name, kind in types.items()},
        {f"{name}_copy": (kind, ["batch", 2]) for name, kind in types.items()},
    )


def largest(path: Path) -> Path:
    """The index of the largest of three numbers: an output whose only axis is the batch."""
    return save(
        path,
        [helper.make_node("ArgMax", ["scores"], ["index"], axis=1, keepdims=0)],
        {"scores": (TensorProto.FLOAT, ["batch", 3])},
        {"index": (TensorProto.INT64, ["batch"])},
    )


def scalar(path: Path) -> Path:
    """A sum of everything: an output without any axis."""
    return save(
        path,
        [helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)],
        {"x": (TensorProto.FLOAT, ["batch", 3])},
        {"total": (TensorProto.FLOAT, [])},
    )


def with_external_data(path: Path, megabytes: int = 1) -> Path:
    """A model whose weights lie in `<name>.onnx.data` beside it."""
    size = megabytes * (1 << 18)
    save(
        path,
        [helper.make_node("Add", ["x", "weight"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 1])},
        {"y": (TensorProto.FLOAT, ["batch", size])},
        {"weight": np.zeros(size, dtype=np.float32)},
    )
    onnx.save(
        onnx.load(str(path)),
        str(path),
        save_as_external_data=True,
        location=f"{path.name}.data",
    )
    return path
