"""A tile of a weight in four bits, decoded on its way to the tensor cores."""

from __future__ import annotations

from ..device.triton import tl, triton
from ..four_bit.triton_decode import block_scale, pair_values


@triton.jit
def weight_tile(packed, absmax, nested_code, nested_absmax, offset, pairs, rows, column, N, K,
                BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr, WHOLE: tl.constexpr, COMPUTE: tl.constexpr,
                BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """W[rows, column : column + BK] of W (N, K) in the compute dtype, [BN, BK].

    Finite beyond the edges, but zero there only where absmax is not nested: what it is multiplied by there has to be
    zero, or the product is not to be stored.

    ``column`` is a multiple of BK. WHOLE: a row is a whole number of blocks (K % BLOCKSIZE == 0), as it is in every
    model; then the absmax of a row's piece is loaded once, or once for each block in it.
    """
    if WHOLE:
        half = column // 2 + tl.arange(0, BK // 2)
        inside = (rows < N)[:, None] & (half < K // 2)[None, :]
        byte = tl.load(packed + rows.to(tl.int64)[:, None] * (K // 2) + half[None, :], mask=inside, other=0)
        high, low = pair_values(pairs, byte)
        in_row = K // BLOCKSIZE
        if BK <= BLOCKSIZE:
            block = rows.to(tl.int64) * in_row + column // BLOCKSIZE
            scale = block_scale(absmax, nested_code, nested_absmax, offset, block, rows < N, NESTED)[:, None]
            return tl.interleave(high * scale, low * scale).to(COMPUTE)
        else:
            g = column // BLOCKSIZE + tl.arange(0, BK // BLOCKSIZE)
            inside = (rows < N)[:, None] & (g < in_row)[None, :]
            block = rows.to(tl.int64)[:, None] * in_row + g[None, :]
            scale = block_scale(absmax, nested_code, nested_absmax, offset, block, inside, NESTED)
            values = tl.reshape(tl.interleave(high, low), (BN, BK // BLOCKSIZE, BLOCKSIZE)) * scale[:, :, None]
            return tl.reshape(values, (BN, BK)).to(COMPUTE)
    else:
        return any_weight_tile(packed, absmax, nested_code, nested_absmax, offset, pairs, rows,
                               column + tl.arange(0, BK), N, K, BLOCKSIZE, NESTED).to(COMPUTE)  # fmt: skip


@triton.jit
def any_weight_tile(packed, absmax, nested_code, nested_absmax, offset, pairs, rows, columns, N, K,
                    BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr):  # fmt: skip
    """The same element by element, where blocks and even bytes straddle rows: slow, and right for every shape."""
    element = rows.to(tl.int64)[:, None] * K + columns[None, :]
    inside = (rows < N)[:, None] & (columns < K)[None, :]
    byte = tl.load(packed + element // 2, mask=inside, other=0)
    high, low = pair_values(pairs, byte)
    scale = block_scale(absmax, nested_code, nested_absmax, offset, element // BLOCKSIZE, inside, NESTED)
    return tl.where(inside, tl.where(element % 2 == 0, high, low) * scale, 0.0)
