"""Four-bit quantization and back on the GPU, to the bit of the reference.

Dequantizing moves 0.5 bytes of codes, 1/64 of absmax (4/64 where it is not nested) and 2 or 4 of output an element:
2.52 bytes with bfloat16, 12.6 us for 4096 x 4096 on an H100 if nothing else bounds it. That leaves 22 instructions an
element at full issue, some 12 in practice: the table of pairs takes 6, a tree of comparisons 26. The nested absmax is
decoded in the same launch: as two launches before it, it costs its float32 form in memory (46.4 MB instead of 42.2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device.arguments import argument, empty_like
from ..device.compile import Build
from ..device.triton import tl, triton
from ..eight_bit.checks import flat_float32, refuse
from ..tiles.arrays import INTERPRETED, contiguous, each, host, new, placed, stand_ins, start
from ..tiles.host import size
from .codes import boundaries, order
from .layout import Quantized, check_format, check_quantized, output
from .reference import compressed
from .triton_decode import block_scale, pair_values, parts_of

ELEMENTS = size(8192, 512)
"""What a program decodes: 64 elements a thread, so that the absmax of its blocks is a small part of the work."""


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
def _dequantize(packed, absmax, nested_code, nested_absmax, offset, pairs, out, count, packed_count,
                BLOCKSIZE: tl.constexpr, BLOCKS: tl.constexpr, NESTED: tl.constexpr):  # fmt: skip
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
    high, low = pair_values(pairs, byte)
    values = tl.interleave(high * scale, low * scale)
    to = row[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    tl.store(out + first * BLOCKSIZE + to, rounded(values, out.dtype.element_ty), mask=to < elements)


def dequantize_4bit(q: Quantized, dtype: str = "float32", out: Any = None) -> Any:
    """See the reference. The parts of q, and ``out``, may be arrays of a device: the result is one then too."""
    check_quantized("dequantize_4bit", *stand_ins(q))
    if isinstance(q.packed, np.ndarray):
        out = output("dequantize_4bit", q.shape, dtype, out)
    elif out is None:
        out = empty_like(q.packed, q.shape, dtype)
    elif tuple(out.shape) != q.shape:
        raise ValueError(f"dequantize_4bit: out must have the tensor's shape {q.shape}, got {tuple(out.shape)}")
    count, blocks = math.prod(q.shape), max(ELEMENTS // q.blocksize, 1)
    stored = "uint16" if INTERPRETED and dtype == "bfloat16" else dtype
    start(
        _dequantize, (triton.cdiv(count, blocks * q.blocksize),),
        *each(contiguous, parts_of(q)), argument(out, stored), count, (count + 1) // 2,
        BLOCKSIZE=q.blocksize, BLOCKS=blocks, NESTED=q.nested.blocksize if q.nested else 1, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _quantize(x, boundaries, order, packed, absmax, count, BLOCKSIZE: tl.constexpr, BLOCKS: tl.constexpr):
    HALF: tl.constexpr = BLOCKSIZE // 2
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    row = tl.arange(0, BLOCKS)
    left = tl.minimum(count - first * BLOCKSIZE, BLOCKS * BLOCKSIZE).to(tl.int32)
    at = row[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    values = tl.load(x + first * BLOCKSIZE + at, mask=at < left, other=0).to(tl.float32)
    # Without their sign, the bits of floats compare as integers do, NaN above all: a largest number would lose it.
    magnitude = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1).to(tl.float32, bitcast=True)
    tl.store(absmax + first + row, magnitude, mask=row * BLOCKSIZE < left)
    divisor = tl.where(magnitude > 0, magnitude, 1.0)
    reciprocal = tl.div_rn(1.0, divisor)[:, None]
    tiny = reciprocal == float("inf")  # of a magnitude up to 2**-128
    scaled = tl.where(tiny, tl.div_rn(values, tl.broadcast_to(divisor[:, None], values.shape)), values * reciprocal)
    interval = tl.zeros(scaled.shape, tl.int32)
    for i in tl.static_range(15):
        interval += (scaled > tl.load(boundaries + i)).to(tl.int32)
    codes = tl.reshape(tl.load(order + interval), (BLOCKS, HALF, 2))
    high, low = tl.split(codes)
    to = row[:, None] * HALF + tl.arange(0, HALF)[None, :]
    tl.store(packed + first * HALF + to, (high << 4) | low, mask=2 * to < left)


def quantize_4bit(x: Any, blocksize: int = 64, quant_type: str = "nf4", compress_statistics: bool = False) -> Quantized:
    """See the reference; x may be an array of a device: the parts of the result are then too.

    The statistics, 1/64 of the numbers, come to the host: to refuse NaN and infinity, and to be quantized in turn.
    """
    check_format("quantize_4bit", blocksize, quant_type)
    shape, count = tuple(x.shape), math.prod(x.shape)
    if isinstance(x, np.ndarray):
        x = flat_float32("quantize_4bit", x, blocksize)
    packed, absmax = new(x, (count + 1) // 2, dtype="uint8"), new(x, triton.cdiv(count, blocksize), dtype="float32")
    blocks = max(ELEMENTS // 4 // blocksize, 1)
    start(
        _quantize, (triton.cdiv(count, blocks * blocksize),),
        x, boundaries(quant_type), order(quant_type), packed, absmax, count,
        BLOCKSIZE=blocksize, BLOCKS=blocks, num_warps=4,
    )  # fmt: skip
    statistics = host(absmax)
    _refuse_nonfinite(x, statistics, blocksize)
    if not compress_statistics:
        return Quantized(packed, absmax, shape, blocksize, quant_type, None)
    q = compressed(Quantized(packed, statistics, shape, blocksize, quant_type, None))
    return each(lambda part: placed(part, x) if isinstance(part, np.ndarray) else part, q)


def _refuse_nonfinite(x: Any, absmax: np.ndarray, blocksize: int) -> None:
    finite = np.isfinite(absmax)
    if not finite.all():
        flat = host(x).reshape(-1)
        start = int(finite.argmin()) * blocksize
        refuse("quantize_4bit", flat, start + int(np.isfinite(flat[start : start + blocksize]).argmin()), blocksize)


_CODES = {"packed": "*u8", "absmax": "*u8", "nested_code": "*fp32", "nested_absmax": "*fp32", "offset": "fp32",
          "pairs": "*u64"}  # fmt: skip

AOT = (
    *(
        Build(
            f"dequantize_4bit to {name}",
            _dequantize,
            {**_CODES, "out": kind, "count": "i64", "packed_count": "i64"},
            {"BLOCKSIZE": 64, "BLOCKS": 128, "NESTED": 256},
            divisible=("count", "packed_count"),
            decoded_elements=8192,
        )
        for name, kind in (("bfloat16", "*bf16"), ("float16", "*fp16"), ("float32", "*fp32"))
    ),
    Build(
        "quantize_4bit",
        _quantize,
        {"x": "*fp32", "boundaries": "*fp32", "order": "*u8", "packed": "*u8", "absmax": "*fp32", "count": "i64"},
        {"BLOCKSIZE": 64, "BLOCKS": 32},
        divisible=("count",),
    ),
)
