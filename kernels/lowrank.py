"""The products of a low-rank layer, as each thread does its share of them: for every form of LoRA.

One side of such a product is only the rank wide. It is cut for BLAS by ``skinny_step``.
"""

from __future__ import annotations

from .gemm import at, gemm, skinny_step
from .jit import inner
from .products import block, fill_bias


@inner
def rows_times(blas, trans_b, rows, n, k, alpha, a, lda, b, ldb, c, ldc):
    """c (rows, n) = alpha a (rows, k) op(b), where n or k is the rank; a, b, c are addresses."""
    step = skinny_step(rows, n, k)
    for i in range(0, rows, step):
        m = min(step, rows - i)
        gemm(blas, False, trans_b, m, n, k, alpha, a + 4 * i * lda, lda, b, ldb, 0.0, c + 4 * i * ldc, ldc)


@inner
def sum_over_rows(blas, rows, m, n, alpha, a, lda, b, ldb, beta, c, ldc):
    """c (m, n) = alpha a (rows, m).T b (rows, n) + beta c, where m or n is the rank; a, b, c are addresses."""
    step = skinny_step(rows, m, n)
    for i in range(0, max(rows, 1), step):
        keep, count = beta if i == 0 else 1.0, min(step, rows - i)
        gemm(blas, True, False, m, n, count, alpha, a + 4 * i * lda, lda, b + 4 * i * ldb, ldb, keep, c, ldc)


@inner
def adapted_block(t, parts, blas, x, weight, bias, lora_b, scaling, xa, y):
    """A block of y = x W.T + b + s xa B.T: bias, low-rank term and base product, one onto the other."""
    (rows, k), (n, rank) = x.shape, lora_b.shape
    r0, r1, n0, n1 = block(t, parts, rows, n)
    beta = fill_bias(y, bias, r0, r1, n0, n1)
    out = at(y, r0 * n + n0)
    low, up = at(xa, r0 * rank), at(lora_b, n0 * rank)
    gemm(blas, False, True, r1 - r0, n1 - n0, rank, scaling, low, rank, up, rank, beta, out, n)
    gemm(blas, False, True, r1 - r0, n1 - n0, k, 1.0, at(x, r0 * k), k, at(weight, n0 * k), k, 1.0, out, n)
