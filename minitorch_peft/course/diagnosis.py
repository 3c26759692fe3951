"""From a wrong array and the right one to what may have gone wrong, in words."""

from __future__ import annotations

import numpy as np


def likely_cause(got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> str | None:
    """The first of a list of common mistakes that would give ``got`` for ``want``; None where none fits."""
    if got.shape != want.shape:
        return _of_shapes(got, want, max(rtol, 1e-7), max(atol, 1e-9))
    if not want.size:
        return None
    with np.errstate(all="ignore"):
        return _of_values(got.astype(np.float64), want.astype(np.float64), max(rtol, 1e-7), max(atol, 1e-9))


def _of_shapes(got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> str | None:
    if got.shape == want.shape[::-1] and got.ndim > 1:
        return "a transpose is missing, or one too many"
    if got.size == want.size:
        same = np.allclose(got.reshape(-1), want.reshape(-1), rtol, atol)
        return "the right numbers in another shape: reshape, or keepdims" if same else "another order of the axes"
    if _broadcasts(want.shape, got.shape):
        return "a sum (or mean) over an axis is missing: a result must have the shape of what it belongs to"
    if _broadcasts(got.shape, want.shape):
        return "an axis was summed that must stay, or a broadcast is missing"
    return None


def _broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Does NumPy broadcast ``small`` to ``large``?"""
    pairs = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(a in (1, b) for a, b in pairs)


def _of_values(got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> str | None:
    def same(a: np.ndarray, b: np.ndarray) -> bool:
        return bool(np.allclose(a, b, rtol, atol + rtol * float(np.abs(b[np.isfinite(b)]).max(initial=0.0))))

    if np.isnan(got).any() and not np.isnan(want).any():
        return "nan: 0 / 0, inf - inf or the log of a negative number; large inputs may have overflowed"
    if np.isinf(got).any() and not np.isinf(want).any():
        return "inf: exp of a large number, or a division by zero"
    if not got.any():
        return "the result is zero everywhere: was it ever written to?"
    if same(got, -want):
        return "the sign"
    if float(np.abs(got - want).max()) < 1e-3 * float(np.abs(want).max()):
        return "close, but not equal: an eps in the wrong place, or float32 on the way?"
    if np.isfinite(want).all() and (factor := _factor(got, want)) is not None and same(got, factor * want):
        return f"a constant factor: it is {factor:.6g} times what it should be"
    if want.ndim > 1 and want.shape[-1] == want.shape[-2] and same(got, want.swapaxes(-1, -2)):
        return "a transpose is missing, or one too many"
    if same(np.sort(got, axis=None), np.sort(want, axis=None)):
        return "the right numbers in the wrong places: the order along an axis, or an index"
    if want.ndim and (cause := _along_last_axis(got, want, same)):
        return cause
    wrong = ~np.isclose(got, want, rtol, atol)
    if want.size > 1 and wrong.sum() <= max(1, want.size // 4):
        places = ", ".join(str(tuple(int(j) for j in i)) for i in np.argwhere(wrong)[:3])
        return f"only some elements are wrong ({places}): a border, a mask, or an index that occurs twice?"
    return None


def _along_last_axis(got: np.ndarray, want: np.ndarray, same) -> str | None:  # type: ignore[no-untyped-def]
    rest = got - want
    if want.shape[-1] > 1:
        if same(rest, np.broadcast_to(rest.mean(-1, keepdims=True), rest.shape)):
            return "off by one number in each row: a term that is summed (or averaged) over the last axis"
        if same(got[..., 1:], want[..., :-1]) or same(got[..., :-1], want[..., 1:]):
            return "shifted by one along the last axis"
    return None


def _factor(got: np.ndarray, want: np.ndarray) -> float | None:
    largest = int(np.argmax(np.abs(want)))
    reference = want.reshape(-1)[largest]
    return float(got.reshape(-1)[largest] / reference) if reference else None
