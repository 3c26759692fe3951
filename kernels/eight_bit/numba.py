"""Block-wise 8-bit quantization on the CPU: blocks over the threads, the nearest value by a table."""

from __future__ import annotations

import functools

import numpy as np
from numba import types

from ..blocks import dequantize_row, quantize_row, scale_block
from ..gemm import at
from ..jit import IN1, INT, OUT1, OUT2, inner, kernel, parts, span
from ..pointers import bytes_at, row_at
from ..threads import each_part
from .checks import check_codes, flat_float32, refuse
from .codes import boundaries

IN_BYTES, OUT_BYTES = types.Array(types.uint8, 1, "C", readonly=True), types.Array(types.uint8, 1, "C")


@inner
def _quantize_part(t, parts, x, edges, start, rounds, blocksize, scratch, codes, absmax):
    first, last = span(t, parts, absmax.size)
    for block in range(first, last):
        at_, size = block * blocksize, min(blocksize, x.size - block * blocksize)
        scaled = row_at(at(scratch, t * scratch.shape[1]), size)
        absmax[block] = scale_block(row_at(at(x, at_), size), scaled)
        quantize_row(scaled, edges, start, rounds, bytes_at(codes.ctypes.data + at_, size))


@kernel(IN1, IN1, IN_BYTES, INT, INT, OUT2, OUT_BYTES, OUT1)
def _quantize(parts, x, edges, start, rounds, blocksize, scratch, codes, absmax):
    each_part(parts, _quantize_part, (x, edges, start, rounds, blocksize, scratch, codes, absmax))


@inner
def _dequantize_part(t, parts, codes, absmax, code, blocksize, out):
    first, last = span(t, parts, absmax.size)
    for block in range(first, last):
        start, size = block * blocksize, min(blocksize, codes.size - block * blocksize)
        row = bytes_at(codes.ctypes.data + start, size)
        dequantize_row(row, code, absmax[block], row_at(at(out, start), size))


@kernel(IN_BYTES, IN1, IN1, INT, OUT1)
def _dequantize(parts, codes, absmax, code, blocksize, out):
    each_part(parts, _dequantize_part, (codes, absmax, code, blocksize, out))


def quantize_blockwise(x: np.ndarray, code: np.ndarray, blocksize: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """See the reference."""
    x = flat_float32("quantize_blockwise", x, blocksize)
    check_codes("quantize_blockwise", code)
    codes, absmax = np.empty(x.size, np.uint8), np.empty(-(-x.size // blocksize), np.float32)
    pieces = parts(x.size)
    scratch = np.empty((pieces, min(blocksize, x.size)), np.float32)
    _quantize(pieces, x, *search(code.tobytes()), blocksize, scratch, codes, absmax)
    refuse_nonfinite("quantize_blockwise", x, absmax, blocksize)
    return codes, absmax


def dequantize_blockwise(
    codes: np.ndarray, absmax: np.ndarray, code: np.ndarray, shape: tuple[int, ...], blocksize: int = 256
) -> np.ndarray:
    """See the reference."""
    check_codes("dequantize_blockwise", code, codes, absmax, shape, blocksize)
    out = np.empty(codes.size, np.float32)
    _dequantize(parts(out.size), np.ascontiguousarray(codes), np.ascontiguousarray(absmax), code, blocksize, out)
    return out.reshape(shape)


@functools.lru_cache(maxsize=8)
def search(code: bytes) -> tuple[np.ndarray, np.ndarray, int]:
    """Boundaries, where to start counting for each upper half of a float32, and how far at most to count.

    The two dynamic codes have no two boundaries with the same upper half: one comparison is left of a search's eight.

    >>> from .codes import create_dynamic_map
    >>> edges, start, rounds = search(create_dynamic_map().tobytes())
    >>> edges.shape, start.shape, rounds
    ((256,), (65536,), 1)
    """
    edges = np.append(boundaries(np.frombuffer(code, np.float32)), np.float32(np.inf))
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    ends = np.stack([upper, upper | 0xFFFF]).view(np.float32)
    first, last = np.searchsorted(edges[:-1], np.sort(ends, axis=0))
    finite = np.isfinite(ends).all(axis=0)
    return edges, first.astype(np.uint8), int((last - first)[finite].max())


def refuse_nonfinite(kernel: str, x: np.ndarray, absmax: np.ndarray, blocksize: int) -> None:
    """Raise ValueError if a block's largest magnitude is NaN or infinite: x holds such a value; name the first."""
    finite = np.isfinite(absmax)
    if not finite.all():
        start = int(finite.argmin()) * blocksize
        refuse(kernel, x, start + int(np.isfinite(x[start : start + blocksize]).argmin()), blocksize)
