"""How much memory a training step needs at its worst moment."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable


def peak_memory(prepare: Callable[[], Callable[[], object]]) -> int:
    """Bytes alive at the worst moment of a training step: weights, optimizer state, gradients, activations.

    ``prepare()`` loads the model and returns the step. It is called once before the one that is measured: the
    optimizer makes its state at the first. Counted is what Python and NumPy allocate from the loading on, so
    neither the interpreter, nor compiled kernels, nor what existed before. Kernels must be warm: compiling one
    allocates too. Counting slows the step down, so it is not one whose time is taken.

    >>> import numpy as np
    >>> def prepare():
    ...     weight = np.ones(1_000_000, np.uint8)
    ...     return lambda: weight + weight
    >>> 2_000_000 <= peak_memory(prepare) < 2_100_000
    True
    """
    gc.collect()
    tracemalloc.start()
    try:
        step = prepare()
        step()
        gc.collect()
        tracemalloc.reset_peak()
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
