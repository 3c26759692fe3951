"""Four-bit codes to float32 values inside a kernel: a byte holds two codes, so a table of 256 pairs decodes a byte with
one load of 8 bytes. The table has 2 KiB and stays in the first-level cache.

The same two float32 are multiplied as in the reference, so the values are its bits. ``triton_ladder`` counts what the
other ways cost.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..device.array import DeviceArray
from ..device.triton import tl, triton
from ..tiles.arrays import INTERPRETED
from .codes import code_table
from .layout import Quantized


def pair_table(quant_type: str) -> np.ndarray:
    """The two values of every byte, first the one of the high four bits: (256,) uint64, each two float32.

    >>> pair_table("nf4").view(np.float32).reshape(256, 2)[0xF0].tolist()
    [1.0, -1.0]
    """
    byte = np.arange(256)
    values = code_table(quant_type)
    return np.stack([values[byte >> 4], values[byte & 15]], axis=1).view(np.uint64).reshape(-1)


@functools.cache
def placed_table(quant_type: str) -> Any:
    """The table where kernels run, copied there once."""
    table = pair_table(quant_type)
    return table if INTERPRETED else DeviceArray.from_numpy(table)


def parts_of(q: Quantized) -> tuple[Any, ...]:
    """q as arguments of a kernel: packed, absmax, nested_code, nested_absmax, offset, pairs."""
    nested = (None, None, 0.0) if q.nested is None else (q.nested.code, q.nested.absmax, float(q.nested.offset))
    return q.packed, q.absmax, *nested, placed_table(q.quant_type)


SIGNATURE = {"packed": "*u8", "absmax": "*u8", "nested_code": "*fp32", "nested_absmax": "*fp32", "offset": "fp32",
             "pairs": "*u64"}  # fmt: skip
"""Types of a quantized weight's parts as arguments."""


@triton.jit
def pair_values(pairs, byte):
    """The values of the high and of the low four bits."""
    both = tl.load(pairs + byte.to(tl.int32))
    high = (both & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    low = (both >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    return high, low


@triton.jit
def block_scale(absmax, nested_code, nested_absmax, offset, block, inside, NESTED: tl.constexpr):
    """The float32 absmax of a block, from its eight bits where it is quantized itself (``NESTED`` of them share one):
    in this launch, not in two before it."""
    scale = tl.load(absmax + block, mask=inside, other=0)
    if nested_absmax is not None:
        shared = tl.load(nested_absmax + block // NESTED, mask=inside, other=0)
        scale = tl.load(nested_code + scale.to(tl.int32)) * shared + offset
    return scale


@triton.jit
def rounded(values, dtype: tl.constexpr):
    """float32 to ``dtype``, to nearest, ties to even; uint16 stands for the bits of bfloat16 in the interpreter, whose
    own conversion cuts."""
    if dtype == tl.uint16:
        bits = values.to(tl.uint32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
    else:
        return values.to(dtype)


@triton.jit
def dequantize(packed, absmax, nested_code, nested_absmax, offset, pairs, out, count, packed_count,
                BLOCKSIZE: tl.constexpr, BLOCKS: tl.constexpr, NESTED: tl.constexpr,
                DECODE: tl.constexpr = pair_values):  # fmt: skip
    HALF: tl.constexpr = BLOCKSIZE // 2
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    row = tl.arange(0, BLOCKS)
    elements = tl.minimum(count - first * BLOCKSIZE, BLOCKS * BLOCKSIZE).to(tl.int32)
    bytes_left = tl.minimum(packed_count - first * HALF, BLOCKS * HALF).to(tl.int32)
    at = row[:, None] * HALF + tl.arange(0, HALF)[None, :]
    # Four bytes a thread, not the sixteen that one load could bring: they become eight values, which is just what one
    # store of bfloat16 takes, so nothing is exchanged between threads.
    at = tl.max_contiguous(tl.multiple_of(at, (1, 4)), (1, 4))
    byte = tl.load(packed + first * HALF + at, mask=at < bytes_left, other=0, eviction_policy="evict_first")
    inside = row * BLOCKSIZE < elements
    scale = block_scale(absmax, nested_code, nested_absmax, offset, first + row, inside, NESTED)[:, None]
    high, low = DECODE(pairs, byte)
    values = tl.interleave(high * scale, low * scale)
    to = row[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    tl.store(out + first * BLOCKSIZE + to, rounded(values, out.dtype.element_ty), mask=to < elements)
