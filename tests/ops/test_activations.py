"""Activations at the ends of the range: no overflow, no warning, torch's values."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F

LARGE = np.array([-1e4, -200.0, -1.0, 0.0, 1.0, 200.0, 1e4])


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sigmoid", "softplus", "logsigmoid", "silu", "gelu", "elu", "tanh"])
def test_large_arguments_do_not_overflow(name: str, dtype) -> None:
    import torch

    x = mp.Tensor(LARGE.astype(dtype), requires_grad=True)
    peer = torch.tensor(x.data, requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = getattr(F, name)(x)
        y.sum().backward()
    wanted = getattr(torch.nn.functional, name)(peer)
    wanted.sum().backward()
    np.testing.assert_allclose(y.data, wanted.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x.grad, peer.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_of_large_and_masked_logits(dtype) -> None:
    x = mp.Tensor(np.array([[1e4, 0.0, -np.inf], [-1e4, -1e4, -np.inf]], dtype), requires_grad=True)
    y = F.softmax(x, -1)
    np.testing.assert_allclose(y.data, [[1, 0, 0], [0.5, 0.5, 0]], atol=1e-6)
    y.backward(gradient=np.ones((2, 3)))
    np.testing.assert_allclose(x.grad, 0, atol=1e-6)
    assert F.log_softmax(x, -1).data[0].tolist() == [0.0, -1e4, -np.inf]


def test_softmax_over_nothing() -> None:
    assert F.softmax(mp.tensor(np.zeros((2, 0))), -1).shape == (2, 0)
    assert F.log_softmax(mp.tensor(np.zeros((0, 2))), 0).shape == (0, 2)


def test_gelu_knows_two_forms() -> None:
    with pytest.raises(ValueError, match="'none' or 'tanh', got 'fast'"):
        F.gelu(mp.tensor([1.0]), approximate="fast")


def test_clamp_takes_numbers() -> None:
    x = mp.tensor([-2.0, -1.0, 0.5, 3.0], requires_grad=True)
    x.clamp(-1.0, 1.0).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]  # the bounds belong to the inside, as in torch
    with pytest.raises(ValueError, match="min, max or both"):
        x.clamp()
    with pytest.raises(TypeError, match="use maximum and minimum"):
        x.clamp(min=x)


def test_pow_at_zero() -> None:
    x = mp.tensor([0.0, 2.0], requires_grad=True)
    y = mp.tensor([0.0, 3.0], requires_grad=True)
    (x**0).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]
    x.grad = None
    (x**y).sum().backward()
    assert x.grad.tolist() == [0.0, 12.0] and y.grad[0] == 0.0
    assert (2.0 ** mp.tensor([3.0])).tolist() == [8.0]
    with pytest.raises(ValueError, match="not an integer"):
        mp.tensor([2]) ** -1


def test_masked_fill_with_a_tensor() -> None:
    x, v = mp.tensor([1.0, 2.0], requires_grad=True), mp.tensor(5.0, requires_grad=True)
    y = x.masked_fill(np.array([True, False]), v)
    (y * mp.tensor([2.0, 3.0])).sum().backward()
    assert y.tolist() == [5.0, 2.0] and x.grad.tolist() == [0.0, 3.0] and v.grad.item() == 2.0
    with pytest.raises(ValueError, match="0-d tensor, got shape"):
        x.masked_fill(np.array([True, False]), x)
    assert mp.tensor([1, 2]).masked_fill(np.array([True, False]), 7).tolist() == [7, 2]


def test_where_takes_a_condition_of_bools() -> None:
    with pytest.raises(TypeError, match="must be bool, got int64"):
        F.where(mp.tensor([1, 0]), 1.0, 0.0)
    assert F.where(mp.tensor([True, False]), 1.0, 0.0).dtype == np.float32
