"""Memory of the GPU, copies to and from it, and the device's properties, over the CUDA driver alone.

All of it happens in order on the default stream, where Triton launches its kernels unless torch has chosen another.

Every function here raises RuntimeError, with the driver's name for what happened, where the driver refuses; MemoryError
where the device's memory is exhausted.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_int, c_size_t, c_uint64, c_void_p
from typing import NamedTuple

import numpy as np

from .driver import call

RELEASE_THRESHOLD = 4  # CUmemPool_attribute in cuda.h


def allocate(nbytes: int) -> int:
    """The address of ``nbytes`` new bytes on the device."""
    _keep_freed_memory()
    pointer = c_uint64()
    try:
        call("cuMemAllocAsync", ctypes.byref(pointer), max(nbytes, 1), None)  # the driver refuses to allocate nothing
    except MemoryError as error:
        free, total = memory()
        raise MemoryError(f"{error}: {nbytes:,} bytes asked for, {free:,} of {total:,} are free") from None
    return pointer.value


def free(pointer: int) -> None:
    """Give back what ``allocate`` gave, as soon as the kernels launched so far are done with it."""
    call("cuMemFreeAsync", pointer, None)


@functools.cache
def _keep_freed_memory() -> None:
    """Let the driver's pool keep what is freed: else it returns it, and waits for the device, at every free."""
    index, pool, threshold = c_int(), c_void_p(), c_uint64(2**64 - 1)
    call("cuCtxGetDevice", ctypes.byref(index))
    call("cuDeviceGetDefaultMemPool", ctypes.byref(pool), index)
    call("cuMemPoolSetAttribute", pool, RELEASE_THRESHOLD, ctypes.byref(threshold))


def copy_to_device(pointer: int, array: np.ndarray) -> None:
    """Copy a C-contiguous array to the device; the array may be changed as soon as this returns."""
    call("cuMemcpyHtoD_v2", pointer, array.ctypes.data, array.nbytes)


def copy_to_host(array: np.ndarray, pointer: int) -> None:
    """Copy from the device into a C-contiguous array, after all kernels launched so far."""
    synchronize()
    call("cuMemcpyDtoH_v2", array.ctypes.data, pointer, array.nbytes)


def fill_zero(pointer: int, nbytes: int) -> None:
    """Set ``nbytes`` bytes to zero."""
    call("cuMemsetD8_v2", pointer, 0, nbytes)


def synchronize() -> None:
    """Wait for the device; an error inside a kernel launched before is raised here."""
    call("cuCtxSynchronize")


def memory() -> tuple[int, int]:
    """Bytes of device memory: free, total."""
    free_bytes, total = c_size_t(), c_size_t()
    call("cuMemGetInfo_v2", ctypes.byref(free_bytes), ctypes.byref(total))
    return free_bytes.value, total.value


class Device(NamedTuple):
    """What a table of timings must say about where it comes from; clock in MHz, memory and cache in bytes."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: int
    memory: int
    cache: int
    driver: str


def device() -> Device:
    """The current device."""
    index, name = c_int(), ctypes.create_string_buffer(256)
    call("cuCtxGetDevice", ctypes.byref(index))
    call("cuDeviceGetName", name, len(name), index)

    def attribute(number: int) -> int:  # the numbers are CUdevice_attribute's, in cuda.h
        value = c_int()
        call("cuDeviceGetAttribute", ctypes.byref(value), number, index)
        return value.value

    version = c_int()
    call("cuDriverGetVersion", ctypes.byref(version))
    return Device(
        name=name.value.decode(),
        capability=(attribute(75), attribute(76)),
        multiprocessors=attribute(16),
        clock=attribute(13) // 1000,
        memory=memory()[1],
        cache=attribute(38),
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )
