"""Example arguments for every kernel: small ones to be right on, and those of a model to be fast on.

Each family's ``examples.py`` holds ``EXAMPLES: dict[str, Example]``, kernel name -> how its arguments are made. Tests
draw the small ones with Hypothesis; the command ``python -m minitorch_peft.kernels`` takes both, benchmarks the others.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .dispatch import FAMILIES, TABLE, get


class Shape(NamedTuple):
    """What the sizes of a model's arrays follow from."""

    batch: int
    tokens: int
    width: int
    heads: int
    vocabulary: int
    rank: int


SIZES = {
    "tiny": Shape(3, 11, 36, 3, 61, 2),
    "small": Shape(16, 128, 128, 4, 1024, 8),
    "large": Shape(8, 256, 384, 6, 1024, 8),
    "wide": Shape(1, 512, 2048, 32, 32000, 16),
    "decode": Shape(4, 1, 2048, 32, 32000, 16),
}
"""``small`` and ``large`` are the models of ``benchmarks.train_step``; ``wide`` has the matrices of a 1B model, and
``decode`` gives them the next token of four texts."""


class Draw:
    """Sizes, choices and arrays for one example, from a seed."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def size(self, most: int = 9, least: int = 0) -> int:
        return int(self.rng.integers(least, most + 1))

    def shape(self, most_axes: int = 3) -> tuple[int, ...]:
        return tuple(self.size(7) for _ in range(self.size(most_axes)))

    def pick(self, *options: Any) -> Any:
        return options[self.size(len(options) - 1)]

    def flags(self, count: int) -> tuple[bool, ...]:
        return tuple(self.pick(True, False) for _ in range(count))

    def array(self, *shape: int, spread: float = 1.0) -> np.ndarray:
        """Normal float32 values of this shape."""
        x = np.asarray(self.rng.standard_normal(shape, np.float32))
        x *= spread
        return self.laid_out(x)

    def ids(self, below: int, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.integers(0, below, shape)

    def laid_out(self, x: np.ndarray) -> np.ndarray:
        """The same values, perhaps in another memory layout: tests draw one."""
        return x


class Example(NamedTuple):
    """How to make the arguments of one kernel, and how to judge and count it."""

    drawn: Callable[[Draw], tuple]
    """Small and ragged: empty axes, one element, sizes that no block divides."""
    typical: Callable[[Draw, Shape], tuple]
    """Those that it meets in a model of this shape."""
    flops: Callable[..., int] | None = None
    """Floating-point operations, from the arguments; only where arithmetic, not memory, is to be the bound."""
    size: str = "large"
    """The entry of SIZES at which it is timed unless another is asked for."""
    exact: bool = False
    """It must give the bits of the reference on the same arguments; else, up to rounding, those of the float64 one."""
    in_place: bool = False
    """It returns nothing and writes into its arguments."""


def examples() -> dict[str, Example]:
    """Every kernel's example, in the order of the dispatch table (tests see to it that none is missing).

    >>> x, weight, bias = examples()["linear_forward"].typical(Draw(0), SIZES["small"])
    >>> x.shape, weight.shape, bias.shape
    ((16, 128, 128), (512, 128), (512,))
    """
    found: dict[str, Example] = {}
    for family in FAMILIES:
        if importlib.util.find_spec(f".{family}.examples", __package__):
            found |= importlib.import_module(f".{family}.examples", __package__).EXAMPLES
    return {name: found[name] for name in TABLE if name in found}


def double(x: Any) -> Any:
    """float64 in place of float32, in tuples too; anything else as it is."""
    if type(x) is tuple:
        return tuple(map(double, x))
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x


def reference(name: str, *args: Any) -> Any:
    """The float64 reference's result, rounded to float32: what a forward kernel would hand to its backward."""
    result = get(name, np.dtype(np.float64))(*map(double, args))
    if isinstance(result, tuple):
        return tuple(r.astype(np.float32) for r in result)
    return result.astype(np.float32)
