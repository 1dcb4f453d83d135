"""The ONNX schema of the torch operator, and the exporter's translation to one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx.defs
import onnxscript
import torch

from bilateral_export.op import contract  # registers torch.ops.bilateral.attention

__all__ = ["translation_table"]

_S = onnx.defs.OpSchema
_TOKENS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
# Packed inputs mean different things for different kernels, so the schema numbers them.
_PACKED = [f"packed_{number}" for number in range(4)]
_ATTRIBUTES = {
    contract.SCALE: _S.AttrType.FLOAT,
    contract.RANGE_KERNEL: _S.AttrType.STRING,
    contract.SPATIAL_KERNEL: _S.AttrType.STRING,
    contract.QUERY_PREFIX: _S.AttrType.INT,
    contract.KEY_PREFIX: _S.AttrType.INT,
    contract.CAUSAL: _S.AttrType.INT,
    contract.PLUGIN_NAMESPACE: _S.AttrType.STRING,
    contract.PLUGIN_VERSION: _S.AttrType.STRING,
}
_SCHEMA = _S(
    contract.OP_TYPE,
    contract.DOMAIN,
    contract.VERSION,
    inputs=[
        *(_S.FormalParameter(name, "T") for name in ("query", "key", "value")),
        *(
            _S.FormalParameter(
                name, "tensor(float)", param_option=_S.FormalParameterOption.Optional
            )
            for name in _PACKED
        ),
    ],
    outputs=[_S.FormalParameter(contract.OUTPUT, "T")],
    type_constraints=[("T", _TOKENS, "The tokens' type.")],
    attributes=[_S.Attribute(name, kind, required=True) for name, kind in _ATTRIBUTES.items()],
)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the exporter's `custom_translation_table`: one opaque node for the torch operator.

    Registers the operator's schema in this process, which the exporter wants. A function with a
    body would be inlined by the exporter; the body is attached to the finished graph instead.
    """
    if not onnx.defs.has(contract.OP_TYPE, contract.DOMAIN):
        onnx.defs.register_schema(_SCHEMA)
    return {torch.ops.bilateral.attention.default: _translate}


def _translate(
    query: Any,
    key: Any,
    value: Any,
    query_positions: Any,
    key_positions: Any,
    bandwidth: Any,
    key_bias: Any,
    scale: float,
    range_kernel: str,
    spatial_kernel: str,
    query_prefix: int,
    key_prefix: int,
    causal: bool,
) -> Any:
    opset = onnxscript.values.Opset(contract.DOMAIN, contract.VERSION)
    operands = (query, key, value, query_positions, key_positions, bandwidth, key_bias)
    return opset.BilateralAttention(
        *(operand for operand in operands if operand is not None),
        scale=scale,
        range_kernel=range_kernel,
        spatial_kernel=spatial_kernel,
        query_prefix=query_prefix,
        key_prefix=key_prefix,
        causal=int(causal),
        plugin_namespace=contract.DOMAIN,
        plugin_version=str(contract.VERSION),
    )
