"""Block-sparse flash attention: each tile of a grid's queries reads only the keys near it.

A narrow Gaussian spatial kernel makes far keys negligible. As in the GPU kernel
(op/kernel/tile_ranges.py), only what cannot matter is left out, for any input.

Claim: the weights of the keys outside a tile's window sum to at most `TOLERANCE` times the sum of
all weights, in every row of the tile. Proof: let s_ij be the range kernel's logits and g_ij the
spatial kernel. With u_i >= s_ij for all placed keys j, and T(r) >= the sum of g over the offsets
that have a coordinate beyond r,

    sum over the keys left out of exp(s_ij) g_ij <= exp(u_i) T(r),
    sum over all keys of exp(s_ij) g_ij >= n exp(m_i),

where m_i is the mean of s_ij + ln g_ij over any n keys (Jensen). So a radius will do for which
ln T(r) + u_i - m_i - ln n is at most ln TOLERANCE. T(r) is constant (`grid_tiling.log_tail`). u_i
is |q_i| max_j |k_j| (Cauchy-Schwarz); the Gaussian range kernel is largest where k is q, and u_i is
the logit there. m_i is the product of the augmented query and the mean augmented key of the query's
block, a small part of its tile. Norms are raised by `MARGIN`, more than their rounding. QED.

The graph computes the smallest such radius for every tile, over its rows, the heads of a group and
the items of the batch. Where the windows are so large that nothing is gained, an If takes the dense
branch. Wide heads are dense from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from bilateral_export.lowering.attention_flash import Operands, attend, augmented, require_domain
from bilateral_export.lowering.attention_pattern import AttentionPattern, PreconditionError, Values
from bilateral_export.lowering.gaussian_feature_map import spatial_feature_map
from bilateral_export.lowering.graph_edit import Rewriter
from bilateral_export.lowering.grid_tiling import TOLERANCE, Tiling, head_groups, log_tail

MARGIN = 1e-4
_FLOAT, _INT64, _BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def rewrite_to_tiles(model: onnx.ModelProto, pattern: AttentionPattern) -> None:
    """Rewrite one attention to flash attention on windows, in place.

    Ensures: what is left out of a row's weights is at most `TOLERANCE` of them, for any input.

    Raises:
        PreconditionError: The spatial kernel is not a Gaussian on a grid, the range kernel grows
            with distance, or every bandwidth is too wide.
    """
    groups = head_groups(pattern)
    if not any(group.tiling for group in groups):
        raise PreconditionError("every bandwidth is too wide for tiles")
    rewriter = Rewriter(model, pattern)
    outputs = [
        _attend_group(rewriter.scoped(f"heads.{number}"), _some(pattern, group.heads), group.tiling)
        for number, group in enumerate(groups)
    ]
    _merge(rewriter, pattern, outputs, [head for group in groups for head in group.heads])
    rewriter.finish()
    require_domain(model)


def _some(pattern: AttentionPattern, heads: Sequence[int]) -> AttentionPattern:
    """Return the pattern of some heads."""
    chosen = list(heads)

    def parts(array: Values) -> Values:
        by_head = array.reshape(*array.shape[:-1], 3, pattern.heads, -1)
        return by_head[..., chosen, :].reshape(*array.shape[:-1], -1)

    assert pattern.bandwidth is not None
    return replace(
        pattern,
        heads=len(chosen),
        weight=parts(pattern.weight),
        bias=parts(pattern.bias),
        bandwidth=pattern.bandwidth[chosen],
    )


def _merge(
    rewriter: Rewriter, pattern: AttentionPattern, outputs: Sequence[str], order: Sequence[int]
) -> None:
    """Put the groups' heads into their order."""
    if list(order) == sorted(order):
        rewriter.node("Concat", outputs, "merged", outputs=[pattern.merged], axis=2)
        return
    joined = rewriter.node("Concat", outputs, "joined", axis=2)
    by_head = np.array([0, 0, pattern.heads, pattern.head_dim])
    heads = rewriter.node("Reshape", [joined, by_head], "joined_by_head")
    ordered = rewriter.node("Gather", [heads, np.argsort(order)], "in_order", axis=2)
    rewriter.node("Reshape", [ordered, np.array([0, 0, -1])], "merged", outputs=[pattern.merged])


