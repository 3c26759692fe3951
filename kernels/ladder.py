"""A kernel's versions, from the definition to the fastest: what is learnt from, verified and timed.

A family's ``ladder.py`` holds ``LADDER: dict[str, tuple[Rung, ...]]``, kernel name -> steps from naive to fast; the
last step is the function of its ``numba.py``. Every step has the kernel's signature, and a paragraph on why it is
faster than the one before it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .dispatch import FAMILIES, TABLE, NotInstalledError, get, has_numba, require_numba


class Rung(NamedTuple):
    """One version of a kernel."""

    name: str
    function: Callable
    why: str
    """Why it is faster than the version before it: counted bytes and operations, and what was measured."""


REFERENCE = "The definition in NumPy: one pass over memory for every operator, each with a new array for its result."
NUMBA = "The version that runs: compiled, vectorised, its work cut into a part for each thread."
TRITON = "The GPU's version: the same sums over tiles; Triton compiles it for the device, or interprets it on the CPU."


def versions(kernel: str) -> tuple[Rung, ...]:
    """Reference, the ladder's steps (where the family has no ladder: its Numba function), and Triton where it imports.

    Without Numba, which ladders are written in, a version called "numba" that raises NotInstalledError stands for them.
    Raises KeyError for an unknown kernel.

    >>> [rung.name for rung in versions("square_norm")]
    ['reference', 'numba']
    """
    reference = Rung("reference", get(kernel, np.dtype(np.float64)), REFERENCE)
    family = TABLE[kernel]
    steps = _ladder(family).get(kernel) if has_numba() else None
    if steps is None and "numba" in FAMILIES[family][1]:
        function = _function(family, "numba", kernel) if has_numba() else _without_numba
        steps = (Rung("numba", function, NUMBA),)
    gpu = (Rung("triton", _function(family, "triton", kernel), TRITON),) if _has_triton(kernel) else ()
    return (reference, *(steps or ()), *gpu)


def _without_numba(*args: Any) -> None:
    require_numba()


def _ladder(family: str) -> dict[str, tuple[Rung, ...]]:
    if importlib.util.find_spec(f".{family}.ladder", __package__) is None:
        return {}
    return importlib.import_module(f".{family}.ladder", __package__).LADDER


def _function(family: str, backend: str, kernel: str) -> Callable:
    return getattr(importlib.import_module(f".{family}.{backend}", __package__), kernel)


def _has_triton(kernel: str) -> bool:
    family = TABLE[kernel]
    if "triton" not in FAMILIES[family][1] or importlib.util.find_spec("triton") is None:
        return False
    try:
        return hasattr(importlib.import_module(f".{family}.triton", __package__), kernel)
    except NotInstalledError:  # it is there, and too old
        return False
