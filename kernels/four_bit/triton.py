"""Four-bit quantization and back on the GPU, to the bit of the reference.

Dequantizing moves 0.5 bytes of codes, 1/64 of absmax (4/64 where it is not nested) and 2 or 4 of output an element:
2.52 bytes with bfloat16, 12.6 us for 4096 x 4096 on an H100 if nothing else bounds it. That leaves 22 instructions an
element at full issue, some 12 in practice: the table of pairs takes 6, a tree of comparisons 20, element by element 27
to 41. The nested absmax is decoded in the same launch: as two launches before it, it costs its float32 form in memory
(46.4 MB instead of 42.2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device.arguments import argument, empty_like
from ..device.compile import Build
from ..device.triton import triton
from ..tiles.arrays import INTERPRETED, contiguous, each, stand_ins, start
from ..tiles.host import size
from .layout import Quantized, check_quantized, output
from .triton_decode import SIGNATURE, dequantize, pair_values, parts_of
from .triton_ladder import AOT as LADDER_AOT
from .triton_quantize import AOT as QUANTIZE_AOT
from .triton_quantize import quantize_4bit

__all__ = ["AOT", "dequantize_4bit", "quantize_4bit"]

ELEMENTS = size(8192, 512)
"""What a program decodes: 64 elements a thread, so that the absmax of its blocks is a small part of the work."""


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
        dequantize, (triton.cdiv(count, blocks * q.blocksize),),
        *each(contiguous, parts_of(q)), argument(out, stored), count, (count + 1) // 2,
        BLOCKSIZE=q.blocksize, BLOCKS=blocks, NESTED=q.nested.blocksize if q.nested else 1, num_warps=4,
    )  # fmt: skip
    return out


AOT = (
    *(
        Build(
            f"dequantize_4bit to {name}",
            dequantize,
            {**SIGNATURE, "out": kind, "count": "i64", "packed_count": "i64"},
            {"BLOCKSIZE": 64, "BLOCKS": 128, "NESTED": 256, "DECODE": pair_values},
            divisible=("count", "packed_count"),
            decoded_elements=8192,
        )
        for name, kind in (("bfloat16", "*bf16"), ("float32", "*fp32"))
    ),
    *QUANTIZE_AOT,
    *LADDER_AOT,
)
