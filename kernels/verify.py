"""Does a version of a kernel compute what the reference computes?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .dispatch import get
from .examples import Draw, double, examples

TOLERANCE = 2e-5
"""Allowed error of a float32 version, relative to the largest value of the result (or to 1, where that is smaller)."""


def disagreement(kernel: str, function: Callable, args: tuple, tolerance: float = TOLERANCE) -> str | None:
    """How ``function(*args)`` differs from the reference, or None: values, shapes, dtypes, absent results.

    The reference runs in float64, and the result is to be float32; of an ``exact`` kernel both get the same arguments
    and must give the same bits. The arguments are copied where the kernel writes into them.

    >>> disagreement("silu_forward", lambda x: x, (np.ones(2, np.float32),))
    'result 0 is off by 0.269, allowed 2e-05: 1.0 instead of 0.731059 at (0,)'
    """
    example = examples()[kernel]
    exact_args = args if example.exact else tuple(map(double, args))
    ours, theirs = (
        list(leaves(results(f, a, example.in_place)))
        for f, a in ((function, args), (get(kernel, np.dtype(np.float64)), exact_args))
    )
    if len(ours) != len(theirs):
        return f"{len(ours)} results instead of {len(theirs)}"
    judge = _not_equal if example.exact else lambda a, b: _not_close(a, b, tolerance)
    wrong = (f"result {i} {text}" for i, pair in enumerate(zip(ours, theirs, strict=True)) if (text := judge(*pair)))
    return next(wrong, None)


def first_disagreement(kernel: str, function: Callable, draws: int) -> str | None:
    """``disagreement`` over the first ``draws`` seeds of small, ragged examples; it names the shapes.

    >>> from .softmax.reference import softmax_forward
    >>> first_disagreement("softmax_forward", softmax_forward, 5)
    >>> first_disagreement("softmax_forward", lambda x: x[:0], 5)
    'result 0 has shape (0, 4, 2, 12) instead of (5, 4, 2, 12) on float32 (5, 4, 2, 12)'
    """
    for seed in range(draws):
        args = examples()[kernel].drawn(Draw(seed))
        if wrong := disagreement(kernel, function, args):
            return f"{wrong} on {described(args)}"
    return None


def results(function: Callable, args: tuple, in_place: bool) -> Any:
    """What the function returns, or the arguments that it has written into, copied beforehand."""
    if not in_place:
        return function(*args)
    args = tuple(a.copy() if isinstance(a, np.ndarray) else a for a in args)
    function(*args)
    return args


def leaves(result: Any) -> Iterator[Any]:
    """The arrays and numbers of a result, out of its tuples."""
    if isinstance(result, tuple):
        for part in result:
            yield from leaves(part)
    else:
        yield result


def described(args: tuple) -> str:
    """The dtypes and shapes of arrays, and the other arguments as they are.

    >>> described((np.ones((2, 3), np.float32), None, 0.5))
    'float32 (2, 3), None, 0.5'
    """
    return ", ".join(f"{a.dtype} {a.shape}" if isinstance(a, np.ndarray) else repr(a) for a in leaves(args))


def _not_equal(ours: Any, theirs: Any) -> str | None:
    if not isinstance(theirs, np.ndarray):
        return None if ours == theirs else f"is {ours!r} instead of {theirs!r}"
    if wrong := _other_form(ours, theirs, theirs.dtype):
        return wrong
    bits = f"V{theirs.itemsize}"
    differ = np.ascontiguousarray(ours).view(bits) != np.ascontiguousarray(theirs).view(bits)
    return _first(ours, theirs, differ, f"has {differ.sum()} wrong of {theirs.size}") if differ.any() else None


def _not_close(ours: Any, theirs: Any, tolerance: float) -> str | None:
    if theirs is None or ours is None:
        return None if ours is theirs else f"is {described((ours,))} instead of {described((theirs,))}"
    python_number = not isinstance(theirs, np.ndarray | np.generic)
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    expected = theirs.dtype if python_number or theirs.dtype != np.float64 else np.dtype(np.float32)
    if wrong := _other_form(ours, theirs, expected):
        return wrong
    allowed = tolerance * max(1.0, np.abs(theirs[np.isfinite(theirs)]).max(initial=0))
    with np.errstate(invalid="ignore"):
        error = np.where((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)), 0, np.abs(ours - theirs))
    differ = ~(error <= allowed)
    return _first(ours, theirs, differ, f"is off by {error.max():.3g}, allowed {allowed:.3g}") if differ.any() else None


def _other_form(ours: Any, theirs: np.ndarray, dtype: np.dtype) -> str | None:
    if np.shape(ours) != theirs.shape:
        return f"has shape {np.shape(ours)} instead of {theirs.shape}"
    return f"is {ours.dtype} instead of {dtype}" if ours.dtype != dtype else None


def _first(ours: np.ndarray, theirs: np.ndarray, differ: np.ndarray, text: str) -> str:
    at = tuple(int(i) for i in np.argwhere(differ)[0])
    return f"{text}: {ours[at]:.6} instead of {theirs[at]:.6} at {at}"
