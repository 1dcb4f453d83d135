"""Inputs of the main kernel per key: its key term, and bounds over tiles of keys.

Both kernels here read their input once, O(N); README.md says when each has to run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bilateral_export.op.kernel.forward import NUMBERS, multiple_of_8


@triton.jit(do_not_specialize=NUMBERS)
def bilateral_key_tiles_kernel(
    key, key_bias, key_positions, key_term, tile_norm, tile_term, tile_boxes,
    stride_kb: tl.int64, stride_kh: tl.int64, stride_kn: tl.int32, stride_bias: tl.int64,
    heads: tl.int32, n_key: tl.int32, head_dim: tl.int32, key_prefix: tl.int32,
    gaussian_range: tl.int32, has_bias: tl.int32, coordinates: tl.int32,
    scale: tl.float32,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Key terms `[B, H, Nk]`; per tile of keys the largest |k| and key term, and its box.

    The key term is -scale/2 |k|^2 for the Gaussian range kernel (0 for the dot kernel) plus the
    key bias, in natural logarithms. `coordinates` = 0 leaves the bounds out. A box holds the
    lowest, then the highest value of every coordinate, `[tiles, 2, C]`, of the keys that have a
    position; a tile without such keys has the empty box (inf, -inf).
    """
    n_tiles = tl.cdiv(n_key, BLOCK_N)
    tile = tl.program_id(0) % n_tiles
    sequence = (tl.program_id(0) // n_tiles).to(tl.int64)
    batch = sequence // heads
    head = sequence % heads
    keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = keys < n_key
    columns = tl.arange(0, BLOCK_D)
    stride_kn = multiple_of_8(stride_kn)
    key += batch * multiple_of_8(stride_kb) + head * multiple_of_8(stride_kh)
    k = tl.load(
        key + keys.to(tl.int64)[:, None] * stride_kn + columns[None, :],
        mask=inside[:, None] & (columns < multiple_of_8(head_dim))[None, :],
        other=0.0,
    ).to(tl.float32)
    square = tl.sum(k * k, 1)
    term = tl.where(gaussian_range != 0, -0.5 * scale * square, 0.0)
    if has_bias != 0:
        term += tl.load(key_bias + batch * stride_bias + keys, mask=inside, other=0.0)
    tl.store(key_term + sequence * n_key + keys, term, mask=inside)

    if coordinates > 0:
        tl.store(tile_norm + sequence * n_tiles + tile, tl.sqrt(tl.max(square, 0)))
        largest = tl.max(tl.where(inside, term, float("-inf")), 0)
        tl.store(tile_term + sequence * n_tiles + tile, largest)
        if sequence == 0:
            positioned = inside & (keys >= key_prefix)
            for axis in range(coordinates):
                x = tl.load(key_positions + keys * coordinates + axis, mask=positioned, other=0.0)
                low = tl.min(tl.where(positioned, x, float("inf")), 0)
                high = tl.max(tl.where(positioned, x, float("-inf")), 0)
                box = tile_boxes + tile * 2 * coordinates + axis
                tl.store(box, low)
                tl.store(box + coordinates, high)


@triton.jit(do_not_specialize=NUMBERS)
def bilateral_features_kernel(
    source, target,
    heads: tl.int32, n_tokens: tl.int32, n_features: tl.int32, prefix: tl.int32,
    scale: tl.float32, largest: tl.float32,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Features of the dot spatial kernel, float32 `[H, N, P]`, rounded to T times scale^(-1/2).

    Both sides carry the factor, so that their product is in the unit of q.k. The first `prefix`
    tokens have no position: zeros. Values beyond T's `largest` are cut to it.
    """
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < heads.to(tl.int64) * n_tokens * n_features
    token = (element // n_features) % n_tokens
    x = tl.load(source + element, mask=inside, other=0.0) / tl.sqrt(scale)
    x = tl.where(token < prefix, 0.0, tl.minimum(tl.maximum(x, -largest), largest))
    tl.store(target + element, x.to(target.dtype.element_ty), mask=inside)
