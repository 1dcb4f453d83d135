"""One attention layer as a canonical ONNX file, of any length, without training or tracing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bilateral_export.op import contract
from bilateral_export.op.contract import OperatorVariant, RangeKernel, SpatialKernel
from bilateral_export.op.onnx_body import function_body

_OPSET = 22


def write_attention(
    path: Path,
    tokens: int,
    *,
    heads: int = 6,
    head_dim: int = 64,
    depth: int = 1,
    range_kernel: RangeKernel = "gaussian",
    spatial_kernel: SpatialKernel = "gaussian",
    sigma: float | None = None,
    seed: int = 0,
) -> Path:
    """Write `depth` layers of projection, attention, projection: tokens `[batch, N, dim]` to same.

    The layer is a vision model's: one prefix token before a square grid (cut off at `tokens`),
    bandwidths from 1 patch to a quarter of the grid.

    Args:
        path: The file to write.
        tokens: N.
        heads: H.
        head_dim: D.
        depth: Layers, one after the other.
        range_kernel: Similarity of tokens.
        spatial_kernel: "gaussian" or "none".
        sigma: Every head's bandwidth, as a share of the grid's extent; None: as above.
        seed: Of the weights.
    """
    generator = np.random.default_rng(seed)
    dim = heads * head_dim
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[np.generic]] = {"by_head": np.array([0, 0, heads, head_dim])}
    constants["flat"] = np.array([0, 0, dim])
    spatial: list[str] = []
    if spatial_kernel != "none":
        side = math.ceil(math.sqrt(tokens - 1))
        grid = np.stack(np.divmod(np.arange(tokens - 1), side), -1) - (side - 1) / 2
        constants["positions"] = np.concatenate([np.zeros((1, 2)), grid]).astype(np.float32)
        widest = max(2.0, side / 4)
        bandwidth = (
            np.geomspace(1.0, widest, heads) if sigma is None else np.full(heads, sigma * side)
        )
        constants["bandwidth"] = bandwidth.astype(np.float32)
        spatial = ["positions", "positions", "bandwidth"]

    def node(operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        made = helper.make_node(operator, inputs, [output], name=output, **attributes)  # type: ignore[arg-type]
        nodes.append(made)
        return output

    x = "tokens"
    for layer in range(depth):
        at = f"layer{layer}"
        weight = generator.standard_normal((dim, 3 * dim)) / math.sqrt(dim)
        constants[f"{at}.qkv.weight"] = weight.astype(np.float32)
        constants[f"{at}.qkv.bias"] = 0.02 * generator.standard_normal(3 * dim).astype(np.float32)
        back = generator.standard_normal((dim, dim)) / math.sqrt(dim)
        constants[f"{at}.proj.weight"] = back.astype(np.float32)
        product = node("MatMul", [x, f"{at}.qkv.weight"], f"{at}.product")
        projected = node("Add", [product, f"{at}.qkv.bias"], f"{at}.projected")
        parts = [f"{at}.{name}" for name in ("query", "key", "value")]
        nodes.append(
            helper.make_node("Split", [projected], parts, f"{at}.split", axis=2, num_outputs=3)
        )
        split = []
        for part in parts:
            by_head = node("Reshape", [part, "by_head"], f"{part}.by_head")
            split.append(node("Transpose", [by_head], f"{part}.heads_first", perm=[0, 2, 1, 3]))
        mixed = node(
            contract.OP_TYPE,
            [*split, *spatial],
            f"{at}.attention",
            domain=contract.DOMAIN,
            scale=1 / math.sqrt(head_dim),
            range_kernel=range_kernel,
            spatial_kernel=spatial_kernel,
            query_prefix=1,
            key_prefix=1,
            causal=0,
            plugin_namespace=contract.DOMAIN,
            plugin_version=str(contract.VERSION),
        )
        last = node("Transpose", [mixed], f"{at}.heads_last", perm=[0, 2, 1, 3])
        merged = node("Reshape", [last, "flat"], f"{at}.merged")
        x = node("MatMul", [merged, f"{at}.proj.weight"], f"{at}.output")
    shape: list[str | int | None] = ["batch", tokens, dim]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        f"attention_{tokens}",
        [value("tokens", onnx.TensorProto.FLOAT, shape)],
        [value(x, onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        # What shape inference cannot see through the operator.
        value_info=[
            value(f"layer{layer}.merged", onnx.TensorProto.FLOAT, shape) for layer in range(depth)
        ],
    )
    configuration = OperatorVariant(range_kernel=range_kernel, spatial_kernel=spatial_kernel)
    model = helper.make_model(
        graph,
        functions=[function_body(configuration, _OPSET)],
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(contract.DOMAIN, 1)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
