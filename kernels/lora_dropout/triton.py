"""The LoRA layer with dropout on the GPU: the mask is drawn in the registers where it is used, three times.

Forward draws it as x passes on its way to x A.T, backward for dA and for what comes back along the low-rank path. No
mask is written or read; one of bytes would cost half a pass over x (in bfloat16) each time. Philox is not free: some 80
instructions an element, against 17.7 that fit under reading it once in bfloat16 (H100). In the accumulators of the
large product its state would spill, so dx gets its low-rank term from a kernel of small tiles: dx is read and written
once more.
"""

from __future__ import annotations

import math
from typing import Any

from ..checks import probability
from ..device.compile import Build
from ..device.triton import tl, triton
from ..lora import triton_builds
from ..lora.reference import check_backward, check_forward
from ..lora.triton import forward_after
from ..lora.triton_backward import a_gradients, column_sums, low_gradients
from ..lora.triton_forward import down
from ..philox.reference import counter_start
from ..tiles.arrays import new, resident, stand_ins, start
from ..tiles.blocks import kept, store_tile, tile
from ..tiles.builds import BFLOAT16, signature
from ..tiles.host import arithmetic, config, rank_block, tuned
from ..tiles.product import product


@tuned(config(4, 1, BM=32, BN=64), config(4, 1, BM=64, BN=32), key=["M", "N", "rank", "PRECISION"])
@triton.jit
def _add_dropped(out, low, up, M, N, rank, p, scale, seed,
                 COMPUTE: tl.constexpr, PRECISION: tl.constexpr, R: tl.constexpr, BM: tl.constexpr,
                 BN: tl.constexpr):  # fmt: skip
    rm, rn, rr = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, R)
    acc = tl.zeros((BM, BN), tl.float32)
    for r in range(0, rank, R):
        a = tile(low, rm, r + rr, M, rank, rank, 1).to(COMPUTE)
        b = tile(up, r + rr, rn, rank, N, N, 1).to(COMPUTE)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    acc = tl.where(kept(rm, rn, N, p, seed), acc * scale, 0.0)
    store_tile(out, acc + tile(out, rm, rn, M, N, N, 1).to(tl.float32), rm, rn, M, N, N, 1)


def add_dropped(out: Any, low: Any, up: Any, p: float, seed: int) -> Any:
    """out (..., N) += drop(low up), low (..., r), up (r, N); return it."""
    rank, n = up.shape
    m = math.prod(out.shape[:-1])
    start(
        _add_dropped,
        lambda meta: (triton.cdiv(m, meta["BM"]), triton.cdiv(n, meta["BN"])),
        out, low, up, m, n, rank, float(p), 1 / (1 - p), seed, R=rank_block(rank), **arithmetic(out),
    )  # fmt: skip
    return out


@resident
def lora_dropout_forward(
    x: Any, weight: Any, bias: Any, lora_a: Any, lora_b: Any, scaling: float, p: float, seed: int
) -> tuple[Any, Any]:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16."""
    check_forward(*stand_ins(x, weight, bias, lora_a, lora_b))
    _check_generator(p, seed)
    return forward_after(down(x, (lora_a,), p, seed)[0], x, weight, bias, lora_b, scaling)


@resident
def lora_dropout_backward(
    grad: Any,
    x: Any,
    xa: Any,
    weight: Any,
    lora_a: Any,
    lora_b: Any,
    scaling: float,
    p: float,
    seed: int,
    needs: tuple[bool, bool, bool, bool, bool] = (True, False, False, True, True),
) -> tuple[Any, ...]:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16."""
    check_backward(*stand_ins(grad, x, xa, weight, lora_a, lora_b))
    _check_generator(p, seed)
    (n, k), m = weight.shape, math.prod(x.shape[:-1])
    dxa, db = low_gradients(grad, xa, lora_b, scaling) if needs[0] or needs[3] or needs[4] else (None, None)
    dx = dweight = None
    if needs[0]:
        dx = add_dropped(product(new(x, *x.shape), (m, k), (grad,), (weight,), (n,)), dxa, lora_a, p, seed)
    if needs[1]:
        dweight = product(new(weight, n, k), (n, k), (grad,), (x,), (m,), x_transposed=True)
    dbias = column_sums(grad) if needs[2] else None
    da = a_gradients(x, (dxa,), (lora_a,), p, seed)[0] if needs[3] else None
    return dx, dweight, dbias, da, db if needs[4] else None


def _check_generator(p: float, seed: int) -> None:
    probability("lora_dropout", "p", p)
    counter_start("lora_dropout", seed)


AOT = (
    triton_builds.down("x A.T of the dropped x", 1, drop=True, BM=64, BK=32),
    triton_builds.a_gradients("dA of the dropped x", 1, drop=True, BM=32, BK=64),
    Build(
        "dropped low-rank term of dx",
        _add_dropped.fn,
        signature(arrays="out low up", integers="M N rank", reals="p scale") | {"seed": "i64"},
        {**BFLOAT16, "R": 16, "BM": 32, "BN": 64},
        num_stages=1,
        divisible=("rank", "M", "N"),
        matmul=True,
    ),
)
