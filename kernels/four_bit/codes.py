"""The sixteen values of NF4, FP4 and int4, and the boundaries between them."""

from __future__ import annotations

import functools
from statistics import NormalDist

import numpy as np

from ..eight_bit.codes import float32_linspace, frozen

f32 = np.float32

NF4_OFFSET = 0.9677083
"""The largest quantile that NF4 takes: the mean of 1 - 1/(2·15) and 1 - 1/(2·16), which is 0.967708333...

Sixteen equally likely pieces of a normal distribution would have their middles at the quantiles 1/32, 3/32, ...,
31/32 = 1 - 1/(2·16), fifteen of them at 1/30, ..., 29/30 = 1 - 1/(2·15). NF4 is between the two: 8 values from the
right half (0.5 to the offset in 8 steps) and 8 from the left (7 steps), which meet in a common zero. The QLoRA paper
(Dettmers et al. 2023, arXiv 2305.14314, eq. 4) does not give the number; it is this one, cut after seven digits.
With all digits, or with quantiles spaced in float64, the values differ from everyone's by up to 8 units in the last
place.
"""

_FP4_MAGNITUDES = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
_FP4_BOUNDARIES = frozen([0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333])
"""Where |x| is nearer to the next magnitude, in the digits of bitsandbytes' CUDA kernel (0.583333 lacks one)."""


@functools.cache
def code_table(quant_type: str) -> np.ndarray:
    """The values of the codes 0 to 15: (16,) float32 in [-1, 1], read-only.

    * ``nf4``: sorted quantiles of the normal distribution, divided by the largest (see ``NF4_OFFSET``); code 7 is 0;
    * ``fp4``: sign, two bits of exponent, one of mantissa, divided by the largest magnitude; code 0 is 0;
    * ``int4``: (code - 8) / 7, symmetric: code 8 is 0, and code 0 is never used; for comparison only.

    Raises ValueError for another name.

    >>> [float(f"{value:.3f}") for value in code_table("nf4")[:8]]
    [-1.0, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0.0]
    >>> code_table("int4")[[1, 8, 15]].tolist()
    [-1.0, 0.0, 1.0]
    """
    if quant_type == "nf4":
        # BEGIN SOLUTION(task="4.1a")
        quantile = np.vectorize(NormalDist().inv_cdf)
        right = quantile(float32_linspace(NF4_OFFSET, 0.5, 9)[:-1].astype(float))
        left = -quantile(float32_linspace(NF4_OFFSET, 0.5, 8)[:-1].astype(float))
        values = np.sort(np.concatenate([left, [0], right])).astype(f32)
        return frozen(values / values.max())
        # END SOLUTION
    if quant_type == "fp4":
        return frozen(np.concatenate([_FP4_MAGNITUDES, 0 - _FP4_MAGNITUDES]))
    if quant_type == "int4":
        return frozen(np.arange(-8, 8) / 7)
    raise ValueError(f"unknown quant_type {quant_type!r}; expected one of {', '.join(ZERO_CODE)}")


ZERO_CODE = {"nf4": 7, "fp4": 0, "int4": 8}
"""The code of 0 in each type, with which an odd number of elements is filled up to a whole byte."""


@functools.cache
def boundaries(quant_type: str) -> np.ndarray:
    """Where one interval ends and the next begins: (15,) float32, rising, read-only.

    The interval of x is the number of boundaries below x, and ``order`` names the code of each interval. The
    boundaries are the middles between neighbouring values, so that x in the middle goes to the lower one. FP4's are
    given by magnitude: one in the middle goes to the smaller magnitude, so below zero each boundary is the next
    smaller float32. What is below zero, however little, has the sign bit.
    """
    if quant_type == "fp4":
        below = np.concatenate([-_FP4_BOUNDARIES[::-1], frozen([0])])
        return frozen(np.concatenate([np.nextafter(below, f32(-np.inf)), _FP4_BOUNDARIES]))
    values = code_table(quant_type)
    return frozen((values[:-1] + values[1:]) * f32(0.5))


@functools.cache
def order(quant_type: str) -> np.ndarray:
    """The codes from the most negative value to the largest: (16,) uint8.

    >>> order("fp4").tolist()
    [11, 10, 13, 12, 15, 14, 9, 8, 0, 1, 6, 7, 4, 5, 2, 3]
    """
    if quant_type == "fp4":
        rising = np.argsort(_FP4_MAGNITUDES).astype(np.uint8)
        return np.concatenate([rising[::-1] + np.uint8(8), rising])
    return np.arange(16, dtype=np.uint8)
