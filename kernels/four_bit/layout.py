"""What a 4-bit tensor consists of, and what its kernels accept."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .codes import ZERO_CODE

NESTED_BLOCKSIZE = 256
BLOCKSIZES = tuple(2**i for i in range(5, 13))
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(np.uint16)}
"""What can be asked for, and the NumPy dtype that holds it: bfloat16, which NumPy lacks, as its bits."""


class Nested(NamedTuple):
    """Double quantization: how the 8-bit ``absmax`` of a tensor is turned back (QLoRA eq. 6)."""

    code: np.ndarray
    """(256,) float32, the dynamic map"""
    absmax: np.ndarray
    """(ceil(blocks / blocksize),) float32"""
    offset: float
    """the mean of the absmax, a float32 value"""
    blocksize: int
    """256"""


class Quantized(NamedTuple):
    """A 4-bit tensor, in the layout of bitsandbytes."""

    packed: np.ndarray
    """(ceil(n / 2),) uint8: the even element in the high four bits, the odd one in the low"""
    absmax: np.ndarray
    """(ceil(n / blocksize),) float32; uint8 where ``nested``"""
    shape: tuple[int, ...]
    """of the tensor: n elements"""
    blocksize: int
    """consecutive elements, in row-major order, that share an absmax"""
    quant_type: str
    """``nf4``, ``fp4`` or ``int4``"""
    nested: Nested | None
    """None where absmax is float32"""


def check_format(kernel: str, blocksize: int, quant_type: str) -> None:
    """Raise ValueError for a blocksize or a type that does not exist, TypeError for a blocksize that is no integer."""
    if isinstance(blocksize, bool) or not isinstance(blocksize, int | np.integer):
        raise TypeError(f"{kernel}: blocksize must be a whole number, got {blocksize!r}")
    if blocksize not in BLOCKSIZES:
        raise ValueError(f"{kernel}: blocksize must be one of {', '.join(map(str, BLOCKSIZES))}; got {blocksize}")
    if quant_type not in ZERO_CODE:
        raise ValueError(f"{kernel}: quant_type must be one of {', '.join(ZERO_CODE)}; got {quant_type!r}")


def check_quantized(kernel: str, q: Quantized) -> None:
    """Raise unless the parts of q fit each other: TypeError for a dtype, ValueError for a size.

    >>> check_quantized("f", Quantized(np.zeros(1, np.uint8), np.zeros(1, np.float32), (3,), 64, "nf4", None))
    Traceback (most recent call last):
    ValueError: f: a tensor of shape (3,) calls for packed (2,), got (1,)
    """
    check_format(kernel, q.blocksize, q.quant_type)
    size = math.prod(q.shape)  # in Python's integers: it cannot wrap around
    blocks = -(-size // q.blocksize)
    _check(kernel, "packed", q.packed, np.uint8, (size + 1) // 2, q.shape)
    _check(kernel, "absmax", q.absmax, np.float32 if q.nested is None else np.uint8, blocks, q.shape)
    if q.nested is not None:
        if q.nested.blocksize != NESTED_BLOCKSIZE:
            raise ValueError(f"{kernel}: nested.blocksize must be {NESTED_BLOCKSIZE}, got {q.nested.blocksize!r}")
        _check(kernel, "nested.code", q.nested.code, np.float32, 256, q.shape)
        _check(kernel, "nested.absmax", q.nested.absmax, np.float32, -(-blocks // q.nested.blocksize), q.shape)


def _check(kernel: str, name: str, array: np.ndarray, dtype: type, size: int, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype:
        raise TypeError(f"{kernel}: {name} must be {np.dtype(dtype)}, got {array.dtype}")
    if array.shape != (size,):
        raise ValueError(f"{kernel}: a tensor of shape {shape} calls for {name} ({size},), got {array.shape}")


def output(kernel: str, shape: tuple[int, ...], dtype: str, out: np.ndarray | None) -> np.ndarray:
    """A new array for the result, or ``out`` if it can take it: its shape and dtype, C-contiguous, writable."""
    if dtype not in DTYPES:
        raise ValueError(f"{kernel}: dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    if out is None:
        return np.empty(shape, DTYPES[dtype])
    if out.dtype != DTYPES[dtype]:
        raise TypeError(f"{kernel}: out must be {DTYPES[dtype]} for a result in {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{kernel}: out must have the tensor's shape {shape}, got {out.shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"{kernel}: out must be C-contiguous and writable")
    return out
