"""Four-bit quantization on the GPU: fifteen comparisons an element, to the bit of the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device.compile import Build
from ..device.triton import tl, triton
from ..eight_bit.checks import flat_float32, refuse
from ..tiles.arrays import contiguous, each, host, new, placed, start, values
from ..tiles.host import size
from .codes import boundaries, order
from .layout import Quantized, check_format
from .reference import compressed

ELEMENTS = size(2048, 512)
"""What a program quantizes."""


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
    x = contiguous(x)
    packed, absmax = new(x, (count + 1) // 2, dtype="uint8"), new(x, triton.cdiv(count, blocksize), dtype="float32")
    blocks = max(ELEMENTS // blocksize, 1)
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
        flat = values(x).reshape(-1)
        start = int(finite.argmin()) * blocksize
        refuse("quantize_4bit", flat, start + int(np.isfinite(flat[start : start + blocksize]).argmin()), blocksize)


AOT = (
    Build(
        "quantize_4bit",
        _quantize,
        {"x": "*fp32", "boundaries": "*fp32", "order": "*u8", "packed": "*u8", "absmax": "*fp32", "count": "i64"},
        {"BLOCKSIZE": 64, "BLOCKS": 32},
        divisible=("count",),
    ),
)
