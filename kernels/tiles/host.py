"""How a kernel multiplies, which tiles it tries, into how many parts its work is cut.

float32 products run on the tensor cores as three TF32 products (``tf32x3``: float32's accuracy at a third of TF32's
rate); ``use_precision`` switches to one TF32 product (10 bits of fraction) or to the ordinary units (``ieee``).
float16 and bfloat16 operands are multiplied as they are. Sums are float32 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..device.timing import do_bench
from ..device.triton import tl, triton
from .arrays import INTERPRETED, dtype_name

PRECISIONS = ("ieee", "tf32x3", "tf32")
COMPUTE = {"float32": tl.float32, "float16": tl.float16, "bfloat16": tl.bfloat16}
ENOUGH_PROGRAMS = 6 if INTERPRETED else 264  # two for each of an H100's 132 multiprocessors, whatever the device
_precision = "tf32x3"


@contextmanager
def use_precision(precision: str) -> Iterator[None]:
    """Multiply float32 as "ieee", "tf32x3" (the default) or "tf32" inside a ``with`` block (not thread-safe)."""
    global _precision
    if precision not in PRECISIONS:
        raise ValueError(f"use_precision: unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    before, _precision = _precision, precision
    try:
        yield
    finally:
        _precision = before


def arithmetic(x: Any) -> dict[str, Any]:
    """The constants that say how a kernel multiplies operands of x's dtype.

    Raises TypeError for another dtype than float32, float16 and bfloat16, and for bfloat16 in the interpreter, which
    would give wrong numbers and say nothing.
    """
    name = dtype_name(x)
    if name not in COMPUTE:
        raise TypeError(f"Triton kernels multiply {', '.join(COMPUTE)}; got {name}")
    if name == "bfloat16" and INTERPRETED:
        raise TypeError("Triton's interpreter computes wrong numbers in bfloat16; use float32 or float16 there")
    return {"COMPUTE": COMPUTE[name], "PRECISION": _precision}


def tuned(*configs: triton.Config, key: Sequence[str]) -> Callable:
    """Measure ``configs`` for every new value of the ``key`` arguments, keep the fastest.

    In the interpreter there is one configuration instead, of tiles so small that small arguments have several.
    """
    tiles = configs[0].kwargs
    small = triton.Config({name: min(tile, 64 if name == "BK" else 32) for name, tile in tiles.items()})
    return triton.autotune([small] if INTERPRETED else list(configs), list(key), do_bench=do_bench)


def config(num_warps: int, num_stages: int, **tiles: int) -> triton.Config:
    return triton.Config(tiles, num_warps=num_warps, num_stages=num_stages)


def size(on_gpu: int, interpreted: int) -> int:
    """A tile's size that is not tuned."""
    return interpreted if INTERPRETED else on_gpu


def rank_block(*ranks: int) -> int:
    """How many of the rank's columns a program holds: a power of two, from 16 (what tensor cores take) to 64.

    >>> rank_block(4), rank_block(3, 17), rank_block(200)
    (16, 32, 64)
    """
    return min(max(16, triton.next_power_of_2(max(ranks))), 64)


def parts(programs: int, length: int, least: int) -> int:
    """Into how many parts to cut a sum over ``length``, each of ``least`` terms or more, to have enough programs.

    The same on every device, so that the bits of the sum depend on the kernel's configuration alone.

    >>> parts(64, 4096, 256), parts(1000, 4096, 256), parts(1, 100, 256)
    (5, 1, 1)
    """
    return max(1, min(math.ceil(ENOUGH_PROGRAMS / max(programs, 1)), length // least))
