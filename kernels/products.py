"""The matrix products of a linear layer, as each thread does its share of them: for ``linear`` and ``lora``."""

from __future__ import annotations

from .gemm import at, gemm
from .jit import inner, parts, span

_ROWS_EACH = 16
"""With fewer rows for each thread than this (decoding), threads share the columns of the result instead."""

_MULTIPLY_ADDS = 32
"""This many take as long as one element of an element-wise kernel."""


def product_parts(m: int, n: int, k: int) -> int:
    """Into how many parts to cut an (m, k) by (k, n) product; with few rows, reading the weight is what takes time."""
    return parts(max(m, _MULTIPLY_ADDS) * n * k // _MULTIPLY_ADDS)


@inner
def block(t, parts, rows, columns):
    """The block (row from, to, column from, to) of a (rows, columns) result that part ``t`` computes."""
    if rows >= _ROWS_EACH * parts:
        r0, r1 = span(t, parts, rows)
        return r0, r1, 0, columns
    n0, n1 = span(t, parts, columns)
    return 0, rows, n0, n1


@inner
def fill_bias(y, bias, r0, r1, n0, n1):
    """Start a block of y from the bias; return the beta that makes the product add to it (0: there is no bias)."""
    if bias.size == 0:
        return 0.0
    for r in range(r0, r1):
        row = y[r, n0:n1]
        for j in range(row.size):  # the assignment of a slice is not vectorised: five times as slow
            row[j] = bias[n0 + j]
    return 1.0


@inner
def weight_gradient(t, parts, blas, grad, x, dweight):
    """Some rows of dW = grad.T x: every thread owns its rows, so nothing has to be reduced between threads."""
    (rows, n), k = grad.shape, x.shape[1]
    n0, n1 = span(t, parts, n)
    gemm(blas, True, False, n1 - n0, k, rows, 1.0, at(grad, n0), n, at(x, 0), k, 0.0, at(dweight, n0 * k), k)


@inner
def bias_gradient(t, parts, grad, dbias):
    """Some entries of db = sum over rows of grad."""
    rows, n = grad.shape
    n0, n1 = span(t, parts, n)
    total = dbias[n0:n1]
    total[:] = 0
    for r in range(rows):
        row = grad[r, n0:n1]
        for j in range(total.size):
            total[j] += row[j]
