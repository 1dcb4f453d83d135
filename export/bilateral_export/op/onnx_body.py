"""The operator's body in standard ONNX operators, so that any runtime can run the file."""

from __future__ import annotations

import textwrap

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from bilateral_export.op import contract
from bilateral_export.op.contract import OperatorVariant, RangeKernel, SpatialKernel


def function_body(variant: OperatorVariant, opset: int) -> onnx.FunctionProto:
    """Build the FunctionProto of `ai.bilateral::BilateralAttention` for one variant.

    The matrix products take the tokens' type; the spatial term and the softmax are float32. The
    term |q|^2 of the Gaussian range kernel cancels in the softmax and is left out, which is also
    what lets TensorRT fuse the body. Constants are tensors, which have a type: tools that fold
    constants read a plain number (`value_float`) as float64.

    Args:
        variant: The kernels and masks the body computes.
        opset: Version of the standard operators it uses, 18 or later; equal to the model's.

    Returns:
        A function with the variant's packed inputs (op/README.md) and one output.
    """
    inputs = contract.input_names(variant.spatial_kernel, variant.key_bias)
    steps = [range_step(variant.range_kernel)]
    if variant.spatial_kernel != "none":
        steps.append(spatial_step(variant.spatial_kernel))
    if variant.key_bias:
        steps.append(_KEY_BIAS)
    if variant.causal:
        steps.append(_CAUSAL)
    steps.append(_SOFTMAX)

    # Each step reads the name `logits` and defines it anew; ONNX wants every name defined once.
    body = []
    for number, step in enumerate(steps):
        body.append(
            step.replace("logits_in", f"logits_{number}").replace(
                "logits_out", f"logits_{number + 1}"
            )
        )
    attributes = (
        "scale: float = 1.0, query_prefix: int = 0, key_prefix: int = 0,"
        f' range_kernel: string = "{variant.range_kernel}",'
        f' spatial_kernel: string = "{variant.spatial_kernel}",'
        f" causal: int = {int(variant.causal)},"
        f' plugin_namespace: string = "{contract.DOMAIN}",'
        f' plugin_version: string = "{contract.VERSION}"'
    )
    text = (
        f'<domain: "{contract.DOMAIN}", opset_import: ["" : {opset}]>\n'
        f"{contract.OP_TYPE} <{attributes}> ({', '.join(inputs)}) => ({contract.OUTPUT})\n"
        "{\n" + textwrap.indent("\n".join(body), "    ") + "\n}"
    )
    return onnx.parser.parse_function(text)


def same_body(found: onnx.FunctionProto, variant: OperatorVariant, opset: int) -> bool:
    """Return whether a function computes exactly what `function_body` writes for the variant.

    Names of nodes, notes, and how a constant is written change nothing; the body that version
    0.1.0 wrote, with plain numbers for constants, is the same body.
    """
    return _computation(found) == _computation(function_body(variant, opset))


def _computation(function: onnx.FunctionProto) -> list[bytes]:
    """Return a function's nodes without names and notes, every constant as a tensor."""
    nodes = []
    for node in function.node:
        kept = onnx.NodeProto(op_type=node.op_type, input=node.input, output=node.output)
        kept.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
        for attribute in kept.attribute:
            attribute.ClearField("doc_string")
            dtype = _PLAIN_NUMBERS.get(attribute.name)
            if node.op_type == "Constant" and not attribute.ref_attr_name:
                value = onnx.helper.get_attribute_value(attribute)
                array = numpy_helper.to_array(value) if dtype is None else np.array(value, dtype)
                tensor = numpy_helper.from_array(array)
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
        nodes.append(kept.SerializeToString(deterministic=True))
    return nodes


# The forms of a Constant that carry no element type but the one the standard gives them.
_PLAIN_NUMBERS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}

_PRODUCT = """\
scale_f = Constant <value_float: float = @scale> ()
scale_t = CastLike (scale_f, query)
scaled_query = Mul (query, scale_t)
key_transposed = Transpose <perm = [0, 1, 3, 2]> (key)
product = MatMul (scaled_query, key_transposed)
"""


def range_step(kernel: RangeKernel) -> str:
    """Return ONNX text that makes `logits_out` `[B, H, Nq, Nk]`, float32, of query and key."""
    if kernel == "dot":
        return _PRODUCT + "logits_out = Cast <to = 1> (product)"
    return (
        _PRODUCT
        + """\
product_f = Cast <to = 1> (product)
key_f = Cast <to = 1> (key)
key_square = Mul (key_f, key_f)
last_axis = Constant <value = int64[1] {-1}> ()
key_norm = ReduceSum <keepdims = 0> (key_square, last_axis)
minus_half = Constant <value = float {-0.5}> ()
half_scale = Mul (scale_f, minus_half)
key_term = Mul (key_norm, half_scale)
head_row = Constant <value = int64[1] {2}> ()
key_column = Unsqueeze (key_term, head_row)
logits_out = Add (product_f, key_column)"""
    )


