"""Products of stacks of matrices: each thread takes some of the stack, or some rows where there is one matrix only.

Transposed operands are read where they lie; only an operand without unit stride in either of its last axes is copied.
"""

from __future__ import annotations

import math

import numpy as np

from .. import runtime
from ..gemm import at, gemm
from ..jit import FLAG, IDS, INT, OUT3, inner, kernel, span
from ..products import product_parts
from ..threads import each_part
from .reference import check_shapes


@inner
def _block(t, parts, blas, k, a, a_step, a_ld, a_t, b, b_step, b_ld, b_t, out):
    count, m, n = out.shape
    first, last = span(t, parts, count)
    for i in range(first, last):
        ai, bi = a + 4 * a_step[i], b + 4 * b_step[i]
        gemm(blas, a_t, b_t, m, n, k, 1.0, ai, a_ld, bi, b_ld, 0.0, at(out, i * m * n), n)


@inner
def _row_block(t, parts, blas, k, a, a_ld, a_t, b, b_ld, b_t, out):
    _, m, n = out.shape
    m0, m1 = span(t, parts, m)
    first = m0 if a_t else m0 * a_ld
    gemm(blas, a_t, b_t, m1 - m0, n, k, 1.0, a + 4 * first, a_ld, b, b_ld, 0.0, at(out, m0 * n), n)


@kernel(INT, INT, INT, IDS, INT, FLAG, INT, IDS, INT, FLAG, OUT3)
def _matmul(parts, blas, k, a, a_step, a_ld, a_t, b, b_step, b_ld, b_t, out):
    if out.shape[0] == 1:
        each_part(parts, _row_block, (blas, k, a, a_ld, a_t, b, b_ld, b_t, out))
    else:
        each_part(parts, _block, (blas, k, a, a_step, a_ld, a_t, b, b_step, b_ld, b_t, out))


def _operand(x: np.ndarray, batch: tuple[int, ...]) -> tuple[np.ndarray, tuple]:
    """An array to keep alive, and for compiled code: address, offset of each matrix, row distance, transposed?"""
    if x.dtype != np.float32:  # compiled code gets an address, not a type
        raise TypeError(f"matmul: expected two float32 arrays, got one of {x.dtype}")
    rows, columns = x.shape[-2:]
    row, column = (stride // 4 for stride in x.strides[-2:])
    plain = (column == 1 or columns == 1) and row >= columns
    transposed = not plain and (row == 1 or rows == 1) and column >= rows
    if not plain and not transposed:
        x = np.ascontiguousarray(x)
        row = columns
    offsets = np.zeros(1, np.int64)
    strides = np.broadcast_to(x, (*batch, rows, columns)).strides[:-2]
    for size, stride in zip(batch, strides, strict=True):
        offsets = np.add.outer(offsets, np.arange(size) * (stride // 4)).ravel()
    return x, (x.ctypes.data, offsets, column if transposed else row, transposed)


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """See the reference."""
    check_shapes(a, b)
    m, k, n = *a.shape[-2:], b.shape[-1]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = np.empty((math.prod(batch), m, n), np.float32)
    a, of_a = _operand(a, batch)
    b, of_b = _operand(b, batch)
    _matmul(product_parts(len(out) * m, n, k), runtime.start(), k, *of_a, *of_b, out)
    return out.reshape(*batch, m, n)
