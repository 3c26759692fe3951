"""One matrix product with a low-rank term: every pass of a LoRA layer over its frozen weight is a call of it.

out = scaling · Σ low_i up_i + Σ x_i w_i + bias

* forward: x W.T + b, with low = x A.T and up = B.T;
* backward: Σ g_i W_i over the projections that share an input, with low = s g_i B_i and up = A_i. W lies in memory
  as the forward pass left it: (N, K) row by row is just what a sum over N reads, no transposed copy is needed;
* the gradient of a weight that is not frozen: g.T x.

The accumulator starts with the low-rank term (the rank is so small that it costs one more step of the main loop) and
the tile is written once: two passes over activations for a layer, as without LoRA. Unfused, x A.T, its product with
B.T and the sum take five to seven passes more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..device.triton import tl, triton
from .arrays import start
from .blocks import store_tile, tile, tile_place
from .host import arithmetic, config, rank_block, tuned


@tuned(
    config(8, 3, BM=128, BN=256, BK=64, GROUP=8),  # H100: 4 products of 64 x 256 x 16 a step, 203 registers
    config(8, 3, BM=128, BN=128, BK=64, GROUP=8),
    config(8, 3, BM=128, BN=128, BK=32, GROUP=8),  # A100: 128 registers
    config(8, 3, BM=128, BN=64, BK=32, GROUP=8),  # float32 as three products: the largest without spills on an A100
    config(4, 4, BM=64, BN=64, BK=32, GROUP=8),
    config(4, 4, BM=16, BN=64, BK=64, GROUP=1),  # few rows
    key=["M", "N", "depths", "TRANSPOSED_X", "TRANSPOSED_W", "PRECISION"],
)
@triton.jit
def _product(xs, ws, depths, lows, ups, ranks, bias, out, M, N, scaling,
             COMPUTE: tl.constexpr, PRECISION: tl.constexpr, TRANSPOSED_X: tl.constexpr, TRANSPOSED_W: tl.constexpr,
             R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    row, column = tile_place(M, N, BM, BN, GROUP)
    rm, rn, rk, rr = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, R)
    acc = tl.zeros((BM, BN), tl.float32)
    for i in tl.static_range(len(lows)):
        rank = ranks[i]
        for r in range(0, rank, R):
            low = tile(lows[i], rm, r + rr, M, rank, rank, 1).to(COMPUTE)
            if TRANSPOSED_W:
                up = tl.trans(tile(ups[i], rn, r + rr, N, rank, rank, 1))
            else:
                up = tile(ups[i], r + rr, rn, rank, N, N, 1)
            acc = tl.dot(low, up.to(COMPUTE), acc, input_precision=PRECISION)
    acc *= scaling
    for i in tl.static_range(len(xs)):
        depth = depths[i]
        for k in range(0, depth, BK):
            if TRANSPOSED_X:
                x = tl.trans(tile(xs[i], k + rk, rm, depth, M, M, 1))
            else:
                x = tile(xs[i], rm, k + rk, M, depth, depth, 1)
            if TRANSPOSED_W:
                w = tl.trans(tile(ws[i], rn, k + rk, N, depth, depth, 1))
            else:
                w = tile(ws[i], k + rk, rn, depth, N, N, 1)
            acc = tl.dot(x.to(COMPUTE), w.to(COMPUTE), acc, input_precision=PRECISION)
    if bias is not None:
        acc += tl.load(bias + rn, mask=rn < N, other=0).to(tl.float32)[None, :]
    store_tile(out, acc, rm, rn, M, N, N, 1)


def product(
    out: Any,
    size: tuple[int, int],
    xs: Sequence[Any],
    ws: Sequence[Any],
    depths: Sequence[int],
    *,
    lows: Sequence[Any] = (),
    ups: Sequence[Any] = (),
    scaling: float = 1.0,
    bias: Any = None,
    x_transposed: bool = False,
    w_transposed: bool = False,
) -> Any:
    """Fill ``out`` (M, N), ``size``, and return it.

    xs (M, D_i) and ws (D_i, N), ``depths`` D_i; lows (M, r_i) and ups (r_i, N); bias (N,) or None. ``x_transposed``:
    xs lie in memory as (D_i, M). ``w_transposed``: ws lie as (N, D_i), and ups as (N, r_i).
    """
    ranks = tuple(up.shape[1 if w_transposed else 0] for up in ups)
    start(
        _product,
        lambda meta: (triton.cdiv(size[0], meta["BM"]) * triton.cdiv(size[1], meta["BN"]),),
        tuple(xs), tuple(ws), tuple(depths), tuple(lows), tuple(ups), ranks, bias, out, *size, float(scaling),
        TRANSPOSED_X=x_transposed, TRANSPOSED_W=w_transposed, R=rank_block(1, *ranks), **arithmetic(xs[0]),
    )  # fmt: skip
    return out
