"""The fused kernel: bilateral attention as one pass of an online softmax, memory O(N).

One program computes `BLOCK_M` rows of the output of one head. It walks over the keys in tiles of
`BLOCK_N`; nothing of size Nq x Nk ever leaves the registers. `other_logits`, a product with the
keys and `attend_tile` are the arithmetic of one tile; the rest loads tiles and decides which.

Algebra
    The weights are 2^(L_ij) / sum_j 2^(L_ij) with L = log2(e) * logits. Any term of L that is the
    same for all j cancels. The Gaussian range kernel therefore keeps two of its three parts:

        -scale/2 |q_i - k_j|^2  ~  scale * q_i.k_j - scale/2 |k_j|^2

    which is the dot kernel plus one number per key. With the key bias that number is the *key
    term* t_j, so one code serves both range kernels, and the range kernel is not a variant.

    The tensor cores give q.k unscaled, and everything else is brought to that unit: with
    unit = scale log2(e), scale > 0,

        L_ij = unit * s_ij     s_ij = q_i.k_j + t_j / scale - g_i |p_i - p_j|^2
                               g_i  = 1 / (2 sigma^2 scale)

    The key term and the spatial term are what the accumulator of the product starts from, so the
    tensor cores add them up; and the factor `unit` is part of the fused multiply-add that subtracts
    the maximum, 2^(unit * s_ij - m_i), as it is in plain attention.

Spatial kernels
    gaussian: coordinates are subtracted before they are squared, in float32. The expansion
    |p_i|^2 - 2 p_i.p_j + |p_j|^2 would save an operation or two per weight and lose all digits far
    from the origin; this form is exact to a few units in the last place of the logit itself.
    dot: features in T, scaled by scale^(-1/2) on both sides (`prepare.py`), are one more product
    into the same accumulator.

Prefix tokens
    A query without position has g_i = 0, and a feature row without position is zero: no branch. A
    key without position costs a factor per weight in the tiles that hold one; these are *edge
    tiles*, as are those that the causal diagonal or the end of the keys cut. Only edge tiles pay.

Rounding
    Products of 16-bit operands are exact, and their sum is float32: s_ij is off by at most about
    (D + 6) 2^-24 (|q_i| |k_j| + |t_j|/scale) + 6 * 2^-24 g_i |p_i - p_j|^2. Dropping |q_i|^2 makes
    the first part grow with the square of the keys' distance from the origin, though the logits
    depend on differences only; keys that share a large mean should be centred by the model
    (subtract one vector from queries and keys: the logits stay). The kernel does not do it: in 16
    bits the subtraction rounds the operands, which is worse until |k| is many times their spread.
    float32 operands are multiplied as three TF32 products (`PRECISION`), error 2^-21 |q_i| |k_j|.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# A finite stand-in for -inf as the first running maximum: (-inf) - (-inf) would be NaN.
LOWEST = tl.constexpr(-3.0e38)
# Columns that `streamed_product` reads at a time.
PART = tl.constexpr(64)
# The longest float32 head whose queries a program keeps in its registers.
KEPT = tl.constexpr(64)

# Numbers the kernels are not recompiled for, whatever their values.
NUMBERS = [
    *(f"stride_{tensor}{axis}" for tensor in "qkvo" for axis in "bhn"),
    "stride_tb", "stride_th", "stride_bias",
    "heads", "n_query", "n_key", "n_tokens", "head_dim", "n_features", "coordinates",
    "query_prefix", "key_prefix", "prefix", "diagonal", "has_ranges", "gaussian_range", "has_bias",
    "scale", "budget", "largest",
]  # fmt: skip


@triton.jit
def other_logits(
    term, coefficient, point, key_point, features, key_features,
    KEY_TERM: tl.constexpr, SPATIAL: tl.constexpr, C: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """s_ij of one tile of keys without q.k, `[BLOCK_M, BLOCK_N]` float32: logits over `scale`.

    The product of queries and keys is added to it, by the tensor cores.

    Args:
        term: t_j / scale, `[BLOCK_N]`, if KEY_TERM.
        coefficient: g_i, `[BLOCK_M, 1]`, or `[BLOCK_M, BLOCK_N]` where a key has no position.
        point: Coordinates of the queries, C used.
        key_point: Coordinates of the keys, C used.
        features: Features of the queries, `[BLOCK_M, P]`, T.
        key_features: Features of the keys, `[BLOCK_N, P]`, T.
    """
    s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if KEY_TERM:
        s += term[None, :]
    if SPATIAL == "gaussian":
        s -= coefficient * squared_distance(point, key_point, C)
    if SPATIAL == "dot":
        s = product(features, tl.trans(key_features), s, PRECISION)
    return s


@triton.jit
def attend_tile(accumulator, largest, total, s, v, unit, PRECISION: tl.constexpr):
    """Add one tile of keys to the online softmax of `BLOCK_M` rows.

    Args:
        accumulator: `[BLOCK_M, BLOCK_D]` float32, sum of weight times value so far.
        largest: `[BLOCK_M]`, the largest L seen, which the weights are relative to.
        total: `[BLOCK_M]`, the sum of the weights so far.
        s: The logits over `scale`, -inf where a query does not see a key.
        v: `[BLOCK_N, BLOCK_D]`, T.
        unit: scale log2(e).

    Returns:
        The three sums, with the tile in them.
    """
    new_largest = tl.maximum(largest, tl.max(s, 1) * unit)
    weight = tl.exp2(s * unit - new_largest[:, None])
    decay = tl.exp2(largest - new_largest)
    total = total * decay + tl.sum(weight, 1)
    accumulator = accumulator * decay[:, None]
    accumulator = product(weight.to(v.dtype), v, accumulator, PRECISION)
    return accumulator, new_largest, total


@triton.jit
def product(a, b, accumulator, PRECISION: tl.constexpr):
    """Add a b to the accumulator, in float32. PRECISION is how float32 operands are multiplied.

    "widened" is for the interpreter, which takes bfloat16 operands for integers.
    """
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator)
    else:
        return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def streamed_product(
    query_rows, key_rows, key_inside, head_dim, accumulator,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add q k^T for heads whose queries do not fit the registers, `PART` columns at a time.

    Args:
        query_rows: Where each query begins, `[BLOCK_M, 1]`.
        key_rows: Where each key begins, `[BLOCK_N, 1]`.
        key_inside: Which keys there are, `[BLOCK_N, 1]`.
        head_dim: D.
        accumulator: `[BLOCK_M, BLOCK_N]` float32.
    """
    for part in tl.range(0, BLOCK_D // PART, num_stages=1):
        columns = part * PART + tl.arange(0, PART)[None, :]
        column_inside = columns < head_dim
        # Volatile: else the compiler reads all of q before the loops, and keeps it.
        q = tl.load(query_rows + columns, mask=column_inside, other=0.0, volatile=True)
        k = tl.load(key_rows + columns, mask=key_inside & column_inside, other=0.0)
        accumulator = product(q, tl.trans(k), accumulator, PRECISION)
    return accumulator


@triton.jit
def squared_distance(point, key_point, C: tl.constexpr):
    """|p_i - p_j|^2 of every query with every key, `[BLOCK_M, BLOCK_N]`, float32."""
    difference = point[0][:, None] - key_point[0][None, :]
    distance = difference * difference
    if C > 1:
        difference = point[1][:, None] - key_point[1][None, :]
        distance += difference * difference
    if C > 2:
        difference = point[2][:, None] - key_point[2][None, :]
        distance += difference * difference
    return distance


@triton.jit
def load_point(positions, rows, inside, C: tl.constexpr):
    """Coordinates of `rows` as three vectors; those beyond C repeat the first and are not used."""
    x = tl.load(positions + rows * C, mask=inside)
    y = x
    z = x
    if C > 1:
        y = tl.load(positions + rows * C + 1, mask=inside)
    if C > 2:
        z = tl.load(positions + rows * C + 2, mask=inside)
    return x, y, z


@triton.jit
def spatial_coefficient(bandwidth, head, scale, rows, query_prefix):
    """g_i = 1 / (2 sigma^2 scale), 0 for queries without position; finite for any sigma > 0."""
    inverse = 1.0 / tl.load(bandwidth + head)
    coefficient = tl.minimum(0.5 * inverse * (inverse / scale), 1.0e38)
    return tl.where(rows >= query_prefix, coefficient, 0.0)


@triton.jit
def key_tiles(first_row, n_key, key_prefix, diagonal, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which key tiles `BLOCK_M` rows from `first_row` see, as `first`, `whole`, `stop`.

    Tiles [0, first) hold keys without position. Tiles [first, whole) are seen whole by every row.
    Tiles [whole, stop) are cut by the diagonal or by the end of the keys. The rest are not seen.
    """
    seen_by_first = tl.maximum(tl.minimum(first_row + diagonal + 1, n_key), 0)
    seen_by_last = tl.maximum(tl.minimum(first_row + diagonal + BLOCK_M, n_key), 0)
    whole = seen_by_first // BLOCK_N
    first = tl.minimum(tl.cdiv(key_prefix, BLOCK_N), whole)
    return first, whole, tl.cdiv(seen_by_last, BLOCK_N)


@triton.jit
def multiple_of_8(number):
    """The number itself, in a form whose divisibility the compiler sees: 16-byte accesses."""
    return number // 8 * 8


@triton.jit
def attend_tiles(
    state, q, coefficient, point, features, last_key, column_inside,
    key, value, key_positions, key_term, stride_kn, stride_vn, n_key, head_dim, n_features,
    key_prefix, scale, begin, end, jump_from, jump,
    SPATIAL: tl.constexpr, KEY_TERM: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, STREAMED: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Attend to key tiles `begin` to `end`; from number `jump_from` on, to tiles `jump` later.

    `q` holds the queries, `[BLOCK_M, BLOCK_D]`; if STREAMED, pointers to their rows.
    """
    accumulator, largest, total = state
    lanes = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    feature = tl.arange(0, P)
    key_offsets = lanes[:, None] * stride_kn + columns[None, :]
    value_offsets = lanes[:, None] * stride_vn + columns[None, :]
    feature_offsets = lanes[:, None] * n_features + feature[None, :]
    feature_inside = (feature < n_features)[None, :]
    unit = scale * LOG2_E
    inverse_scale = 1.0 / scale
    for step in tl.range(begin, end, num_stages=STAGES):
        tile = step
        if EDGE:
            tile = tl.where(step < jump_from, step, step + jump)
        start = tile * BLOCK_N
        far = start.to(tl.int64)
        token_mask = column_inside
        feature_mask = feature_inside
        inside = None
        visible = None
        key_inside = True
        g = coefficient
        if EDGE:
            inside = start + lanes < n_key
            key_inside = inside[:, None]
            token_mask = key_inside & column_inside
            feature_mask = inside[:, None] & feature_inside
            visible = (start + lanes)[None, :] <= last_key[:, None]
            if SPATIAL == "gaussian":
                g = coefficient * (start + lanes >= key_prefix).to(tl.float32)[None, :]

        term = 0.0
        key_point = 0.0
        key_features = 0.0
        if KEY_TERM:
            term = tl.load(key_term + start + lanes, mask=inside) * inverse_scale
        if SPATIAL == "gaussian":
            key_point = load_point(key_positions + start * C, lanes, inside, C)
        if SPATIAL == "dot":
            key_features = tl.load(
                key_positions + far * n_features + feature_offsets, mask=feature_mask, other=0.0
            )
        s = other_logits(
            term, g, point, key_point, features, key_features,
            KEY_TERM, SPATIAL, C, BLOCK_M, BLOCK_N, PRECISION,
        )  # fmt: skip
        if STREAMED:
            key_rows = key + far * stride_kn + lanes[:, None] * stride_kn
            s = streamed_product(q, key_rows, key_inside, head_dim, s, BLOCK_D, PRECISION)
        else:
            k = tl.load(key + far * stride_kn + key_offsets, mask=token_mask, other=0.0)
            s = product(q, tl.trans(k), s, PRECISION)
        if EDGE:
            s = tl.where(visible, s, float("-inf"))
        v = tl.load(value + far * stride_vn + value_offsets, mask=token_mask, other=0.0)
        accumulator, largest, total = attend_tile(
            accumulator, largest, total, s, v, unit, PRECISION
        )
    return accumulator, largest, total


@triton.jit(do_not_specialize=NUMBERS)
def bilateral_attention_kernel(
    query, key, value, output, query_positions, key_positions, bandwidth, key_term, tile_ranges,
    stride_qb: tl.int64, stride_qh: tl.int64, stride_qn: tl.int32,
    stride_kb: tl.int64, stride_kh: tl.int64, stride_kn: tl.int32,
    stride_vb: tl.int64, stride_vh: tl.int64, stride_vn: tl.int32,
    stride_ob: tl.int64, stride_oh: tl.int64, stride_on: tl.int32,
    stride_tb: tl.int64, stride_th: tl.int64,
    heads: tl.int32, n_query: tl.int32, n_key: tl.int32, head_dim: tl.int32, n_features: tl.int32,
    query_prefix: tl.int32, key_prefix: tl.int32, diagonal: tl.int32, has_ranges: tl.int32,
    scale: tl.float32,
    SPATIAL: tl.constexpr, KEY_TERM: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Bilateral attention, forward. README.md in this folder explains the arguments (the ABI)."""
    STREAMED: tl.constexpr = BLOCK_D > KEPT and query.dtype.element_ty == tl.float32  # noqa: N806
    # Consecutive programs share a head, so that its keys stay in the L2 cache.
    n_row_tiles = tl.cdiv(n_query, BLOCK_M)
    first_row = (tl.program_id(0) % n_row_tiles) * BLOCK_M
    sequence = tl.program_id(0) // n_row_tiles
    batch = (sequence // heads).to(tl.int64)
    head = (sequence % heads).to(tl.int64)
    query += batch * multiple_of_8(stride_qb) + head * multiple_of_8(stride_qh)
    key += batch * multiple_of_8(stride_kb) + head * multiple_of_8(stride_kh)
    value += batch * multiple_of_8(stride_vb) + head * multiple_of_8(stride_vh)
    output += batch * multiple_of_8(stride_ob) + head * multiple_of_8(stride_oh)
    key_term += batch * stride_tb + head * stride_th
    query += first_row.to(tl.int64) * multiple_of_8(stride_qn)
    output += first_row.to(tl.int64) * multiple_of_8(stride_on)
    n_features = multiple_of_8(n_features)

    lanes = tl.arange(0, BLOCK_M)
    rows = first_row + lanes
    inside = rows < n_query
    columns = tl.arange(0, BLOCK_D)
    column_inside = (columns < multiple_of_8(head_dim))[None, :]
    query_offsets = lanes[:, None] * multiple_of_8(stride_qn) + columns[None, :]
    if STREAMED:
        # Rows beyond the last repeat it: they are read, and not stored.
        row = tl.minimum(lanes, n_query - 1 - first_row)[:, None]
        q = query + row * multiple_of_8(stride_qn)
    else:
        q = tl.load(query + query_offsets, mask=inside[:, None] & column_inside, other=0.0)
    coefficient = 0.0
    point = 0.0
    features = 0.0
    if SPATIAL == "gaussian":
        coefficient = spatial_coefficient(bandwidth, head, scale, rows, query_prefix)[:, None]
        point = load_point(query_positions, rows, inside, C)
    if SPATIAL == "dot":
        feature = tl.arange(0, P)
        query_positions += (head * n_query + first_row) * n_features
        key_positions += head * n_key * n_features
        features = tl.load(
            query_positions + lanes[:, None] * n_features + feature[None, :],
            mask=inside[:, None] & (feature < n_features)[None, :],
            other=0.0,
        )
    last_key = tl.minimum(rows + diagonal, n_key - 1)

    # What the Gaussian spatial kernel makes negligible was found out before (plan.py).
    if SPATIAL != "gaussian":
        key_prefix = 0
    first, whole, stop = key_tiles(first_row, n_key, key_prefix, diagonal, BLOCK_M, BLOCK_N)
    low = first
    high = whole
    if SPATIAL == "gaussian":
        if has_ranges != 0:
            low = tl.load(tile_ranges + 2 * tl.program_id(0))
            high = tl.load(tile_ranges + 2 * tl.program_id(0) + 1)

    state = (
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
        tl.full([BLOCK_M], LOWEST, tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
    )
    state = attend_tiles(
        state, q, coefficient, point, features, last_key, column_inside,
        key, value, key_positions, key_term, multiple_of_8(stride_kn), multiple_of_8(stride_vn),
        n_key, multiple_of_8(head_dim), n_features, key_prefix, scale,
        0, first + stop - whole, first, whole - first,
        SPATIAL, KEY_TERM, C, P, BLOCK_D, BLOCK_M, BLOCK_N, STAGES, PRECISION, STREAMED, True,
    )  # fmt: skip
    accumulator, _, total = attend_tiles(
        state, q, coefficient, point, features, last_key, column_inside,
        key, value, key_positions, key_term, multiple_of_8(stride_kn), multiple_of_8(stride_vn),
        n_key, multiple_of_8(head_dim), n_features, key_prefix, scale,
        low, high, 0, 0,
        SPATIAL, KEY_TERM, C, P, BLOCK_D, BLOCK_M, BLOCK_N, STAGES, PRECISION, STREAMED, False,
    )  # fmt: skip

    # A row that sees no key (causal, with more queries than keys) gives zeros.
    result = accumulator / tl.where(total > 0, total, 1.0)[:, None]
    output_offsets = lanes[:, None] * multiple_of_8(stride_on) + columns[None, :]
    tl.store(
        output + output_offsets,
        result.to(output.dtype.element_ty),
        mask=inside[:, None] & column_inside,
    )
