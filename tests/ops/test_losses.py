"""Losses: class weights, ignored rows, dropout's key, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F

LOGITS = np.random.default_rng(0).standard_normal((4, 3, 2))
TARGET = np.array([[0, -100], [1, 2], [2, 2], [-100, 0]])


@pytest.mark.parity
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_are_those_of_torch(name: str, reduction: str, smoothing: float) -> None:
    import torch

    options = {"reduction": reduction} | ({"label_smoothing": smoothing} if name == "cross_entropy" else {})
    x, w = mp.tensor(LOGITS, requires_grad=True), np.array([0.5, 2.0, 1.0])
    peer = torch.tensor(LOGITS, requires_grad=True)
    got = getattr(F, name)(x, TARGET, weight=mp.tensor(w), **options)
    wanted = getattr(torch.nn.functional, name)(peer, torch.tensor(TARGET), weight=torch.tensor(w), **options)
    np.testing.assert_allclose(got.data, wanted.detach().numpy())
    got.sum().backward()
    wanted.sum().backward()
    np.testing.assert_allclose(x.grad, peer.grad.numpy(), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mean_over_no_row_is_nan_as_in_torch(dtype) -> None:
    x = mp.Tensor(np.zeros((2, 3), dtype), requires_grad=True)
    ignored = np.array([-100, -100])
    loss = F.cross_entropy(x, ignored)
    assert np.isnan(loss.item()) and loss.dtype == dtype
    loss.backward()
    assert not x.grad.any()
    assert F.cross_entropy(x, ignored, reduction="sum").item() == 0
    assert F.cross_entropy(x, ignored, reduction="none").tolist() == [0.0, 0.0]


def test_cross_entropy_of_large_logits() -> None:
    for dtype in (np.float32, np.float64):
        x = mp.Tensor(np.array([[1e4, -1e4]], dtype))
        assert F.cross_entropy(x, np.array([0])).item() == 0
        assert F.cross_entropy(x, np.array([1])).item() == 2e4


def test_a_divergence_from_zero_probability_is_finite() -> None:
    x, t = mp.tensor([-1.0, -1.0], requires_grad=True), mp.tensor([0.0, 1.0])
    loss = F.kl_div(x, t, reduction="none")
    assert loss.tolist() == [0.0, 1.0]
    loss.sum().backward()
    assert x.grad.tolist() == [0.0, -1.0]


def test_integer_targets_of_a_regression_are_numbers() -> None:
    assert F.mse_loss(mp.tensor([1.0, 2.0]), mp.tensor([1, 4])).item() == 2.0


X = mp.tensor(LOGITS[:, :, 0])
ERRORS = [
    (lambda: F.cross_entropy(X, LOGITS[:, :, 0]), TypeError, "probabilities are not supported"),
    (lambda: F.cross_entropy(X, np.zeros(3, int)), ValueError, r"classes at axis 1, so the target must be \(4,\)"),
    (lambda: F.cross_entropy(X, np.full(4, 3)), IndexError, r"\[0, 3\)"),
    (lambda: F.cross_entropy(X, np.zeros(4, int), reduction="avg"), ValueError, "'mean', 'sum' or 'none'"),
    (lambda: F.cross_entropy(X, np.zeros(4, int), label_smoothing=2), ValueError, r"in \[0, 1\], got 2"),
    (lambda: F.cross_entropy(mp.tensor(1.0), np.array(0)), ValueError, "axis of classes"),
    (lambda: F.cross_entropy(X, np.zeros(4, int), weight=mp.tensor([1.0])), ValueError, "each of 3 classes"),
    (lambda: F.nll_loss(X, np.full(4, 3)), IndexError, r"\[0, 3\) or -100"),
    (lambda: F.mse_loss(X, X[0]), ValueError, r"one shape, got \(4, 3\) and \(3,\)"),
    (lambda: F.kl_div(X, X, reduction="batch"), ValueError, "reduction must be"),
    (lambda: F.kl_div(mp.tensor(1.0), mp.tensor(1.0), reduction="batchmean"), ValueError, "0-d"),
    (lambda: F.dropout(X, p=1.5), ValueError, r"p must be in \[0, 1\]"),
    (lambda: F.dropout(X, p=0.5), ValueError, r"give key=\(seed, site, step\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_say_what_is_wrong(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_dropout_is_a_function_of_its_key() -> None:
    x = mp.tensor(np.ones((100, 100), np.float32), requires_grad=True)
    y = F.dropout(x, 0.2, key=(0, "a", 0))
    assert set(np.unique(y.data)) == {np.float32(0), np.float32(1.25)} and abs((y.data == 0).mean() - 0.2) < 0.02
    again = F.dropout(mp.tensor(np.ones((100, 100))), 0.2, key=(0, "a", 0))
    assert np.array_equal(y.data, again.data.astype(np.float32)) and again.dtype == np.float64
    others = [(1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert not any(np.array_equal(y.data, F.dropout(x, 0.2, key=key).data) for key in others)
    y.sum().backward()
    assert np.array_equal(x.grad, y.data)


def test_dropout_of_nothing_and_of_everything() -> None:
    x = mp.tensor([1.0, 2.0])
    assert F.dropout(x, 0.5, training=False) is x and F.dropout(x, 0.0) is x
    assert F.dropout(x, 1.0, key=(0,)).tolist() == [0.0, 0.0]
