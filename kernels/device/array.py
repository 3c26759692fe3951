"""An array in the GPU's memory, over the CUDA driver."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import cuda
from .interpreter import HostArray, storage_dtype


class DeviceArray:
    """A C-contiguous array in the GPU's memory, freed when it is collected.

    ``dtype`` is Triton's name for the elements' type; bfloat16 comes back to the host as uint16 bits. torch and CuPy
    read it without a copy through ``__cuda_array_interface__`` (bfloat16 as its bits). Raises RuntimeError without a
    GPU, MemoryError where its memory is exhausted.
    """

    def __init__(self, shape: Sequence[int], dtype: str = "float32"):
        self.shape, self.dtype = tuple(shape), str(dtype)
        self._storage = storage_dtype(self.dtype)
        self.nbytes = math.prod(self.shape) * self._storage.itemsize
        self._pointer = cuda.allocate(self.nbytes)
        # Not when the process ends: the driver takes the memory back itself, and may be gone before us.
        weakref.finalize(self, cuda.free, self._pointer).atexit = False

    @classmethod
    def from_numpy(cls, array: np.ndarray | HostArray, dtype: str | None = None) -> DeviceArray:
        """A copy of ``array`` on the device; ``dtype="bfloat16"`` for bits held as uint16."""
        host = array if isinstance(array, HostArray) else HostArray(np.ascontiguousarray(array), dtype)
        device = cls(host.array.shape, host.dtype)
        cuda.copy_to_device(device._pointer, host.array)
        return device

    def numpy(self, out: np.ndarray | None = None) -> np.ndarray:
        """A copy on the host, after all kernels launched so far; into ``out`` (C-contiguous) where given."""
        array = np.empty(self.shape, self._storage) if out is None else out
        if array.nbytes != self.nbytes or not array.flags.c_contiguous:
            raise ValueError(
                f"out must be C-contiguous with {self.nbytes} bytes, got shape {array.shape}, {array.dtype}"
            )
        cuda.copy_to_host(array, self._pointer)
        return array

    def data_ptr(self) -> int:
        """The address on the device (with ``dtype``, all that Triton asks of an argument)."""
        return self._pointer

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next, along each axis."""
        return tuple(math.prod(self.shape[axis + 1 :]) * self._storage.itemsize for axis in range(len(self.shape)))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self._storage.str,
            "data": (self._pointer, False),
            "strides": None,
            "version": 3,
            "stream": 1,  # the default stream, on which our copies and Triton's launches are
        }

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"
