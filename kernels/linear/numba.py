"""y = x W.T + b and its gradient: each thread multiplies one block with single-threaded BLAS."""

from __future__ import annotations

import numpy as np

from .. import runtime
from ..gemm import at, gemm, gemm_bias
from ..jit import FLAG, IN1, IN2, INT, NO_VECTOR, OUT1, OUT2, inner, kernel
from ..layout import rows_of
from ..products import bias_gradient, block, product_parts, weight_gradient
from ..threads import each_part
from .reference import check_backward, check_forward


@inner
def _forward_block(t, parts, blas, x, weight, bias, y):
    (rows, k), n = x.shape, weight.shape[0]
    r0, r1, n0, n1 = block(t, parts, rows, n)
    inputs, weights, out = at(x, r0 * k), at(weight, n0 * k), at(y, r0 * n + n0)
    start = at(bias, n0) if bias.size else 0
    gemm_bias(blas, False, True, r1 - r0, n1 - n0, k, 1.0, inputs, k, weights, k, start, out, n)


@kernel(INT, IN2, IN2, IN1, OUT2)
def _forward(parts, blas, x, weight, bias, y):
    each_part(parts, _forward_block, (blas, x, weight, bias, y))


@inner
def _input_gradient(t, parts, blas, grad, weight, dx):
    """A block of dx = grad W."""
    (rows, n), k = grad.shape, weight.shape[1]
    r0, r1, k0, k1 = block(t, parts, rows, k)
    g, weights, out = at(grad, r0 * n), at(weight, k0), at(dx, r0 * k + k0)
    gemm(blas, False, False, r1 - r0, k1 - k0, n, 1.0, g, n, weights, k, 0.0, out, k)


@inner
def _gradients(t, parts, blas, grad, x, weight, needs, dx, dweight, dbias):
    if needs[0]:
        _input_gradient(t, parts, blas, grad, weight, dx)
    if needs[1]:
        weight_gradient(t, parts, blas, grad, x, dweight)
    if needs[2]:
        bias_gradient(t, parts, grad, dbias)


@kernel(INT, IN2, IN2, IN2, FLAG, FLAG, FLAG, OUT2, OUT2, OUT1)
def _backward(parts, blas, grad, x, weight, need_x, need_weight, need_bias, dx, dweight, dbias):
    each_part(parts, _gradients, (blas, grad, x, weight, (need_x, need_weight, need_bias), dx, dweight, dbias))


def linear_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """See the reference."""
    check_forward(x, weight, bias)
    rows, (n, k) = rows_of(x), weight.shape
    y = np.empty((len(rows), n), np.float32)
    bias = NO_VECTOR if bias is None else np.ascontiguousarray(bias)
    _forward(product_parts(len(rows), n, k), runtime.start(), rows, np.ascontiguousarray(weight), bias, y)
    return y.reshape(*x.shape[:-1], n)


def linear_backward(
    grad: np.ndarray, x: np.ndarray, weight: np.ndarray, needs: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """See the reference."""
    check_backward(grad, x, weight)
    g, rows, (n, k) = rows_of(grad), rows_of(x), weight.shape
    dx = np.empty((len(g) if needs[0] else 0, k), np.float32)
    dweight = np.empty((n if needs[1] else 0, k), np.float32)
    dbias = np.empty(n if needs[2] else 0, np.float32)
    inputs = (runtime.start(), g, rows, np.ascontiguousarray(weight), *needs)
    _backward(product_parts(len(g), n, k), *inputs, dx, dweight, dbias)
    return (
        dx.reshape(x.shape) if needs[0] else None,
        dweight if needs[1] else None,
        dbias if needs[2] else None,
    )
