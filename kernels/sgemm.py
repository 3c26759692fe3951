"""The matrix product that every kernel calls: C = alpha op(A) op(B) + beta C, on one thread, compiled once.

Where the machine has AVX-512 it is the product below, else SciPy's BLAS. Ours is faster on the shapes of a small
transformer because it copies less: BLAS copies A and B into the order in which it reads them, which pays when each
number is used a thousand times. Here only B is copied, one panel of ``COLUMNS`` columns at a time; A's numbers are
loaded one by one, and for that it does not matter where they lie.
"""

from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from .jit import INT, compiled_address, emitted, host_has, inner
from .math32 import copy, fill
from .microkernel import COLUMNS, LANES, ROWS, tile
from .pointers import row_at, stack_floats
from .transpose import transpose

REAL32 = types.float32
_ZERO, _ONE = np.float32(0), np.float32(1)
_FLAGS_AND_SIZES, _OPERANDS = (INT,) * 5, (INT,) * 4
SIGNATURE = types.void(
    *_FLAGS_AND_SIZES, REAL32, *_OPERANDS, REAL32, INT, INT, INT, INT, REAL32, *_OPERANDS,
)  # fmt: skip
"""That of ``_sgemm``."""

_BLAS = "minitorch_scipy_sgemm"
_OURS = host_has("avx512f")
_DEPTH = 512
"""Rows of a panel of B: 64 KiB, which a core's cache holds while A passes by."""

_ENOUGH = 64
"""With fewer rows of A than this, copying B costs more than reading it where it lies."""

_UNPACKED = 1_000_000
"""Up to this many multiply-adds OpenBLAS copies neither A nor B, and is as fast."""


_THIN = 64
"""Up to this depth the second term is added tile by tile."""

_panel, _thin_panel = stack_floats(_DEPTH * COLUMNS), stack_floats(_THIN * COLUMNS)
_start, _nothing, _edge = stack_floats(COLUMNS), stack_floats(COLUMNS), stack_floats(ROWS * COLUMNS)


