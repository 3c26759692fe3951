"""AdamW and SGD: torch's numbers, state by name, and what they must leave alone."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp
from minitorch_peft.nn import Linear, Parameter, init
from minitorch_peft.optim import SGD, AdamW, Optimizer

SHAPES = {"layer.weight": (5, 7), "layer.bias": (5,), "gain": ()}
STEPS = 10


def parameters(dtype: type = np.float64) -> dict[str, Parameter]:
    rng = np.random.default_rng(0)
    return {name: Parameter(np.asarray(rng.standard_normal(s), dtype)) for name, s in SHAPES.items()}


def gradients(step: int, dtype: type = np.float64) -> dict[str, np.ndarray]:
    """Of very different sizes; the bias gets one at odd steps only."""
    rng = np.random.default_rng(100 + step)
    scale = 10.0 ** rng.integers(-4, 3)
    drawn = {name: np.asarray(scale * rng.standard_normal(s), dtype) for name, s in SHAPES.items()}
    return drawn if step % 2 else {name: g for name, g in drawn.items() if name != "layer.bias"}


def take_steps(optimizer: Optimizer, params: dict[str, Parameter], steps: range, dtype: type = np.float64) -> None:
    for step in steps:
        for name, g in gradients(step, dtype).items():
            params[name].grad = g
        optimizer.step(factor=1 / (1 + step))
        optimizer.zero_grad()


def torch_steps(make, dtype: type) -> dict[str, np.ndarray]:
    """The same steps by a torch optimizer, made by ``make(torch, list of parameters)``."""
    import torch

    params = {n: torch.nn.Parameter(torch.tensor(p.data)) for n, p in parameters(dtype).items()}
    optimizer = make(torch, list(params.values()))
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(STEPS):
        for name, g in gradients(step, dtype).items():
            params[name].grad = torch.tensor(g)
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr / (1 + step)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().numpy() for name, p in params.items()}


ADAMW = [
    {"lr": 0.1},
    {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.3},
    {"lr": 0.05, "betas": (0.0, 0.9), "weight_decay": 0.0},
]
SGD_OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.4},
    {"lr": 0.1, "momentum": 0.7, "nesterov": True, "weight_decay": 0.1},
]


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "options"), [("AdamW", o) for o in ADAMW] + [("SGD", o) for o in SGD_OPTIONS], ids=str
)
def test_equals_torch_over_ten_steps(name, options, dtype):
    expected = torch_steps(lambda torch, p: getattr(torch.optim, name)(p, **options), dtype)
    params = parameters(dtype)
    take_steps({"AdamW": AdamW, "SGD": SGD}[name](params, **options), params, range(STEPS), dtype)
    for key, p in params.items():
        assert p.dtype == dtype
        np.testing.assert_allclose(
            p.data,
            expected[key],
            rtol=2e-6 if dtype == np.float32 else 1e-13,
            atol=1e-7 if dtype == np.float32 else 0,
        )


@pytest.mark.parity
def test_groups_equal_torchs():
    def make(torch, p):
        return torch.optim.AdamW([{"params": p[:1], "weight_decay": 0.5}, {"params": p[1:], "lr": 0.02}], lr=0.1)

    expected = torch_steps(make, np.float64)
    params = parameters()
    matrix, *rest = params.items()
    groups = [{"params": [matrix], "weight_decay": 0.5}, {"params": dict(rest), "lr_scale": 0.2}]
    take_steps(AdamW(groups, lr=0.1), params, range(STEPS))
    for name, p in params.items():
        np.testing.assert_allclose(p.data, expected[name], rtol=1e-12)


@pytest.mark.parametrize("make", [lambda p: AdamW(p, lr=0.1), lambda p: SGD(p, lr=0.1, momentum=0.9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saved_and_loaded_state_goes_on_with_the_same_bits(make, dtype):
    whole = parameters(dtype)
    take_steps(make(whole), whole, range(STEPS), dtype)

    params = parameters(dtype)
    first = make(params)
    take_steps(first, params, range(4), dtype)
    saved = {key: value.copy() for key, value in first.state_dict().items()}
    second = make(params)
    second.load_state_dict(saved)
    take_steps(second, params, range(4, STEPS), dtype)
    for name in SHAPES:
        assert params[name].data.tobytes() == whole[name].data.tobytes()
    assert all((saved[key] == value).all() for key, value in first.state_dict().items()), "the state was shared"


def test_state_is_kept_by_name_and_counts_steps_with_a_gradient():
    params = parameters()
    optimizer = AdamW(params, lr=0.1)
    take_steps(optimizer, params, range(5))
    state = optimizer.state_dict()
    assert state["step.gain"] == 5 and state["step.layer.bias"] == 2
    assert state["exp_avg.layer.weight"].shape == (5, 7)
    assert len(state) == 9


def test_a_state_that_does_not_fit_changes_nothing():
    params = parameters()
    optimizer = AdamW(params, lr=0.1)
    take_steps(optimizer, params, range(3))
    state = optimizer.state_dict()
    for broken, error, message in (
        ({**state, "exp_avg.other": np.zeros(2)}, KeyError, "exp_avg.other"),
        ({**state, "exp_avg.gain": np.zeros(2)}, ValueError, r"exp_avg\.gain.*\(2,\).*\(\)"),
        ({**state, "exp_avg.gain": np.zeros((), np.float32)}, ValueError, "float32"),
        ({k: v for k, v in state.items() if k != "exp_avg_sq.gain"}, KeyError, "lacks exp_avg_sq"),
        ({**state, "momentum_buffer.gain": np.zeros(())}, KeyError, "momentum_buffer"),
    ):
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(broken)
        assert optimizer.state_dict().keys() == state.keys()
        assert optimizer.state_dict()["step.gain"] == 3


def test_parameters_change_in_place_and_only_with_a_gradient():
    params = parameters()
    arrays = {name: p.data for name, p in params.items()}
    before = arrays["gain"].copy()
    params["layer.weight"].grad = np.ones((5, 7))
    versions = {name: p.version.count for name, p in params.items()}
    AdamW(params, lr=0.1, weight_decay=0.5).step()
    assert all(p.data is arrays[name] for name, p in params.items())
    assert arrays["gain"] == before, "no gradient: not even decayed"
    assert params["layer.weight"].version.count == versions["layer.weight"] + 1
    assert params["gain"].version.count == versions["gain"]


def test_backward_notices_a_step_between_forward_and_backward():
    layer = Linear(3, 2)
    init.initialize(layer, seed=0)
    x = mp.tensor(np.ones((4, 3), np.float32), requires_grad=True)
    loss = (layer(x) * layer(x)).sum()
    layer.weight.grad = np.ones((2, 3), np.float32)
    AdamW(layer.named_parameters()).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_zero_grad_gives_the_memory_back():
    params = parameters()
    params["gain"].grad = np.ones(())
    AdamW(params).zero_grad()
    assert params["gain"].grad is None


def test_plain_parameters_are_named_by_their_position():
    a, b = Parameter(np.zeros(2)), Parameter(np.zeros(3))
    assert list(AdamW([a, b]).named_parameters()) == ["0", "1"]
    assert list(AdamW([{"params": [a]}, {"params": [b]}]).named_parameters()) == ["0", "1"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: AdamW({}), "whole model frozen"),
        (lambda p: AdamW([p, p]), "twice"),
        (lambda p: AdamW([{"params": {"a": p}}, {"params": {"b": p}}]), "two groups: b"),
        (lambda p: AdamW([{"params": {"a": p}, "rate": 1}]), "rate"),
        (lambda p: AdamW({"a": p}, lr=-1), "lr must be at least 0, got -1"),
        (lambda p: AdamW({"a": p}, lr=float("nan")), "lr must be at least 0, got nan"),
        (lambda p: AdamW({"a": p}, betas=(0.9, 1.0)), "betas"),
        (lambda p: AdamW({"a": p}, eps=-1e-8), "eps"),
        (lambda p: SGD({"a": p}, nesterov=True), "nesterov needs a momentum"),
        (lambda p: SGD({"a": p}, momentum=-0.1), "momentum"),
        (lambda p: SGD([{"params": {"a": p}, "momentum": 0.9}]), "an optimizer with momentum"),
    ],
)
def test_bad_arguments_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make(Parameter(np.zeros(2)))


def test_what_is_no_parameter_is_refused():
    with pytest.raises(TypeError, match="'w' is ndarray"):
        AdamW({"w": np.zeros(2)})
