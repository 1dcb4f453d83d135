"""ONNX Runtime with the operator as a custom op instead of its function body."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from bilateral_export.artifact import load_graph
from bilateral_export.errors import UnsupportedError
from bilateral_export.op import contract
from bilateral_export.op.attention import attention
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.registry import RUNTIMES
from bilateral_export.tensors import Array

# What the custom op takes beside the node's own attributes: the type that its tokens had.
_TOKENS = "tokens"
_TORCH = {TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float16}


class CustomOpRunner(OnnxRuntimeRunner):
    """Runs an ONNX file with ONNX Runtime's CPU provider, the operator in PyTorch.

    Every `BilateralAttention` node calls `op.attention` through onnxruntime-extensions, in the
    node's own type; function bodies are dropped, so that none can run in its stead. Beside the same
    file run through its bodies it distinguishes a wrong body from a wrong graph. It never serves:
    each node goes through Python, and its output through a list.

    The package passes float32 only (with float16 it ends the process), so float16 tokens are
    widened for the call, which is exact, and narrowed inside it. The provider has no bfloat16.

    Args:
        path: The ONNX file, which is not changed.
        threads: Threads within one of ONNX Runtime's operators; None: one per core.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__(path, threads)
        self.name = "onnxruntime custom op"

    def _model(self, options: onnxruntime.SessionOptions) -> bytes:
        RUNTIMES["onnxruntime custom op"].require()
        options.register_custom_ops_library(_registered())
        return with_custom_ops(load_graph(self._path)).SerializeToString()


def with_custom_ops(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn the operator's nodes into calls of the custom op, in place, and drop their bodies.

    A custom op has a fixed number of inputs, so it is registered once for each that the contract
    knows.

    Returns:
        The same model.

    Raises:
        UnsupportedError: Tokens are neither float32 nor float16.
    """
    types = _types(model)
    nodes = []
    for node in model.graph.node:
        if (node.domain, node.op_type) == (contract.DOMAIN, contract.OP_TYPE):
            nodes += _call(node, types.get(node.input[0], TensorProto.FLOAT))
        else:
            nodes.append(node)
    del model.graph.node[:], model.functions[:]
    model.graph.node.extend(nodes)
    return model


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value whose type is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _call(node: onnx.NodeProto, tokens: int) -> list[onnx.NodeProto]:
    """Return one node as a call of the custom op, between casts where its tokens are narrow."""
    call = onnx.NodeProto()
    call.CopyFrom(node)
    call.op_type, call.overload = _op_type(len(node.input)), ""
    call.attribute.append(helper.make_attribute(_TOKENS, tokens))
    if tokens not in _TORCH:
        raise UnsupportedError(
            f"the custom op takes float32 and float16, and {node.name} has"
            f" {TensorProto.DataType.Name(tokens).lower()}",
            "Export fp32 or fp16 for it.",
        )
    if tokens == TensorProto.FLOAT:
        return [call]
    before = []
    for position in range(3):
        wide = f"{node.name}/wide {position}"
        before.append(
            helper.make_node("Cast", [node.input[position]], [wide], to=TensorProto.FLOAT)
        )
        call.input[position] = wide
    call.output[0] = f"{node.name}/wide"
    return [
        *before,
        call,
        helper.make_node("Cast", list(call.output), list(node.output), to=tokens),
    ]


def _op_type(inputs: int) -> str:
    return f"{contract.OP_TYPE}_{inputs}"


@functools.cache
def _registered() -> str:
    """Register the custom op for every number of inputs, once per process.

    Returns:
        The library that a session has to load.
    """
    from onnxruntime_extensions import PyCustomOpDef, get_library_path, onnx_op

    integers = (contract.QUERY_PREFIX, contract.KEY_PREFIX, contract.CAUSAL, _TOKENS)
    strings = (
        contract.RANGE_KERNEL,
        contract.SPATIAL_KERNEL,
        contract.PLUGIN_NAMESPACE,
        contract.PLUGIN_VERSION,
    )
    attributes = {
        contract.SCALE: PyCustomOpDef.dt_float,
        **dict.fromkeys(integers, PyCustomOpDef.dt_int64),
        **dict.fromkeys(strings, PyCustomOpDef.dt_string),
    }
    lengths = {
        len(contract.input_names(kernel, key_bias))
        for kernel in contract.SPATIAL_KERNELS
        for key_bias in (False, True)
    }
    for inputs in lengths:
        register = onnx_op(
            op_type=f"{contract.DOMAIN}::{_op_type(inputs)}",
            inputs=[PyCustomOpDef.dt_float] * inputs,
            outputs=[PyCustomOpDef.dt_float],
            attrs=attributes,
        )
        register(_attend)
    return str(get_library_path())


def _attend(*operands: Array, **attributes: Any) -> Array:
    """Return the operator's output for one node's operands, packed as the contract says."""
    kernel = attributes[contract.SPATIAL_KERNEL]
    names: Sequence[str] = contract.input_names(kernel, key_bias=True)
    dtype = _TORCH[attributes[_TOKENS]]
    tensors = {
        name: torch.from_numpy(np.array(operand))
        for name, operand in zip(names, operands, strict=False)
    }
    for name in ("query", "key", "value"):
        tensors[name] = tensors[name].to(dtype)
    try:
        with torch.inference_mode():
            output = attention(
                **tensors,
                scale=attributes[contract.SCALE],
                range_kernel=attributes[contract.RANGE_KERNEL],
                spatial_kernel=kernel,
                query_prefix=attributes[contract.QUERY_PREFIX],
                key_prefix=attributes[contract.KEY_PREFIX],
                causal=bool(attributes[contract.CAUSAL]),
            )
    except (IndexError, RuntimeError, ValueError):
        # Operands that do not fit each other. An exception would end the process in the package's
        # C++ code; NaN fails every comparison.
        return np.full((*operands[0].shape[:-1], operands[2].shape[-1]), np.nan, np.float32)
    result: Array = output.float().numpy()
    return result
