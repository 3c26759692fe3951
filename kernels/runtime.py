"""What has to be true of the process before the first Numba kernel runs: one thread pool, buffers that are kept.

OpenBLAS and Numba each bring a pool of threads that wait by spinning. Side by side on the same cores they slow each
other down threefold, so BLAS gets one thread and Numba's pool calls it: every thread multiplies its own block of rows.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from .memory import keep_freed_buffers

SPINS = "10000"
"""How often a waiting thread of GNU OpenMP looks again before it sleeps (its own default is 300,000)."""

_WRONG_UNDER_CONCURRENT_CALLS = ("0.3.28", "0.3.29")  # numpy/numpy#29391


def shorten_waiting() -> None:
    """Let threads that wait for others give up their core soon, unless the user has set how long.

    By default they spin for some milliseconds. Where other programs want the cores, a thread that works is then
    put off in favour of one that spins: a training step on two busy cores takes 1.5 s, with short waits 0.27 s
    (on idle cores 0.11 s in both cases). It must be set before Numba loads its threads.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


@functools.cache
def start() -> int:
    """Prepare the process once; return the address of the matrix product that kernels call.

    Raises RuntimeError for an OpenBLAS that is known to give wrong results when several threads call it.
    """
    import scipy.linalg.cython_blas as cython_blas
    import threadpoolctl

    from . import sgemm, threads

    blas = threadpoolctl.ThreadpoolController().select(user_api="blas")
    check_blas(blas.info())
    blas.limit(limits=1)
    keep_freed_buffers()
    threads.start()
    return sgemm.start(_address(cython_blas.__pyx_capi__["sgemm"]))


def check_blas(libraries: list[dict]) -> None:
    """Refuse an OpenBLAS that must not be called from several threads (NumPy's own copy is called from one only)."""
    for library in libraries:
        version = ".".join(str(library["version"]).split(".")[:3])
        ours = Path(library["filepath"]).parent.name != "numpy.libs"
        if ours and library["internal_api"] == "openblas" and version in _WRONG_UNDER_CONCURRENT_CALLS:
            raise RuntimeError(
                f"OpenBLAS {version} ({library['filepath']}) gives wrong results under concurrent calls; "
                "the Numba kernels need 0.3.27 or older, or 0.3.30 or newer. "
                "Upgrade SciPy (pip install -U scipy), or set MINITORCH_KERNELS=reference."
            )


def _address(capsule: object) -> int:
    """The C function pointer in one of Cython's capsules; BLAS with 64-bit integers is refused."""
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = name(capsule)
    if b"char *, char *, int *, int *, int *" not in signature:
        raise RuntimeError(
            f"SciPy's sgemm has an unexpected signature ({signature.decode()}); expected 32-bit integers."
        )
    return pointer(capsule, signature)
