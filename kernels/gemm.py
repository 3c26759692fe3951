"""The one matrix product that every kernel uses: single-threaded BLAS, called from compiled code with strides.

Numba's ``np.dot`` needs contiguous arrays and cannot add to its output. Calling BLAS's ``sgemm`` itself gives both:
a head is read where it lies inside (B, T, C), and ``beta=1`` adds a product to what is there (a bias, LoRA's term).
The function's address changes from run to run, so it is an argument (``runtime.start()``) and the code can be cached.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import inner


@intrinsic
def _sgemm(typingctx, address, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """BLAS's sgemm on column-major matrices; a, b, c are addresses."""
    integer, real, pointer = types.int64, types.float32, types.intp
    signature = types.void(
        pointer, integer, integer, integer, integer, integer,
        real, pointer, integer, pointer, integer, real, pointer, integer,
    )  # fmt: skip

    def codegen(context, builder, signature, args):
        char_type, int_type, float_type = ir.IntType(8), ir.IntType(32), ir.FloatType()

        def by_reference(value, kind):
            if kind is not float_type:
                value = builder.trunc(value, kind)
            slot = cgutils.alloca_once(builder, kind)
            builder.store(value, slot)
            return slot

        def array(value):
            return builder.inttoptr(value, float_type.as_pointer())

        address, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = args
        actual = [
            by_reference(trans_a, char_type), by_reference(trans_b, char_type),
            by_reference(m, int_type), by_reference(n, int_type), by_reference(k, int_type),
            by_reference(alpha, float_type), array(a), by_reference(lda, int_type),
            array(b), by_reference(ldb, int_type),
            by_reference(beta, float_type), array(c), by_reference(ldc, int_type),
        ]  # fmt: skip
        function_type = ir.FunctionType(ir.VoidType(), [value.type for value in actual])
        builder.call(builder.inttoptr(address, function_type.as_pointer()), actual)
        return context.get_dummy_value()

    return signature, codegen


@inner
def gemm(blas, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C (m, n) = alpha * op(A) (m, k) @ op(B) (k, n) + beta * C, all row-major; a, b, c are addresses (``at``).

    ``ld*`` is the distance between two rows in elements. A row-major matrix is a column-major one transposed, and
    C.T = op(B).T @ op(A).T: hence the swapped operands.
    """
    if m > 0 and n > 0:
        ta = 84 if trans_a else 78  # "T", "N"
        tb = 84 if trans_b else 78
        lda, ldb, ldc = max(lda, 1), max(ldb, 1), max(ldc, 1)
        _sgemm(blas, tb, ta, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc)  # type: ignore[call-arg]  # Numba adds the first


@inner
def at(array, offset):
    """The address of the float32 that lies ``offset`` elements after the first."""
    return array.ctypes.data + 4 * offset


_UNPACKED = 1_000_000
"""Up to this many multiply-adds OpenBLAS reads its operands where they lie; above, it first copies them."""


@inner
def skinny_step(rows, width, rank):
    """How many rows at a time a (rows, width) by (width, rank) product, or a like one, is done fastest.

    With a small rank the copies cost more than the product: it takes 1.3 to 3 times as long. So it is cut into blocks
    of rows that OpenBLAS does not copy, unless these were tiny.
    """
    step = _UNPACKED // max(width * rank, 1)
    return step if step >= 32 else max(rows, 1)
