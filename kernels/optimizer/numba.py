"""AdamW in one pass (each of the four arrays is read once and three are written once), and the clipping norm."""

from __future__ import annotations

import math

import numpy as np

from ..jit import IN1, OUT1, OUT1_F64, REAL, exact, inner, kernel, parts, share
from ..threads import each_part
from .reference import check_state

f32 = np.float32


@exact
def _moments(g, m, v, blend1, beta2, blend2):
    return m + blend1 * (g - m), beta2 * v + blend2 * g * g


@exact
def _moved(p, m, v, keep, root_scale, eps, rate):
    """In a fixed order of operations, so that an element's bits do not depend on where in a vector it lies, and an
    optimizer that updates a parameter piece by piece gives the same."""
    return p * keep - rate * (m / (math.sqrt(v) * root_scale + eps))


@inner
def _update(t, parts, p, g, m, v, keep, blend1, beta2, blend2, root_scale, eps, rate):
    p, g, m, v = share(t, parts, p), share(t, parts, g), share(t, parts, m), share(t, parts, v)
    for i in range(p.size):
        m[i], v[i] = _moments(g[i], m[i], v[i], blend1, beta2, blend2)
        p[i] = _moved(p[i], m[i], v[i], keep, root_scale, eps, rate)


@kernel(OUT1, IN1, OUT1, OUT1, REAL, REAL, REAL, REAL, REAL, REAL, REAL)
def _adamw(parts, p, g, m, v, keep, blend1, beta2, blend2, root_scale, eps, rate):
    constants = (f32(keep), f32(blend1), f32(beta2), f32(blend2), f32(root_scale), f32(eps), f32(rate))
    each_part(parts, _update, (p, g, m, v, *constants))


@inner
def _sum_squares(t, parts, x, sums):
    x, total = share(t, parts, x), 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    sums[t] = total


@kernel(IN1, OUT1_F64)
def _square_norm(parts, x, sums):
    each_part(parts, _sum_squares, (x, sums))


def adamw_step(
    param: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """See the reference."""
    check_state(param, grad, exp_avg, exp_avg_sq, step)
    state = (param, exp_avg, exp_avg_sq)
    p, m, v = (np.ascontiguousarray(a).reshape(-1) for a in state)
    _adamw(
        parts(p.size), p, np.ascontiguousarray(grad).reshape(-1), m, v,
        1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, 1 / math.sqrt(1 - beta2**step), eps, lr / (1 - beta1**step),
    )  # fmt: skip
    for array, updated in zip(state, (p, m, v), strict=True):
        if not np.may_share_memory(array, updated):  # it was not contiguous: the update went into a copy
            array[...] = updated.reshape(array.shape)


def square_norm(x: np.ndarray) -> float:
    """See the reference."""
    pieces = parts(x.size)
    sums = np.empty(pieces)
    _square_norm(pieces, np.ascontiguousarray(x).reshape(-1), sums)
    return float(sums.sum())
