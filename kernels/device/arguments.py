"""What a launch on the GPU takes: NumPy arrays copied there and back, arrays of torch and CuPy as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .array import DeviceArray
from .interpreter import HostArray, storage_dtype


class Borrowed:
    """An array on the device that belongs to another library, described by ``__cuda_array_interface__``.

    ``dtype="bfloat16"`` for bits held as uint16. Raises ValueError where it is not C-contiguous.
    """

    def __init__(self, array: Any, dtype: str | None = None):
        interface = array.__cuda_array_interface__
        self.array = array  # keeps the memory alive
        held = np.dtype(interface["typestr"])
        self.dtype = dtype or held.name
        if held != storage_dtype(self.dtype):
            raise TypeError(f"elements of {self.dtype} are held as {storage_dtype(self.dtype)}, not as {held}")
        if interface.get("strides") is not None:
            raise ValueError(f"array of shape {interface['shape']} is not C-contiguous on the device; copy it first")
        self._pointer = interface["data"][0]

    def data_ptr(self) -> int:
        return self._pointer


@contextmanager
def on_device(arguments: Sequence[Any]) -> Iterator[list[Any]]:
    """The ``arguments`` as Triton takes them; NumPy arrays that can be written are copied back at the end.

    They may stand in tuples. An array that is passed twice is copied once. Raises RuntimeError without a GPU,
    ValueError where NumPy arrays overlap without being the same (each would get a copy of its own) or a tensor is not
    contiguous, TypeError for a tensor that is not on the GPU.
    """
    copies: dict[tuple[int, int], tuple[HostArray, DeviceArray]] = {}
    yield [_on_device(argument, copies) for argument in arguments]
    for host, device in copies.values():
        if host.array.flags.writeable:
            device.numpy(out=host.array)


def empty_like(like: Any, shape: Sequence[int], dtype: str) -> Any:
    """A new array, not filled, where ``like`` lives and of its library: NumPy, torch, CuPy or ``DeviceArray``.

    bfloat16 is torch's own there, and held as uint16 bits elsewhere (pass it on with ``argument``).

    >>> empty_like(np.zeros(3), (2, 2), "bfloat16").dtype
    dtype('uint16')
    """
    library = type(like).__module__.partition(".")[0]
    if library == "torch":
        torch = sys.modules["torch"]
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=like.device)
    if library in ("numpy", "cupy"):
        return sys.modules[library].empty(tuple(shape), storage_dtype(dtype))
    return DeviceArray(shape, dtype)


def argument(array: Any, dtype: str) -> Any:
    """``array`` as an argument of a launch whose elements are of ``dtype``: says that uint16 bits are bfloat16.

    Raises ValueError where it is not C-contiguous.
    """
    if isinstance(array, np.ndarray):
        return HostArray(array, dtype)
    return refuse_strided(array) if hasattr(array, "data_ptr") else Borrowed(array, dtype)


def refuse_strided(argument: Any) -> Any:
    """``argument``. Raises ValueError for a tensor of torch that is not contiguous: kernels compute addresses from
    shapes, and would read it in another order."""
    is_contiguous = getattr(argument, "is_contiguous", None)
    if is_contiguous is not None and not is_contiguous():
        raise ValueError(f"tensor of shape {tuple(argument.shape)} is not contiguous; pass its .contiguous()")
    return argument


def _on_device(argument: Any, copies: dict[tuple[int, int], tuple[HostArray, DeviceArray]]) -> Any:
    if isinstance(argument, tuple):
        return tuple(_on_device(part, copies) for part in argument)
    if isinstance(argument, np.generic):
        return argument.item()
    if isinstance(argument, np.ndarray):
        argument = HostArray(argument)
    if isinstance(argument, HostArray):
        return _copied(argument, copies)
    if not getattr(argument, "is_cuda", True):
        raise TypeError("a torch tensor in the host's memory cannot be passed to a kernel; move it with .cuda()")
    if hasattr(argument, "__cuda_array_interface__") and not hasattr(argument, "data_ptr"):
        return Borrowed(argument)
    return refuse_strided(argument)


def _copied(host: HostArray, copies: dict[tuple[int, int], tuple[HostArray, DeviceArray]]) -> DeviceArray:
    key = host.data_ptr(), host.array.nbytes
    if key in copies and copies[key][0].dtype == host.dtype:
        if host.array.flags.writeable:
            copies[key] = host, copies[key][1]
        return copies[key][1]
    for other, _ in copies.values():
        if np.may_share_memory(host.array, other.array):
            raise ValueError("two arguments overlap in memory without being the same array; pass a copy of one")
    copies[key] = host, DeviceArray.from_numpy(host)
    return copies[key][1]
