"""What block-wise quantization accepts: compiled code trusts its arguments."""

from __future__ import annotations

import math

import numpy as np


def check_values(kernel: str, x: np.ndarray, blocksize: int) -> np.ndarray:
    """x in row-major order as finite float32 (n,); a copy only where it has to be.

    >>> check_values("quantize_4bit", np.array([1.0, np.nan]), 64)
    Traceback (most recent call last):
    ValueError: quantize_4bit: x holds nan at position 1 of 2 (block 0): only finite numbers can be scaled
    """
    flat = flat_float32(kernel, x, blocksize)
    finite = np.isfinite(flat)
    if not finite.all():
        refuse(kernel, flat, int(finite.argmin()), blocksize)
    return flat


def flat_float32(kernel: str, x: np.ndarray, blocksize: int) -> np.ndarray:
    """x in row-major order as float32 (n,), not yet checked for NaN; TypeError unless it holds floats."""
    if x.dtype.kind != "f" or x.dtype.itemsize > 8:
        raise TypeError(f"{kernel}: x must be float16, float32 or float64, got {x.dtype}")
    check_blocksize(kernel, blocksize)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused by name
        return np.ascontiguousarray(x, np.float32).reshape(-1)


def check_blocksize(kernel: str, blocksize: int) -> None:
    """Raise ValueError unless the blocksize is at least 1, TypeError unless it is a whole number."""
    if isinstance(blocksize, bool) or not isinstance(blocksize, int | np.integer):
        raise TypeError(f"{kernel}: blocksize must be a whole number, got {blocksize!r}")
    if blocksize < 1:
        raise ValueError(f"{kernel}: blocksize must be at least 1, got {blocksize}")


def refuse(kernel: str, flat: np.ndarray, index: int, blocksize: int) -> None:
    """Raise ValueError for the value at ``index`` that is not finite in float32."""
    raise ValueError(
        f"{kernel}: x holds {flat[index]} at position {index} of {flat.size} (block {index // blocksize}): "
        "only finite numbers can be scaled"
    )


def check_codes(
    kernel: str,
    code: np.ndarray,
    codes: np.ndarray | None = None,
    absmax: np.ndarray | None = None,
    shape: tuple[int, ...] = (),
    blocksize: int = 256,
) -> None:
    """Raise unless ``code`` is a sorted table of 256 float32 and, where given, the codes and absmax fit ``shape``."""
    check_blocksize(kernel, blocksize)
    if code.shape != (256,) or code.dtype != np.float32 or not (code[:-1] < code[1:]).all():
        raise ValueError(f"{kernel}: code must be 256 float32 in rising order, got {code.dtype} {code.shape}")
    if codes is None or absmax is None:
        return
    if codes.dtype != np.uint8 or absmax.dtype != np.float32:
        raise TypeError(f"{kernel}: codes must be uint8 and absmax float32, got {codes.dtype} and {absmax.dtype}")
    size = math.prod(shape)  # in Python's integers: it cannot wrap around
    blocks = -(-size // blocksize)
    if codes.shape != (size,) or absmax.shape != (blocks,):
        raise ValueError(
            f"{kernel}: shape {shape} in blocks of {blocksize} calls for codes ({size},) and absmax ({blocks},); "
            f"got {codes.shape} and {absmax.shape}"
        )
