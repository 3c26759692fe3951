"""Time on the device: CUDA events, and the benchmark that autotuning and tables use, without torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_float, c_void_p

import numpy as np

from . import cuda
from .driver import call


class Event:
    """A moment on the device's default stream."""

    def __init__(self) -> None:
        self._handle = c_void_p()
        call("cuEventCreate", ctypes.byref(self._handle), 0)

    def record(self) -> None:
        call("cuEventRecord", self._handle, None)

    def milliseconds_since(self, earlier: Event) -> float:
        """Wait for this event, then the time between the two."""
        call("cuEventSynchronize", self._handle)
        elapsed = c_float()
        call("cuEventElapsedTime", ctypes.byref(elapsed), earlier._handle, self._handle)
        return elapsed.value

    def __del__(self) -> None:
        if self._handle:
            call("cuEventDestroy_v2", self._handle)


def do_bench(function: Callable[[], object], quantiles: Sequence[float] = (0.5,), budget: float = 100.0) -> list[float]:
    """Milliseconds that ``function`` takes on the device, at the given ``quantiles`` of its runs.

    It runs as often as fits into ``budget`` milliseconds (five times at least) after a first run that compiles and one
    that is measured to know how often; before each, the second-level cache is overwritten, so that a kernel finds its
    arguments in memory as it would in a model. To be passed on: ``triton.autotune(..., do_bench=do_bench)``.
    """
    function()
    cache = max(2 * cuda.device().cache, 1)
    scratch = cuda.allocate(cache)
    try:
        first = _milliseconds(function, scratch, cache)
        runs = min(max(int(budget / max(first, 1e-3)), 5), 1000)
        times = [_milliseconds(function, scratch, cache) for _ in range(runs)]
    finally:
        cuda.free(scratch)
    return [float(q) for q in np.quantile(times, quantiles)]


def _milliseconds(function: Callable[[], object], scratch: int, nbytes: int) -> float:
    start, end = Event(), Event()
    cuda.fill_zero(scratch, nbytes)
    start.record()
    function()
    end.record()
    return end.milliseconds_since(start)
