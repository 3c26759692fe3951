"""The innermost loop of a matrix product: a tile of C stays in registers while A and B pass by.

A tile has ``ROWS`` rows and two vectors of ``LANES`` floats in each. For every k the loop loads one row of B (two
vectors) and, for each row of A, one number into all lanes: sixteen multiply-adds for ten loads, so the arithmetic is
what takes time. Sixteen sums are also enough to be under way at once: each multiply-add may wait for the one before.
LLVM gets the loop as vector instructions, because its vectoriser does not find this form by itself.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .jit import emitted

ROWS, LANES = 8, 16
COLUMNS = 2 * LANES

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


def _in_all_lanes(builder: ir.IRBuilder, value: Any) -> Any:
    empty, zero = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    first = builder.insert_element(empty, value, zero)
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _pointer(builder: ir.IRBuilder, address: Any, offset: int, kind: ir.Type) -> Any:
    return builder.inttoptr(builder.add(address, ir.Constant(_INT, offset)), kind.as_pointer())


def _vectors(builder: ir.IRBuilder, address: Any) -> list[Any]:
    """The two vectors that lie there."""
    return [builder.load(_pointer(builder, address, 4 * LANES * j, _VECTOR), align=4) for j in range(2)]


def _fma(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), [a, b, c])


def _sums(builder: ir.IRBuilder, k: Any, rows: list[Any], step: Any, b: Any, b_step: Any) -> list[list[Any]]:
    """Emit the loop: sums[i][j] += (number at rows[i]) * (vector j at b), k times (at least once), all moving on."""
    start, loop, end = builder.block, builder.append_basic_block("k"), builder.append_basic_block("sums")
    zero = ir.Constant(_INT, 0)
    builder.branch(loop)
    builder.position_at_end(loop)
    counter, offset, row_of_b = (builder.phi(_INT) for _ in range(3))
    sums = [[builder.phi(_VECTOR) for _ in range(2)] for _ in rows]
    vectors, new = _vectors(builder, row_of_b), []
    for row, pair in zip(rows, sums, strict=True):
        number = builder.load(builder.inttoptr(builder.add(row, offset), _FLOAT.as_pointer()), align=4)
        everywhere = _in_all_lanes(builder, number)
        new.append([_fma(builder, everywhere, v, s) for v, s in zip(vectors, pair, strict=True)])
    following = builder.add(counter, ir.Constant(_INT, 1))
    moved = builder.add(offset, step), builder.add(row_of_b, b_step)
    for phi, first, then in ((counter, zero, following), (offset, zero, moved[0]), (row_of_b, b, moved[1])):
        phi.add_incoming(first, start)
        phi.add_incoming(then, loop)
    for pair, updated in zip(sums, new, strict=True):
        for phi, then in zip(pair, updated, strict=True):
            phi.add_incoming(ir.Constant(_VECTOR, [0.0] * LANES), start)
            phi.add_incoming(then, loop)
    builder.cbranch(builder.icmp_signed("<", following, k), loop, end)
    builder.position_at_end(end)
    return new


@emitted
def tile(typingctx, k, a, a_row, a_step, last_row, b, b_step, alpha, beta, start, c, c_row):
    """C = alpha A B + beta C + start for one tile; a, b, c, start (COLUMNS) are addresses, steps are in bytes, k > 0.

    A's numbers lie ``a_row`` from row to row and ``a_step`` along k, in either order of sizes: so A is read where it
    lies, transposed or not. Rows beyond ``last_row`` read that row instead. Where beta is 0, C is not read.
    """
    integer, real = types.int64, types.float32
    signature = types.void(*[integer] * 7, real, real, integer, integer, integer)

    def codegen(context, builder, signature, args):
        k, a, a_row, a_step, last_row, b, b_step, alpha, beta, start, c, c_row = args
        rows = []
        for i in range(ROWS):
            row = ir.Constant(_INT, i)
            row = builder.select(builder.icmp_signed("<", row, last_row), row, last_row)
            rows.append(builder.add(a, builder.mul(row, a_row)))
        sums = _sums(builder, k, rows, a_step, b, b_step)
        scale, keep, first = _in_all_lanes(builder, alpha), _in_all_lanes(builder, beta), _vectors(builder, start)
        sums = [[_fma(builder, s, scale, f) for s, f in zip(pair, first, strict=True)] for pair in sums]
        out = [builder.add(c, builder.mul(c_row, ir.Constant(_INT, i))) for i in range(ROWS)]
        with builder.if_else(builder.fcmp_unordered("!=", beta, ir.Constant(_FLOAT, 0.0))) as (then, otherwise):
            with then:
                for address, pair in zip(out, sums, strict=True):
                    old = _vectors(builder, address)
                    _store(builder, address, [_fma(builder, o, keep, s) for o, s in zip(old, pair, strict=True)])
            with otherwise:
                for address, pair in zip(out, sums, strict=True):
                    _store(builder, address, pair)
        return context.get_dummy_value()

    return signature, codegen


def _store(builder: ir.IRBuilder, address: Any, pair: list[Any]) -> None:
    for j, value in enumerate(pair):
        builder.store(value, _pointer(builder, address, 4 * LANES * j, _VECTOR), align=4)
