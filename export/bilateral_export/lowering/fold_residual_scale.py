"""Fold the factor of a residual branch into the linear layer that ends it.

The generalized residual connection multiplies the branch's output by a learned number. A linear
layer followed by a product with a constant is a linear layer: one pass over `[B, N, dim]` less.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import numpy_helper


def fold_residual_scale(model: onnx.ModelProto) -> int:
    """Fold every `scalar * (x @ weight + bias)` into weight and bias, in place.

    Requires: nothing; what does not have this shape is left alone.
    Ensures: weights that other nodes use too are not changed; the sums are the same up to the
    rounding of one product per weight.

    Returns:
        How many products were folded.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    folded = 0
    for node in list(graph.node):
        if node.op_type != "Mul" or len(node.input) != 2:
            continue
        scalar, branch = node.input if node.input[0] in constants else reversed(node.input)
        add = producers.get(branch)
        if scalar not in constants or add is None or add.op_type != "Add" or uses[branch] != 1:
            continue
        bias = next((name for name in add.input if name in constants), None)
        product = next((name for name in add.input if name != bias), None)
        matmul = producers.get(product or "")
        if bias is None or product is None or matmul is None or uses[product] != 1:
            continue
        if matmul.op_type != "MatMul":
            continue
        weight = matmul.input[1]
        alone = weight in constants and uses[weight] == 1 and uses[bias] == 1
        factor = numpy_helper.to_array(constants[scalar])
        if not alone or factor.size != 1 or factor.dtype != np.float32:
            continue
        for name in (weight, bias):
            value = numpy_helper.to_array(constants[name])
            scaled = (value.astype(np.float64) * float(factor.reshape(()))).astype(value.dtype)
            constants[name].CopyFrom(numpy_helper.from_array(scaled, name))
        add.output[0] = node.output[0]
        graph.node.remove(node)
        folded += 1
    return folded
