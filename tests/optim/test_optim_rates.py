"""Schedules, clipping and parameter groups."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import Parameter
from minitorch_peft.optim import (
    SCHEDULES,
    clip_grad_norm_,
    constant,
    cosine,
    decay_groups,
    get_total_norm,
    layerwise_groups,
    linear,
)


# -- schedules -----------------------------------------------------------------------------------------------
@given(
    name=st.sampled_from(sorted(SCHEDULES)), total=st.integers(1, 300), warmup=st.integers(0, 50),
    floor=st.floats(0, 1),
)  # fmt: skip
def test_a_schedule_rises_to_one_and_falls_to_its_floor(name, total, warmup, floor):
    factors = [SCHEDULES[name](step, total, warmup, floor) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    assert all(a < b for a, b in pairwise(factors[: warmup + 1]))
    after = factors[warmup:]
    assert not after or math.isclose(after[0], 1)
    assert all(a >= b - 1e-12 for a, b in pairwise(after))
    if name != "constant":
        assert all(f >= floor - 1e-12 for f in after)
        assert math.isclose(SCHEDULES[name](max(total, warmup + 1), total, warmup, floor), floor, abs_tol=1e-12)


def test_values_by_hand():
    assert [linear(s, 10, warmup=2, floor=0.2) for s in (0, 1, 2, 6, 10)] == pytest.approx([1 / 3, 2 / 3, 1, 0.6, 0.2])
    assert [cosine(s, 10, warmup=2) for s in (2, 4, 6, 8)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert constant(7, 10) == 1


@pytest.mark.parity
@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_after_the_warm_up_the_factors_are_those_of_transformers(name):
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name_there = "constant_with_warmup" if name == "constant" else name
    there = get_scheduler(name_there, optimizer, num_warmup_steps=5, num_training_steps=40).lr_lambdas[0]
    for step in range(5, 41):
        assert SCHEDULES[name](step, 40, 5) == pytest.approx(there(step), abs=1e-12)


# -- clipping ------------------------------------------------------------------------------------------------
def with_gradients(seed: int, dtype: type) -> list[Parameter]:
    rng = np.random.default_rng(seed)
    params = [Parameter(np.zeros(shape, dtype)) for shape in ((3, 4), (5,), (2, 2, 2))]
    for p in params[:-1]:  # the last has none
        p.grad = rng.standard_normal(p.shape).astype(dtype)
    return params


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_clipping_equals_torchs(dtype, norm_type, max_norm):
    import torch

    ours = with_gradients(0, dtype)
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]
    for p, q in zip(ours, theirs, strict=True):
        q.grad = None if p.grad is None else torch.tensor(p.grad)
    norm = clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type).item()
    rtol = 1e-6 if dtype == np.float32 else 1e-14
    assert norm == pytest.approx(expected, rel=rtol)
    for p, q in zip(ours[:-1], theirs, strict=False):
        assert p.grad.dtype == dtype
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=rtol)
    assert ours[-1].grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_an_error_if_asked_for(bad):
    params = with_gradients(1, np.float32)
    params[0].grad[1, 2] = bad
    before = params[1].grad.copy()
    with pytest.raises(RuntimeError, match="cannot be clipped"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert (params[1].grad == before).all()
    with np.errstate(invalid="ignore"):
        assert not math.isfinite(clip_grad_norm_(params, 1.0))


def test_a_tiny_gradient_is_scaled_as_torch_scales_it():
    p = Parameter(np.zeros(2))
    p.grad = np.array([3e-6, 4e-6])
    clip_grad_norm_([p], max_norm=1e-6)
    np.testing.assert_allclose(p.grad, [0.5e-6, 4e-6 / 6])


def test_float32_gradients_too_large_to_square_are_measured():
    assert get_total_norm([np.full(4, 1e30, np.float32)]) == pytest.approx(2e30)


def test_nothing_to_clip():
    assert clip_grad_norm_([Parameter(np.zeros(2))], 1.0) == 0
    assert get_total_norm([]) == 0
    with pytest.raises(ValueError, match="norm_type"):
        get_total_norm([], norm_type=0)


# -- groups --------------------------------------------------------------------------------------------------
def model(n_layer: int = 3) -> GPT:
    return GPT(GPTConfig(vocab_size=7, n_positions=8, n_embd=4, n_layer=n_layer, n_head=2))


def test_matrices_decay_and_the_rest_does_not():
    gpt = model()
    gpt.get("blocks.0.ln_1.weight").requires_grad_(False)
    matrices, rest = decay_groups(gpt.named_parameters())
    assert "weight_decay" not in matrices and rest["weight_decay"] == 0
    assert all(p.ndim == 2 for p in matrices["params"].values())
    assert {n.rpartition(".")[2] for n in rest["params"]} == {"bias", "weight"}
    everything = {*matrices["params"], *rest["params"]}
    assert everything == {n for n, _ in gpt.named_parameters()} - {"blocks.0.ln_1.weight"}


def test_lower_layers_learn_more_slowly():
    scale = {n: g["lr_scale"] for g in layerwise_groups(model(), 0.5) for n in g["params"]}
    assert scale["ln_f.weight"] == 1
    assert [scale[f"blocks.{i}.attn.q_proj.weight"] for i in (2, 1, 0)] == [0.5, 0.25, 0.125]
    assert scale["embed.tokens.weight"] == scale["embed.positions.weight"] == 0.0625
    assert scale.keys() == dict(model().named_parameters()).keys()


@pytest.mark.parametrize("decay", [0, -1, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        layerwise_groups(model(), decay)


def test_a_model_without_blocks_has_no_layers():
    with pytest.raises(ValueError, match="blocks"):
        layerwise_groups(model().ln_f, 0.5)
