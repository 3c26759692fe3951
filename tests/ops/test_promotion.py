"""Result dtypes are torch's; casts carry gradients back."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F

DTYPES = ["bool", "uint8", "int32", "int64", "float32", "float64"]
TENSORS = list(itertools.product(DTYPES, [(), (2,)]))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["add", "mul", "div", "maximum", "where"])
def test_two_tensors_promote_as_in_torch(name: str) -> None:
    import torch

    for (a, shape_a), (b, shape_b) in itertools.product(TENSORS, TENSORS):
        ours = [mp.Tensor(np.ones(shape_a, a)), mp.Tensor(np.ones(shape_b, b))]
        theirs = [torch.tensor(t.data) for t in ours]
        condition = [mp.tensor([True, False])] if name == "where" else []
        got = getattr(F, name)(*condition, *ours)
        wanted = getattr(torch, name)(*(torch.tensor(c.data) for c in condition), *theirs)
        assert f"torch.{got.dtype}" == str(wanted.dtype), (name, a, shape_a, b, shape_b)


@pytest.mark.parity
@pytest.mark.parametrize("number", [True, 3, 0.5])
@pytest.mark.parametrize("name", ["add", "mul", "div", "pow"])
def test_a_number_promotes_as_in_torch(name: str, number: Any) -> None:
    import torch

    for dtype, shape in TENSORS:
        if name == "pow" and dtype == "bool":
            continue  # torch computes it in int64, with a warning about its own rule
        got = getattr(F, name)(mp.Tensor(np.ones(shape, dtype)), number)
        wanted = getattr(torch, name)(torch.tensor(np.ones(shape, dtype)), number)
        assert f"torch.{got.dtype}" == str(wanted.dtype), (name, dtype, shape, number)


def test_a_numpy_scalar_does_not_widen_float32() -> None:
    x = mp.tensor([1.0])
    assert (x * np.float64(2)).dtype == (np.float64(2) * x).dtype == (x * np.ones(())).dtype == np.float32


def test_float32_with_float64_gives_each_its_own_gradient_dtype() -> None:
    x = mp.tensor([1.0, 2.0], requires_grad=True)
    y = mp.tensor([3.0, 4.0], dtype=np.float64, requires_grad=True)
    (x * y).sum().backward()
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [3.0, 4.0]
    assert y.grad.dtype == np.float64 and y.grad.tolist() == [1.0, 2.0]


def test_a_cast_to_integers_ends_the_graph() -> None:
    x = mp.tensor([1.7], requires_grad=True)
    assert x.long().tolist() == [1] and not x.long().requires_grad
    assert x.bool().dtype == np.bool_ and x.double().dtype == np.float64 and x.double().requires_grad
    assert x.to("float32") is x


def test_a_cast_to_what_is_no_number_is_refused() -> None:
    with pytest.raises(TypeError, match="real number type"):
        mp.tensor([1.0]).to(complex)


@pytest.mark.parametrize("name", ["exp", "sin", "sigmoid", "gelu", "sqrt"])
def test_integers_become_float32_where_the_result_is_no_integer(name: str) -> None:
    assert getattr(F, name)(mp.tensor([1, 2])).dtype == np.float32


@pytest.mark.parametrize("name", ["neg", "abs", "sign", "floor", "round", "square"])
def test_integers_stay_integers_where_they_can(name: str) -> None:
    assert getattr(F, name)(mp.tensor([1, 2])).dtype == np.int64


def test_what_is_no_tensor_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="exp: expected a Tensor or an array, got list"):
        F.exp([1.0])
    with pytest.raises(TypeError, match="got str"):
        F.add(mp.tensor([1.0]), "1")
