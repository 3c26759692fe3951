"""What a check says: it accepts what is equal, refuses the rest, and names the likely cause."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from minitorch_peft.course import measure
from minitorch_peft.course.expect import Failed, Mismatch, close, equal, held, require, vjp

X = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.5]])
SQUARE = np.array([[1.0, 2.0], [3.0, 4.5]])


def test_equal_values_pass():
    close(X * (1 + 1e-12), X, "x")
    close(3, np.float64(3.0), "x")
    close(np.array([np.nan, np.inf]), np.array([np.nan, np.inf]), "x")
    close(np.zeros((0, 3)), np.zeros((0, 3)), "x")
    equal(X.copy(), X, "x")
    equal([1, "a"], (1, "a"), "x")
    require(True, "never")


@pytest.mark.parametrize(
    ("got", "want", "cause"),
    [
        (-X, X, "the sign"),
        (2 * X, X, "a constant factor: it is 2 times"),
        (np.zeros_like(X), X, "zero everywhere"),
        (X.T.copy(), X, "transpose"),
        (SQUARE.T.copy(), SQUARE, "transpose"),
        (X.reshape(-1), X, "the right numbers in another shape"),
        (np.ones((4, 2, 3)), X, "a sum (or mean) over an axis is missing"),
        (np.ones(3), X, "an axis was summed that must stay"),
        (np.where(X == 3, np.nan, X), X, "nan"),
        (np.where(X == 3, np.inf, X), X, "inf"),
        (X[:, ::-1].copy(), X, "the right numbers in the wrong places"),
        (X + np.array([[1.0], [2.0]]), X, "off by one number in each row"),
        (np.where(X == 3, 9.0, X), X, "only some elements are wrong ((0, 2))"),
        (X * (1 + 1e-4) + 1e-5 * X**2, X, "close, but not equal"),
        (X.astype(np.float32), X, "another dtype"),
        (None, X, "a return is missing"),
        ([1.0], X, "a list or tuple where one array is expected"),
    ],
)
def test_the_likely_cause_is_named(got, want, cause):
    with pytest.raises(Mismatch) as error:
        close(got, want, "f(x)")
    assert cause in error.value.because
    assert error.value.message.startswith("f(x) ")


def test_strange_values_are_refused_not_raised_on():
    for got in ("text", {"a": 1}, [X, X], True, float("nan"), 10**400, np.array("x")):
        with pytest.raises(Failed):
            close(got, X, "f(x)")
        with pytest.raises(Failed):
            close(got, np.float64(0.5), "f(x)")
        with pytest.raises(Failed):
            equal(got, X, "f(x)")


def test_bits_count_where_they_should():
    with pytest.raises(Mismatch):
        equal(np.nextafter(X, 10), X, "x")
    with pytest.raises(Mismatch):
        equal(np.array([-0.0]), np.array([0.0]), "x")
    with pytest.raises(Mismatch):
        equal(1.0, 1, "x")


def test_memory_is_what_is_held_at_once():
    megabyte = measure.traced(lambda: np.ones(1 << 20, np.uint8).sum())
    assert held(megabyte, 2 << 20, "{} bytes", "why") == 1 << 20
    with pytest.raises(Mismatch, match=r"^1,[01]\d\d,\d{3} bytes$") as error:
        held(megabyte, 1 << 20, "{} bytes", "why")
    assert error.value.because == "why"


@pytest.mark.parametrize("tamper", ["stop", "clear_traces", "reset_peak"])
def test_who_tampers_with_the_trace_is_told(tamper):
    found = measure.traced(getattr(tracemalloc, tamper))
    with pytest.raises(Mismatch, match="measuring of memory was interrupted"):
        held(found, 1 << 30, "{}", "")


def test_vjp_is_exact():
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    e = np.exp(x - x.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)

    def softmax(x):
        e = np.exp(x - x.real.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    np.testing.assert_allclose(vjp(softmax, x, g), y * (g - (g * y).sum(-1, keepdims=True)), rtol=1e-13)
