"""Ways to decode four bits on the GPU, from the one that is written first to the one that runs; all give the same bits.

Memory allows 22 instructions an element on an H100 (see ``triton``). Counted in its machine code, nested absmax fused
(``python -m minitorch_peft.kernels.device.gate`` counts them again):

1. ``by_element``: each element loads its byte and its block's absmax, and chooses its value among sixteen by the four
   bits of its code, fifteen choices: 41 instructions (27 on sm_80).
2. ``tree_values``: the absmax is loaded once a block, a byte once for its two elements: 20. What is left is the
   choosing, which at 60% issue keeps the units busy longer than memory.
3. ``sixteen_values``: a table of sixteen values in the first-level cache; one load replaces the choices: 10.
4. ``triton_decode.pair_values``: a table of 256 pairs; one load for two elements, no code is cut out of its byte: 6.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device.compile import Build
from ..device.triton import tl, triton
from ..tiles.arrays import start
from .codes import code_table
from .layout import Quantized
from .triton_decode import SIGNATURE, block_scale, dequantize, parts_of


@triton.jit
def tree(table, code):
    """The value of each code: its four bits halve the sixteen values four times, fifteen choices in all."""
    values = ()
    for i in tl.static_range(16):
        values += (tl.load(table + i),)
    for bit in tl.static_range(4):
        upper = ((code >> bit) & 1) == 1
        halved = ()
        for i in tl.static_range(8 >> bit):
            halved += (tl.where(upper, values[2 * i + 1], values[2 * i]),)
        values = halved
    return values[0]


@triton.jit
def tree_values(table, byte):
    return tree(table, byte >> 4), tree(table, byte & 15)


@triton.jit
def sixteen_values(table, byte):
    return tl.load(table + (byte >> 4).to(tl.int32)), tl.load(table + (byte & 15).to(tl.int32))


@triton.jit
def by_element(packed, absmax, nested_code, nested_absmax, offset, table, out, count,
               BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    byte = tl.load(packed + i // 2, mask=i < count, other=0)
    code = tl.where(i % 2 == 0, byte >> 4, byte & 15)
    scale = block_scale(absmax, nested_code, nested_absmax, offset, i // BLOCKSIZE, i < count, NESTED)
    tl.store(out + i, (tree(table, code) * scale).to(out.dtype.element_ty), mask=i < count)


DECODES = {"tree": tree_values, "sixteen": sixteen_values}


def dequantize_by(way: str, q: Quantized) -> np.ndarray:
    """float32 values of q by one of these ways: "element", "tree" or "sixteen"."""
    out, count = np.empty(q.shape, np.float32), math.prod(q.shape)
    *parts, _ = parts_of(q)
    nested = q.nested.blocksize if q.nested else 1
    args: tuple[Any, ...] = (*parts, code_table(q.quant_type), out, count)
    if way == "element":
        start(by_element, (triton.cdiv(count, 512),), *args, BLOCKSIZE=q.blocksize, NESTED=nested, BLOCK=512)
        return out
    blocks = max(512 // q.blocksize, 1)
    start(
        dequantize, (triton.cdiv(count, blocks * q.blocksize),), *args, (count + 1) // 2,
        BLOCKSIZE=q.blocksize, BLOCKS=blocks, NESTED=nested, DECODE=DECODES[way],
    )  # fmt: skip
    return out


_OUT = {**SIGNATURE, "out": "*bf16", "count": "i64"}
_TABLE = {name: kind for name, kind in _OUT.items() if name != "pairs"}
AOT = (
    Build("dequantize by element", by_element, {**_TABLE, "table": "*fp32"},
          {"BLOCKSIZE": 64, "NESTED": 256, "BLOCK": 2048}, divisible=("count",), decoded_elements=2048,
          most_per_element=42),
    *(
        Build(f"dequantize by {way}", dequantize, {**_OUT, "pairs": "*fp32", "packed_count": "i64"},
              {"BLOCKSIZE": 64, "BLOCKS": 128, "NESTED": 256, "DECODE": decode},
              divisible=("count", "packed_count"), decoded_elements=8192, most_per_element=30)
        for way, decode in DECODES.items()
    ),
)  # fmt: skip
