"""Flash attention where only the image says the grid: features of positions computed in the graph.

A Gaussian spatial kernel on a grid of h x w patches, whose coordinates are p = r u, with u whole or
half numbers and r = unit / h the trained grid's patches over this one's, is
    -f |p - p'|^2 = sum over both axes of -f r^2 (u - u')^2,    f = 1 / (2 sigma^2)
gaussian_feature_map.py splits f so that what is large and cancels is exact in float32. Here f is
known now and r^2 only then. Both are split into a short number and a rest:
    f r^2 = high(f) high(r^2) + [low(f) high(r^2) + f low(r^2)]
r^2 u^2 is at most unit^2 / 4, however many patches there are, so that the short numbers' bits are
fixed. Products of what depends on one axis with constants are all that is left: one small matrix of
the image's grid, shared by all attentions, times a constant one of each makes the columns that the
static form has as a constant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from bilateral_export.graph.changes import read_metadata
from bilateral_export.lowering.attention_flash import Operands, finish_flash, gaussian_keys, widen
from bilateral_export.lowering.attention_pattern import AttentionPattern, PreconditionError, Values
from bilateral_export.lowering.graph_edit import Rewriter

BASIS = "free_grid.basis"
_MANTISSA_BITS = 24
# Columns of the basis. Of each axis: u, high u, low u, high u^2, low u^2, where high and low are
# the parts of r^2. Then 1 where there is a position, and 1.
_U, _HIGH, _LOW, _HIGH_SQUARE, _LOW_SQUARE = range(5)
_AXES = (0, 5)
_PLACED, _ALWAYS, _WIDTH = 10, 11, 12
_FEATURES = 8


def rewrite_to_free_grid(model: onnx.ModelProto, pattern: AttentionPattern) -> None:
    """Rewrite one attention to the augmented form, in place, for every size of image.

    Requires: `read_attention` accepted the node, and its positions are computed in the graph.
    Ensures: one MultiHeadAttention with three inputs computes the attention's output.

    Raises:
        PreconditionError: The file does not say that it is for images of several sizes.
    """
    patch, unit = _grid(model)
    heads, depth = pattern.heads, pattern.head_dim
    gaussian = pattern.range_kernel == "gaussian"
    rewriter = Rewriter(model, pattern)
    if not any(BASIS in node.output for node in model.graph.node):
        _add_basis(rewriter, model.graph.input[0].name, patch, unit, pattern.key_prefix)
    of_queries, of_keys = _coefficients(pattern, unit)
    weights = np.split(pattern.weight, 3, axis=1)
    biases = [part.reshape(heads, depth) for part in np.split(pattern.bias, 3)]
    query_bias = pattern.scale * (biases[0] - biases[1] if gaussian else biases[0])
    folded = of_keys[..., :0] if gaussian else of_keys
    weight = np.concatenate(
        [
            widen(pattern.scale * weights[0], heads, _FEATURES, int(gaussian)),
            widen(weights[1], heads, folded.shape[-1]),
            weights[2],
        ],
        axis=1,
    )
    ones = _always(np.ones((heads, int(gaussian))))
    columns = [
        np.concatenate([of_queries, _always(query_bias), ones], axis=-1),
        np.concatenate([folded, _always(np.zeros_like(biases[1]))], axis=-1),
        _always(biases[2]),
    ]
    matrix = np.concatenate([part.reshape(_WIDTH, -1) for part in columns], axis=1)
    bias = rewriter.node("MatMul", [BASIS, rewriter.constant("coefficients", matrix)], "columns")
    widths = (_FEATURES + depth + gaussian, folded.shape[-1] + depth, depth)
    query, key, value = rewriter.projected_with(weight, bias, [heads * each for each in widths])
    if gaussian:
        flat = rewriter.constant("key_coefficients", of_keys.reshape(_WIDTH, -1))
        made = rewriter.node("MatMul", [BASIS, flat], "key_features")
        by_head = rewriter.shape("features_by_head", [-1, heads, _FEATURES])
        features = rewriter.node("Reshape", [made, by_head], "key_columns")
        key = gaussian_keys(rewriter, key, features, _FEATURES, pattern)
    finish_flash(model, rewriter, pattern, Operands(query, key, value, heads, _FEATURES))


def _grid(model: onnx.ModelProto) -> tuple[int, tuple[int, int]]:
    """Return the side of a patch, and the trained grid's rows and columns."""
    about = read_metadata(model)
    document: dict[str, Any] = about.model if about is not None else {}
    unit = document.get("position_grid")
    if not document.get("sizes") or unit is None:
        raise PreconditionError("its positions are computed, and not of an image's grid")
    rows, columns = (unit, unit) if isinstance(unit, int) else unit
    return document["patch_size"], (rows, columns)


