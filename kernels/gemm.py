"""The one matrix product that every kernel uses: single-threaded BLAS, called from compiled code with strides.

Numba's ``np.dot`` needs contiguous arrays and cannot add to its output. Calling BLAS's ``sgemm`` itself gives both:
a head is read where it lies inside (B, T, C), and ``beta=1`` adds a product to what is there (a bias, LoRA's term).
The function's address changes from run to run, so it is an argument (``runtime.start()``) and the code can be cached.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

from .jit import emitted, inner


@emitted
def _call(
    typingctx,
    address,
    trans_a,
    trans_b,
    m,
    n,
    k,
    alpha,
    a,
    lda,
    b,
    ldb,
    beta,
    c,
    ldc,
    bias,
    k2,
    alpha2,
    a2,
    lda2,
    b2,
    ldb2,
):
    integer, real = types.int64, types.float32
    kinds = (integer,) * 5 + (real,) + (integer,) * 4 + (real,) + (integer,) * 4 + (real,) + (integer,) * 4
    signature = types.void(types.intp, *kinds)

    def codegen(context, builder, signature, args):
        function_type = ir.FunctionType(ir.VoidType(), [value.type for value in args[1:]])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])
        return context.get_dummy_value()

    return signature, codegen


@inner
def gemm(blas, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C (m, n) = alpha * op(A) (m, k) @ op(B) (k, n) + beta * C, all row-major; a, b, c are addresses (``at``).

    ``ld*`` is the distance between two rows in elements.
    """
    _call(blas, int(trans_a), int(trans_b), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, 0, 0, 0.0, 0, 0, 0, 0)


@inner
def gemm_bias(blas, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, bias, c, ldc):
    """C (m, n) = alpha * op(A) (m, k) @ op(B) (k, n) + bias (n) in every row."""
    _call(blas, int(trans_a), int(trans_b), m, n, k, alpha, a, lda, b, ldb, 0.0, c, ldc, bias, 0, 0.0, 0, 0, 0, 0)


@inner
def gemm_sum(blas, trans_b, m, n, k, a, lda, b, ldb, bias, k2, alpha2, a2, lda2, b2, ldb2, c, ldc):
    """C (m, n) = A (m, k) op(B) + bias (n; 0: none) + alpha2 A2 (m, k2) op(B2); where k2 is small, C passes by once."""
    _call(blas, 0, int(trans_b), m, n, k, 1.0, a, lda, b, ldb, 0.0, c, ldc, bias, k2, alpha2, a2, lda2, b2, ldb2)


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
