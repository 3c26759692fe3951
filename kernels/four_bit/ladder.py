"""Quantizing and dequantizing 4 bits from naive to fast: a branch an element, a table, a block, a register.

Times are for 4096 x 4096 elements of NF4 in blocks of 64 and one thread of an AVX-512 machine, up to the last step.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from ..eight_bit.checks import check_values
from ..jit import FAST
from ..ladder import Rung
from . import numba as fast
from .codes import ZERO_CODE, boundaries, code_table, order
from .layout import Quantized, check_format, check_quantized, output
from .reference import compressed, dequantized_absmax, round_into, scaled_blocks

_plain = numba.njit(error_model="numpy")
_vectorised = numba.njit(error_model="numpy", fastmath=FAST)


@_plain
def _branch(code, table):
    if code & 8:
        if code & 4:
            if code & 2:
                return table[15] if code & 1 else table[14]
            return table[13] if code & 1 else table[12]
        if code & 2:
            return table[11] if code & 1 else table[10]
        return table[9] if code & 1 else table[8]
    if code & 4:
        if code & 2:
            return table[7] if code & 1 else table[6]
        return table[5] if code & 1 else table[4]
    if code & 2:
        return table[3] if code & 1 else table[2]
    return table[1] if code & 1 else table[0]


@_plain
def _branches(packed, absmax, table, blocksize, out):
    for i in range(out.size):
        out[i] = _branch(packed[i // 2] >> (4 - i % 2 * 4) & 15, table) * absmax[i // blocksize]


@_plain
def _table(packed, absmax, table, blocksize, out):
    for i in range(out.size):
        code = packed[i // 2] >> (4 - i % 2 * 4) & 15
        out[i] = table[code] * absmax[i // blocksize]


@_vectorised
def _pairs(packed, absmax, table, blocksize, out):
    pairs = np.empty((256, 2), np.float32)
    for byte in range(256):
        pairs[byte, 0], pairs[byte, 1] = table[byte >> 4], table[byte & 15]
    for i in range(out.size // 2):
        scale = absmax[2 * i // blocksize]
        out[2 * i], out[2 * i + 1] = pairs[packed[i], 0] * scale, pairs[packed[i], 1] * scale
    if out.size % 2:
        out[-1] = table[packed[-1] >> 4] * absmax[-1]


@_vectorised
def _block(packed, table, scale, out):
    for i in range(out.size // 2):
        out[2 * i], out[2 * i + 1] = table[packed[i] >> 4] * scale, table[packed[i] & 15] * scale
    if out.size % 2:
        out[-1] = table[packed[-1] >> 4] * scale


@_vectorised
def _blocks(packed, absmax, table, blocksize, out):
    for b in range(absmax.size):
        start, stop = b * blocksize, min((b + 1) * blocksize, out.size)
        _block(packed[start // 2 : (stop + 1) // 2], table, absmax[b], out[start:stop])


def _dequantizer(compiled: Callable) -> Callable:
    def dequantize_4bit(q: Quantized, dtype: str = "float32", out: np.ndarray | None = None) -> np.ndarray:
        check_quantized("dequantize_4bit", q)
        out = output("dequantize_4bit", q.shape, dtype, out)
        values = out if dtype == "float32" else np.empty(q.shape, np.float32)
        compiled(q.packed, dequantized_absmax(q), code_table(q.quant_type), q.blocksize, values.reshape(-1))
        if dtype != "float32":
            round_into(out, values, dtype)
        return out

    return dequantize_4bit


@_plain
def _scan(scaled, edges, codes, packed):
    for i in range(scaled.size):
        rank = 0
        while rank < 15 and scaled[i] > edges[rank]:
            rank += 1
        packed[i // 2] |= codes[rank] << (4 - i % 2 * 4)


@_plain
def _halve(scaled, edges, codes, packed):
    for i in range(scaled.size):
        rank = 0
        for step in (8, 4, 2, 1):
            rank += step * (scaled[i] > edges[rank + step - 1])
        packed[i // 2] |= codes[rank] << (4 - i % 2 * 4)


@_vectorised
def _count_all(scaled, edges, codes, packed):
    fast.pack(scaled, edges, packed)
    for i in range(packed.size):
        packed[i] = codes[packed[i] >> 4] << 4 | codes[packed[i] & 15]


def _count(scaled: np.ndarray, edges: np.ndarray, codes: np.ndarray, packed: np.ndarray) -> None:
    _count_all(scaled, tuple(edges), codes, packed)


def _quantizer(compiled: Callable) -> Callable:
    def quantize_4bit(
        x: np.ndarray, blocksize: int = 64, quant_type: str = "nf4", compress_statistics: bool = False
    ) -> Quantized:
        check_format("quantize_4bit", blocksize, quant_type)
        scaled, absmax = scaled_blocks(check_values("quantize_4bit", x, blocksize), blocksize)
        packed = np.zeros((x.size + 1) // 2, np.uint8)
        if x.size % 2:
            packed[-1] = ZERO_CODE[quant_type]
        compiled(scaled, boundaries(quant_type), order(quant_type), packed)
        q = Quantized(packed, absmax, x.shape, blocksize, quant_type, None)
        return compressed(q) if compress_statistics else q

    return quantize_4bit


LADDER = {
    "dequantize_4bit": (
        Rung(
            "branches",
            _dequantizer(_branches),
            "A tree of four decisions an element, as if each code were a case of its own. Codes are as good as random, "
            "so the processor guesses two of the four wrong, and each time throws away what it had begun: 164 ms, "
            "10 ns an element. NumPy, which only gathers from a table, needs 45 ms.",
        ),
        Rung(
            "table",
            _dequantizer(_table),
            "The code is an index: one load from a table of 64 bytes takes the place of four decisions. 30 ms. What is "
            "left is arithmetic that repeats: a division by the blocksize and a load of absmax for every element, and "
            "every byte is loaded twice.",
        ),
        Rung(
            "pairs",
            _dequantizer(_pairs),
            "A byte is an index too, into 256 pairs of floats (2 KiB, in the first cache): half as many loads, shifts "
            "and divisions. 15 ms. On a GPU this is the form to have: 6.3 instructions an element, against 20 of the "
            "tree.",
        ),
        Rung(
            "block",
            _dequantizer(_blocks),
            "A loop over blocks around a loop over what is in a block: absmax is loaded once for 64 elements, nothing "
            "is divided, and the inner loop is plain enough to be unrolled. 7.4 ms: 1.5 times a copy of the result, "
            "although only 4.56 bytes move for an element instead of 8. Each element still costs a load from the "
            "table, and a core does two or three loads a cycle.",
        ),
        Rung(
            "register",
            fast.dequantize_4bit,
            "The table is 16 floats, one register of AVX-512, and `vpermps` looks up 16 indices in a register at once: "
            "a load, two shifts, a permutation and a product decode 16 elements. 2.9 ms, 0.6 of the time of a copy: "
            "now memory is the bound. No compiler finds this instruction in a loop, so the kernel asks for it; other "
            "processors run the step before. The nested absmax is turned back in the same pass, and threads take "
            "whole blocks.",
        ),
    ),
    "quantize_4bit": (
        Rung(
            "scan",
            _quantizer(_scan),
            "After NumPy has scaled x (55 ms of every step but the last), one boundary after the other until x is "
            "no longer above it: seven or eight comparisons an element, and where it stops is a guess that the "
            "processor gets wrong. 268 ms, against 451 of NumPy's searchsorted.",
        ),
        Rung(
            "halve",
            _quantizer(_halve),
            "Four halvings instead of a scan, without a decision: the result of a comparison is multiplied by the step "
            "and added. 98 ms. But each halving waits for the load that the one before it has chosen.",
        ),
        Rung(
            "count",
            _quantizer(_count),
            "All fifteen comparisons, and their results added: four times the work of halving, but none waits for "
            "another and none needs a load, so they are made for 16 elements at once: two instructions a boundary. "
            "73 ms, of which 18 are not NumPy's.",
        ),
        Rung(
            "piece",
            fast.quantize_4bit,
            "The scaling moves into the kernel: NumPy's passes over memory (absolute value, maximum, product, each "
            "64 MB) become one read. Blocks are scaled into 4096 floats that stay in the cache and packed from there "
            "in one long loop: packed block by block, a loop of 32 steps would end before its vectors are full. "
            "14 ms with one thread; bitsandbytes' CPU path, a search in a table through PyTorch, takes 400 to 550 ms.",
        ),
    ),
}
