"""Products with a weight in four bits for many rows: x W.T and g W, alone and with a low-rank term.

Both read the weight as it is stored. x W.T is computed as its transpose, W x.T: the decoded tile is then the first
operand, which the tensor cores of sm_90 take from registers, so it never travels through shared memory. g W sums over
the rows of W: a decoded tile [BN, BK] is the second operand in its natural order, no transposed copy of W is needed.

Bytes for M rows, K = N = 4096, bfloat16: 8.65 MB of weight, against 33.6 MB dense. From some 250 rows on, arithmetic is
the bound, and decoding has to hide behind it: 6 instructions an element are 39% of the tensor cores' time with tiles of
256 rows, 78% with 128. It saves the pass that writes W in full (12.6 us) and the one that reads it.
"""

from __future__ import annotations

import math
from typing import Any

from ..device.triton import tl, triton
from ..four_bit.layout import Quantized
from ..four_bit.triton_decode import parts_of
from ..tiles.arrays import new, start
from ..tiles.blocks import store_tile, tile, tile_place
from ..tiles.host import arithmetic, config, rank_block, tuned
from .triton_tiles import weight_tile


@tuned(
    config(8, 3, BM=256, BN=128, BK=64, GROUP=8),  # H100: what is decoded serves 256 rows; 231 registers
    config(8, 3, BM=128, BN=128, BK=64, GROUP=8),
    config(8, 3, BM=128, BN=128, BK=32, GROUP=8),  # A100: 166 registers
    config(4, 3, BM=64, BN=64, BK=64, GROUP=8),
    config(4, 3, BM=64, BN=64, BK=32, GROUP=8),  # float32 as three products: the largest without spills on an A100
    config(4, 4, BM=32, BN=64, BK=64, GROUP=8),
    key=["M", "N", "K", "rank", "PRECISION"],
)
@triton.jit
def _forward(x, packed, absmax, nested_code, nested_absmax, offset, pairs, bias, low, up, y, M, N, K, rank, scaling,
             BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr, WHOLE: tl.constexpr, COMPUTE: tl.constexpr,
             PRECISION: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
             GROUP: tl.constexpr):  # fmt: skip
    row, column = tile_place(M, N, BM, BN, GROUP)
    rm, rn, rk, rr = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, R)
    acc = tl.zeros((BN, BM), tl.float32)
    if low is not None:
        for r in range(0, rank, R):
            u = tile(up, rn, r + rr, N, rank, rank, 1).to(COMPUTE)
            d = tile(low, rm, r + rr, M, rank, rank, 1).to(COMPUTE)
            acc = tl.dot(u, tl.trans(d), acc, input_precision=PRECISION)
        acc *= scaling
    for k in range(0, K, BK):
        w = weight_tile(packed, absmax, nested_code, nested_absmax, offset, pairs, rn, k, N, K,
                        BLOCKSIZE, NESTED, WHOLE, COMPUTE, BN, BK)  # fmt: skip
        rows = tile(x, rm, k + rk, M, K, K, 1).to(COMPUTE)
        acc = tl.dot(w, tl.trans(rows), acc, input_precision=PRECISION)
    if bias is not None:
        acc += tl.load(bias + rn, mask=rn < N, other=0).to(tl.float32)[:, None]
    store_tile(y, tl.trans(acc), rm, rn, M, N, N, 1)


def forward(x: Any, q: Quantized, bias: Any, low: Any = None, up: Any = None, scaling: float = 1.0) -> Any:
    """y (..., N) = x W.T + bias, + scaling · low up.T for low (..., r) and up (N, r)."""
    (*lead, k), n, rank = x.shape, q.shape[0], 0 if low is None else low.shape[-1]
    m, y = math.prod(lead), new(x, *lead, n)
    start(
        _forward, lambda meta: (triton.cdiv(m, meta["BM"]) * triton.cdiv(n, meta["BN"]),),
        x, *parts_of(q), bias, low, up, y, m, n, k, rank, float(scaling),
        R=rank_block(rank), **storage(q), **arithmetic(x),
    )  # fmt: skip
    return y


@tuned(
    config(8, 3, BM=256, BN=64, BK=128, GROUP=8),  # H100: 227 registers
    config(8, 3, BM=128, BN=64, BK=128, GROUP=8),
    config(8, 3, BM=128, BN=32, BK=128, GROUP=8),  # A100: 166 registers
    config(8, 3, BM=128, BN=32, BK=64, GROUP=8),  # float32 as three products: the largest without spills on an A100
    config(4, 3, BM=64, BN=64, BK=64, GROUP=8),
    config(4, 3, BM=16, BN=64, BK=64, GROUP=1),
    key=["M", "N", "K", "rank", "PRECISION"],
)
@triton.jit
def _grad_x(grad, packed, absmax, nested_code, nested_absmax, offset, pairs, low, up, dx, M, N, K, rank,
            BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr, WHOLE: tl.constexpr, COMPUTE: tl.constexpr,
            PRECISION: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
            GROUP: tl.constexpr):  # fmt: skip
    row, column = tile_place(M, K, BM, BK, GROUP)
    rm, rk, rn, rr = row * BM + tl.arange(0, BM), column * BK + tl.arange(0, BK), tl.arange(0, BN), tl.arange(0, R)
    acc = tl.zeros((BM, BK), tl.float32)
    if low is not None:
        for r in range(0, rank, R):
            d = tile(low, rm, r + rr, M, rank, rank, 1).to(COMPUTE)
            u = tile(up, r + rr, rk, rank, K, K, 1).to(COMPUTE)
            acc = tl.dot(d, u, acc, input_precision=PRECISION)
    for n in range(0, N, BN):
        g = tile(grad, rm, n + rn, M, N, N, 1).to(COMPUTE)
        w = weight_tile(packed, absmax, nested_code, nested_absmax, offset, pairs, n + rn, column * BK, N, K,
                        BLOCKSIZE, NESTED, WHOLE, COMPUTE, BN, BK)  # fmt: skip
        acc = tl.dot(g, w, acc, input_precision=PRECISION)
    store_tile(dx, acc, rm, rk, M, K, K, 1)


def grad_x(grad: Any, q: Quantized, low: Any = None, up: Any = None) -> Any:
    """dx (..., K) = g W, + low up for low (..., r) and up (r, K)."""
    (*lead, n), k, rank = grad.shape, q.shape[1], 0 if low is None else low.shape[-1]
    m, dx = math.prod(lead), new(grad, *lead, k)
    start(
        _grad_x, lambda meta: (triton.cdiv(m, meta["BM"]) * triton.cdiv(k, meta["BK"]),),
        grad, *parts_of(q), low, up, dx, m, n, k, rank, R=rank_block(rank), **storage(q), **arithmetic(grad),
    )  # fmt: skip
    return dx


def storage(q: Quantized) -> dict[str, Any]:
    """The constants that say how q is stored."""
    whole_rows = q.shape[1] % q.blocksize == 0
    return {"BLOCKSIZE": q.blocksize, "NESTED": q.nested.blocksize if q.nested else 1, "WHOLE": whole_rows}
