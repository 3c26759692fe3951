"""Arrays of a call of several Triton kernels: moved to the device once, whatever library they are of."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..device import launch
from ..device.arguments import argument, empty_like
from ..device.array import DeviceArray
from ..device.triton import triton

INTERPRETED: bool = triton.knobs.runtime.interpret


def resident(function: Callable) -> Callable:
    """Move the NumPy arrays among the arguments to the device once, and what is returned back; else nothing moves.

    Arrays may stand in tuples. Those that are on the device already stay there, as do the results then: they
    live where the first array lives. Strided ones are made contiguous, which is all that happens in the interpreter.
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        first = next((a for a in leaves(args) if hasattr(a, "dtype")), None)
        results = function(*each(_moved, args), **each(_moved, options))
        return each(_returned, results) if isinstance(first, np.ndarray) else results

    return call


def _moved(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or INTERPRETED:
        return contiguous(value)
    return DeviceArray.from_numpy(value)


def contiguous(value: Any) -> Any:
    """An array of NumPy, torch or CuPy in row-major order, a copy only where it has to be; anything else as it is."""
    library = type(value).__module__.partition(".")[0]
    if library == "torch" and hasattr(value, "contiguous"):
        return value.contiguous()
    if library == "cupy" and hasattr(value, "strides"):
        return sys.modules["cupy"].ascontiguousarray(value)
    return np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value


def _returned(value: Any) -> Any:
    return value.numpy() if isinstance(value, DeviceArray) else value


def each(change: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with ``change`` applied inside tuples, lists (which become tuples) and dicts.

    >>> each(abs, (-1, [-2, (-3,)]))
    (1, (2, (3,)))
    """
    if isinstance(value, dict):
        return {key: each(change, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [each(change, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return change(value)


def leaves(value: Any) -> list[Any]:
    """What stands in nested tuples and lists, in order.

    >>> leaves((1, [2, (3,)]))
    [1, 2, 3]
    """
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def stand_ins(*values: Any) -> Any:
    """``values`` with NumPy arrays of the same shapes and dtypes (and no memory) for those on a device, to be checked.

    >>> stand_ins(np.zeros(3), 2.0)
    (array([0., 0., 0.]), 2.0)
    """

    def stand_in(value: Any) -> Any:
        if isinstance(value, np.ndarray) or not hasattr(value, "dtype"):
            return value
        name = dtype_name(value).replace("bfloat16", "float16")
        return np.broadcast_to(np.zeros((), name), tuple(value.shape))

    return each(stand_in, values)


def dtype_name(array: Any) -> str:
    """Triton's name of an array's dtype, whatever library the array is of.

    >>> dtype_name(np.zeros(1, np.float16))
    'float16'
    """
    return str(array.dtype).removeprefix("torch.")


def new(like: Any, *shape: int, dtype: str | None = None) -> Any:
    """An array, not filled, where ``like`` lives; of its dtype unless another is named."""
    return empty_like(like, shape, dtype or dtype_name(like))


def host(array: Any) -> np.ndarray:
    """A NumPy array of the same values; NumPy's own as they are."""
    if isinstance(array, np.ndarray):
        return array
    library = type(array).__module__.partition(".")[0]
    return array.cpu().numpy() if library == "torch" else array.get() if library == "cupy" else array.numpy()


def values(array: Any) -> np.ndarray:
    """The values of an array of float32, float16 or bfloat16 as float32 in NumPy, which has no bfloat16."""
    if dtype_name(array) == "bfloat16":
        if hasattr(array, "float"):
            return host(array.float())
        return (host(array).astype(np.uint32) << 16).view(np.float32)
    return host(array).astype(np.float32, copy=False)


def placed(array: np.ndarray, like: Any) -> Any:
    """The values of a NumPy array, where ``like`` lives and of its library."""
    library = type(like).__module__.partition(".")[0]
    if library == "torch":
        return sys.modules["torch"].from_numpy(array).to(like.device)
    if library in ("numpy", "cupy"):
        return sys.modules[library].asarray(array)
    return DeviceArray.from_numpy(array)


def start(kernel: Any, grid: Any, *args: Any, **constants: Any) -> None:
    """``launch.run`` on arguments that may be tuples of arrays; a grid of no programs runs nothing."""

    def known(value: Any) -> Any:
        return argument(value, dtype_name(value)) if hasattr(value, "dtype") else value

    launch.run(kernel, grid, *(each(known, a) if isinstance(a, tuple) else a for a in args), **constants)
