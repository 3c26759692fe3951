"""How the float32 kernels are compiled: one signature each, at first use, kept on disk.

Three choices make loops over floats fast and keep them honest:

* ``error_model="numpy"``: Python's check for a division by zero would stop the vectoriser;
* ``FAST`` lets the compiler reorder sums and fuse multiply-adds, but not assume that NaN and infinity never happen:
  a NaN in the input comes out as a NaN, so a diverging run is seen;
* loops stand in small functions without ``prange`` (``inner``); the parallel function only hands a part to each thread.
  A loop with computed bounds directly inside ``prange`` is not vectorised.

The signature of a kernel is fixed: C-contiguous, and read-only for inputs (which accepts writable arrays as well), so
nothing is ever compiled twice because an array had another layout. Changing a function that kernels of *other* files
call (here, in ``gemm.py`` or ``math32.py``) does not outdate their cached machine code: delete ``__pycache__`` then.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable

import numba
import numpy as np
from numba import types

from . import runtime

FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}


def _array(dtype: types.Type, ndim: int, layout: str = "C", readonly: bool = False) -> types.Array:
    return types.Array(dtype, ndim, layout, readonly=readonly)


IN1, IN2, IN3 = (_array(types.float32, n, readonly=True) for n in (1, 2, 3))
OUT1, OUT2, OUT3, OUT4 = (_array(types.float32, n) for n in (1, 2, 3, 4))
VIEW3, VIEW4 = (_array(types.float32, n, "A", readonly=True) for n in (3, 4))
IDS = _array(types.int64, 1, readonly=True)
OUT1_F64 = _array(types.float64, 1)
INT, REAL, FLAG = types.int64, types.float64, types.boolean

_HELPER = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # called by kernels only

inner = numba.njit(fastmath=FAST, **_HELPER)
"""Compile a helper that kernels call: a loop over one row, or the part of the work that one thread does."""

exact = numba.njit(fastmath={"contract"}, forceinline=True, **_HELPER)
"""A formula of one element whose order of operations keeps it accurate; always inlined, so that loops vectorise."""

NO_VECTOR = np.zeros(0, np.float32)
"""Stands for an absent bias."""


def kernel(*arguments: types.Type) -> Callable[[Callable], Callable]:
    """Compile the decorated function for ``parts`` and these argument types when it is first called.

    Its first argument says into how many parts it cuts its work; a call with one part does not touch other threads.
    """

    def decorate(function: Callable) -> Callable:
        compiled = None

        @functools.wraps(function)
        def call(parts: int, *args: object) -> None:
            nonlocal compiled
            if compiled is None:
                compiled = _compile(function, (INT, *arguments))
            if parts > 1:
                return compiled(parts, *args)
            threads = numba.get_num_threads()
            numba.set_num_threads(1)
            try:
                return compiled(1, *args)
            finally:
                numba.set_num_threads(threads)

        return call

    return decorate


def _compile(function: Callable, arguments: tuple[types.Type, ...]) -> Callable:
    options = {"parallel": True, "cache": True, "fastmath": FAST, "error_model": "numpy"}
    with _announcement():
        return numba.njit(types.void(*arguments), **options)(function)


GRAIN = 1 << 15
"""Elements (or multiply-adds) below which waking the other threads costs more than it saves."""


def parts(work: int) -> int:
    """Into how many parts to cut a problem of this many elements: a function of its size and the thread count only."""
    return 1 if work < GRAIN else numba.get_num_threads()


PATIENCE = 1.0
"""Seconds of compiling after which a user is told what is going on."""


@inner
def span(t, parts, size):
    """Where part ``t`` of ``size`` elements begins and ends."""
    return t * size // parts, (t + 1) * size // parts


class _announcement:  # noqa: N801 (used as a with-statement, reads as one)
    """Say once that kernels are being compiled, if that takes longer than a second."""

    _said = False

    def __enter__(self) -> None:
        runtime.start()
        self._timer = threading.Timer(PATIENCE, self._say)
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, *exc_info: object) -> None:
        self._timer.cancel()

    @classmethod
    def _say(cls) -> None:
        if not cls._said:
            cls._said = True
            message = "minitorch-peft: compiling kernels for this machine (first run only) ..."
            print(message, file=sys.stderr, flush=True)
