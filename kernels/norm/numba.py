"""Layer norm and RMS norm: one pass over each row while it is in the cache.

Both are one computation: RMS norm is layer norm that takes the mean to be zero. Gradients of weight and bias
are summed by each thread into a row of its own; the rows are added in order, so the result depends on the thread
count only.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from ..jit import FLAG, IN1, IN2, OUT1, OUT2, REAL, inner, kernel, parts, span
from ..layout import rows_of
from .reference import check_shapes

f32 = np.float32


@inner
def _normalise_row(x, weight, bias, eps, centre, y):
    size = f32(x.size)
    mean = f32(0)
    if centre:
        for j in range(x.size):
            mean += x[j]
        mean /= size
    square = f32(0)
    for j in range(x.size):
        d = x[j] - mean
        square += d * d
    rstd = f32(1) / math.sqrt(square / size + eps)
    for j in range(x.size):
        y[j] = (x[j] - mean) * rstd * weight[j] + bias[j]
    return mean, rstd


@inner
def _normalise(x, weight, bias, eps, centre, y, mean, rstd):
    for i in range(len(x)):
        mean[i], rstd[i] = _normalise_row(x[i], weight, bias, f32(eps), centre, y[i])


@kernel(IN2, IN1, IN1, REAL, FLAG, OUT2, OUT1, OUT1)
def _forward(parts, x, weight, bias, eps, centre, y, mean, rstd):
    for t in prange(parts):
        a, b = span(t, parts, len(x))
        _normalise(x[a:b], weight, bias, eps, centre, y[a:b], mean[a:b], rstd[a:b])


@inner
def _input_row(grad, x, weight, mean, rstd, centre, dx):
    """dx = rstd (d - mean(d) - h mean(d h)), with d = grad weight and h = (x - mean) rstd."""
    size = f32(x.size)
    sum_d, sum_dh = f32(0), f32(0)
    for j in range(x.size):
        d = grad[j] * weight[j]
        sum_d += d
        sum_dh += d * (x[j] - mean)
    mean_d = sum_d / size if centre else f32(0)
    slope = sum_dh / size * rstd * rstd
    for j in range(x.size):
        dx[j] = rstd * (grad[j] * weight[j] - mean_d - (x[j] - mean) * slope)


@inner
def _input_gradient(grad, x, weight, mean, rstd, centre, dx):
    for i in range(len(x)):
        _input_row(grad[i], x[i], weight, mean[i], rstd[i], centre, dx[i])


@inner
def _parameter_row(grad, x, mean, rstd, dweight, dbias):
    for j in range(x.size):
        dweight[j] += grad[j] * (x[j] - mean) * rstd
        dbias[j] += grad[j]


@inner
def _parameter_gradient(grad, x, mean, rstd, dweight, dbias):
    dweight[:] = 0
    dbias[:] = 0
    for i in range(len(x)):
        _parameter_row(grad[i], x[i], mean[i], rstd[i], dweight, dbias)


@kernel(IN2, IN2, IN1, IN1, IN1, FLAG, FLAG, FLAG, OUT2, OUT2, OUT2)
def _backward(parts, grad, x, weight, mean, rstd, centre, need_x, need_parameters, dx, dweight, dbias):
    for t in prange(parts):
        a, b = span(t, parts, len(x))
        if need_x:
            _input_gradient(grad[a:b], x[a:b], weight, mean[a:b], rstd[a:b], centre, dx[a:b])
        if need_parameters:
            _parameter_gradient(grad[a:b], x[a:b], mean[a:b], rstd[a:b], dweight[t], dbias[t])


def _run_forward(x, weight, bias, eps, centre):
    rows = rows_of(x)
    count, size = rows.shape
    weight = np.ones(size, np.float32) if weight is None else np.ascontiguousarray(weight)
    bias = np.zeros(size, np.float32) if bias is None else np.ascontiguousarray(bias)
    y, mean, rstd = (np.empty(shape, np.float32) for shape in ((count, size), count, count))
    _forward(parts(rows.size), rows, weight, bias, float(eps), centre, y, mean, rstd)
    return y.reshape(x.shape), mean.reshape(x.shape[:-1]), rstd.reshape(x.shape[:-1])


def _run_backward(grad, x, weight, mean, rstd, centre, need_x, need_parameters):
    g, rows = rows_of(grad), rows_of(x)
    size, pieces = rows.shape[1], parts(rows.size)
    weight = np.ones(size, np.float32) if weight is None else np.ascontiguousarray(weight)
    dx = np.empty(rows.shape if need_x else (0, 0), np.float32)
    dweight, dbias = (np.empty((pieces, size if need_parameters else 0), np.float32) for _ in range(2))
    mean, rstd = (np.ascontiguousarray(v).reshape(-1) for v in (mean, rstd))
    _backward(pieces, g, rows, weight, mean, rstd, centre, need_x, need_parameters, dx, dweight, dbias)
    return dx.reshape(x.shape) if need_x else None, dweight.sum(0), dbias.sum(0)


def layer_norm_forward(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See the reference."""
    check_shapes("layer_norm", x, {"weight": weight, "bias": bias})
    return _run_forward(x, weight, bias, eps, True)


def layer_norm_backward(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """See the reference."""
    check_shapes("layer_norm", x, {"weight": weight}, grad, {"mean": mean, "rstd": rstd})
    dx, dweight, dbias = _run_backward(grad, x, weight, mean, rstd, True, needs[0], needs[1] or needs[2])
    return dx, dweight if needs[1] else None, dbias if needs[2] else None


def rms_norm_forward(x: np.ndarray, weight: np.ndarray | None, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """See the reference."""
    check_shapes("rms_norm", x, {"weight": weight})
    y, _, rstd = _run_forward(x, weight, None, eps, False)
    return y, rstd


def rms_norm_backward(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    rstd: np.ndarray,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """See the reference."""
    check_shapes("rms_norm", x, {"weight": weight}, grad, {"rstd": rstd})
    dx, dweight, _ = _run_backward(grad, x, weight, np.zeros_like(rstd), rstd, False, *needs)
    return dx, dweight if needs[1] else None
