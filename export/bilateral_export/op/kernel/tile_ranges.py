"""Ranges of key tiles that the Gaussian spatial kernel does not make negligible.

They are decided by a kernel of its own, before the main one: the main loop must not depend on what
the threads of a program computed, because the compiler then serialises Hopper's asynchronous matrix
instructions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bilateral_export.op.kernel.forward import (
    LOG2_E,
    LOWEST,
    NUMBERS,
    key_tiles,
    load_point,
    multiple_of_8,
    other_logits,
    product,
    spatial_coefficient,
)

# Squared distances are cut here, so that no product with a coefficient can be 0 * inf.
FARTHEST = tl.constexpr(1.0e37)
# For the rounding of the bounds: norms are raised, distances lowered by this share.
MARGIN = tl.constexpr(1.0e-4)
# Tiles whose bounds are looked at together.
SCAN = tl.constexpr(16)


@triton.jit(do_not_specialize=NUMBERS)
def bilateral_tile_ranges_kernel(
    query, key, query_positions, key_positions, bandwidth, key_term,
    tile_norm, tile_term, tile_boxes, tile_ranges,
    stride_qb: tl.int64, stride_qh: tl.int64, stride_qn: tl.int32,
    stride_kb: tl.int64, stride_kh: tl.int64, stride_kn: tl.int32,
    stride_tb: tl.int64, stride_th: tl.int64,
    heads: tl.int32, n_query: tl.int32, n_key: tl.int32, head_dim: tl.int32,
    query_prefix: tl.int32, key_prefix: tl.int32, diagonal: tl.int32,
    scale: tl.float32, budget: tl.float32,
    C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """For every tile of queries the range `[low, high)` of whole key tiles to attend to.

    The nearest key tiles are weighed first, which gives a lower bound of every row's sum of
    weights; then as many tiles as may be left out are counted from either end (`negligible_run`).
    `budget`, the name in the launch ABI, is the share of a row's weights that may be left out
    (`SKIP_TOLERANCE`).

    A share e of the weights left out moves an output by at most 2 e max|v|.
    """
    n_row_tiles = tl.cdiv(n_query, BLOCK_M)
    n_tiles = tl.cdiv(n_key, BLOCK_N)
    first_row = (tl.program_id(0) % n_row_tiles) * BLOCK_M
    sequence = (tl.program_id(0) // n_row_tiles).to(tl.int64)
    batch = sequence // heads
    head = sequence % heads
    stride_qn = multiple_of_8(stride_qn)
    stride_kn = multiple_of_8(stride_kn)
    query += batch * multiple_of_8(stride_qb) + head * multiple_of_8(stride_qh)
    key += batch * multiple_of_8(stride_kb) + head * multiple_of_8(stride_kh)
    key_term += batch * stride_tb + head * stride_th
    tile_norm += sequence * n_tiles
    tile_term += sequence * n_tiles

    rows = first_row + tl.arange(0, BLOCK_M)
    inside = rows < n_query
    columns = tl.arange(0, BLOCK_D)
    column_inside = (columns < multiple_of_8(head_dim))[None, :]
    q = tl.load(
        query + rows.to(tl.int64)[:, None] * stride_qn + columns[None, :],
        mask=inside[:, None] & column_inside,
        other=0.0,
    )
    point = load_point(query_positions, rows, inside, C)
    coefficient = spatial_coefficient(bandwidth, head, scale, rows, query_prefix)
    low, high = query_box(point, inside & (rows >= query_prefix), C)
    first, whole, stop = key_tiles(first_row, n_key, key_prefix, diagonal, BLOCK_M, BLOCK_N)
    unit = scale * LOG2_E

    # lse_i of negligible_run, over the nearest tiles.
    near = nearest_tile(low, high, tile_boxes, first, stop, C)
    largest = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for tile in tl.range(near, tl.minimum(near + tl.cdiv(BLOCK_M, BLOCK_N), stop), num_stages=1):
        keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        key_inside = keys < n_key
        k = tl.load(
            key + keys.to(tl.int64)[:, None] * stride_kn + columns[None, :],
            mask=key_inside[:, None] & column_inside,
            other=0.0,
        )
        term = tl.load(key_term + keys, mask=key_inside, other=0.0) / scale
        key_point = load_point(key_positions, keys, key_inside, C)
        g = coefficient[:, None] * (keys >= key_prefix).to(tl.float32)[None, :]
        s = other_logits(
            term, g, point, key_point, 0.0, 0.0, True, "gaussian", C, BLOCK_M, BLOCK_N, PRECISION
        )
        s = product(q, tl.trans(k), s, PRECISION)
        seen = tl.minimum(rows + diagonal, n_key - 1)
        s = tl.where(keys[None, :] <= seen[:, None], unit * s, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(s, 1))
        total = total * tl.exp2(largest - new_largest)
        total += tl.sum(tl.exp2(s - new_largest[:, None]), 1)
        largest = new_largest
    log_total = tl.where(total > 0, largest + tl.log2(tl.maximum(total, 1.0e-30)), LOWEST)
    log_total = tl.where(inside, log_total, float("inf"))

    norm = tl.sqrt(tl.sum(q.to(tl.float32) * q.to(tl.float32), 1)) * (1.0 + MARGIN)
    for end in tl.range(0, 2, num_stages=1):
        count = negligible_run(
            log_total, norm, coefficient, unit, low, high, tile_boxes, tile_norm, tile_term,
            first, whole, end == 1, 0.5 * budget, C, BLOCK_N,
        )  # fmt: skip
        bound = tl.where(end == 0, first + count, tl.maximum(whole - count, first))
        tl.store(tile_ranges + tl.program_id(0).to(tl.int64) * 2 + end, bound)


@triton.jit
def negligible_run(
    log_total, norm, coefficient, unit, low, high, tile_boxes, tile_norm, tile_term,
    first, stop, backwards, tolerance, C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """How many tiles at one end of [first, stop) may be left out, for any input.

    Claim: the weights of these tiles sum to at most `tolerance` times the sum of all weights of the
    row, for every row of the program.

    Proof: for a row i and a key j of tile J, let K_J and t_J be the largest |k_j| and key term of
    the tile, and d_J the distance of the queries' box of positions to the tile's. Then

        L_ij <= unit (|q_i| K_J - g_i d_J^2) + log2(e) t_J =: u_iJ

    by Cauchy-Schwarz, and because g_i is 0 for the rows that are not in the box. So the tile's
    weights sum to at most BLOCK_N 2^(u_iJ). Let lse_i (`log_total`) be log2 of the sum of row i's
    weights over some tiles: weights are positive, so the sum over all keys is at least 2^(lse_i).
    Tiles are taken one by one from this end while

        sum_J BLOCK_N max_i 2^(u_iJ - lse_i) <= tolerance,

    whose left side bounds the share of what is left out in every row, whatever is attended later.
    Norms are raised and distances lowered by `MARGIN`, more than the rounding of either (a sum of
    at most 256 squares: 256 * 2^-24 < 2e-5). QED.

    The tolerances of the two ends add up. A tile whose keys are all masked has t_J = -inf and
    mass 0.
    """
    count = 0
    dropped = 0.0
    for start in tl.range(0, stop - first, SCAN, num_stages=1):
        step = start + tl.arange(0, SCAN)
        inside = step < stop - first
        tiles = tl.where(backwards, stop - 1 - step, first + step)
        distance = box_distance(low, high, tile_boxes, tiles, inside, C)
        tile_largest = tl.load(tile_norm + tiles, mask=inside, other=0.0) * (1.0 + MARGIN)
        term = tl.load(tile_term + tiles, mask=inside, other=0.0) * LOG2_E
        similarity = norm[:, None] * tile_largest[None, :]
        similarity -= coefficient[:, None] * distance[None, :]
        bound = tl.max(unit * similarity - log_total[:, None], 0) + term
        mass = BLOCK_N * tl.exp2(tl.minimum(bound, 64.0))
        reached = dropped + tl.cumsum(tl.where(inside, mass, float("inf")), 0)
        count += tl.sum((reached <= tolerance).to(tl.int32), 0)
        dropped = tl.max(reached, 0)
    return count


@triton.jit
def nearest_tile(low, high, tile_boxes, first, stop, C: tl.constexpr):
    """The tile of [first, stop) whose box is nearest to the queries' box; the first of equals."""
    nearest = first
    best = float("inf")
    for start in tl.range(first, stop, SCAN, num_stages=1):
        tiles = start + tl.arange(0, SCAN)
        inside = tiles < stop
        distance = box_distance(low, high, tile_boxes, tiles, inside, C)
        distance = tl.where(inside, distance, float("inf"))
        smallest = tl.min(distance, 0)
        candidate = tl.min(tl.where(distance == smallest, tiles, stop), 0)
        nearest = tl.where(smallest < best, candidate, nearest)
        best = tl.minimum(best, smallest)
    return nearest


