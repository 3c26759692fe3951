"""Block-wise 8-bit quantization (Dettmers et al. 2022, arXiv 2110.02861, sec. 2.1), by exact nearest value."""

from __future__ import annotations

import numpy as np

from .checks import check_codes, check_values
from .codes import boundaries


def quantize_blockwise(x: np.ndarray, code: np.ndarray, blocksize: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """x, n elements of any shape, as 8-bit codes (n,) and the largest magnitude of each block (ceil(n / blocksize),).

    Blocks are ``blocksize`` consecutive elements of x in row-major order. An element becomes the number of the value
    in ``code`` (256,), float32 and sorted, that is nearest to x / absmax (computed in float32, as x times the
    reciprocal); one in the middle goes to the even number, as in bitsandbytes' CUDA kernel. Its CPU path looks a
    rounded x up in a table instead, and misses the nearest value for some 2% of the elements.

    Raises TypeError unless x is of a float dtype, ValueError for NaN or infinity, a code of another shape, a blocksize
    below 1.

    >>> from .codes import create_dynamic_map
    >>> codes, absmax = quantize_blockwise(np.array([0.0, 4.0, -2.0]), create_dynamic_map())
    >>> codes.tolist(), absmax.tolist()
    ([127, 255, 35], [4.0])
    """
    x = check_values("quantize_blockwise", x, blocksize)
    check_codes("quantize_blockwise", code)
    scaled, absmax = scaled_blocks(x, blocksize)
    # BEGIN SOLUTION(task="4.4a")
    return np.searchsorted(boundaries(code), scaled).astype(np.uint8), absmax
    # END SOLUTION


def dequantize_blockwise(
    codes: np.ndarray, absmax: np.ndarray, code: np.ndarray, shape: tuple[int, ...], blocksize: int = 256
) -> np.ndarray:
    """code[codes] times its block's absmax: float32 of ``shape``.

    Raises TypeError for codes that are not uint8, ValueError where the sizes do not fit ``shape``.

    >>> code = np.linspace(-1, 1, 256, dtype=np.float32)
    >>> dequantize_blockwise(np.array([0, 255], np.uint8), np.array([3], np.float32), code, (2,)).tolist()
    [-3.0, 3.0]
    """
    check_codes("dequantize_blockwise", code, codes, absmax, shape, blocksize)
    # BEGIN SOLUTION(task="4.4b")
    return (code[codes] * np.repeat(absmax, blocksize)[: codes.size]).reshape(shape)
    # END SOLUTION


def scaled_blocks(x: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    """x (n,) float32 times 1 / absmax of its block, in [-1, 1], and absmax (ceil(n / blocksize),).

    A block of zeros stays zero. Where absmax is so small (at most 2**-128) that its reciprocal is infinite, x is
    divided instead.

    >>> scaled_blocks(np.array([1, -4, 0, 0, 3], np.float32), 2)[0].tolist()
    [0.25, -1.0, 0.0, 0.0, 1.0]
    """
    # BEGIN SOLUTION(task="4.2a")
    rows = np.zeros((-(-x.size // blocksize), blocksize), np.float32)
    rows.reshape(-1)[: x.size] = x
    absmax = np.abs(rows).max(axis=1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        reciprocal = (1 / absmax)[:, None]
        scaled = np.where(np.isfinite(reciprocal), rows * reciprocal, rows / np.where(absmax > 0, absmax, 1)[:, None])
    return scaled.reshape(-1)[: x.size], absmax
    # END SOLUTION
