"""Python numbers as operands, on either side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

import minitorch_peft as mp
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.testing import arrays, shapes

from .drawing import QUICK

CALLS = {
    "x + 2": (lambda x: x + 2), "2 + x": (lambda x: 2 + x), "x - 2": (lambda x: x - 2), "2 - x": (lambda x: 2 - x),
    "x * 2.5": (lambda x: x * 2.5), "2.5 * x": (lambda x: 2.5 * x), "x / 2.5": (lambda x: x / 2.5),
    "2.5 / x": (lambda x: 2.5 / x), "2.5 ** x": (lambda x: 2.5**x), "x ** 0": (lambda x: x**0),
    "x ** 1": (lambda x: x**1), "x ** 2": (lambda x: x**2), "x ** 3": (lambda x: x**3), "x ** -1": (lambda x: x**-1),
    "x ** 0.5": (lambda x: x**0.5), "x ** -1.5": (lambda x: x**-1.5),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@settings(QUICK, max_examples=10)
@given(array=arrays(shapes(), interval=(0.2, 3.0)))
def test_values_and_gradients(name: str, array: np.ndarray) -> None:
    x = Tensor(array, requires_grad=True)
    np.testing.assert_allclose(CALLS[name](x).data, CALLS[name](array), rtol=1e-14)
    assert CALLS[name](x.float()).dtype == np.float32
    assert mp.gradcheck(CALLS[name], (x,))
