"""The CUDA driver's library through ctypes: found, initialised, called, its refusals turned into exceptions.

Calls act on device 0 (``CUDA_VISIBLE_DEVICES`` chooses which that is), or on the device of the thread's current context
where another library has made one.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p

OUT_OF_MEMORY = 2


class NoGPUError(RuntimeError):
    """There is no GPU to run on."""

    def __init__(self, reason: str):
        super().__init__(
            f"no GPU: {reason}. The Triton kernels need an NVIDIA GPU with its driver; without one, set "
            "TRITON_INTERPRET=1 before the process starts (slow: for tests and lessons), or use the CPU's kernels "
            "(MINITORCH_KERNELS=numba)"
        )


# The functions used, with their arguments: ctypes would pass Python integers as 32-bit numbers, and cut pointers.
SIGNATURES: dict[str, tuple] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxGetCurrent": (POINTER(c_void_p),),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxGetDevice": (POINTER(c_int),),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuDeviceGetDefaultMemPool": (POINTER(c_void_p), c_int),
    "cuMemPoolSetAttribute": (c_void_p, c_int, POINTER(c_uint64)),
    "cuMemAllocAsync": (POINTER(c_uint64), c_size_t, c_void_p),
    "cuMemFreeAsync": (c_uint64, c_void_p),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuMemsetD8_v2": (c_uint64, c_ubyte, c_size_t),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}


@functools.cache
def driver() -> ctypes.CDLL:
    """The driver's library, initialised. Raises RuntimeError without a driver or without a device."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoGPUError("the NVIDIA driver's library libcuda.so.1 was not found") from error
    for name, arguments in SIGNATURES.items():
        getattr(library, name).argtypes = arguments
        getattr(library, name).restype = c_int
    if status := library.cuInit(0):
        raise NoGPUError(f"cuInit says {_error(library, status)}")
    count = c_int()
    if (status := library.cuDeviceGetCount(ctypes.byref(count))) or not count.value:
        raise NoGPUError("the driver lists no device")
    return library


def call(name: str, *arguments: object) -> None:
    """Call the driver's function ``name`` in a context of this thread; RuntimeError or MemoryError if it refuses."""
    library = driver()
    _enter(library)
    if status := getattr(library, name)(*arguments):
        kind = MemoryError if status == OUT_OF_MEMORY else RuntimeError
        raise kind(f"CUDA driver: {name} says {_error(library, status)}")


def _enter(library: ctypes.CDLL) -> None:
    """Make the first device's primary context current, unless this thread has a context."""
    context, device = c_void_p(), c_int()
    if library.cuCtxGetCurrent(ctypes.byref(context)) == 0 and context:
        return
    for name, arguments in (
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
        ("cuCtxSetCurrent", (context,)),
    ):
        if status := getattr(library, name)(*arguments):
            raise NoGPUError(f"{name} says {_error(library, status)}")


def _error(library: ctypes.CDLL, status: int) -> str:
    texts = []
    for function in (library.cuGetErrorName, library.cuGetErrorString):
        text = c_char_p()
        known = function(status, ctypes.byref(text)) == 0 and text.value
        texts.append(text.value.decode() if known and text.value else f"error {status}")
    return f"{texts[0]} ({texts[1]})"
