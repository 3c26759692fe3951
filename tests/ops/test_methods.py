"""Operators and methods of Tensor, and their manners towards other types."""

from __future__ import annotations

import operator

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.ops.methods import METHODS

BINARY = ["add", "sub", "mul", "truediv", "pow", "eq", "ne", "lt", "le", "gt", "ge"]


@pytest.mark.parametrize("name", BINARY)
def test_operators_are_those_of_numpy_from_both_sides(name: str) -> None:
    apply, a, b = getattr(operator, name), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([2.0, 4.0])
    x, y = mp.tensor(a), mp.tensor(b)
    for got in (apply(x, y), apply(x, b), apply(a, y)):
        assert isinstance(got, mp.Tensor) and np.array_equal(got.data, apply(a, b))
    assert np.array_equal(apply(x, 2.0).data, apply(a, 2.0)) and np.array_equal(apply(2.0, x).data, apply(2.0, a))


def test_matrix_products_from_both_sides() -> None:
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    for got in (mp.tensor(a) @ mp.tensor(a), mp.tensor(a) @ a, a @ mp.tensor(a)):
        assert isinstance(got, mp.Tensor) and np.array_equal(got.data, a @ a)


def test_gradients_reach_both_sides_of_a_reflected_operator() -> None:
    x = mp.tensor([2.0], requires_grad=True)
    (6.0 / x - (1.0 - x)).sum().backward()
    assert x.grad.tolist() == [-0.5]


def test_signs_and_logic() -> None:
    x = mp.tensor([-1.0, 2.0])
    assert (-x).tolist() == [1.0, -2.0] and abs(x).tolist() == [1.0, 2.0]
    positive, small = x > 0, x < 3
    assert (positive & small).tolist() == [False, True] and (positive | small).tolist() == [True, True]
    assert (~positive).tolist() == [True, False] and (positive & np.array([True, True])).tolist() == [False, True]
    with pytest.raises(TypeError, match="for bool tensors"):
        x & x
    with pytest.raises(TypeError, match="for bool tensors"):
        operator.invert(x)


def test_an_unknown_type_is_left_to_the_other_side() -> None:
    class Other:
        def __radd__(self, left):
            return "mine"

    x = mp.tensor([1.0])
    assert x + Other() == "mine"
    assert (x == None) is False and (x != "a") is True  # noqa: E711
    with pytest.raises(TypeError, match="unsupported operand"):
        x + "a"


def test_tensors_stay_hashable() -> None:
    x, y = mp.tensor([1.0]), mp.tensor([1.0])
    assert len({x, y}) == 2 and x in {x}


def test_methods_are_the_functions() -> None:
    assert all(getattr(mp.Tensor, name) is getattr(F, name) for name in METHODS)


def test_every_name_of_functional_is_there_and_documented() -> None:
    for name in F.__all__:
        text = getattr(F, name).__doc__
        assert text and ">>>" in text, name


def test_transposes() -> None:
    x = mp.tensor(np.zeros((2, 3, 4)))
    assert x.mT.shape == (2, 4, 3) and x[0].T.shape == (4, 3) and x[0, 0].T.shape == (4,)


def test_numpy_hands_over_instead_of_looping() -> None:
    x = mp.tensor([1.0, 2.0], requires_grad=True)
    assert (np.ones(2, np.float32) + x).requires_grad and (np.float32(3) * x).requires_grad