def spatial_step(kernel: SpatialKernel) -> str:
    """Return ONNX text that adds the spatial term `[H, Nq, Nk]`, float32, to `logits_in`."""
    if kernel == "gaussian":
        return _SQUARED_DISTANCE + _EXEMPT_PREFIX + _PER_VARIANCE + _ADD_SPATIAL
    return _FEATURES + _EXEMPT_PREFIX + _ADD_SPATIAL.replace("spatial", "exempted")


_SQUARED_DISTANCE = """\
axis_0 = Constant <value = int64[1] {0}> ()
axis_1 = Constant <value = int64[1] {1}> ()
axes_1_2 = Constant <value = int64[2] {1, 2}> ()
axis_last = Constant <value = int64[1] {2}> ()
p_row = Unsqueeze (query_positions, axis_1)
p_column = Unsqueeze (key_positions, axis_0)
difference = Sub (p_row, p_column)
difference_square = Mul (difference, difference)
similarity = ReduceSum <keepdims = 0> (difference_square, axis_last)
"""

# Two divisions: sigma^2 alone could underflow.
_PER_VARIANCE = """\
sigma = Unsqueeze (bandwidth, axes_1_2)
per_sigma = Div (exempted, sigma)
per_variance = Div (per_sigma, sigma)
minus_half_s = Constant <value = float {-0.5}> ()
spatial = Mul (per_variance, minus_half_s)
"""

_FEATURES = """\
axis_0 = Constant <value = int64[1] {0}> ()
axis_1 = Constant <value = int64[1] {1}> ()
features_transposed = Transpose <perm = [0, 2, 1]> (key_positions)
similarity = MatMul (query_positions, features_transposed)
"""

# A product, not a selection: it folds and fuses. What it multiplies is finite, so 0 * x is 0; that
# is why the Gaussian divides by the variance only afterwards.
_EXEMPT_PREFIX = """\
zero = Constant <value = int64 {0}> ()
one = Constant <value = int64 {1}> ()
query_shape = Shape <start = 2, end = 3> (query)
key_shape = Shape <start = 2, end = 3> (key)
query_count = Squeeze (query_shape)
key_count = Squeeze (key_shape)
query_index = Range (zero, query_count, one)
key_index = Range (zero, key_count, one)
query_first = Constant <value_int: int = @query_prefix> ()
key_first = Constant <value_int: int = @key_prefix> ()
query_placed = GreaterOrEqual (query_index, query_first)
key_placed = GreaterOrEqual (key_index, key_first)
query_factor = Cast <to = 1> (query_placed)
key_factor = Cast <to = 1> (key_placed)
query_column = Unsqueeze (query_factor, axis_1)
key_row = Unsqueeze (key_factor, axis_0)
placed = Mul (query_column, key_row)
exempted = Mul (similarity, placed)
"""

_ADD_SPATIAL = "logits_out = Add (logits_in, spatial)"

_KEY_BIAS = """\
bias_axes = Constant <value = int64[2] {1, 2}> ()
bias = Unsqueeze (key_bias, bias_axes)
logits_out = Add (logits_in, bias)"""

_CAUSAL = """\
c_zero = Constant <value = int64 {0}> ()
c_one = Constant <value = int64 {1}> ()
c_axis_0 = Constant <value = int64[1] {0}> ()
c_axis_1 = Constant <value = int64[1] {1}> ()
c_query_shape = Shape <start = 2, end = 3> (query)
c_key_shape = Shape <start = 2, end = 3> (key)
c_query_count = Squeeze (c_query_shape)
c_key_count = Squeeze (c_key_shape)
offset = Sub (c_key_count, c_query_count)
first_row = Range (c_zero, c_query_count, c_one)
row = Add (first_row, offset)
column = Range (c_zero, c_key_count, c_one)
row_column = Unsqueeze (row, c_axis_1)
column_row = Unsqueeze (column, c_axis_0)
past = LessOrEqual (column_row, row_column)
minus_infinity = Constant <value = float {-inf}> ()
logits_out = Where (past, logits_in, minus_infinity)"""

_SOFTMAX = """\
weights_f = Softmax <axis = -1> (logits_in)
weights = CastLike (weights_f, query)
output = MatMul (weights, value)"""
