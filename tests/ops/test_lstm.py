"""The LSTM: gradients over drawn shapes, torch's numbers, directions and layers, dropout, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.nn import LSTM, ForwardContext, init

from .drawing import QUICK

SIZES = st.fixed_dictionaries(
    {
        "batch": st.integers(0, 2), "steps": st.integers(1, 4), "size": st.integers(1, 3), "hidden": st.integers(1, 3),
        "num_layers": st.integers(1, 2), "bidirectional": st.booleans(), "bias": st.booleans(),
    }
)  # fmt: skip


def made(batch: int, steps: int, size: int, hidden: int, seed: int = 0, **options: Any) -> tuple[LSTM, mp.Tensor]:
    """A network in float64 whose weights all matter, and an input."""
    lstm = LSTM(size, hidden, **options).astype(np.float64)
    init.initialize(lstm, seed)
    x = np.random.default_rng(seed).standard_normal((batch, steps, size))
    return lstm, mp.Tensor(x, requires_grad=True)


@settings(QUICK, max_examples=30)
@given(SIZES, st.integers(0, 9))
def test_gradients_pass_the_check_in_every_shape(sizes, seed) -> None:
    lstm, x = made(seed=seed, **sizes)
    assert lstm(x).shape == (sizes["batch"], sizes["steps"], sizes["hidden"] * (1 + sizes["bidirectional"]))
    assert mp.gradcheck(lstm, (x,), parameters=dict(lstm.named_parameters()))


@pytest.mark.parity
@settings(QUICK, max_examples=30)
@given(SIZES.filter(lambda sizes: sizes["batch"]), st.integers(0, 9))
def test_values_and_every_gradient_are_those_of_torch(sizes, seed) -> None:
    import torch

    lstm, x = made(seed=seed, **sizes)
    options = {name: sizes[name] for name in ("num_layers", "bidirectional", "bias")}
    theirs = torch.nn.LSTM(sizes["size"], sizes["hidden"], batch_first=True, dtype=torch.float64, **options)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in lstm.state_dict().items()})
    their_x = torch.tensor(x.data, requires_grad=True)
    expected = theirs(their_x)[0]
    y = lstm(x)
    np.testing.assert_allclose(y.data, expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    g = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(gradient=g)
    expected.backward(torch.tensor(g))
    np.testing.assert_allclose(x.grad, their_x.grad.numpy(), rtol=1e-10, atol=1e-13)
    for name, p in theirs.named_parameters():
        np.testing.assert_allclose(lstm.get(name).grad, p.grad.numpy(), rtol=1e-10, atol=1e-13, err_msg=name)


@pytest.mark.parity
def test_the_start_is_that_of_torch() -> None:
    import torch

    theirs = dict(torch.nn.LSTM(300, 64, num_layers=2, bidirectional=True).named_parameters())
    lstm = LSTM(300, 64, num_layers=2, bidirectional=True)
    init.initialize(lstm, 0)
    ours = dict(lstm.named_parameters())
    assert {n: tuple(p.shape) for n, p in theirs.items()} == {n: p.shape for n, p in ours.items()}
    for name, p in theirs.items():
        for array in (p.detach().numpy(), ours[name].data):
            assert 0.95 / 8 < np.abs(array).max() <= 1 / 8


def test_in_reverse_it_is_the_same_from_the_other_end() -> None:
    lstm, x = made(2, 4, 3, 2)
    terms = [lstm.get(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    there = F.lstm_layer(x, *terms)
    back = F.lstm_layer(F.flip(x, (1,)), *terms, reverse=True)
    np.testing.assert_array_equal(back.data, there.data[:, ::-1])


def test_a_step_sees_what_came_before_it_and_nothing_after() -> None:
    lstm, x = made(1, 5, 3, 2)
    before = lstm(x).data
    x.data[:, 3] += 1
    after = lstm(x).data
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert (np.abs(after[:, 3:] - before[:, 3:]) > 1e-6).all()


def test_large_sums_saturate_the_gates_and_overflow_nowhere() -> None:
    x = mp.tensor(np.array([[[1e4], [-1e4]]]), requires_grad=True)
    y = F.lstm_layer(x, mp.tensor(np.ones((4, 1))), mp.tensor(np.ones((4, 1))))
    y.sum().backward()
    np.testing.assert_allclose(y.data[0, :, 0], [np.tanh(1), 0])
    assert np.isfinite(x.grad).all()


def test_dropout_stands_between_layers_in_training() -> None:
    lstm, x = made(2, 4, 3, 8, num_layers=2, dropout=0.5)
    plain = lstm.eval()(x).data
    lstm.train()
    first, again, later = (lstm(x, ForwardContext(step=step)).data for step in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - later).max() > 1e-3 and np.abs(first - plain).max() > 1e-3
    single, x = made(2, 4, 3, 8, num_layers=1, dropout=0.5)
    np.testing.assert_array_equal(single.train()(x).data, single.eval()(x).data)


def weights(H: int = 2, size: int = 3) -> tuple[mp.Tensor, mp.Tensor]:
    return mp.Tensor(np.ones((4 * H, size))), mp.Tensor(np.ones((4 * H, H)))


X, BIAS = mp.Tensor(np.ones((1, 4, 3))), mp.Tensor(np.ones(8))


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.lstm_layer(X[0], *weights()),
        lambda: F.lstm_layer(X, *weights(size=2)),
        lambda: F.lstm_layer(X, weights()[0], weights(3)[1]),
        lambda: F.lstm_layer(X, *weights(), BIAS),
        lambda: F.lstm_layer(X, *weights(), BIAS[:4], BIAS[:4]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call) -> None:
    with pytest.raises(ValueError, match=r"lstm_layer: expected input \(B, T, I\), .* got \("):
        call()


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 3, 0 and 1"):
        LSTM(3, 0)
