"""The products of a low-rank layer, as each thread does its share of them: for every form of LoRA.

One side of such a product is only the rank wide, and OpenBLAS would copy its operands into another order before it
multiplies, which takes longer than the product. Small products it does where they lie; so rows are taken few at a time.
"""

from __future__ import annotations

import numpy as np

from .gemm import at, gemm, gemm_sum
from .jit import inner, span
from .products import block

_SMALL, _SMALL_RESULT = 1_000_000, 1200
"""Multiply-adds up to which OpenBLAS copies nothing; numbers in the result, where the second factor is transposed."""


@inner
def rows_times(blas, trans_b, rows, n, k, alpha, a, lda, b, ldb, c, ldc):
    """c (rows, n) = alpha a (rows, k) op(b), where n or k is the rank; a, b, c are addresses."""
    step = _SMALL // max(n * k, 1)
    if trans_b:
        step = min(step, _SMALL_RESULT // max(n, 1))
    step = step if step >= 4 else max(rows, 1)
    for i in range(0, rows, step):
        m = min(step, rows - i)
        gemm(blas, False, trans_b, m, n, k, alpha, a + 4 * i * lda, lda, b, ldb, 0.0, c + 4 * i * ldc, ldc)


@inner
def adapted_block(t, parts, blas, x, weight, bias, lora_b, scaling, xa, y):
    """A block of y = x W.T + b + s xa B.T: the low-rank term is added to a tile of y while it is in the cache."""
    (rows, k), (n, rank) = x.shape, lora_b.shape
    r0, r1, n0, n1 = block(t, parts, rows, n)
    start, low, up = at(bias, n0) if bias.size else 0, at(xa, r0 * rank), at(lora_b, n0 * rank)
    inputs, weights, out = at(x, r0 * k), at(weight, n0 * k), at(y, r0 * n + n0)
    gemm_sum(blas, True, r1 - r0, n1 - n0, k, inputs, k, weights, k, start, rank, scaling, low, rank, up, rank, out, n)


@inner
def add_input_gradient(t, parts, blas, grad, weight, dx):
    """Some rows of dx += grad W."""
    (rows, n), k = grad.shape, weight.shape[1]
    r0, r1 = span(t, parts, rows)
    gemm(blas, False, False, r1 - r0, k, n, 1.0, at(grad, r0 * n), n, at(weight, 0), k, 1.0, at(dx, r0 * k), k)


@inner
def block_rows(n, k, rank):
    """How many rows at a time the backward pass takes: few enough for the cache, and for BLAS not to copy them."""
    step = _SMALL // max(max(n, k) * rank, 1)
    return min(step, 128) if step >= 4 else 256


@inner
def gradient_block(blas, rows, n, k, rank, scaling, needs, grad, x, xa, lora_a, lora_b, low, dx, da, db):
    """What some rows give while they are in the cache: dx = low A with low = s grad B, and dA, dB += their share.

    All arrays are addresses; low (rows, rank) is scratch. ``needs``: of dx, dA, dB.
    """
    gemm(blas, False, False, rows, rank, n, scaling, grad, n, lora_b, rank, 0.0, low, rank)
    if needs[0]:
        gemm(blas, False, False, rows, k, rank, 1.0, low, rank, lora_a, k, 0.0, dx, k)
    if needs[1]:
        gemm(blas, True, False, rank, k, rows, 1.0, low, rank, x, k, 1.0, da, k)
    if needs[2]:
        gemm(blas, True, False, n, rank, rows, scaling, grad, n, xa, rank, 1.0, db, rank)


def summed(shares: np.ndarray) -> np.ndarray:
    """The sum of what the threads contributed (parts, ...), always in the same order."""
    return shares[0] if len(shares) == 1 else shares.sum(0)