def _bits(unit: tuple[int, int]) -> tuple[int, int]:
    """Return the bits of the short part of f, and those behind the point of that of r^2.

    In quarters, no partial sum of the short features exceeds 4 (rows^2 + columns^2), and twice that
    where rounding makes r^2 larger.
    """
    free = max(4, _MANTISSA_BITS - int(np.ceil(np.log2(8 * (unit[0] ** 2 + unit[1] ** 2)))))
    return free // 2, free - free // 2


def _add_basis(
    rewriter: Rewriter, image: str, patch: int, unit: tuple[int, int], prefix: int
) -> None:
    """Add the nodes that compute the basis `[prefix + h w, 12]` of an image's grid."""
    number = rewriter.constant
    step = number("step", np.array(2.0 ** -_bits(unit)[1]))
    counts, axes = [], []
    for axis, trained in enumerate(unit):
        pixels = rewriter.node("Shape", [image], f"pixels_{axis}", start=2 + axis, end=3 + axis)
        count = rewriter.node("Div", [pixels, rewriter.shape("patch", [patch])], f"count_{axis}")
        length = rewriter.node("Cast", [count], f"length_{axis}", to=onnx.TensorProto.FLOAT)
        ends = [number("zero_f", np.array(0.0)), rewriter.node("Squeeze", [length], f"end_{axis}")]
        index = rewriter.node("Range", [*ends, number("one_f", np.array(1.0))], f"index_{axis}")
        last = rewriter.node("Sub", [length, number("one", np.ones(1))], f"last_{axis}")
        middle = rewriter.node("Mul", [last, number("half", np.array([0.5]))], f"middle_{axis}")
        u = rewriter.node("Sub", [index, middle], f"u_{axis}")
        ratio = rewriter.node(
            "Div", [number(f"unit_{axis}", np.array([float(trained)])), length], f"ratio_{axis}"
        )
        whole = rewriter.node("Mul", [ratio, ratio], f"square_{axis}")
        steps = rewriter.node("Div", [whole, step], f"steps_{axis}")
        rounded = rewriter.node("Round", [steps], f"rounded_{axis}")
        high = rewriter.node("Mul", [rounded, step], f"high_{axis}")
        low = rewriter.node("Sub", [whole, high], f"low_{axis}")
        columns = [u, *(rewriter.node("Mul", [u, part], f"{part}_u") for part in (high, low))]
        columns += [rewriter.node("Mul", [u, each], f"{each}_u") for each in columns[1:]]
        place = rewriter.shape(f"place_{axis}", [1, 2] if axis == 0 else [0, 2])
        shaped = [rewriter.node("Unsqueeze", [each, place], f"{each}_column") for each in columns]
        axes.append(rewriter.node("Concat", shaped, f"axis_{axis}", axis=2))
        counts.append(count)
    size = rewriter.node("Concat", [*counts, rewriter.shape("single", [1])], "grid_size", axis=0)
    wide = [rewriter.node("Expand", [each, size], f"{each}_wide") for each in axes]
    two = rewriter.constant("two_ones", np.ones((1, 1, 2)))
    wide.append(rewriter.node("Expand", [two, size], "ones"))
    grid = rewriter.node("Concat", wide, "grid", axis=2)
    flat = rewriter.node("Reshape", [grid, rewriter.shape("rows", [-1, _WIDTH])], "grid_rows")
    nowhere = np.zeros((prefix, _WIDTH))
    nowhere[:, _ALWAYS] = 1
    rewriter.node("Concat", [number("nowhere", nowhere), flat], "basis", outputs=[BASIS], axis=0)


def _coefficients(pattern: AttentionPattern, unit: tuple[int, int]) -> tuple[Values, Values]:
    """Return `[12, H, 8]` each: the features of queries and keys in columns of the basis."""
    assert pattern.bandwidth is not None
    f = 0.5 / np.square(pattern.bandwidth)
    mantissa, exponent = np.frexp(f)
    bits = _bits(unit)[0]
    short = np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)
    rest = f - short
    query = np.zeros((_WIDTH, len(f), _FEATURES))
    key = np.zeros_like(query)
    for axis, first in enumerate(_AXES):
        query[first + _HIGH, :, axis] = 2 * short
        query[first + _HIGH_SQUARE, :, 2] = -short
        query[first + _HIGH, :, 4 + axis] = 2 * rest
        query[first + _LOW, :, 4 + axis] = 2 * f
        query[first + _HIGH_SQUARE, :, 6] = -rest
        query[first + _LOW_SQUARE, :, 6] = -f
        key[first + _U, :, axis] = key[first + _U, :, 4 + axis] = 1
        key[first + _HIGH_SQUARE, :, 3] = 1
        key[first + _HIGH_SQUARE, :, 7] = rest
        key[first + _LOW_SQUARE, :, 7] = f
    query[_PLACED, :, 3], query[_PLACED, :, 7] = -short, -1
    key[_PLACED, :, 2] = key[_PLACED, :, 6] = 1
    return query, key


def _always(values: Values) -> Values:
    """Return `[12, H, D]` that give every token the same `[H, D]`."""
    made = np.zeros((_WIDTH, *values.shape))
    made[_ALWAYS] = values
    return made
