"""From codes to floats on the CPU: a look-up and a product for each, rounded where the result is 16 bits wide.

4.56 bytes move for each element of a float32 result, instead of the 8 of a copy: what decodes it (``nibbles``) has to
be fast enough to stay ahead of memory. A 16-bit result is decoded piece by piece into memory that stays in the cache.
"""

from __future__ import annotations

import numpy as np
from numba import types

from ..gemm import at
from ..jit import FLAG, OUT1, OUT2, exact, inner, kernel, parts, span
from ..nibbles import WEIGHT, arguments, decode
from ..pointers import row_at
from ..threads import each_part
from .layout import Quantized

OUT_BITS = types.Array(types.uint16, 1, "C")
PIECE = 4096
"""Elements that are decoded before they are rounded."""


@inner
def _decode_part(t, parts, weight, blocksize, out):
    first, last = span(t, parts, (out.size + blocksize - 1) // blocksize)
    start = first * blocksize
    decode(weight, start, min(last * blocksize, out.size), at(out, start))


@kernel(*WEIGHT, OUT1)
def _float32(parts, packed, absmax, nested_map, nested_absmax, offset, blocksize, table, out):
    weight = packed, absmax, nested_map, nested_absmax, offset, blocksize, table
    each_part(parts, _decode_part, (weight, blocksize, out))


@exact
def bfloat16_bits(bits):
    """The upper half of a float32's bits, rounded to nearest, ties to even."""
    return (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)


@exact
def float16_bits(bits):
    """A finite float32 as float16, in bits, rounded to nearest, ties to even; above 65504 infinity.

    A normal result: the exponent's bias changes from 127 to 15 and 13 bits are rounded off. A subnormal one is a
    multiple of 2**-24: adding 0.5, whose last bit is worth 2**-24, rounds to it.
    """
    sign, size = bits >> np.uint32(16) & np.uint32(0x8000), bits & np.uint32(0x7FFFFFFF)
    normal = (size - np.uint32(112 << 23) + np.uint32(0xFFF) + (size >> np.uint32(13) & np.uint32(1))) >> np.uint32(13)
    small = np.float32(np.uint32(size).view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(126 << 23)
    half = small if size < np.uint32(113 << 23) else normal
    return sign | (half if half < np.uint32(0x7C00) else np.uint32(0x7C00))


@inner
def _round_bfloat16(x, out):
    bits = x.view(np.uint32)
    for i in range(x.size):
        out[i] = bfloat16_bits(bits[i])


@inner
def _round_float16(x, out):
    bits = x.view(np.uint32)
    for i in range(x.size):
        out[i] = float16_bits(bits[i])


@inner
def _round_part(t, parts, weight, scratch, out, brain):
    (first, last), mine = span(t, parts, (out.size + PIECE - 1) // PIECE), scratch[t]
    for piece in range(first, last):
        start, stop = piece * PIECE, min((piece + 1) * PIECE, out.size)
        decode(weight, start, stop, at(mine, 0))
        values = row_at(at(mine, 0), stop - start)
        if brain:
            _round_bfloat16(values, out[start:stop])
        else:
            _round_float16(values, out[start:stop])


@kernel(*WEIGHT, OUT2, OUT_BITS, FLAG)
def _sixteen_bits(
    parts, packed, absmax, nested_map, nested_absmax, offset, blocksize, table, scratch, out, brain
):  # fmt: skip
    weight = packed, absmax, nested_map, nested_absmax, offset, blocksize, table
    each_part(parts, _round_part, (weight, scratch, out, brain))


def dequantize(q: Quantized, dtype: str, out: np.ndarray) -> None:
    """Write the values of q into out (n,): float32, float16 or bfloat16's bits."""
    kept, weight = arguments(q)  # kept: arrays whose addresses are in weight
    pieces = parts(out.size)
    if dtype == "float32":
        _float32(pieces, *weight, out)
    else:
        scratch = np.empty((pieces, PIECE), np.float32)
        _sixteen_bits(pieces, *weight, scratch, out.view(np.uint16), dtype == "bfloat16")
    del kept
