"""Products with a weight in four bits for 1 to 16 rows, as when a model generates: decoding the weight is the bound.

K = N = 4096: 8.65 MB of weight, read in 2.6 us on an H100; at 7 instructions a weight to issue it takes 4.0 us, for
1 to 64 rows alike, against 10 us in bfloat16 and 23.9 us where it is dequantized first.
Tiles of 64 rows of W are only 64 programs: the sum over K is cut into parts so that every multiprocessor reads; their
float32 sums are added by a second kernel in a fixed order. A single row has no use for tensor cores: each thread
multiplies what it decodes, and a program holds a few rows of W.
"""

from __future__ import annotations

import math
from typing import Any

from ..device.triton import tl, triton
from ..four_bit.layout import Quantized
from ..four_bit.triton_decode import block_scale, pair_values, parts_of
from ..tiles.arrays import new, start
from ..tiles.blocks import part_of, partials, store_tile, sum_parts, tile
from ..tiles.host import arithmetic, config, parts, rank_block, size, tuned
from .triton_tiles import weight_tile
from .triton_train import storage

MOST_ROWS = 16
LEAST = size(512, 32)
"""Terms of the sum over K that a program adds at least."""


@tuned(
    config(4, 4, BN=64, BK=64),
    config(4, 3, BN=64, BK=128),
    config(8, 3, BN=128, BK=128),
    key=["M", "N", "K", "rank", "parts", "PRECISION"],
)
@triton.jit
def _few_rows(x, packed, absmax, nested_code, nested_absmax, offset, pairs, bias, low, up, sums, M, N, K, rank, scaling,
              parts, BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr, WHOLE: tl.constexpr, COMPUTE: tl.constexpr,
              PRECISION: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
              BK: tl.constexpr):  # fmt: skip
    part = tl.program_id(1)
    rm, rn, rk, rr = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, R)
    acc = tl.zeros((BN, BM), tl.float32)
    if low is not None:
        for r in range(0, tl.where(part == 0, rank, 0), R):
            u = tile(up, rn, r + rr, N, rank, rank, 1).to(COMPUTE)
            d = tile(low, rm, r + rr, M, rank, rank, 1).to(COMPUTE)
            acc = tl.dot(u, tl.trans(d), acc, input_precision=PRECISION)
        acc *= scaling
    first, last = part_of(K, part, parts, BK)
    for k in range(first, last, BK):
        w = weight_tile(packed, absmax, nested_code, nested_absmax, offset, pairs, rn, k, N, K,
                        BLOCKSIZE, NESTED, WHOLE, COMPUTE, BN, BK)  # fmt: skip
        rows = tile(x, rm, k + rk, M, K, K, 1).to(COMPUTE)
        acc = tl.dot(w, tl.trans(rows), acc, input_precision=PRECISION)
    if bias is not None:
        acc += tl.load(bias + rn, mask=rn < tl.where(part == 0, N, 0), other=0).to(tl.float32)[:, None]
    store_tile(sums + part.to(tl.int64) * M * N, acc, rn, rm, N, M, 1, N)


@tuned(
    config(4, 1, BN=8, BK=512),
    config(4, 1, BN=4, BK=1024),
    config(8, 1, BN=16, BK=512),
    key=["N", "K", "rank", "parts"],
)
@triton.jit
def _one_row(x, packed, absmax, nested_code, nested_absmax, offset, pairs, bias, low, up, sums, N, K, rank, scaling,
             parts, BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr, R: tl.constexpr, BN: tl.constexpr,
             BK: tl.constexpr):  # fmt: skip
    GROUPS: tl.constexpr = BK // BLOCKSIZE if BK > BLOCKSIZE else 1
    HALF: tl.constexpr = BK // GROUPS // 2
    part, rn = tl.program_id(1), tl.program_id(0) * BN + tl.arange(0, BN)
    first, last = part_of(K, part, parts, BK)
    total = tl.zeros((BN, GROUPS, HALF), tl.float32)
    for k in range(first, last, BK):
        half = tl.arange(0, GROUPS)[:, None] * HALF + tl.arange(0, HALF)[None, :] + k // 2
        inside = half < K // 2
        even = tl.load(x + 2 * half, mask=inside, other=0).to(tl.float32)
        odd = tl.load(x + 2 * half + 1, mask=inside, other=0).to(tl.float32)
        at = rn.to(tl.int64)[:, None, None] * (K // 2) + half[None, :, :]
        byte = tl.load(packed + at, mask=(rn < N)[:, None, None] & inside[None, :, :], other=0)
        high, lower = pair_values(pairs, byte)
        block = k // BLOCKSIZE + tl.arange(0, GROUPS)
        known = (rn < N)[:, None] & (block < K // BLOCKSIZE)[None, :]
        block = rn.to(tl.int64)[:, None] * (K // BLOCKSIZE) + block[None, :]
        scale = block_scale(absmax, nested_code, nested_absmax, offset, block, known, NESTED)
        total += tl.fma(high, even[None, :, :], lower * odd[None, :, :]) * scale[:, :, None]
    y = tl.sum(tl.sum(total, axis=2), axis=1)
    if low is not None:
        for r in range(0, tl.where(part == 0, rank, 0), R):
            rr = r + tl.arange(0, R)
            d = tl.load(low + rr, mask=rr < rank, other=0).to(tl.float32)
            y += scaling * tl.sum(tile(up, rn, rr, N, rank, rank, 1).to(tl.float32) * d[None, :], axis=1)
    if bias is not None:
        y += tl.load(bias + rn, mask=rn < tl.where(part == 0, N, 0), other=0).to(tl.float32)
    tl.store(sums + part.to(tl.int64) * N + rn, y.to(sums.dtype.element_ty), mask=rn < N)


def few_rows(x: Any, q: Quantized, bias: Any, low: Any = None, up: Any = None, scaling: float = 1.0) -> Any:
    """``triton_train.forward`` for x of at most MOST_ROWS rows."""
    (*lead, k), n, rank = x.shape, q.shape[0], 0 if low is None else low.shape[-1]
    m, of_q = math.prod(lead), storage(q)
    single = m == 1 and of_q.pop("WHOLE")
    cut = parts(triton.cdiv(n, 8 if single else 64), k, LEAST)
    y = new(x, *lead, n)
    sums = partials(x, cut, *y.shape) if cut > 1 else y
    term = (*parts_of(q), bias, low, up, sums)
    if single:
        start(
            _one_row, lambda meta: (triton.cdiv(n, meta["BN"]), cut),
            x, *term, n, k, rank, float(scaling), cut, R=rank_block(rank), **of_q,
        )  # fmt: skip
    else:
        start(
            _few_rows, lambda meta: (triton.cdiv(n, meta["BN"]), cut),
            x, *term, m, n, k, rank, float(scaling), cut,
            BM=MOST_ROWS, R=rank_block(rank), **storage(q), **arithmetic(x),
        )  # fmt: skip
    return sum_parts(sums, y) if cut > 1 else y
