"""Cross-entropy without a probability matrix: forward keeps one number a row (lse), backward writes dlogits."""

from __future__ import annotations

import math

import numpy as np

from ..jit import IDS, IN1, IN2, INT, OUT1, OUT2, REAL, inner, kernel, parts, row_loop, span
from ..math32 import exp32, row_max
from ..threads import each_part
from .reference import check_arguments

f32 = np.float32


@row_loop
def _sum_exp(row, shift):
    total = f32(0)
    for j in range(row.size):
        total += exp32(row[j] - shift)
    return total


@row_loop
def _mean(row):
    total = f32(0)
    for j in range(row.size):
        total += row[j]
    return total / f32(row.size)


@inner
def _losses(t, parts, logits, target, ignore_index, smoothing, loss, lse):
    first, last = span(t, parts, len(logits))
    for i in range(first, last):
        row = logits[i]
        top = row_max(row)
        lse[i] = top + math.log(_sum_exp(row, top))
        loss[i] = 0
        if target[i] != ignore_index:
            loss[i] = lse[i] - f32(1 - smoothing) * row[target[i]]
            if smoothing != 0:
                loss[i] -= f32(smoothing) * _mean(row)


@kernel(IN2, IDS, INT, REAL, OUT1, OUT1)
def _forward(parts, logits, target, ignore_index, smoothing, loss, lse):
    each_part(parts, _losses, (logits, target, ignore_index, smoothing, loss, lse))


@row_loop
def _gradient_row(grad, logits, lse, spread, dlogits):
    for j in range(logits.size):
        dlogits[j] = grad * (exp32(logits[j] - lse) - spread)


@inner
def _gradients(t, parts, grad, logits, target, lse, ignore_index, smoothing, dlogits):
    first, last = span(t, parts, len(logits))
    spread = f32(smoothing / max(logits.shape[1], 1))
    for i in range(first, last):
        if target[i] == ignore_index:
            dlogits[i] = 0
        else:
            _gradient_row(grad[i], logits[i], lse[i], spread, dlogits[i])
            dlogits[i, target[i]] -= grad[i] * f32(1 - smoothing)


@kernel(IN1, IN2, IDS, IN1, INT, REAL, OUT2)
def _backward(parts, grad, logits, target, lse, ignore_index, smoothing, dlogits):
    each_part(parts, _gradients, (grad, logits, target, lse, ignore_index, smoothing, dlogits))


def cross_entropy_forward(
    logits: np.ndarray, target: np.ndarray, ignore_index: int, label_smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    """See the reference."""
    check_arguments(logits, target, ignore_index)
    rows = np.ascontiguousarray(logits)
    loss, lse = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    ids = np.ascontiguousarray(target, np.int64)
    _forward(parts(rows.size), rows, ids, ignore_index, float(label_smoothing), loss, lse)
    return loss, lse


def cross_entropy_backward(
    grad: np.ndarray,
    logits: np.ndarray,
    target: np.ndarray,
    lse: np.ndarray,
    ignore_index: int,
    label_smoothing: float,
) -> np.ndarray:
    """See the reference."""
    check_arguments(logits, target, ignore_index, {"grad": grad, "lse": lse})
    rows = np.ascontiguousarray(logits)
    dlogits = np.empty(rows.shape, np.float32)
    ids = np.ascontiguousarray(target, np.int64)
    grad, lse = np.ascontiguousarray(grad), np.ascontiguousarray(lse)
    _backward(parts(rows.size), grad, rows, ids, lse, ignore_index, float(label_smoothing), dlogits)
    return dlogits
