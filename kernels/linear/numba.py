"""y = x W.T + b and its gradient: each thread multiplies one block with single-threaded BLAS."""

from __future__ import annotations

import numpy as np
from numba import prange

from .. import runtime
from ..checks import same_length
from ..gemm import at, gemm
from ..jit import FLAG, IN1, IN2, INT, NO_VECTOR, OUT1, OUT2, inner, kernel, parts, span
from ..layout import rows_of

_ROWS_EACH = 16
"""With fewer rows for each thread than this (decoding), threads share the columns of y instead."""


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
        y[r, n0:n1] = bias[n0:n1]
    return 1.0


@inner
def _forward_block(t, parts, blas, x, weight, bias, y):
    (rows, k), n = x.shape, weight.shape[0]
    r0, r1, n0, n1 = block(t, parts, rows, n)
    beta = fill_bias(y, bias, r0, r1, n0, n1)
    inputs, weights, out = at(x, r0 * k), at(weight, n0 * k), at(y, r0 * n + n0)
    gemm(blas, False, True, r1 - r0, n1 - n0, k, 1.0, inputs, k, weights, k, beta, out, n)


@kernel(INT, IN2, IN2, IN1, OUT2)
def _forward(parts, blas, x, weight, bias, y):
    for t in prange(parts):
        _forward_block(t, parts, blas, x, weight, bias, y)


@inner
def _input_gradient(t, parts, blas, grad, weight, dx):
    """A block of dx = grad W."""
    (rows, n), k = grad.shape, weight.shape[1]
    r0, r1, k0, k1 = block(t, parts, rows, k)
    g, weights, out = at(grad, r0 * n), at(weight, k0), at(dx, r0 * k + k0)
    gemm(blas, False, False, r1 - r0, k1 - k0, n, 1.0, g, n, weights, k, 0.0, out, k)


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


@kernel(INT, IN2, IN2, IN2, FLAG, FLAG, FLAG, OUT2, OUT2, OUT1)
def _backward(parts, blas, grad, x, weight, need_x, need_weight, need_bias, dx, dweight, dbias):
    for t in prange(parts):
        if need_x:
            _input_gradient(t, parts, blas, grad, weight, dx)
        if need_weight:
            weight_gradient(t, parts, blas, grad, x, dweight)
        if need_bias:
            bias_gradient(t, parts, grad, dbias)


def linear_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """See the reference."""
    same_length("linear", "x.shape[-1]", x.shape[-1], "weight.shape[1]", weight.shape[1])
    rows = rows_of(x)
    y = np.empty((rows.shape[0], weight.shape[0]), np.float32)
    bias = NO_VECTOR if bias is None else np.ascontiguousarray(bias)
    _forward(parts(y.size * rows.shape[1]), runtime.start(), rows, np.ascontiguousarray(weight), bias, y)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def linear_backward(
    grad: np.ndarray, x: np.ndarray, weight: np.ndarray, needs: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """See the reference."""
    g, rows = rows_of(grad), rows_of(x)
    n, k = weight.shape
    dx = np.empty((g.shape[0] if needs[0] else 0, k), np.float32)
    dweight = np.empty((n if needs[1] else 0, k), np.float32)
    dbias = np.empty(n if needs[2] else 0, np.float32)
    _backward(parts(g.size * k), runtime.start(), g, rows, np.ascontiguousarray(weight), *needs, dx, dweight, dbias)
    return (
        dx.reshape(*grad.shape[:-1], k) if needs[0] else None,
        dweight if needs[1] else None,
        dbias if needs[2] else None,
    )
