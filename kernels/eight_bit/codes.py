"""The dynamic 8-bit code (Dettmers 2016, arXiv 1511.04561), and where one value of a code ends and the next begins."""

from __future__ import annotations

import functools

import numpy as np

f32 = np.float32


@functools.cache
def create_dynamic_map(signed: bool = True) -> np.ndarray:
    """The 256 values of the dynamic 8-bit type, sorted: (256,) float32, read-only.

    The type spends its bits where it needs them: a value in [0.1, 1) has 6 bits of fraction (7 without a sign), one
    that is ten times smaller a bit less, and so on for seven decades. In decade 10**-k the fraction cuts [0.1, 1]
    into equal intervals, whose middles are the values; 0 and 1 are added. Bit for bit the map of bitsandbytes, which
    makes it with ``torch.linspace``.

    >>> code = create_dynamic_map()
    >>> code[[0, 127, 255]].tolist(), create_dynamic_map(signed=False)[[0, 255]].tolist()
    ([-0.992968738079071, 0.0, 1.0], [0.0, 1.0])
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = float32_linspace(0.1, 1.0, 2**decade + 1 if signed else 2 ** (decade + 1) + 1)
        middles = (edges[:-1] + edges[1:]) / f32(2) * f32(10.0 ** (decade - 6))
        values += middles.tolist() + ((-middles).tolist() if signed else [])
    return frozen(np.sort(values))


def float32_linspace(start: float, stop: float, count: int) -> np.ndarray:
    """``count`` evenly spaced float32, from both ends towards the middle, each a fused multiply-add: as torch has it.

    The codes of bitsandbytes inherit these roundings; ``numpy.linspace``, rounded once from float64, differs in the
    last bit of some. A float64 holds the product of two float32 exactly, so one rounding at the end is the fusion.

    >>> float32_linspace(0.0, 1.0, 5).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    step = float((f32(stop) - f32(start)) / f32(count - 1))
    i = np.arange(count)
    upwards, downwards = float(f32(start)) + step * i, float(f32(stop)) - step * (count - 1 - i)
    return np.where(i < count // 2, upwards, downwards).astype(f32)


def boundaries(code: np.ndarray) -> np.ndarray:
    """The 255 values above which the next of the 256 sorted values is nearer: the code of x is their number below x.

    A value in the middle of two goes to the one with the even number: the search tree of bitsandbytes' CUDA kernel
    ends on an even one and leaves it only for a smaller distance. So above an odd number the boundary is the
    next smaller float32.

    >>> boundaries(np.arange(256, dtype=np.float32))[:2].tolist()
    [0.5, 1.4999998807907104]
    """
    middle = (code[:-1] + code[1:]) * f32(0.5)
    odd = np.arange(middle.size) % 2 == 1
    return np.where(odd, np.nextafter(middle, f32(-np.inf)), middle)


def frozen(values: np.ndarray) -> np.ndarray:
    """As float32 that nobody changes by mistake: tables are made once and shared."""
    table = np.asarray(values, f32)
    table.flags.writeable = False
    return table
