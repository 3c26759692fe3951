"""How the float32 kernels are compiled: one signature each, at first use, kept on disk.

Three choices make loops over floats fast and keep them honest:

* ``error_model="numpy"``: Python's check for a division by zero would stop the vectoriser;
* ``FAST`` lets the compiler reorder sums and fuse multiply-adds, but not assume that NaN and infinity never happen:
  a NaN in the input comes out as a NaN, so a diverging run is seen;
* loops stand in small functions (``inner``) that do one part of the work; the kernel only has each part done by a
  thread (``threads.each_part``).

The signature of a kernel is fixed: C-contiguous, and read-only for inputs (which accepts writable arrays as well), so
nothing is ever compiled twice because an array had another layout. Numba notices when the file of a kernel changes, but
not when a function that it calls in another file does: so the cache's folder is named after what kernels share (this
file and those beside it that compile something), and a kernel never calls a compiled function of another family.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from . import runtime

runtime.shorten_waiting()
_config: Any = numba.config
FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}


def _array(dtype: types.Type, ndim: int, layout: Literal["C", "A"] = "C", readonly: bool = False) -> types.Array:
    return types.Array(dtype, ndim, layout, readonly=readonly)


IN1, IN2 = (_array(types.float32, n, readonly=True) for n in (1, 2))
OUT1, OUT2, OUT3, OUT4 = (_array(types.float32, n) for n in (1, 2, 3, 4))
VIEW3, VIEW4 = (_array(types.float32, n, "A", readonly=True) for n in (3, 4))
IDS = _array(types.int64, 1, readonly=True)
OUT1_F64 = _array(types.float64, 1)
INT, REAL, FLAG = types.int64, types.float64, types.boolean

_HELPER: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}  # called by kernels only

inner = numba.njit(fastmath=FAST, **_HELPER)
"""Compile a helper that kernels call: a loop over one row, or the part of the work that one thread does."""

row_loop = numba.njit(fastmath=FAST, forceinline=True, **_HELPER)
"""Compile a loop over one row: inlined, as a call with a dozen arguments takes as long as a short row."""

exact = numba.njit(fastmath={"contract"}, forceinline=True, **_HELPER)
"""A formula of one element whose order of operations keeps it accurate; always inlined, so that loops vectorise."""


def emitted(function: Callable) -> Any:
    """``numba.extending.intrinsic``: a function that emits LLVM's instructions for a call of it in compiled code.

    Numba adds its first argument, the typing context; to a type checker it is anything, so that it does not ask for it.
    """
    return intrinsic(function)


NO_VECTOR = np.zeros(0, np.float32)
"""Stands for an absent bias."""


GRAIN = 1 << 15
"""Elements below which waking the other threads costs more than it saves."""

PATIENCE = 1.0
"""Seconds of compiling after which a user is told what is going on."""


def parts(work: int) -> int:
    """Into how many parts to cut so many elements: a function of their number and of the thread count only."""
    return 1 if work < GRAIN else numba.get_num_threads()


@inner
def span(t, parts, size):
    """Where part ``t`` of ``size`` elements begins and ends."""
    return t * size // parts, (t + 1) * size // parts


@inner
def share(t, parts, x):
    """What part ``t`` does of x, along its first axis. (A loop over a range that begins above 0 is not vectorised.)"""
    return x[t * len(x) // parts : (t + 1) * len(x) // parts]


def kernel(*arguments: types.Type) -> Callable[[Callable], Callable]:
    """Compile the decorated function for ``parts`` and these argument types when it is first called.

    Its first argument says into how many parts it cuts its work, which ``threads.each_part`` shares out (or a loop
    over ``prange``, which takes longer to compile); a call with one part does not touch other threads.
    """

    def decorate(function: Callable) -> Callable:
        loops = "prange" in function.__code__.co_names
        compiled = None

        @functools.wraps(function)
        def call(parts: int, *args: object) -> None:
            nonlocal compiled
            if compiled is None:
                compiled = _compile(function, (INT, *arguments), loops)
            if parts > 1 or not loops:
                return compiled(parts, *args)
            threads = numba.get_num_threads()
            numba.set_num_threads(1)
            try:
                return compiled(1, *args)
            finally:
                numba.set_num_threads(threads)

        return call

    return decorate


def _compile(function: Callable, arguments: tuple[types.Type, ...], loops: bool) -> Callable:
    runtime.start()
    with _cached() as cache:
        return numba.njit(types.void(*arguments), parallel=loops, cache=cache, **_OPTIONS)(function)


def compiled_address(signature: Any, function: Callable) -> int:
    """Compile a function that compiled code calls by its address; it stays for as long as the process."""
    with _cached() as cache:
        compiled: Any = numba.cfunc(signature, cache=cache, **_OPTIONS)(function)
    _kept.append(compiled)
    return compiled.address


_OPTIONS: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy"}
_kept: list[Any] = []


@contextmanager
def _cached() -> Iterator[bool]:
    """Tell Numba where machine code is kept; yield whether there is such a place."""
    root = cache_root()
    before, _config.CACHE_DIR = _config.CACHE_DIR, str(root / shared_sources()) if root else ""
    try:
        with _announced():
            yield root is not None
    finally:
        _config.CACHE_DIR = before


def host_has(feature: str) -> bool:
    """Will code be compiled for a processor with this feature? (NUMBA_CPU_NAME may ask for another than this one.)"""
    from llvmlite import binding

    if _config.CPU_FEATURES is not None:
        return f"+{feature}" in _config.CPU_FEATURES.split(",")
    return _config.CPU_NAME is None and bool(binding.get_host_cpu_features().get(feature))


def cache_root() -> Path | None:
    """Where machine code is kept: NUMBA_CACHE_DIR, else beside this file, else in the user's cache; None: nowhere."""
    user = Path(os.path.expanduser("~"), ".cache", "minitorch-peft")
    for folder in filter(None, (_config.CACHE_DIR, Path(__file__).parent / "__pycache__", user)):
        with suppress(OSError):
            Path(folder).mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return Path(folder)
    return None


@functools.cache
def shared_sources(folder: Path = Path(__file__).parent) -> str:
    """A name that changes whenever one of the files changes whose compiled code kernels of several families share."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        text = path.read_bytes()
        if path.name == "jit.py" or b"from .jit import" in text or b"from numba" in text:
            digest.update(text)
    return f"kernels-{digest.hexdigest()[:12]}"


_told = threading.Event()


@contextmanager
def _announced() -> Iterator[None]:
    """Say, once in a process, that kernels are being compiled, if that takes longer than a second."""
    timer = threading.Timer(PATIENCE, _announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _announce() -> None:
    if not _told.is_set():
        _told.set()
        message = "minitorch-peft: compiling kernels for this machine (first run only) ..."
        print(message, file=sys.stderr, flush=True)
