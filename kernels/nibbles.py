"""Decode four-bit codes inside compiled kernels: any stretch of a tensor, into memory that the thread owns.

With AVX-512 one instruction (``vpermps``) looks sixteen codes up at once, since a table of sixteen float32 fits one
register; elsewhere each code is one load from the table. Both then multiply the same two float32: their bits are equal.

A weight in four bits is handed to a kernel as the seven numbers of ``WEIGHT``, made by ``arguments``: addresses, so
that calls inside the kernel are cheap and it is compiled fast.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from .four_bit.codes import code_table
from .four_bit.layout import Quantized
from .jit import INT, REAL, inner

_config: Any = numba.config
WEIGHT = (INT, INT, INT, INT, REAL, INT, INT)
"""The addresses of packed, absmax, nested map and nested absmax; offset and blocksize; the address of the table."""

_features = get_host_cpu_features() if _config.CPU_FEATURES is None else _config.CPU_FEATURES
AVX512 = "+avx512f" in _features.split(",")
"""A constant of the compiled code; Numba's cache knows for which processor that was compiled."""

strict = numba.njit(
    # spelled out: a helper without flags takes those of the first caller, and a product and a sum could be fused
    fastmath=False, error_model="numpy", forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True,
)  # fmt: skip
"""Compile a helper whose roundings are those of its source; always inlined, so that arrays are not handed over."""


def arguments(q: Quantized) -> tuple[list[np.ndarray], tuple]:
    """Arrays to keep alive during the call, and what a kernel with ``WEIGHT`` in its signature takes for q.

    Raises ValueError where absmax is nested in blocks of another size than 256, the only one in use.
    """
    parts = [q.packed, q.absmax, code_table(q.quant_type)]
    offset = 0.0
    if q.nested is not None:
        if q.nested.blocksize != 256:
            raise ValueError(f"the nested absmax must be in blocks of 256, got {q.nested.blocksize}")
        parts, offset = [*parts, q.nested.code, q.nested.absmax], q.nested.offset
    kept = [np.ascontiguousarray(part) for part in parts]
    packed, absmax, table, *nested = (a.ctypes.data for a in kept)
    return kept, (packed, absmax, *(nested or (0, 0)), offset, q.blocksize, table)


@intrinsic
def _decode_group(typingctx, packed, table, scale, out):
    """out[:16] = table[the codes of 8 bytes] * scale; packed, table and out are addresses."""

    def codegen(context, builder, signature, args):
        packed, table, scale, out = args
        byte, word, real = ir.IntType(8), ir.IntType(32), ir.FloatType()
        bytes8, words, reals = ir.VectorType(byte, 8), ir.VectorType(word, 16), ir.VectorType(real, 16)

        def load(address, kind):
            return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)

        pairs = load(packed, bytes8)
        high = builder.lshr(pairs, ir.Constant(bytes8, [4] * 8))
        low = builder.and_(pairs, ir.Constant(bytes8, [15] * 8))
        turns = ir.Constant(words, [i // 2 + 8 * (i % 2) for i in range(16)])  # high, low, high, low, ...
        codes = builder.zext(builder.shuffle_vector(high, low, turns), words)
        permute = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(reals, [reals, words]), "llvm.x86.avx512.permvar.sf.512"
        )
        undefined = ir.Constant(reals, ir.Undefined)
        scales = builder.insert_element(undefined, scale, ir.Constant(word, 0))
        scales = builder.shuffle_vector(scales, undefined, ir.Constant(words, [0] * 16))
        values = builder.fmul(builder.call(permute, [load(table, reals), codes]), scales)
        builder.store(values, builder.inttoptr(out, reals.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.intp), codegen


@intrinsic
def _byte(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()))

    return types.uint8(types.intp), codegen


@intrinsic
def _float(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.FloatType().as_pointer()))

    return types.float32(types.intp), codegen


@intrinsic
def _store(typingctx, address, value):
    def codegen(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], ir.FloatType().as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp, types.float32), codegen


@strict
def block_scale(absmax, nested_map, nested_absmax, offset, block):
    """The float32 absmax of a block; where there is a nested map, it is turned back from eight bits (QLoRA eq. 6)."""
    if nested_map == 0:
        return _float(absmax + 4 * block)
    code = np.int64(_byte(absmax + block))
    return _float(nested_map + 4 * code) * _float(nested_absmax + 4 * (block >> 8)) + np.float32(offset)


@strict
def _decode_one(code, table, scale, out):
    _store(out, _float(table + 4 * np.int64(code)) * scale)


@strict
def decode_run(packed, table, scale, first, last, out):
    """out = the elements ``first`` to ``last``, which lie in one block, of absmax ``scale``."""
    i = first
    if i & 1 and i < last:
        _decode_one(_byte(packed + (i >> 1)) & 15, table, scale, out)
        i += 1
    if AVX512:
        while i + 16 <= last:
            _decode_group(packed + (i >> 1), table, scale, out + 4 * (i - first))
            i += 16
    while i + 2 <= last:
        pair = _byte(packed + (i >> 1))
        _decode_one(pair >> 4, table, scale, out + 4 * (i - first))
        _decode_one(pair & 15, table, scale, out + 4 * (i - first) + 4)
        i += 2
    if i < last:
        _decode_one(_byte(packed + (i >> 1)) >> 4, table, scale, out + 4 * (i - first))


@inner
def decode(weight, first, last, out):
    """out = the elements ``first`` to ``last`` of a flattened tensor, across blocks."""
    packed, absmax, nested_map, nested_absmax, offset, blocksize, table = weight
    block, i = first // blocksize, first
    end = (block + 1) * blocksize
    while i < last:
        stop = min(end, last)
        scale = block_scale(absmax, nested_map, nested_absmax, offset, block)
        decode_run(packed, table, scale, i, stop, out + 4 * (i - first))
        block, i, end = block + 1, stop, end + blocksize


@inner
def decode_tile(weight, k, n0, n1, k0, k1, tile):
    """tile = W[n0:n1, k0:k1], row after row, of a matrix W with k columns."""
    if k1 - k0 == k:  # whole rows are one stretch
        decode(weight, n0 * k, n1 * k, tile)
    else:
        for n in range(n0, n1):
            decode(weight, n * k + k0, n * k + k1, tile + 4 * (n - n0) * (k1 - k0))
