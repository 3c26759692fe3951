"""A gradient of a large example, held against complex steps along random directions: each tells of all elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minitorch_peft.course.expect import close, require

Array = np.ndarray


def along(got: Any, f: Callable[[Array], Array], x: Array, g: Array, what: str, seed: int) -> None:
    """Raise Mismatch unless ``got`` is the gradient of sum(g f(x)), as far as two random directions can tell.

    ``f`` is plain NumPy and analytic, as for :func:`vjp`. An element that is wrong shows in both directions.
    """
    require(
        isinstance(got, np.ndarray) and got.shape == x.shape and got.dtype == x.dtype,
        f"{what} is {_form(got)}; {_form(x)} is due",
    )
    require(bool(np.isfinite(got).all()), f"{what} has elements that are not finite")
    rng = np.random.default_rng(seed)
    for _ in range(2):
        v = rng.choice([-1.0, 1.0], x.shape) * rng.uniform(0.5, 1.0, x.shape)
        slope = float(np.sum(g * np.imag(f(x + 1e-30j * v))) / 1e-30)
        size = float(np.linalg.norm(got) * np.linalg.norm(v))
        because = "right for a small example, wrong for a large one"
        close(float(np.vdot(got, v)), slope, f"{what}, along a random direction,", 1e-9, 1e-9 * size, because)


def _form(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
