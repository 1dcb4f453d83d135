"""An exported graph as a PyTorch function, for its derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx.inliner
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

from bilateral_export.errors import UserError

Attributes = Mapping[str, Any]
Operator = Callable[..., Any]


class DifferentiableGraph:
    """Runs an ONNX graph in PyTorch in float64, operator by operator, so that autograd sees it.

    Functions are inlined, so an operator's body is run as the file has it. Floating-point types are
    all float64: this is what the file means, without its rounding, and without what a runtime does
    to it. A stand-in for derivatives only; errors are always those of the real runtime.

    Args:
        model: The graph, with weights; not changed.

    Raises:
        UserError: The graph has an operator that is not translated; the message names it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.inliner.inline_local_functions(model).graph
        unknown = {n.op_type for n in graph.node if n.domain or n.op_type not in _OPERATORS}
        if unknown:
            raise UserError(
                f"no derivative of {', '.join(sorted(unknown))} is known here",
                "Search without gradients, or add it to parity/inputs/differentiable.py.",
            )
        self._weights = {t.name: _tensor(t) for t in graph.initializer}
        self._inputs = [value.name for value in graph.input if value.name not in self._weights]
        self._outputs = [value.name for value in graph.output]
        self._nodes = [(node, _attributes(node)) for node in graph.node]

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the graph's outputs, by name, with history where the inputs want gradients.

        Args:
            tensors: Its inputs, by name.
        """
        values = self._weights | {name: _wide(tensors[name]) for name in self._inputs}
        for node, attributes in self._nodes:
            given = [values[name] if name else None for name in node.input]
            made = _OPERATORS[node.op_type](attributes, *given)
            results = made if isinstance(made, (tuple, list)) else (made,)
            values.update(zip(node.output, results, strict=False))
        return {name: values[name] for name in self._outputs}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _tensor(proto: onnx.TensorProto) -> Tensor:
    array = numpy_helper.to_array(proto)
    floating = array.dtype.kind not in "biu"
    return torch.from_numpy(array.astype("float64") if floating else array.copy())


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _constant(a: Attributes) -> Tensor:
    ((name, value),) = a.items()
    if name == "value":
        return _tensor(value)
    return torch.tensor(value, dtype=torch.float64 if "float" in name else torch.int64)


def _cast(a: Attributes, x: Tensor) -> Tensor:
    kind = helper.tensor_dtype_to_np_dtype(a["to"])
    integers = {"b": torch.bool, "i": torch.int64, "u": torch.int64}
    return x.to(integers.get(kind.kind, torch.float64))


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    kept = enumerate(shape.tolist())
    return x.reshape([x.shape[i] if n == 0 and not a.get("allowzero") else n for i, n in kept])


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _slice(
    a: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    places = axes.tolist() if axes is not None else range(len(starts))
    strides = steps.tolist() if steps is not None else [1] * len(starts)
    cut = [slice(None)] * x.dim()
    for place, *bounds in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
        cut[place] = slice(*bounds)
    return x[tuple(cut)]


def _gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.dim()
    size = x.shape[axis]
    if axis == 0 and x.dim() == 2:
        return F.embedding(index.long() % size, x)  # by this name `search` finds tokens
    taken = x.index_select(axis, (index.long() % size).reshape(-1))
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    if sizes is not None:
        return torch.split(x, sizes.tolist(), axis)
    return x.tensor_split(a["num_outputs"], axis)


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pads = a.get("pads", [0, 0, 0, 0])
    x = F.pad(x, (pads[1], pads[3], pads[0], pads[2]))
    options = {"stride": a.get("strides", 1), "dilation": a.get("dilations", 1)}
    return F.conv2d(x, weight, bias, groups=a.get("group", 1), **options)


def _gemm(a: Attributes, x: Tensor, y: Tensor, z: Tensor | None = None) -> Tensor:
    left = x.T if a.get("transA") else x
    right = y.T if a.get("transB") else y
    product: Tensor = a.get("alpha", 1.0) * left @ right
    return product if z is None else product + a.get("beta", 1.0) * z


def _layer_norm(a: Attributes, x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[a.get("axis", -1) % x.dim() :]
    return F.layer_norm(x, shape, gain, bias, a.get("epsilon", 1e-5))


def _reduce_sum(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    return x.sum(tuple(axes.tolist()), keepdim=bool(a.get("keepdims", 1)))


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def _range(a: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item())


def _div(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _pad(attributes: Attributes, x: Tensor, pads: Tensor, value: Tensor) -> Tensor:
    before, behind = pads.reshape(2, -1).tolist()
    # PyTorch begins with the last axis.
    pairs = [n for pair in zip(before[::-1], behind[::-1], strict=True) for n in pair]
    return F.pad(x, pairs, value=float(value))


# As https://onnx.ai/onnx/operators defines them, as far as exported graphs use them.
_OPERATORS: dict[str, Operator] = {
    "Add": lambda a, x, y: x + y,
    "Cast": _cast,
    "CastLike": lambda a, x, y: x.to(y.dtype),
    "Clip": lambda a, x, low=None, high=None: x.clamp(low, high),
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "Div": _div,
    "Equal": lambda a, x, y: x == y,
    "Less": lambda a, x, y: x < y,
    "Expand": lambda a, x, shape: x * torch.ones(shape.tolist(), dtype=x.dtype),
    "Gather": _gather,
    "GatherElements": lambda a, x, index: x.gather(a.get("axis", 0), index),
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", b"none").decode()),
    "Gemm": _gemm,
    "GreaterOrEqual": lambda a, x, y: x >= y,
    "Identity": lambda a, x: x,
    "LayerNormalization": _layer_norm,
    "LessOrEqual": lambda a, x, y: x <= y,
    "LogSoftmax": lambda a, x: x.log_softmax(a.get("axis", -1)),
    "MatMul": lambda a, x, y: x @ y,
    "Max": lambda a, *xs: functools.reduce(torch.maximum, xs),
    "Mul": lambda a, x, y: x * y,
    "Not": lambda a, x: ~x,
    "Pad": _pad,
    "Range": _range,
    "ReduceSum": _reduce_sum,
    "Relu": lambda a, x: x.relu(),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a.get("perm", list(range(x.dim()))[::-1])),
    "Unsqueeze": _unsqueeze,
    "Where": lambda a, c, x, y: torch.where(c, x, y),
}
