"""Add the bias before a GELU without fusing the two.

ONNX Runtime makes BiasGelu of a sum and the GELU behind it, whose CPU kernel is older and slower
than that of Gelu. Taking away the negated bias is the same number, and is not fused.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from bilateral_export.lowering.shapes import Shapes


def unfuse_gelu(model: onnx.ModelProto) -> int:
    """Turn `Gelu(x + bias)` into `Gelu(x - (-bias))`, in place; exact.

    Returns:
        How many.
    """
    graph = Shapes(model)
    changed = 0
    for node in graph.nodes:
        users = graph.users[node.output[0]]
        if node.op_type != "Add" or [user.op_type for user in users] != ["Gelu"]:
            continue
        product, bias = sorted(node.input, key=graph.constants.__contains__)
        if product in graph.constants or bias not in graph.constants:
            continue
        negated = f"{node.output[0]}.negated_bias"
        value = numpy_helper.to_array(graph.constants[bias])
        model.graph.initializer.append(numpy_helper.from_array(np.negative(value), negated))
        node.op_type = "Sub"
        node.input[:] = [product, negated]
        changed += 1
    return changed