@triton.jit
def query_box(point, positioned, C: tl.constexpr):
    """Lowest and highest coordinates of the queries that have a position, C used of each."""
    x_low = tl.min(tl.where(positioned, point[0], float("inf")), 0)
    x_high = tl.max(tl.where(positioned, point[0], float("-inf")), 0)
    y_low = x_low
    y_high = x_high
    z_low = x_low
    z_high = x_high
    if C > 1:
        y_low = tl.min(tl.where(positioned, point[1], float("inf")), 0)
        y_high = tl.max(tl.where(positioned, point[1], float("-inf")), 0)
    if C > 2:
        z_low = tl.min(tl.where(positioned, point[2], float("inf")), 0)
        z_high = tl.max(tl.where(positioned, point[2], float("-inf")), 0)
    return (x_low, y_low, z_low), (x_high, y_high, z_high)


@triton.jit
def box_distance(low, high, tile_boxes, tiles, inside, C: tl.constexpr):
    """A lower bound of |p_i - p_j|^2 between the queries' box and each tile's, `[SCAN]`."""
    gap = axis_gap(low[0], high[0], tile_boxes, tiles, inside, 0, C)
    distance = gap * gap
    if C > 1:
        gap = axis_gap(low[1], high[1], tile_boxes, tiles, inside, 1, C)
        distance += gap * gap
    if C > 2:
        gap = axis_gap(low[2], high[2], tile_boxes, tiles, inside, 2, C)
        distance += gap * gap
    return tl.minimum(distance * (1.0 - MARGIN), FARTHEST)


@triton.jit
def axis_gap(low, high, tile_boxes, tiles, inside, axis: tl.constexpr, C: tl.constexpr):
    """Distance along one axis between the queries' interval and each tile's; 0 if they overlap."""
    tile_low = tl.load(tile_boxes + tiles * (2 * C) + axis, mask=inside, other=0.0)
    tile_high = tl.load(tile_boxes + tiles * (2 * C) + C + axis, mask=inside, other=0.0)
    return tl.maximum(tl.maximum(tile_low - high, low - tile_high), 0.0)
