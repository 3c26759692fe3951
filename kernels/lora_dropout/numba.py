"""The LoRA layer with dropout on its low-rank path: rows are masked where they are multiplied.

Unfused, drop(x) is an array of x's size that is written, read, and kept for the backward pass beside its mask. Here a
thread draws the mask of some rows into scratch memory that stays in its cache, once in the forward pass and once in
the backward pass, which makes dx and shares of dA and dB in one pass over the rows. Nothing of x's size is kept but
x. Beside the passes of ``lora``, dropout costs the drawing alone: two times 1.4 ns for every element of x.
"""

from __future__ import annotations

import numpy as np

from .. import runtime
from ..counter import fill_mask, halves
from ..gemm import at, gemm
from ..jit import FLAG, IN1, IN2, INT, NO_VECTOR, OUT1, OUT2, OUT3, REAL, inner, kernel, span
from ..layout import rows_of
from ..lowrank import adapted_block, add_input_gradient, block_rows, summed
from ..products import bias_gradient, product_parts, weight_gradient
from ..threads import each_part
from .reference import check_dropout, check_dropout_backward


@inner
def _multiply(out, by):
    for j in range(out.size):
        out[j] *= by[j]


@inner
def _down(t, parts, blas, x, lora_a, p, key, xa):
    """Some rows of xa = drop(x) A.T."""
    (first, last), (rank, k) = span(t, parts, len(x)), lora_a.shape
    step = block_rows(k, k, rank)
    dropped = np.empty((step, k), np.float32)
    for r in range(first, last, step):
        rows = min(step, last - r)
        some = dropped[:rows].reshape(-1)
        fill_mask(r * k, key[0], key[1], p, some)
        _multiply(some, x[r : r + rows].reshape(-1))
        gemm(blas, False, True, rows, rank, k, 1.0, at(dropped, 0), k, at(lora_a, 0), k, 0.0, at(xa, r * rank), rank)


@kernel(INT, IN2, IN2, IN1, IN2, IN2, REAL, REAL, INT, INT, OUT2, OUT2)
def _forward(parts, blas, x, weight, bias, lora_a, lora_b, scaling, p, key_0, key_1, xa, y):
    each_part(parts, _down, (blas, x, lora_a, p, (key_0, key_1), xa))
    each_part(parts, adapted_block, (blas, x, weight, bias, lora_b, scaling, xa, y))


@inner
def _low_rank_gradients(t, parts, blas, grad, x, xa, lora_a, lora_b, scaling, p, key, needs, dx, da, db):
    """A thread's rows of dx = drop(low A) with low = s grad B, and their share of dA = low.T drop(x) and of dB."""
    (first, last), (rank, k), n = span(t, parts, len(x)), lora_a.shape, grad.shape[1]
    step = block_rows(n, k, rank)
    mask, low = np.empty((step, k), np.float32), np.empty((step, rank), np.float32)
    da[:], db[:] = 0, 0
    for r in range(first, last, step):
        rows, g = min(step, last - r), at(grad, r * n)
        some = mask[:rows].reshape(-1)
        fill_mask(r * k, key[0], key[1], p, some)
        gemm(blas, False, False, rows, rank, n, scaling, g, n, at(lora_b, 0), rank, 0.0, at(low, 0), rank)
        if needs[0]:
            gemm(blas, False, False, rows, k, rank, 1.0, at(low, 0), rank, at(lora_a, 0), k, 0.0, at(dx, r * k), k)
            _multiply(dx[r : r + rows].reshape(-1), some)
        if needs[1]:
            _multiply(some, x[r : r + rows].reshape(-1))
            gemm(blas, True, False, rank, k, rows, 1.0, at(low, 0), rank, at(mask, 0), k, 1.0, at(da, 0), k)
        if needs[2]:
            gemm(blas, True, False, n, rank, rows, scaling, g, n, at(xa, r * rank), rank, 1.0, at(db, 0), rank)


@inner
def _gradients(t, parts, blas, grad, x, xa, weight, lora_a, lora_b, scaling, p, key, needs, dx, dweight, dbias, da, db):
    if needs[0] or needs[3] or needs[4]:
        low_rank = (needs[0], needs[3], needs[4])
        _low_rank_gradients(t, parts, blas, grad, x, xa, lora_a, lora_b, scaling, p, key, low_rank, dx, da[t], db[t])
    if needs[0]:
        add_input_gradient(t, parts, blas, grad, weight, dx)
    if needs[1]:
        weight_gradient(t, parts, blas, grad, x, dweight)
    if needs[2]:
        bias_gradient(t, parts, grad, dbias)


@kernel(
    INT, IN2, IN2, IN2, IN2, IN2, IN2, REAL, REAL, INT, INT, FLAG, FLAG, FLAG, FLAG, FLAG, OUT2, OUT2, OUT1, OUT3, OUT3
)  # fmt: skip
def _backward(parts, blas, grad, x, xa, weight, lora_a, lora_b, scaling, p, key_0, key_1, need_x, need_weight,
              need_bias, need_a, need_b, dx, dweight, dbias, da, db):  # fmt: skip
    needs = (need_x, need_weight, need_bias, need_a, need_b)
    given = (blas, grad, x, xa, weight, lora_a, lora_b, scaling, p, (key_0, key_1), needs)
    each_part(parts, _gradients, (*given, dx, dweight, dbias, da, db))


def lora_dropout_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
    p: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """See the reference."""
    check_dropout(x, weight, bias, lora_a, lora_b, p, seed)
    rows, (n, k), rank = rows_of(x), weight.shape, lora_a.shape[0]
    y, xa = np.empty((len(rows), n), np.float32), np.empty((len(rows), rank), np.float32)
    bias = NO_VECTOR if bias is None else np.ascontiguousarray(bias)
    weight, lora_a, lora_b = (np.ascontiguousarray(m) for m in (weight, lora_a, lora_b))
    inputs = (runtime.start(), rows, weight, bias, lora_a, lora_b, float(scaling), float(p), *halves(seed))
    _forward(product_parts(len(rows), n, k), *inputs, xa, y)
    return y.reshape(*x.shape[:-1], n), xa.reshape(*x.shape[:-1], rank)


def lora_dropout_backward(
    grad: np.ndarray,
    x: np.ndarray,
    xa: np.ndarray,
    weight: np.ndarray,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
    p: float,
    seed: int,
    needs: tuple[bool, bool, bool, bool, bool] = (True, False, False, True, True),
) -> tuple[np.ndarray | None, ...]:
    """See the reference."""
    check_dropout_backward(grad, x, xa, weight, lora_a, lora_b, p, seed)
    arrays = (rows_of(grad), rows_of(x), rows_of(xa), *(np.ascontiguousarray(m) for m in (weight, lora_a, lora_b)))
    parts = product_parts(len(arrays[0]), *weight.shape)
    shapes = (arrays[1].shape, weight.shape, weight.shape[:1], (parts, *lora_a.shape), (parts, *lora_b.shape))
    out = [np.empty(s if need else (0,) * len(s), np.float32) for s, need in zip(shapes, needs, strict=True)]
    _backward(parts, runtime.start(), *arrays, float(scaling), float(p), *halves(seed), *needs, *out)
    dx, dweight, dbias, da, db = (gradient if need else None for gradient, need in zip(out, needs, strict=True))
    return (
        None if dx is None else dx.reshape(x.shape), dweight, dbias,
        None if da is None else summed(da), None if db is None else summed(db),
    )  # fmt: skip
