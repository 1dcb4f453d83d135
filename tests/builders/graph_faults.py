"""Seeded faults: what goes wrong between training and serving, each as one small change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bilateral_export.runners.base import Runner
from bilateral_export.tensors import Array


@dataclass(frozen=True)
class GraphFault:
    """A fault in an exported graph.

    Attributes:
        node: Where the bisection must find it.
        apply: Changes a model in place.
        model: Which of the test models has it.
    """

    node: str
    apply: Callable[[onnx.ModelProto], None]
    model: str = "digits"


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def set_attribute(name: str, attribute: str, value: object) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        node = node_named(model, name)
        kept = [a for a in node.attribute if a.name != attribute]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(attribute, value)])

    return apply


def change_weight(
    node: str, position: int, change: Callable[[Array], Array]
) -> Callable[[onnx.ModelProto], None]:
    """Give one node a changed copy of one of its weights; other users keep theirs."""

    def apply(model: onnx.ModelProto) -> None:
        user = node_named(model, node)
        name = user.input[position]
        tensor = next(t for t in model.graph.initializer if t.name == name)
        old = numpy_helper.to_array(tensor)
        changed = np.array(change(old.copy()), dtype=old.dtype, order="C")
        model.graph.initializer.append(numpy_helper.from_array(changed, f"{name}.faulty"))
        user.input[position] = f"{name}.faulty"

    return apply


def replace(node: str, operator: str, inputs: list[int], **attributes: object):
    """Make a node another operator on some of its inputs."""

    def apply(model: onnx.ModelProto) -> None:
        old = node_named(model, node)
        kept = [old.input[position] for position in inputs]
        old.op_type = operator
        del old.input[:], old.attribute[:]
        old.input.extend(kept)
        old.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())

    return apply


def rewire(node: str, position: int, value: str) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        node_named(model, node).input[position] = value

    return apply


def after(node: str, operator: str, *weights: Array, **attributes: object):
    """Insert an operator after a node: it takes over the node's output name."""

    def apply(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        old = node_named(model, node)
        name = old.output[0]
        old.output[0] = f"{name} before"
        names = [f"{node}/fault.{number}" for number in range(len(weights))]
        for label, weight in zip(names, weights, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(weight, label))
        made = helper.make_node(
            operator, [old.output[0], *names], [name], f"{node}/fault", **attributes
        )
        made.metadata_props.extend(old.metadata_props)
        nodes.insert(nodes.index(old) + 1, made)
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return apply


def swap_outputs(node: str, one: int, other: int) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        names = node_named(model, node).output
        names[one], names[other] = names[other], names[one]

    return apply


def batch_of_one(model: onnx.ModelProto) -> None:
    """The class token is repeated once, whatever the batch: a size was taken for a constant."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "batch of one"))
    node_named(model, "model/Concat").input[0] = "batch of one"


def in_body(change: Callable[[list[onnx.NodeProto]], None]) -> Callable[[onnx.ModelProto], None]:
    """Change the function body of the operator."""

    def apply(model: onnx.ModelProto) -> None:
        for function in model.functions:
            nodes = list(function.node)
            change(nodes)
            del function.node[:]
            function.node.extend(nodes)

    return apply


def _softmax_over_queries(nodes: list[onnx.NodeProto]) -> None:
    softmax = next(node for node in nodes if node.op_type == "Softmax")
    softmax.attribute[0].i = -2


def _softmax_in_half(nodes: list[onnx.NodeProto]) -> None:
    place = next(i for i, node in enumerate(nodes) if node.op_type == "Softmax")
    softmax = nodes[place]
    # The maxima change nothing; without them ONNX Runtime takes both casts away, there and back.
    lowest = numpy_helper.from_array(np.float16(-65504))
    nodes[place : place + 1] = [
        helper.make_node("Constant", [], ["lowest"], value=lowest),
        helper.make_node("Cast", [softmax.input[0]], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Max", ["narrow", "lowest"], ["logits_half"]),
        helper.make_node("Cast", ["logits_half"], ["logits_wide"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["logits_wide"], ["weights_wide"], axis=-1),
        helper.make_node("Cast", ["weights_wide"], ["weights_narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Max", ["weights_narrow", "lowest"], ["weights_half"]),
        helper.make_node("Cast", ["weights_half"], [softmax.output[0]], to=TensorProto.FLOAT),
    ]


def _key_norm_positive(nodes: list[onnx.NodeProto]) -> None:
    constant = next(node for node in nodes if list(node.output) == ["minus_half"])
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32(0.5)))


def _sigma_once(nodes: list[onnx.NodeProto]) -> None:
    second = next(node for node in nodes if list(node.output) == ["per_variance"])
    second.op_type, second.input[1] = "Identity", ""
    del second.input[1:]


def _no_causal_mask(nodes: list[onnx.NodeProto]) -> None:
    where = next(node for node in nodes if node.op_type == "Where")
    kept = where.input[1]
    where.op_type = "Identity"
    del where.input[:]
    where.input.append(kept)


def _mask_off_by_one(nodes: list[onnx.NodeProto]) -> None:
    node = next(node for node in nodes if node.op_type == "LessOrEqual")
    node.op_type = "Less"


def _no_padding_mask(nodes: list[onnx.NodeProto]) -> None:
    node = next(n for n in nodes if "bias" in n.input and n.op_type == "Add")
    kept = next(name for name in node.input if name != "bias")
    node.op_type = "Identity"
    del node.input[:]
    node.input.append(kept)


def _transposed_grid(rows: Array) -> Array:
    """Rows of the 4 x 4 grid behind one prefix token in column order."""
    order = [0, *(1 + np.arange(16).reshape(4, 4).T.reshape(-1))]
    return rows[..., order, :]


def _swap_thirds(weight: Array) -> Array:
    query, key, value = np.split(weight, 3, axis=-1)
    return np.concatenate([query, value, key], axis=-1)


def _coarse(weight: Array) -> Array:
    step = np.abs(weight).max() / 127
    return np.round(weight / step) * step


def _to_bf16(weight: Array) -> Array:
    bits = weight.astype(np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


ATTENTION = "blocks.1.attn/BilateralAttention"
_SWAPPED = np.array([1, 0, 2])

GRAPH_FAULTS: dict[str, GraphFault] = {
    "scale of another head size": GraphFault(ATTENTION, set_attribute(ATTENTION, "scale", 0.125)),
    "scale one percent off": GraphFault(ATTENTION, set_attribute(ATTENTION, "scale", 0.2525)),
    "queries' prefix not exempt": GraphFault(
        ATTENTION, set_attribute(ATTENTION, "query_prefix", 0)
    ),
    "keys' prefix not exempt": GraphFault(ATTENTION, set_attribute(ATTENTION, "key_prefix", 0)),
    "heads swapped": GraphFault(f"{ATTENTION}/fault", after(ATTENTION, "Gather", _SWAPPED, axis=1)),
    "heads merged untransposed": GraphFault(
        "blocks.2.attn/Transpose_4",
        set_attribute("blocks.2.attn/Transpose_4", "perm", [0, 1, 2, 3]),
    ),
    "bandwidths squared": GraphFault(ATTENTION, change_weight(ATTENTION, 5, np.square)),
    "bandwidths of two heads swapped": GraphFault(
        ATTENTION, change_weight(ATTENTION, 5, lambda sigma: sigma[_SWAPPED])
    ),
    "keys' positions transposed": GraphFault(
        ATTENTION, change_weight(ATTENTION, 4, _transposed_grid)
    ),
    "positions truncated": GraphFault(
        ATTENTION,
        change_weight(ATTENTION, 4, lambda p: np.where(np.arange(17)[:, None] < 13, p, 0)),
    ),
    "position embedding transposed": GraphFault(
        "model/Add", change_weight("model/Add", 1, _transposed_grid)
    ),
    "gelu by tanh": GraphFault(
        "blocks.2.mlp/Gelu", set_attribute("blocks.2.mlp/Gelu", "approximate", "tanh")
    ),
    "epsilon of another framework": GraphFault(
        "blocks.0.norm1/LayerNormalization",
        set_attribute("blocks.0.norm1/LayerNormalization", "epsilon", 1e-5),
    ),
    "residual dropped": GraphFault(
        "blocks.1.residual2/Add_2", replace("blocks.1.residual2/Add_2", "Identity", [1])
    ),
    "branch dropped": GraphFault(
        "blocks.1.residual1/Add_2", replace("blocks.1.residual1/Add_2", "Identity", [0])
    ),
    "GRC coefficient one percent off": GraphFault(
        "blocks.3.residual1/Mul_4", change_weight("blocks.3.residual1/Mul_4", 0, lambda b: b * 1.01)
    ),
    "GRC of x instead of x0": GraphFault(
        "blocks.2.residual1/Mul_2",
        rewire("blocks.2.residual1/Mul_2", 1, "blocks.1.residual2/Add_3"),
    ),
    "stale weights of one layer": GraphFault(
        "blocks.2.mlp.fc1/MatMul",
        change_weight(
            "blocks.2.mlp.fc1/MatMul",
            1,
            lambda w: w + 1e-3 * np.random.default_rng(0).standard_normal(w.shape),
        ),
    ),
    "keys and values swapped": GraphFault(
        "blocks.1.attn.qkv/MatMul", change_weight("blocks.1.attn.qkv/MatMul", 1, _swap_thirds)
    ),
    "keys and values swapped after the split": GraphFault(
        "blocks.1.attn/Split", swap_outputs("blocks.1.attn/Split", 1, 2)
    ),
    "queries and keys swapped": GraphFault(
        "blocks.1.attn/Split", swap_outputs("blocks.1.attn/Split", 0, 1)
    ),
    "past after the new tokens": GraphFault(
        "blocks.1.attn/Concat",
        lambda model: node_named(model, "blocks.1.attn/Concat").input.reverse(),
        "language",
    ),
    "bias dropped": GraphFault(
        "blocks.0.attn.qkv/Add", change_weight("blocks.0.attn.qkv/Add", 1, np.zeros_like)
    ),
    "weights in eight bits": GraphFault(
        "blocks.3.mlp.fc2/MatMul", change_weight("blocks.3.mlp.fc2/MatMul", 1, _coarse)
    ),
    "weights through bfloat16": GraphFault(
        "blocks.3.mlp.fc2/MatMul", change_weight("blocks.3.mlp.fc2/MatMul", 1, _to_bf16)
    ),
    "patches transposed": GraphFault(
        "patch_embed.proj/Conv",
        change_weight("patch_embed.proj/Conv", 1, lambda w: w.transpose(0, 1, 3, 2)),
    ),
    "patches in column order": GraphFault(
        "model/Transpose/fault",
        after("model/Transpose", "Gather", np.arange(16).reshape(4, 4).T.reshape(-1), axis=1),
    ),
    "another token classified": GraphFault(
        "model/Gather", change_weight("model/Gather", 1, lambda index: index + 1)
    ),
    "activations clipped": GraphFault(
        "blocks.1.mlp.fc2/Add/fault",
        after("blocks.1.mlp.fc2/Add", "Clip", np.float32(-0.3), np.float32(0.3)),
    ),
    "classes swapped": GraphFault(
        "head/Gemm", change_weight("head/Gemm", 1, lambda w: w[[1, 0, *range(2, 10)]])
    ),
    "norm without its gain": GraphFault(
        "norm/LayerNormalization", change_weight("norm/LayerNormalization", 1, np.ones_like)
    ),
    "softmax over queries": GraphFault(
        "blocks.0.attn/BilateralAttention", in_body(_softmax_over_queries)
    ),
    "softmax in half precision": GraphFault(
        "blocks.0.attn/BilateralAttention", in_body(_softmax_in_half)
    ),
    "key norm with the wrong sign": GraphFault(
        "blocks.0.attn/BilateralAttention", in_body(_key_norm_positive)
    ),
    "sigma instead of its square": GraphFault(
        "blocks.0.attn/BilateralAttention", in_body(_sigma_once)
    ),
    "causal mask missing": GraphFault(
        "blocks.0.attn/BilateralAttention", in_body(_no_causal_mask), "language"
    ),
    "causal mask off by one": GraphFault(
        "blocks.0.attn/BilateralAttention", in_body(_mask_off_by_one), "language"
    ),
    "padding attended to": GraphFault(
        "blocks.0.attn/BilateralAttention", in_body(_no_padding_mask), "sequence"
    ),
}


class Spoiled:
    """A runner whose inputs or answers something outside the graph spoils."""

    def __init__(
        self,
        runner: Runner,
        before: Callable[[dict[str, Array]], dict[str, Array]] = lambda arrays: arrays,
        after: Callable[[dict[str, Array]], dict[str, Array]] = lambda answer: answer,
    ) -> None:
        self.name = "spoiled"
        self._runner = runner
        self._before = before
        self._after = after

    @property
    def inputs(self):
        return self._runner.inputs

    @property
    def outputs(self):
        return self._runner.outputs

    def __enter__(self) -> Spoiled:
        self._runner.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        self._runner.__exit__(None, None, None)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return self._after(self._runner.run(self._before(dict(arrays))))


def on_image(change: Callable[[Array], Array]) -> dict[str, object]:
    return {"before": lambda arrays: {"image": change(arrays["image"])}}


def on_logits(change: Callable[[Array], Array]) -> dict[str, object]:
    return {"after": lambda answer: {"logits": change(answer["logits"].copy())}}


def _stale_rows(logits: Array) -> Array:
    """A dynamic batch whose answers went to the neighbours."""
    return np.roll(logits, 1, axis=0)


def _last_row_lost(logits: Array) -> Array:
    if len(logits) > 4:
        logits[-1] = 0
    return logits


_MEAN, _STD = 0.3, 0.35
# Faults around the graph, on the 3-channel model: numbers alone must catch each.
SERVING_FAULTS: dict[str, dict[str, object]] = {
    "channels in BGR order": on_image(lambda x: np.ascontiguousarray(x[:, ::-1])),
    "normalised twice": on_image(lambda x: ((x - _MEAN) / _STD).astype(x.dtype)),
    "not normalised": on_image(lambda x: (x * _STD + _MEAN).astype(x.dtype)),
    "rows and columns swapped": on_image(lambda x: np.ascontiguousarray(x.swapaxes(2, 3))),
    "image rounded to eight bits": on_image(lambda x: (np.round(x * 32) / 32).astype(x.dtype)),
    "inputs through half precision": on_image(lambda x: x.astype(np.float16).astype(x.dtype)),
    "answers to the neighbour": on_logits(_stale_rows),
    "last of a batch lost": on_logits(_last_row_lost),
    "classes swapped after the graph": on_logits(lambda y: y[:, [1, 0, *range(2, y.shape[1])]]),
    "softmax instead of logits": on_logits(lambda y: np.exp(y) / np.exp(y).sum(1, keepdims=True)),
    "answers through half precision": on_logits(lambda y: y.astype(np.float16).astype(y.dtype)),
    "one NaN": on_logits(lambda y: np.where(np.arange(y.size).reshape(y.shape) == 3, np.nan, y)),
}
