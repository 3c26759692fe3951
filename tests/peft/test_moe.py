"""Routed experts: who runs on what, what they add up to, and what balances them."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import IDS, MASK, TIGHT, gpt, logits, optimizer_of, stirred, train

import minitorch_peft as mp
from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import LoraConfig, MoEConfig, MoELoraConfig, get_peft_model
from minitorch_peft.peft.function import expert_load
from minitorch_peft.peft.function.routing import Combine, balance
from minitorch_peft.peft.registry import METHODS, method_of
from minitorch_peft.training import TrainConfig
from minitorch_peft.training import train as run

CONFIGS = [MoEConfig(), MoEConfig(mode="replace"), MoELoraConfig(target_modules=["mlp"]), MoEConfig(top_k=1)]
configs = pytest.mark.parametrize("config", CONFIGS, ids=["parallel", "replace", "lora", "one"])
X = np.random.default_rng(0).standard_normal((3, 8, 32))


def layer_of(p, path="blocks.0.mlp"):
    return p.adapters["default"].wrappers[path]


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def float64(config, family="gpt2"):
    return stirred(get_peft_model(gpt(family, np.float64), config))


# -- who runs on what ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@configs
def test_the_gathered_experts_add_up_to_what_all_would_give_under_their_gates(config, family):
    p = float64(config, family)
    layer, context = layer_of(p), ForwardContext()
    z = X @ layer.router.weight.data.T
    chosen = np.argsort(-z, axis=-1)[..., : config.top_k]
    gates = np.zeros_like(z)
    for b, t in np.ndindex(3, 8):
        k = chosen[b, t]
        gates[b, t, k] = softmax(z[b, t])[k] if config.top_k == 1 else softmax(z[b, t, k])
    with no_grad():
        everything = [expert(Tensor(X.reshape(24, 32)), context).data.reshape(3, 8, -1) for expert in layer.experts]
        expected = sum(gates[..., i, None] * y for i, y in enumerate(everything))
        if getattr(config, "mode", "parallel") == "parallel":
            expected = expected + layer.base_layer(Tensor(X), context).data
        y = layer(Tensor(X), context).data
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)


def watch(layer):
    """How many tokens each expert gets, call by call."""
    seen = []
    for i, expert in enumerate(layer.experts):
        expert.forward = lambda x, context, i=i, f=expert.forward: (seen.append((i, len(x.data))), f(x, context))[1]
    return seen


@configs
def test_an_expert_runs_on_its_own_tokens_only(config):
    p = float64(config)
    layer = layer_of(p)
    seen = watch(layer)
    logits(p)
    assert [i for i, _ in seen] == [0, 1, 2, 3] and sum(n for _, n in seen) == 24 * config.top_k
    np.testing.assert_allclose(layer.router.load, [n / (24 * config.top_k) for _, n in seen])


def test_no_expert_sees_the_rows_of_others():
    p = float64(MoEConfig())
    seen = watch(layer_of(p))
    logits(p, adapter_names=["default", "__base__", "__base__"])
    assert sum(n for _, n in seen) == 8 * 2


def test_only_an_adapter_s_own_rows_are_counted():
    p = float64(MoEConfig(layers_to_transform=0)).train()
    rows = ["default", "__base__", "default"]
    p(IDS, attention_mask=MASK, adapter_names=rows, context=ForwardContext())
    load, penalty = layer_of(p).router.load, p.penalty().item()
    p(IDS[::2], attention_mask=MASK[::2], context=ForwardContext())
    np.testing.assert_allclose(layer_of(p).router.load, load)
    assert p.penalty().item() == pytest.approx(penalty)


def test_an_expert_without_tokens_is_left_as_it_is():
    p = float64(MoEConfig(top_k=1, aux_loss_coef=0.0))
    layer = layer_of(p)
    layer.router.weight.data[...] = 0  # a tie: the first of equals gets all
    p.train()(IDS, labels=IDS, context=ForwardContext()).loss.backward()
    assert layer.router.load == [1, 0, 0, 0]
    gradients = [max(np.abs(q.grad).max() for q in expert.parameters()) for expert in layer.experts]
    assert gradients[0] > 0 and gradients[1:] == [0, 0, 0]


def test_the_gradients_of_combining_with_an_expert_that_has_no_token():
    rng = np.random.default_rng(1)
    chosen = np.array([[0, 3], [1, 0], [3, 1], [0, 1], [1, 3]])
    where = [np.nonzero(chosen == i) for i in range(4)]
    leaves = [mp.tensor(rng.standard_normal(shape), requires_grad=True) for shape in [(5, 2), (3, 6), (4, 6), (3, 6)]]
    empty = mp.tensor(np.zeros((0, 6)))

    def combine(gates, a, b, c):
        return Combine.apply(gates, a, b, empty, c, where=where)

    assert mp.gradcheck(combine, leaves)
    y = combine(*leaves).data
    np.testing.assert_allclose(y[1], leaves[0].data[1] @ np.stack([leaves[2].data[0], leaves[1].data[1]]))


# -- the router ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_learns_from_the_loss_alone(top_k):
    p = float64(MoEConfig(top_k=top_k, aux_loss_coef=0.0)).train()
    p(IDS, labels=IDS, context=ForwardContext()).loss.backward()
    assert np.abs(layer_of(p).router.weight.grad).max() > 1e-5
    assert p.penalty() is None


def test_the_balance_is_that_of_the_switch_transformer():
    p = float64(MoEConfig(aux_loss_coef=0.5, layers_to_transform=[1])).train()
    layer, inputs = layer_of(p, "blocks.1.mlp"), []
    router = layer.router.forward
    layer.router.forward = lambda x, *rest: (inputs.append(x.data), router(x, *rest))[1]
    p(IDS, attention_mask=MASK, context=ForwardContext())
    (x,) = inputs
    z = x[MASK.reshape(-1)] @ layer.router.weight.data.T  # padding is not counted
    chosen = np.argsort(-z, axis=1)[:, :2]
    f = np.bincount(chosen.ravel(), minlength=4) / chosen.size
    np.testing.assert_allclose(p.penalty().item(), 0.5 * 4 * (f * softmax(z).mean(axis=0)).sum(), rtol=1e-10)
    np.testing.assert_allclose(layer.router.load, f)


def test_the_balance_is_one_where_all_is_even_and_more_where_it_is_not():
    counted, even = np.ones(8, bool), np.full(4, 0.25)
    assert balance(Tensor(np.full((8, 4), 0.25)), even, counted).item() == pytest.approx(1)
    one = np.eye(4)[[0] * 8]
    assert balance(Tensor(one), one[0], counted).item() == pytest.approx(4)


def test_the_gradient_of_the_penalty():
    p = float64(MoELoraConfig(aux_loss_coef=1.0)).train()

    def penalty():
        p(IDS, attention_mask=MASK, context=ForwardContext())
        return p.penalty()

    routers = {n: q for n, q in p.trainable_parameters().items() if n.startswith("blocks.1.mlp.up_proj.router")}
    assert routers and mp.gradcheck(penalty, (), parameters=routers)


def test_the_penalty_evens_out_the_load():
    p = get_peft_model(gpt("gpt2"), MoEConfig(top_k=1, layers_to_transform=0))
    router = layer_of(p).router
    router.weight.data[...] *= 0.1
    router.weight.data[0] += 0.05 * np.sign(np.random.default_rng(0).standard_normal(32))
    uneven = expert_load(p, IDS)["blocks.0.mlp.default"]
    optimizer = optimizer_of(p, lr=1e-2)
    p.train()
    for step in range(60):
        p(IDS, context=ForwardContext(step=step))
        p.penalty().backward()
        optimizer.step()
        p.after_step(step)
        optimizer.zero_grad()
    assert expert_load(p, IDS)["blocks.0.mlp.default"].std() < uneven.std()


def test_what_was_routed_is_kept_for_the_step_only():
    p = get_peft_model(gpt("gpt2"), MoEConfig()).train()
    p(IDS, context=ForwardContext())
    assert p.penalty() is not None and p.penalty().requires_grad  # it may be read twice
    p.after_step(0)
    assert p.penalty() is None
    with no_grad():
        p(IDS, context=ForwardContext())
    assert not p.penalty().requires_grad
    p.eval()(IDS, context=ForwardContext())
    assert p.penalty() is None


def test_a_pass_that_goes_round_the_router_leaves_no_penalty():
    p = get_peft_model(gpt("gpt2"), MoEConfig(), "m").train()
    p(IDS, context=ForwardContext())
    with p.disable_adapter():
        p(IDS, context=ForwardContext())
        assert p.penalty() is None


def test_gradients_of_batches_under_different_adapters_accumulate():
    p = get_peft_model(gpt("gpt2"), MoEConfig(layers_to_transform=0), "m")
    p.add_adapter("l", LoraConfig(r=2))
    p.set_adapter(["m", "l"])
    alone = [{"input_ids": IDS, "labels": IDS, "adapter_names": [name] * 3} for name in "ml"]
    run(p, lambda i: alone[i % 2], TrainConfig(steps=2, gradient_accumulation_steps=2))


def test_jitter_is_drawn_from_the_pass_s_key_and_in_training_only():
    p = stirred(get_peft_model(gpt("gpt2"), MoEConfig(router_jitter=0.5)))
    quiet = logits(p)
    np.testing.assert_array_equal(logits(p, context=ForwardContext(seed=1)), quiet)
    p.train()
    one, again, other = (logits(p, context=ForwardContext(seed=1, step=step)) for step in (3, 3, 4))
    assert np.array_equal(one, again) and not np.array_equal(one, other) and not np.array_equal(one, quiet)


def test_the_load_of_every_layer_is_there_to_be_plotted():
    p = stirred(get_peft_model(gpt("gpt2"), MoELoraConfig(num_experts=5))).train()
    load = expert_load(p, IDS, attention_mask=MASK)
    assert list(load) == [f"blocks.{i}.mlp.{leaf}.default" for i in (0, 1) for leaf in ("up_proj", "down_proj")]
    assert all(share.shape == (5,) and share.sum() == pytest.approx(1) for share in load.values())
    assert p.training
    p.add_adapter("other", MoEConfig(num_experts=3))
    assert list(expert_load(p, IDS, adapter_names=["other"] * 3)) == ["blocks.0.mlp.other", "blocks.1.mlp.other"]


# -- in place of the MLP -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama", "llama-4bit"])
def test_copies_of_the_mlp_start_as_it(family):
    config = MoEConfig(mode="replace", num_experts=3)
    p = get_peft_model(gpt(family), config)
    np.testing.assert_allclose(logits(p), logits(gpt(family)), **TIGHT)
    assert method_of(config).name == "moe_replace" and method_of(MoEConfig()).name == "moe"


@pytest.mark.parametrize("name, other, mode", [("moe_replace", "moe", "parallel"), ("moe", "moe_replace", "replace")])
def test_a_method_makes_no_config_of_another(name, other, mode):
    with pytest.raises(ValueError, match=f"mode='{mode}': this is the method '{other}' then, not '{name}'"):
        METHODS[name].make({"mode": mode})
    assert method_of(METHODS[name].make({"num_experts": 3})).name == name


def test_the_frozen_mlp_is_not_run():
    p = get_peft_model(gpt("gpt2"), MoEConfig(mode="replace"))
    for i in range(2):
        p.base_model.blocks[i].mlp.base.forward = None
    assert np.isfinite(logits(p)).all()


def test_what_would_have_no_effect_is_refused():
    p = get_peft_model(gpt("gpt2"), MoEConfig(mode="replace"))
    p.add_adapter("lora", LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(ValueError, match=r"default \(moe_replace\) and lora \(lora\) do not act together"):
        p.set_adapter(["default", "lora"])


def test_copies_come_apart():
    p = get_peft_model(gpt("gpt2"), MoEConfig(mode="replace", num_experts=3, layers_to_transform=0))
    train(p, optimizer_of(p), range(5))
    a, b, c = (expert.up_proj.weight.data for expert in layer_of(p).experts)
    assert min(np.abs(a - b).max(), np.abs(b - c).max(), np.abs(a - c).max()) > 1e-3


# -- configs ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config, settings, message",
    [
        (MoEConfig, {"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        (MoEConfig, {"top_k": 5}, "top_k=5 of num_experts=4: there are not so many"),
        (MoEConfig, {"router_jitter": 1.0}, r"router_jitter lie in \[0, 1\), got 0.01 and 1.0"),
        (MoEConfig, {"mode": "beside"}, "mode='beside': expected one of"),
        (MoEConfig, {"expert_size": 0}, "expert_size must be a whole number of at least 1, got 0"),
        (MoEConfig, {"expert_size": True}, "expert_size must be a whole number of at least 1, got True"),
        (MoEConfig, {"aux_loss_coef": "x"}, "aux_loss_coef must be a number, got 'x'"),
        (MoEConfig, {"layers_to_transform": True}, "layers_to_transform must be whole numbers or None, got True"),
        (MoEConfig, {"mode": "replace", "expert_size": 8}, "leave expert_size out"),
        (MoEConfig, {"mode": "replace", "top_k": 1}, "let top_k be at least 2"),
        (MoEConfig, {"layers_to_transform": [2]}, r"layers_to_transform=\[2\]: the blocks are 0, 1"),
        (MoELoraConfig, {"r": 0}, "r must be a whole number of at least 1, got 0"),
        (MoELoraConfig, {"r": 33}, "r=33 is above the rank of blocks.0.mlp.up_proj: at most 32"),
        (MoELoraConfig, {"lora_alpha": 0}, "lora_alpha must be a positive number, got 0"),
        (MoELoraConfig, {"target_modules": ["up_prj"]}, "'up_prj' matches no linear layer or mlp; nearest: up_proj"),
    ],
)
def test_bad_settings_say_what_would_be_valid(config, settings, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(gpt("gpt2"), config(**settings))
