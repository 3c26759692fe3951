"""Layer norm and RMS norm: one pass over each row while it is in the cache.

Both are one computation: RMS norm is layer norm that takes the mean to be zero. Gradients of weight and bias
are summed by each thread into a row of its own; the rows are added in order, so the result depends on the thread
count only.
"""

from __future__ import annotations

import math

import numpy as np

from ..jit import FLAG, IN1, IN2, OUT1, OUT2, REAL, exact, inner, kernel, parts, row_loop, span
from ..layout import rows_of
from ..threads import each_part
from .reference import check_shapes

f32 = np.float32
_GROUP = 8


@exact
def scaled(x, mean, rstd):
    return (x - mean) * rstd


@exact
def accumulated(total, a, b, c, d, e, f, g, h):
    return total + a * b + c * d + e * f + g * h


@exact
def input_gradient(grad, x, weight, mean, rstd, level, slope):
    return rstd * (grad * weight - level - (x - mean) * slope)


@row_loop
def _mean(x, i):
    total = f32(0)
    for j in range(x.shape[1]):
        total += x[i, j]
    return total / f32(x.shape[1])


@row_loop
def _deviation(x, i, mean, eps):
    """1 / std of row i."""
    square = f32(0)
    for j in range(x.shape[1]):
        d = x[i, j] - mean
        square += d * d
    return f32(1) / math.sqrt(square / f32(x.shape[1]) + eps)


@row_loop
def _affine(x, i, weight, bias, mean, rstd, y):
    for j in range(x.shape[1]):
        y[i, j] = scaled(x[i, j], mean, rstd) * weight[j] + bias[j]


@inner
def _normalise(t, parts, x, weight, bias, eps, centre, y, mean, rstd):
    start, end = span(t, parts, len(x))
    for first in range(start, end, _GROUP):
        last = min(first + _GROUP, end)
        for i in range(first, last):
            mean[i] = _mean(x, i) if centre else f32(0)
        for i in range(first, last):
            rstd[i] = _deviation(x, i, mean[i], f32(eps))
        for i in range(first, last):
            _affine(x, i, weight, bias, mean[i], rstd[i], y)


@kernel(IN2, IN1, IN1, REAL, FLAG, OUT2, OUT1, OUT1)
def _forward(parts, x, weight, bias, eps, centre, y, mean, rstd):
    each_part(parts, _normalise, (x, weight, bias, eps, centre, y, mean, rstd))


@row_loop
def _slopes(grad, x, i, weight, mean, rstd, centre):
    """mean(d) and rstd mean(d h) of row i, with d = grad weight and h = (x - mean) rstd."""
    size, sum_d, sum_dh = f32(x.shape[1]), f32(0), f32(0)
    for j in range(x.shape[1]):
        d = grad[i, j] * weight[j]
        sum_d += d
        sum_dh += d * (x[i, j] - mean)
    return sum_d / size if centre else f32(0), sum_dh / size * rstd * rstd


@row_loop
def _input_row(grad, x, i, weight, mean, rstd, level, slope, dx):
    """dx = rstd (d - mean(d) - h mean(d h))."""
    for j in range(x.shape[1]):
        dx[i, j] = input_gradient(grad[i, j], x[i, j], weight[j], mean, rstd, level, slope)


@row_loop
def _parameter_row(grad, x, i, mean, rstd, t, dweight, dbias):
    for j in range(x.shape[1]):
        dweight[t, j] = grad[i, j] * scaled(x[i, j], mean, rstd) + dweight[t, j]
        dbias[t, j] += grad[i, j]


@row_loop
def _parameter_rows(grad, x, i, mean, rstd, t, dweight, dbias):
    """Add what four rows give."""
    m0, m1, m2, m3 = mean[i], mean[i + 1], mean[i + 2], mean[i + 3]
    r0, r1, r2, r3 = rstd[i], rstd[i + 1], rstd[i + 2], rstd[i + 3]
    for j in range(x.shape[1]):
        g0, g1, g2, g3 = grad[i, j], grad[i + 1, j], grad[i + 2, j], grad[i + 3, j]
        dweight[t, j] = accumulated(
            dweight[t, j],
            g0,
            scaled(x[i, j], m0, r0),
            g1,
            scaled(x[i + 1, j], m1, r1),
            g2,
            scaled(x[i + 2, j], m2, r2),
            g3,
            scaled(x[i + 3, j], m3, r3),
        )
        dbias[t, j] = accumulated(dbias[t, j], g0, f32(1), g1, f32(1), g2, f32(1), g3, f32(1))


@inner
def _gradients(t, parts, grad, x, weight, mean, rstd, centre, need_x, need_parameters, dx, dweight, dbias):
    """dx of some rows, and what they add to dweight and dbias, while a row is in the cache."""
    start, end = span(t, parts, len(x))
    for j in range(dweight.shape[1]):
        dweight[t, j] = 0
        dbias[t, j] = 0
    level, slope = np.empty(_GROUP, np.float32), np.empty(_GROUP, np.float32)
    for first in range(start, end, _GROUP):
        last = min(first + _GROUP, end)
        if need_x:
            for i in range(first, last):
                level[i - first], slope[i - first] = _slopes(grad, x, i, weight, mean[i], rstd[i], centre)
            for i in range(first, last):
                _input_row(grad, x, i, weight, mean[i], rstd[i], level[i - first], slope[i - first], dx)
        if need_parameters:
            if last - first == _GROUP:
                for i in range(first, last, 4):
                    _parameter_rows(grad, x, i, mean, rstd, t, dweight, dbias)
            else:
                for i in range(first, last):
                    _parameter_row(grad, x, i, mean[i], rstd[i], t, dweight, dbias)


@kernel(IN2, IN2, IN1, IN1, IN1, FLAG, FLAG, FLAG, OUT2, OUT2, OUT2)
def _backward(parts, grad, x, weight, mean, rstd, centre, need_x, need_parameters, dx, dweight, dbias):
    arguments = (grad, x, weight, mean, rstd, centre, need_x, need_parameters, dx, dweight, dbias)
    each_part(parts, _gradients, arguments)


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
