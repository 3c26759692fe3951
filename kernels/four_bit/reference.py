"""4-bit quantization in blocks (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, sec. 3), to the bit of bitsandbytes.

The definition is that of its CUDA kernel, on every shape: in float32, x times the reciprocal of its block's largest
magnitude, then the code whose interval holds it. Its CPU path divides in a last, partial block, mistakes the sign of
FP4's zero and, with AVX-512, dequantizes wrongly where a row is no whole number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..eight_bit.checks import check_values
from ..eight_bit.codes import create_dynamic_map
from ..eight_bit.reference import dequantize_blockwise, quantize_blockwise, scaled_blocks
from .codes import ZERO_CODE, boundaries, code_table, order
from .layout import NESTED_BLOCKSIZE, Nested, Quantized, check_format, check_quantized, output


def quantize_4bit(
    x: np.ndarray, blocksize: int = 64, quant_type: str = "nf4", compress_statistics: bool = False
) -> Quantized:
    """x, n elements of any shape and float dtype (rounded to float32 first), in four bits each.

    Blocks are ``blocksize`` (32, 64, ..., 4096) consecutive elements in row-major order, across rows; the last may be
    partial. An element in the middle of two values goes to the lower code (FP4: to the smaller magnitude). A block
    of zeros has codes of zero; so has the half byte behind an odd number of elements. (The CUDA kernel computes
    0 · (1/0) there and stores NaN's code: code 0, which is -1 in NF4, times absmax 0.)
    ``compress_statistics`` quantizes absmax too, minus its mean, to eight bits in blocks of 256:
    4.127 bits an element instead of 4.5.

    Raises TypeError unless x is of a float dtype; ValueError for NaN and infinity (naming the first), an unknown
    blocksize or quant_type.

    >>> q = quantize_4bit(np.array([[0.5, -2.0, 1.0]]))
    >>> q.packed.tolist(), q.absmax.tolist(), q.shape
    ([160, 199], [2.0], (1, 3))
    >>> dequantize_4bit(q).round(3).tolist()
    [[0.492000013589859, -2.0, 0.8809999823570251]]
    """
    check_format("quantize_4bit", blocksize, quant_type)
    scaled, absmax = scaled_blocks(check_values("quantize_4bit", x, blocksize), blocksize)
    # BEGIN SOLUTION(task="4.2b")
    codes = np.full(scaled.size + scaled.size % 2, ZERO_CODE[quant_type], np.uint8)
    codes[: scaled.size] = order(quant_type)[np.searchsorted(boundaries(quant_type), scaled)]
    q = Quantized(codes[::2] << 4 | codes[1::2], absmax, x.shape, blocksize, quant_type, None)
    # END SOLUTION
    return compressed(q) if compress_statistics else q


def dequantize_4bit(q: Quantized, dtype: str = "float32", out: np.ndarray | None = None) -> np.ndarray:
    """code_table[codes] times the block's absmax, in float32, then rounded to ``dtype``: an array of q.shape.

    ``dtype`` is "float32", "float16" or "bfloat16" (its bits, as uint16; round to nearest, ties to even).
    ``out`` takes the result where given: of that dtype, q.shape, C-contiguous and writable.

    Raises TypeError and ValueError where the parts of q, or ``out``, do not fit.

    >>> q = Quantized(np.array([0x0F], np.uint8), np.array([3], np.float32), (2,), 64, "nf4", None)
    >>> dequantize_4bit(q).tolist(), [hex(bits) for bits in dequantize_4bit(q, "bfloat16")]
    ([-3.0, 3.0], ['0xc040', '0x4040'])
    """
    check_quantized("dequantize_4bit", q)
    out = output("dequantize_4bit", q.shape, dtype, out)
    # BEGIN SOLUTION(task="4.3")
    codes = np.stack([q.packed >> 4, q.packed & 15], axis=1).reshape(-1)[: out.size]
    values = code_table(q.quant_type)[codes] * np.repeat(dequantized_absmax(q), q.blocksize)[: out.size]
    # END SOLUTION
    round_into(out, values.reshape(q.shape), dtype)
    return out


def compressed(q: Quantized, quantize: Callable = quantize_blockwise) -> Quantized:
    """q with its float32 absmax quantized in turn (QLoRA eq. 6): double quantization."""
    # BEGIN SOLUTION(task="4.4c")
    offset = np.float32(q.absmax.mean(dtype=np.float64)) if q.absmax.size else np.float32(0)
    code = create_dynamic_map()
    codes, absmax = quantize(q.absmax - offset, code, NESTED_BLOCKSIZE)
    return q._replace(absmax=codes, nested=Nested(code, absmax, float(offset), NESTED_BLOCKSIZE))
    # END SOLUTION


def dequantized_absmax(q: Quantized, dequantize: Callable = dequantize_blockwise) -> np.ndarray:
    """The float32 absmax of every block: (blocks,).

    >>> q = quantize_4bit(np.ones(100), blocksize=32, compress_statistics=True)
    >>> q.absmax.tolist(), dequantized_absmax(q).tolist()
    ([127, 127, 127, 127], [1.0, 1.0, 1.0, 1.0])
    """
    if q.nested is None:
        return q.absmax
    # BEGIN SOLUTION(task="4.4d")
    code, absmax, offset, blocksize = q.nested
    return dequantize(q.absmax, absmax, code, q.absmax.shape, blocksize) + np.float32(offset)
    # END SOLUTION


def round_into(out: np.ndarray, values: np.ndarray, dtype: str) -> None:
    """out = float32 values, rounded to the dtype of this name."""
    with np.errstate(over="ignore"):  # float16 ends at 65504
        out[...] = bfloat16_bits(values) if dtype == "bfloat16" else values


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """The upper half of finite float32, rounded to nearest, ties to even: uint16 of x's shape.

    >>> hex(bfloat16_bits(np.array([1.00390625], np.float32))[0])
    '0x3f80'
    """
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