def _attend_group(rewriter: Rewriter, pattern: AttentionPattern, tiling: Tiling | None) -> str:
    """Attend with the heads of a pattern and return the output, `[B, N, H D]`."""
    operands = augmented(rewriter, pattern)
    if tiling is None:
        return attend(rewriter, operands)
    excess = _excess(rewriter, pattern, operands, tiling)
    low, high, small = _windows(rewriter, tiling, _radius(rewriter, pattern, tiling, excess))
    # What is not finite is not bounded: it goes where the dense form takes it.
    total = rewriter.node("Abs", [rewriter.node("ReduceSum", [excess], "sum", keepdims=0)], "total")
    finite = rewriter.node("Less", [total, np.array(np.inf)], "finite")
    few = rewriter.node("And", [small, finite], "few")
    tiled, dense = rewriter.branch("tiled"), rewriter.branch("dense")
    width = pattern.heads * pattern.head_dim
    return rewriter.node(
        "If",
        [few],
        "attended",
        then_branch=tiled.graph({_attend_tiles(tiled, operands, tiling, low, high, width): _FLOAT}),
        else_branch=dense.graph({attend(dense, operands): _FLOAT}),
    )


def _excess(
    rewriter: Rewriter, pattern: AttentionPattern, operands: Operands, tiling: Tiling
) -> str:
    """Compute u_i - m_i of the module's claim, `[B, tiles, rows, H]`."""
    queries = tiling.queries()
    gaussian = pattern.range_kernel == "gaussian"
    first, depth = operands.features, pattern.head_dim
    by_block = [0, -1, tiling.block_area, pattern.heads, first + depth + gaussian]
    last = np.array([-1])

    def blocks(name: str, label: str) -> str:
        """Gather placed tokens as `[B, blocks, tokens of a block, H, width]`."""
        placed = rewriter.node("Gather", [name, queries.ravel()], f"{label}_placed", axis=1)
        return rewriter.node("Reshape", [placed, np.array(by_block)], f"{label}_blocks")

    def squares(tokens: str, label: str) -> str:
        """Compute squared norms without the spatial features, `[B, blocks, tokens, H]`."""
        bounds = [np.array([end]) for end in (first, first + depth, 4)]
        own = rewriter.node("Slice", [tokens, *bounds], f"{label}_own")
        return rewriter.node("ReduceSumSquare", [own, last], f"{label}_squares", keepdims=0)

    query, key = blocks(operands.query, "query"), blocks(operands.key, "key")
    most = squares(query, "query")
    if gaussian:  # scale q.k - scale/2 |k|^2 is at most scale/2 |q|^2; queries are scaled already
        factor = (1 + MARGIN) / (2 * pattern.scale)
        most = rewriter.node("Mul", [most, np.array(factor)], "largest_logit")
    else:
        keys = squares(key, "key")
        longest = rewriter.node("ReduceMax", [keys, np.array([1, 2])], "longest_key", keepdims=1)
        norms = rewriter.node("Sqrt", [rewriter.node("Mul", [most, longest], "norms")], "norm")
        most = rewriter.node("Mul", [norms, np.array(1 + MARGIN)], "largest_logit")
    mean = rewriter.node("ReduceMean", [key, np.array([2])], "mean_key", keepdims=1)
    near = rewriter.node("Mul", [query, mean], "near_products")
    near = rewriter.node("ReduceSum", [near, last], "near_logit", keepdims=0)
    excess = rewriter.node("Sub", [most, near], "excess")
    by_tile = np.array([0, len(queries), -1, pattern.heads])
    return rewriter.node("Reshape", [excess, by_tile], "excess_by_tile")


def _radius(rewriter: Rewriter, pattern: AttentionPattern, tiling: Tiling, excess: str) -> str:
    """Compute the radius of every tile's window, `[tiles, 1]`."""
    last = np.array([-1])
    worst = rewriter.node("ReduceMax", [excess, np.array([0, 2])], "worst", keepdims=0)
    column = rewriter.node("Unsqueeze", [worst, last], "worst_column")
    within = rewriter.node("LessOrEqual", [column, _room(pattern, tiling)], "within")
    beyond = rewriter.node("Not", [within], "beyond")
    counted = rewriter.node("Cast", [beyond], "counted", to=_INT64)
    radii = rewriter.node("ReduceSum", [counted, last], "radius_by_head", keepdims=0)
    return rewriter.node("ReduceMax", [radii, last], "radius", keepdims=1)