@emitted
def _call_blas(typingctx, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """BLAS's sgemm on column-major matrices; everything by reference, as Fortran has it."""
    signature = types.void(INT, INT, INT, INT, INT, REAL32, INT, INT, INT, INT, REAL32, INT, INT)

    def codegen(context, builder, signature, args):
        char, integer, real = ir.IntType(8), ir.IntType(32), ir.FloatType()
        kinds = [char, char, integer, integer, integer, real, None, integer, None, integer, real, None, integer]
        actual = []
        for value, kind in zip(args, kinds, strict=True):
            if kind is None:
                actual.append(builder.inttoptr(value, real.as_pointer()))
                continue
            slot = cgutils.alloca_once(builder, kind)
            builder.store(value if kind is real else builder.trunc(value, kind), slot)
            actual.append(slot)
        function = ir.FunctionType(ir.VoidType(), [value.type for value in actual])
        builder.call(cgutils.get_or_insert_function(builder.module, function, _BLAS), actual)
        return context.get_dummy_value()

    return signature, codegen


@inner
def _blas(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """A row-major matrix is a column-major one transposed, and C.T = op(B).T op(A).T: hence the swapped operands."""
    ta = 84 if trans_a else 78  # "T", "N"
    tb = 84 if trans_b else 78
    lda, ldb, ldc = max(lda, 1), max(ldb, 1), max(ldc, 1)
    _call_blas(tb, ta, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc)


@inner
def _pack(transposed, b, ldb, depth, columns, panel):
    """panel[k, j] = op(B)[k, j] of a part of op(B) that begins at the address b; 0 beyond its columns."""
    if columns < COLUMNS:
        fill(row_at(panel, depth * COLUMNS), _ZERO)
    if transposed:
        transpose(b, ldb, columns, depth, panel, COLUMNS)
    else:
        for k in range(depth):
            copy(row_at(b + 4 * k * ldb, columns), row_at(panel + 4 * k * COLUMNS, columns))


@inner
def _put(edge, rows, columns, beta, c, ldc):
    """C = edge + beta C, for a tile that is not all within C."""
    for i in range(rows):
        tile_row, out = row_at(edge + 4 * i * COLUMNS, columns), row_at(c + 4 * i * ldc, columns)
        for j in range(columns):
            out[j] = tile_row[j] + (beta * out[j] if beta != 0 else _ZERO)


@inner
def _column_of_tiles(m, columns, k, alpha, a, a_row, a_step, b, b_step, beta, start, term, edge, c, ldc):
    """C (m, columns) = alpha A B + beta C + start, and the second term, while a tile of C is in the first cache."""
    k2, alpha2, a2, a2_row, a2_step, b2, nothing = term
    for i in range(0, m, ROWS):
        rows, first, out = min(ROWS, m - i), a + 4 * i * a_row, c + 4 * i * ldc
        whole = rows == ROWS and columns == COLUMNS
        target, step, keep = (out, ldc, beta) if whole else (edge, COLUMNS, _ZERO)
        tile(k, first, 4 * a_row, 4 * a_step, rows - 1, b, 4 * b_step, alpha, keep, start, target, 4 * step)
        if k2 > 0:
            first = a2 + 4 * i * a2_row
            tile(k2, first, 4 * a2_row, 4 * a2_step, rows - 1, b2, 4 * COLUMNS, alpha2, _ONE, nothing, target, 4 * step)
        if not whole:
            _put(edge, rows, columns, beta, out, ldc)


@inner
def _tiled(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, bias, k2, alpha2, a2, lda2, b2, ldb2):
    """See ``_sgemm``; k > 0, k2 <= _THIN. Column of tiles by column of tiles: all of A passes by one panel of B."""
    a_row, a_step = (1, lda) if trans_a else (lda, 1)
    b_row, b_column = (1, ldb) if trans_b else (ldb, 1)
    panel, thin, start, nothing, edge = _panel(), _thin_panel(), _start(), _nothing(), _edge()
    fill(row_at(nothing, COLUMNS), _ZERO)
    for k0 in range(0, k, _DEPTH):
        depth, keep = min(_DEPTH, k - k0), beta if k0 == 0 else _ONE
        for j in range(0, n, COLUMNS):
            columns, source, step = min(COLUMNS, n - j), b + 4 * (k0 * b_row + j * b_column), ldb
            if trans_b or m >= _ENOUGH or columns < COLUMNS:
                _pack(trans_b, source, ldb, depth, columns, panel)
                source, step = panel, COLUMNS
            fill(row_at(start, COLUMNS), _ZERO)
            if bias and k0 == 0:
                copy(row_at(bias + 4 * j, columns), row_at(start, columns))
            if k0 == 0 and k2 > 0:
                _pack(trans_b, b2 + 4 * j * (ldb2 if trans_b else 1), ldb2, k2, columns, thin)
            term = (k2 if k0 == 0 else 0, alpha2, a2, 1 if trans_a else lda2, lda2 if trans_a else 1, thin, nothing)
            rows = a + 4 * k0 * a_step
            _column_of_tiles(
                m, columns, depth, alpha, rows, a_row, a_step, source, step, keep, start, term, edge, c + 4 * j, ldc
            )


@inner
def _product(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, bias):
    if bias:
        beta = _ONE
        for i in range(m):
            copy(row_at(bias, n), row_at(c + 4 * i * ldc, n))
    _blas(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)


def _sgemm(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, bias, k2, alpha2, a2, lda2, b2, ldb2):
    """C (m, n) = alpha op(A) op(B) + beta C + bias (n) + alpha2 op(A2) op(B2); see ``gemm`` and ``gemm_sum``.

    Without a bias its address is 0, without a second term k2 is. C is not read where beta is 0.
    """
    if m <= 0 or n <= 0:
        return
    fits = _OURS and m * n * k > _UNPACKED and m >= ROWS and n >= LANES
    if fits and k2 <= _THIN:
        _tiled(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, bias, k2, alpha2, a2, lda2, b2, ldb2)
        return
    if fits:
        _tiled(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, bias, 0, alpha2, a2, lda2, b2, ldb2)
    else:
        _product(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, bias)
    if k2 > 0:
        _blas(trans_a, trans_b, m, n, k2, alpha2, a2, lda2, b2, ldb2, _ONE, c, ldc)


def start(blas: int) -> int:
    """Compile the product; return its address. ``blas`` is the address of BLAS's."""
    binding.add_symbol(_BLAS, blas)
    return compiled_address(SIGNATURE, _sgemm)
