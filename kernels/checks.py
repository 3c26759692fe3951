"""Argument checks that the reference and the fast version of a kernel share: compiled code trusts its arguments."""

from __future__ import annotations

import numpy as np


def same_shape(kernel: str, name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless the argument ``name`` has the shape that the others call for.

    >>> same_shape("softmax", "grad", np.zeros((2, 3)), (2, 4))
    Traceback (most recent call last):
    ValueError: softmax: grad has shape (2, 3), the other arguments call for (2, 4)
    """
    if array.shape != expected:
        raise ValueError(f"{kernel}: {name} has shape {array.shape}, the other arguments call for {expected}")


def whole_numbers(kernel: str, name: str, ids: np.ndarray) -> None:
    """Raise TypeError unless ids are integers (a cast would cut 1.9 to 1 and say nothing)."""
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{kernel}: {name} must be integers, got {ids.dtype}")


def ids_within(kernel: str, ids: np.ndarray, size: int) -> None:
    """Raise unless ids are integers (TypeError) in [0, size) (IndexError)."""
    whole_numbers(kernel, "ids", ids)
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise IndexError(f"{kernel}: ids must lie in [0, {size}), got {ids.min()} to {ids.max()}")


def same_dtype(kernel: str, dtype: np.dtype, **arrays: np.ndarray | None) -> None:
    """Raise TypeError unless all arrays have this dtype, and it is a floating one; None stands for an absent array.

    >>> same_dtype("linear", np.dtype("float32"), x=np.zeros(1, np.float32), weight=np.zeros(1))
    Traceback (most recent call last):
    TypeError: linear: weight is float64, expected float32 as the others: convert one of them
    """
    if dtype.kind != "f":
        raise TypeError(f"{kernel}: expected floating-point arrays, got {dtype}")
    for name, array in arrays.items():
        if array is not None and array.dtype != dtype:
            raise TypeError(f"{kernel}: {name} is {array.dtype}, expected {dtype} as the others: convert one of them")


def probability(kernel: str, name: str, value: float) -> None:
    """Raise ValueError unless the value lies in [0, 1): dropping everything leaves nothing to scale up."""
    if not 0 <= value < 1:
        raise ValueError(f"{kernel}: {name} must be in [0, 1), got {value}")
