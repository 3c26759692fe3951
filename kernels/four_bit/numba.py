"""4-bit quantization on the CPU: blocks over the threads; within a block, loops without branches or table look-ups."""

from __future__ import annotations

import numpy as np
from numba import types

from ..blocks import scale_block
from ..eight_bit.checks import flat_float32
from ..eight_bit.numba import quantize_blockwise, refuse_nonfinite
from ..gemm import at
from ..jit import IN1, INT, OUT1, OUT2, exact, inner, kernel, parts, span
from ..pointers import bytes_at, row_at
from ..threads import each_part
from .codes import boundaries, order
from .decode import PIECE, dequantize
from .layout import Quantized, check_format, check_quantized, output
from .reference import compressed

f32 = np.float32
IN_BYTES, OUT_BYTES = types.Array(types.uint8, 1, "C", readonly=True), types.Array(types.uint8, 1, "C")
EDGES = types.UniTuple(types.float32, 15)


@exact
def rank(x, b):
    """How many of the fifteen boundaries are below x. In a loop over b, the loop over x would not be vectorised."""
    return (
        np.int32(x > b[0]) + np.int32(x > b[1]) + np.int32(x > b[2]) + np.int32(x > b[3]) + np.int32(x > b[4])
        + np.int32(x > b[5]) + np.int32(x > b[6]) + np.int32(x > b[7]) + np.int32(x > b[8]) + np.int32(x > b[9])
        + np.int32(x > b[10]) + np.int32(x > b[11]) + np.int32(x > b[12]) + np.int32(x > b[13]) + np.int32(x > b[14])
    )  # fmt: skip


@inner
def pack(x, b, packed):
    """Two ranks a byte; behind an odd number of elements, the rank of 0."""
    for i in range(x.size // 2):
        packed[i] = rank(x[2 * i], b) << 4 | rank(x[2 * i + 1], b)
    if x.size % 2:
        packed[x.size // 2] = rank(x[x.size - 1], b) << 4 | rank(f32(0), b)


@inner
def translate(packed, table):
    """Turn ranks into codes, a byte at a time."""
    for i in range(packed.size):
        packed[i] = table[packed[i]]


@inner
def quantize_part(t, parts, x, blocksize, b, table, scratch, packed, absmax):
    """The blocks of one thread: scaled one by one, then packed by the piece, as a loop has to be long to be fast."""
    (first, last), mine = span(t, parts, absmax.size), scratch[t]
    for start in range(first * blocksize, min(last * blocksize, x.size), PIECE):
        stop = min(start + PIECE, last * blocksize, x.size)
        for i in range(start, stop, blocksize):
            size = min(blocksize, stop - i)
            absmax[i // blocksize] = scale_block(row_at(at(x, i), size), row_at(at(mine, i - start), size))
        out = bytes_at(packed.ctypes.data + start // 2, (stop - start + 1) // 2)
        pack(row_at(at(mine, 0), stop - start), b, out)
        if table.size:
            translate(out, table)


@kernel(IN1, INT, EDGES, IN_BYTES, OUT2, OUT_BYTES, OUT1)
def _quantize(parts, x, blocksize, b, table, scratch, packed, absmax):
    each_part(parts, quantize_part, (x, blocksize, b, table, scratch, packed, absmax))


def quantize_4bit(
    x: np.ndarray, blocksize: int = 64, quant_type: str = "nf4", compress_statistics: bool = False
) -> Quantized:
    """See the reference."""
    check_format("quantize_4bit", blocksize, quant_type)
    flat = flat_float32("quantize_4bit", x, blocksize)
    packed, absmax = np.empty((x.size + 1) // 2, np.uint8), np.empty(-(-x.size // blocksize), np.float32)
    pieces, edges = parts(x.size), tuple(boundaries(quant_type))
    scratch = np.empty((pieces, PIECE), np.float32)
    _quantize(pieces, flat, blocksize, edges, translation(quant_type), scratch, packed, absmax)
    refuse_nonfinite("quantize_4bit", flat, absmax, blocksize)
    q = Quantized(packed, absmax, x.shape, blocksize, quant_type, None)
    return compressed(q, quantize_blockwise) if compress_statistics else q


def dequantize_4bit(q: Quantized, dtype: str = "float32", out: np.ndarray | None = None) -> np.ndarray:
    """See the reference."""
    check_quantized("dequantize_4bit", q)
    out = output("dequantize_4bit", q.shape, dtype, out)
    dequantize(q, dtype, out.reshape(-1))
    return out


def translation(quant_type: str) -> np.ndarray:
    """The byte of two codes for each byte of two ranks (256,); empty where rank and code are the same.

    >>> translation("nf4").size, hex(translation("fp4")[0x0F])
    (0, '0xb3')
    """
    codes = order(quant_type)
    ranks = np.arange(256)
    same = (codes == np.arange(16)).all()
    return np.zeros(0, np.uint8) if same else codes[ranks >> 4] << np.uint8(4) | codes[ranks & 15]
