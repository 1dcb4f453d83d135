"""Small graphs whose attention is the operator, crafted without the exporter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bilateral_export.op import contract
from bilateral_export.op.contract import OperatorVariant
from bilateral_export.op.onnx_body import function_body

OPSET = 20
TOKENS, HEADS, HEAD_DIM = 16, 2, 32
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def attention_model(
    configurations: Sequence[OperatorVariant],
    precision: str = "fp32",
    *,
    overloads: bool = True,
    plugin_attributes: bool = True,
) -> onnx.ModelProto:
    """One attention block per configuration, one after the other: x [b, 16, 64] to y."""
    random = np.random.default_rng(0)
    tokens = TYPES[precision]
    width = HEADS * HEAD_DIM
    rows, columns = np.divmod(np.arange(TOKENS), 4)
    initializers = [
        numpy_helper.from_array(np.array([0, 0, HEADS, HEAD_DIM]), "split"),
        numpy_helper.from_array(np.array([0, 0, width]), "merge"),
        _floats("positions", np.stack([rows, columns], 1)),
        _floats("sigma", np.linspace(1, 4, HEADS)),
        _floats("features", random.normal(size=(HEADS, TOKENS, 16))),
    ]
    spatial = {
        "none": [],
        "gaussian": ["positions", "positions", "sigma"],
        "dot": ["features", "features"],
    }
    nodes, x = [], "x"
    for number, configuration in enumerate(configurations):
        operands = []
        for name in ("query", "key", "value"):
            weight = f"{name}_weight_{number}"
            values = random.normal(size=(width, width)) / np.sqrt(width)
            initializers.append(helper.make_tensor(weight, tokens, values.shape, values.ravel()))
            steps = [f"{name}_{step}_{number}" for step in ("product", "heads", "tokens")]
            nodes += [
                helper.make_node("MatMul", [x, weight], [steps[0]]),
                helper.make_node("Reshape", [steps[0], "split"], [steps[1]]),
                helper.make_node("Transpose", [steps[1]], [steps[2]], perm=[0, 2, 1, 3]),
            ]
            operands.append(steps[2])
        operands += spatial[configuration.spatial_kernel]
        operands += ["key_bias"] * configuration.key_bias
        attributes: dict[str, object] = {
            contract.SCALE: HEAD_DIM**-0.5,
            contract.RANGE_KERNEL: configuration.range_kernel,
            contract.SPATIAL_KERNEL: configuration.spatial_kernel,
            contract.QUERY_PREFIX: 1,
            contract.KEY_PREFIX: 1,
            contract.CAUSAL: int(configuration.causal),
        }
        if plugin_attributes:
            attributes[contract.PLUGIN_NAMESPACE] = contract.DOMAIN
            attributes[contract.PLUGIN_VERSION] = str(contract.VERSION)
        node = helper.make_node(
            contract.OP_TYPE,
            operands,
            [f"attended_{number}"],
            domain=contract.DOMAIN,
            name=f"block.{number}/attention",
            overload=configuration.overload if overloads else "",
            **attributes,
        )
        nodes += [
            node,
            helper.make_node(
                "Transpose", [f"attended_{number}"], [f"moved_{number}"], perm=[0, 2, 1, 3]
            ),
            helper.make_node("Reshape", [f"moved_{number}", "merge"], [f"merged_{number}"]),
            helper.make_node("Add", [f"merged_{number}", x], [f"y_{number}"]),
        ]
        x = f"y_{number}"
    inputs = [helper.make_tensor_value_info("x", tokens, ["batch", TOKENS, width])]
    if any(configuration.key_bias for configuration in configurations):
        inputs.append(
            helper.make_tensor_value_info("key_bias", TensorProto.FLOAT, ["batch", TOKENS])
        )
    output = helper.make_tensor_value_info(x, tokens, ["batch", TOKENS, width])
    functions = {}
    for configuration in configurations:
        function = function_body(configuration, OPSET)
        function.overload = configuration.overload if overloads else ""
        functions[function.overload] = function
    return helper.make_model(
        helper.make_graph(nodes, "attention", inputs, [output], initializers),
        functions=list(functions.values()),
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid(contract.DOMAIN, contract.VERSION),
        ],
        ir_version=10,
    )


def _floats(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(np.float32), name)