def _room(pattern: AttentionPattern, tiling: Tiling) -> Values:
    """Return by head and radius the largest u_i - m_i for which the radius will do, `[H, radii]`.

    The rounding of the spatial features' products in m_i is taken off.
    """
    assert pattern.bandwidth is not None
    tails = np.stack([log_tail(tiling.grid, sigma) for sigma in pattern.bandwidth])
    queries, keys = (np.abs(side).max(axis=0) for side in spatial_feature_map(pattern))
    terms = queries.shape[-1] + pattern.head_dim + 1
    rounding = terms * 2.0**-24 * (queries * keys).sum(axis=-1, keepdims=True)
    return np.asarray(np.log(TOLERANCE) + np.log(tiling.block_area) - rounding - tails)


def _windows(rewriter: Rewriter, tiling: Tiling, radius: str) -> tuple[str, str, str]:
    """Compute the windows' corners, `[tiles, 2]` each, and whether they are small together."""
    corners = tiling.corners()
    low = rewriter.node("Sub", [corners, radius], "low_open")
    low = rewriter.node("Max", [low, np.zeros(2, np.int64)], "low")
    high = rewriter.node("Add", [corners + tiling.shape, radius], "high_open")
    high = rewriter.node("Min", [high, np.array(tiling.grid.sides)], "high")
    sides = rewriter.node("Sub", [high, low], "sides")
    areas = rewriter.node("ReduceProd", [sides, np.array([1])], "areas", keepdims=0)
    total = rewriter.node("ReduceSum", [areas], "area", keepdims=0)
    limit = np.array(tiling.largest_window() * len(corners))
    return low, high, rewriter.node("Less", [total, limit], "small")


def _attend_tiles(
    rewriter: Rewriter, operands: Operands, tiling: Tiling, low: str, high: str, width: int
) -> str:
    """Attend tile by tile and return the output, `[B, N, H D]`."""
    prefix, queries = np.arange(tiling.grid.prefix), tiling.queries()
    points = tiling.grid.prefix + np.arange(tiling.grid.points).reshape(tiling.grid.sides)
    body = rewriter.branch("tile")
    turn, on = body.name("turn"), body.name("on")
    corners = [
        body.node("Gather", [end, turn], name) for end, name in ((low, "first"), (high, "end"))
    ]
    window = body.node("Slice", [points, *corners], "window")
    near = body.node("Reshape", [window, np.array([-1])], "near")
    keys = body.node("Concat", [prefix, near], "keys", axis=0)
    rows = body.node("Gather", [queries, turn], "rows")
    local = replace(
        operands,
        query=body.node("Gather", [operands.query, rows], "query", axis=1),
        key=body.node("Gather", [operands.key, keys], "key", axis=1),
        value=body.node("Gather", [operands.value, keys], "value", axis=1),
    )
    outputs = {body.node("Identity", [on], "still_on"): _BOOL, attend(body, local): _FLOAT}
    stacked = rewriter.node(
        "Loop",
        [rewriter.constant("tiles", np.array(len(queries))), ""],
        "stacked",
        body=body.graph(outputs, {turn: _INT64, on: _BOOL}),
    )
    moved = rewriter.node("Transpose", [stacked], "moved", perm=[1, 0, 2, 3])
    flat = np.array([0, -1, width])
    tokens = rewriter.node("Reshape", [moved, flat], "tokens")
    if len(prefix):
        query = rewriter.node("Gather", [operands.query, prefix], "prefix_query", axis=1)
        first = attend(rewriter, replace(operands, query=query), "prefix")
        tokens = rewriter.node("Concat", [first, tokens], "tokens_and_prefix", axis=1)
    _, places = np.unique(np.concatenate([prefix, queries.ravel()]), return_index=True)
    return rewriter.node("Gather", [tokens, places], "in_place", axis=1)
