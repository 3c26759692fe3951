"""Copy a matrix transposed, sixteen by sixteen numbers at a time, which change places in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from .jit import emitted, inner
from .pointers import row_at

SIDE = 16
_INT = ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), SIDE)


@emitted
def _tile(typingctx, source, source_row, out, out_row):
    """Write the transpose of SIDE x SIDE floats; addresses, and the bytes from one row to the next.

    Halves of rows change places with those of the rows half as far down, then quarters, ... (Eklundh 1972).
    """
    signature = types.void(*[types.int64] * 4)

    def codegen(context, builder, signature, args):
        source, source_row, out, out_row = args
        rows = [builder.load(_row(builder, source, source_row, i), align=4) for i in range(SIDE)]
        for half in (8, 4, 2, 1):
            own = [lane if not lane & half else SIDE + lane - half for lane in range(SIDE)]
            other = [lane + half if not lane & half else SIDE + lane for lane in range(SIDE)]
            for i in (i for i in range(SIDE) if not i & half):
                pair = rows[i], rows[i + half]
                rows[i], rows[i + half] = (_shuffle(builder, *pair, lanes) for lanes in (own, other))
        for i, row in enumerate(rows):
            builder.store(row, _row(builder, out, out_row, i), align=4)
        return context.get_dummy_value()

    return signature, codegen


def _row(builder: ir.IRBuilder, address: Any, step: Any, i: int) -> Any:
    address = builder.add(address, builder.mul(step, ir.Constant(_INT, i)))
    return builder.inttoptr(address, _VECTOR.as_pointer())


def _shuffle(builder: ir.IRBuilder, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), SIDE), lanes))


@inner
def transpose(source, ld, rows, columns, out, ld_out):
    """out (columns, rows) = source.T; addresses, ``ld*`` is the distance between two rows in elements."""
    down, across = rows // SIDE * SIDE, columns // SIDE * SIDE
    for i in range(0, down, SIDE):
        for j in range(0, across, SIDE):
            _tile(source + 4 * (i * ld + j), 4 * ld, out + 4 * (j * ld_out + i), 4 * ld_out)
    for i in range(rows):
        row = row_at(source + 4 * i * ld, columns)
        column = row_at(out + 4 * i, columns * ld_out)
        for j in range(across if i < down else 0, columns):
            column[j * ld_out] = row[j]
