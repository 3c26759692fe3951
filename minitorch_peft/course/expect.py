"""How a check holds the values that come back against the expected ones, with the likely cause where they differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minitorch_peft.course.diagnosis import likely_cause
from minitorch_peft.course.measure import MARK

SHOWN = 12  # elements of an array that a message shows


class Failed(Exception):  # noqa: N818 (a solution failed, not the program)
    """A solution did not do what a check asks: ``message`` says what, ``because`` the likely cause."""

    def __init__(self, message: str, because: str | None = None) -> None:
        super().__init__(message)
        self.message, self.because = message, because


class Mismatch(Failed):
    """A value is not the expected one."""


def close(
    got: Any, expected: Any, what: str, rtol: float = 1e-7, atol: float = 1e-9, because: str | None = None
) -> None:
    """Raise Mismatch unless ``got`` is an array (or number) of the expected shape, kind and values.

    The dtype must be the expected one too, where ``expected`` is an array. nan equals nan, inf equals inf.
    ``because`` is the likely cause, where the check knows better than the general diagnosis.
    """
    want = np.asarray(expected)
    have = _array(got, want, what, isinstance(expected, np.ndarray))
    if have.dtype.kind in "iub" and want.dtype.kind in "iub":
        same = bool((have == want).all())
    else:
        scale = float(np.abs(want[np.isfinite(want)]).max(initial=0.0)) if want.size else 0.0
        same = np.allclose(have, want, rtol=rtol, atol=atol + rtol * scale, equal_nan=True)
    if not same:
        cause = because or likely_cause(have, want, rtol, atol)
        raise Mismatch(f"{what} is {told(have, want)}", cause)


def equal(got: Any, expected: Any, what: str, because: str | None = None) -> None:
    """Raise Mismatch unless ``got`` equals ``expected`` to the last bit: arrays, numbers, strings, lists, dicts."""
    if isinstance(expected, np.ndarray):
        have = _array(got, expected, what, True)
        if have.tobytes() != np.ascontiguousarray(expected).tobytes():
            cause = because or likely_cause(have, expected, 0.0, 0.0)
            raise Mismatch(f"{what} is {told(have, expected)}, to the bit", cause)
        return
    plain = list(expected) if isinstance(expected, tuple) else expected
    got = got.item() if isinstance(got, np.generic) else got
    if type(got) is not type(plain) or got != plain:
        raise Mismatch(f"{what} is {shown(got)}; expected {shown(plain)}", because)


def require(condition: bool, message: str, because: str | None = None) -> None:
    """Raise Mismatch with ``message`` unless the condition holds."""
    if not condition:
        raise Mismatch(message, because)


def held(found: dict[str, Any], limit: int, message: str, because: str) -> Any:
    """The value of a call that ``measure.traced`` watched. Raises Mismatch where it took ``limit`` bytes or more.

    ``message`` has {} in the place of the bytes.
    """
    peak = found["peak"]
    require(
        found["whole"] is True and peak >= MARK, "the measuring of memory was interrupted",
        "a solution neither stops nor restarts tracemalloc",
    )  # fmt: skip
    require(peak < limit, message.format(f"{peak:,}"), because)
    return found["value"]


def vjp(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The gradient of sum(g f(x)) with respect to x, exact to rounding, by complex steps (Squire & Trapp 1998).

    f'(x) = Im f(x + ih) / h without a difference, so h may be 1e-30. ``f`` is plain NumPy and analytic: no abs, max or
    comparison of what depends on x.

    >>> vjp(np.square, np.array([3.0, -1.0]), np.array([1.0, 10.0])).tolist()
    [6.0, -20.0]
    """
    gradient = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        step = x.astype(complex)
        step[i] += 1e-30j
        gradient[i] = np.sum(g * np.imag(f(step))) / 1e-30
    return gradient


def along(got: Any, f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, g: np.ndarray, what: str, seed: int) -> None:
    """Raise Mismatch unless ``got`` is the gradient of sum(g f(x)), as far as two random directions can tell.

    ``f`` is plain NumPy and analytic, as for :func:`vjp`. An element that is wrong shows in both directions.
    """
    require(
        isinstance(got, np.ndarray) and got.shape == x.shape and got.dtype == x.dtype,
        f"{what} is {_form(got)}; expected {_form(x)}",
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


def told(have: np.ndarray, want: np.ndarray) -> str:
    """Both arrays, with as many digits as it takes to see that they differ."""
    texts = [(shown(have, digits), shown(want, digits)) for digits in (6, 12, 17)]
    got, expected = next((pair for pair in texts if pair[0] != pair[1]), texts[-1])
    return f"{got}; expected {expected}"


def shown(value: Any, digits: int = 6) -> str:
    """A value as a message shows it: short."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        text = np.array2string(
            array, precision=digits, separator=", ", threshold=SHOWN, edgeitems=3, max_line_width=100
        )
        note = "" if array.dtype == np.float64 else f" ({array.dtype})"
        return (f"\n{text}" if "\n" in text else text) + note + ("" if array.size else f" of shape {array.shape}")
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def readable(text: str) -> str:
    r"""``text`` without what does things to terminals, files or readers: control characters, lone surrogates, marks of
    direction.

    >>> readable("a\x1b[2J\tb")
    'a�[2J\tb'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _array(got: Any, want: np.ndarray, what: str, typed: bool) -> np.ndarray:
    """``got`` as an array, once its kind, shape and dtype are the expected ones."""
    if isinstance(got, bool | int | float) and want.ndim == 0 and not abs(got) >= 2**63:
        got = np.asarray(got, want.dtype if typed else None)
    if not isinstance(got, np.ndarray | np.generic) or got.dtype.kind not in "biuf":
        raise Mismatch(f"{what} is {shown(got)}; expected an array of shape {want.shape}", _kind_cause(got))
    have = np.asarray(got)
    if have.shape != want.shape:
        cause = likely_cause(have, want, 1e-7, 1e-9)
        raise Mismatch(f"{what} has shape {have.shape}; expected {want.shape}", cause)
    if typed and have.dtype != want.dtype:
        cause = "a constant or an intermediate of another dtype: the result must have the dtype of the input"
        raise Mismatch(f"{what} has dtype {have.dtype}; expected {want.dtype}", cause)
    return have


def _kind_cause(got: Any) -> str | None:
    if got is None:
        return "a return is missing"
    return "a list or tuple where one array is expected" if isinstance(got, list) else None
