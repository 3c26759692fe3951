"""AdapterFusion: what it computes, what it fuses, and what it says where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import IDS, MASK, TIGHT, gpt, logits, loss, optimizer_of, snapshot, stirred, train

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import (
    AdapterFusionConfig,
    DoubleSeqBnConfig,
    LoraConfig,
    ParBnConfig,
    PeftModel,
    SeqBnConfig,
    fusion_weights,
)
from minitorch_peft.peft.function.fusion_function import Attended

KINDS = {
    "pfeiffer": (SeqBnConfig(bottleneck_size=4), SeqBnConfig(bottleneck_size=3, non_linearity="gelu")),
    "houlsby": (DoubleSeqBnConfig(), DoubleSeqBnConfig(scaling=2.0)),
    "parallel": (ParBnConfig(bottleneck_size=3), ParBnConfig(bottleneck_size=5, scaling="learned")),
}


def with_two(kind="pfeiffer", dtype=np.float32):
    """A model with the adapters a and b, which matter."""
    p = PeftModel(gpt("gpt2", dtype))
    for seed, (name, config) in enumerate(zip("ab", KINDS[kind], strict=True)):
        p.add_adapter(name, config, seed=seed)
        stirred(p, name, scale=0.3)
    return p.eval()


def fused(kind="pfeiffer", adapters=("a", "b"), dtype=np.float32, **settings):
    p = with_two(kind, dtype)
    p.add_adapter("f", AdapterFusionConfig(list(adapters), **settings))
    p.set_adapter("f")
    return p


def own(p, name="f"):
    return p.adapters[name].named_parameters()


# -- the operation -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_operation_is_its_composition(n):
    rng = np.random.default_rng(n)
    arrays, G = rng.standard_normal((n + 1, 2, 3, 5)), rng.standard_normal((2, 3, 5))
    ours, theirs = ([Tensor(a.copy()).requires_grad_() for a in arrays] for _ in range(2))
    y = Attended.apply(*ours)
    q, *changes = theirs
    stack = F.stack(changes, dim=-2)
    p = F.softmax((stack * q.unsqueeze(-2)).sum(dim=-1), dim=-1)
    expected = (stack * p.unsqueeze(-1)).sum(dim=-2)
    np.testing.assert_allclose(y.data, expected.data, rtol=1e-12)
    y.backward(gradient=G)
    expected.backward(gradient=G)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-10, atol=1e-13)
    assert mp.gradcheck(Attended.apply, tuple(ours))
    frozen = [Tensor(arrays[0]).requires_grad_(), *(Tensor(a) for a in arrays[1:])]
    Attended.apply(*frozen).backward(gradient=G)
    np.testing.assert_allclose(frozen[0].grad, ours[0].grad, rtol=1e-12, atol=1e-15)


# -- what it computes ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_place_attends_to_what_the_adapters_would_do(kind, value):
    """Written in NumPy after the paper, W_V before the sum and a bias of W_K, which changes nothing."""
    p = stirred(fused(kind, dtype=np.float64, value=value), "f", scale=0.3)
    path = [*p.adapters["f"].wrappers][-1]
    x = np.random.default_rng(0).standard_normal((2, 3, 32))
    layers = {name: adapter.wrappers[path] for name, adapter in p.adapters.items()}
    f, alone = layers["f"], ForwardContext()
    h = f.base(Tensor(x), alone).data
    z = x if kind == "parallel" else h
    changes = np.stack([layers[name].added(Tensor(z)).data for name in "ab"], axis=-2)
    query = z @ f.query.weight.data.T + f.query.bias.data
    scores = np.einsum("btc,btnc->btn", query, changes @ f.key.weight.data.T + 7.0)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = e / e.sum(axis=-1, keepdims=True)
    values = changes @ f.value.weight.data.T if value else changes
    expected = h + np.einsum("btn,btnc->btc", weights, values)
    np.testing.assert_allclose(f(Tensor(x), alone).data, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_one_fused_adapter_is_that_adapter(kind):
    p = fused(kind, ["b"])
    alone = with_two(kind)
    alone.set_adapter("b")
    np.testing.assert_allclose(logits(p), logits(alone), rtol=1e-4, atol=1e-4)
    for layer in p.adapters["f"].wrappers.values():
        layer.value.weight.data[...] = np.eye(32)
    np.testing.assert_allclose(logits(p), logits(alone), rtol=1e-5, atol=1e-5)


def test_two_fused_of_the_same_values_are_one():
    p = with_two()
    p.add_adapter("twin", KINDS["pfeiffer"][0])
    for path, q in own(p, "twin").items():
        q.data[...] = own(p, "a")[path].data
    p.add_adapter("f", AdapterFusionConfig(["a", "twin"], value=False))
    p.set_adapter("a")
    alone = logits(p)
    p.set_adapter("f")
    np.testing.assert_allclose(logits(p), alone, **TIGHT)


def test_the_start_is_about_the_mean_of_the_adapters():
    p = fused()
    layer = p.adapters["f"].wrappers["blocks.0.mlp"]
    off = layer.value.weight.data[~np.eye(32, dtype=bool)]
    np.testing.assert_array_equal(np.diag(layer.value.weight.data), np.ones(32))
    np.testing.assert_array_equal(off, np.float32(1e-6))
    for part in (layer.query, layer.key):
        assert 0.017 < part.weight.data.std() < 0.023
    weights = fusion_weights(p, IDS, "f")
    assert all(np.abs(w - 0.5).mean() < 0.2 for w in weights.values())


def test_the_sub_layer_runs_once():
    p = fused("houlsby")
    calls = []
    for path in p.adapters["f"].wrappers:
        base = p.base_model.get(path).base
        forward = base.forward
        base.forward = lambda *args, path=path, forward=forward: (calls.append(path), forward(*args))[1]
    logits(p)
    assert calls == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]


# -- training ----------------------------------------------------------------------------------------------------
def test_only_the_fusion_trains():
    p = fused()
    kept = {name: snapshot_of(p, name) for name in "ab"}
    before = loss(p)
    p(IDS, labels=IDS).loss.backward()
    assert all((q.grad is None) == (q.owner != "f") for _, q in p.named_parameters())
    p.zero_grad()
    train(p, optimizer_of(p), range(5))
    assert loss(p) < before and {name: snapshot_of(p, name) for name in "ab"} == kept


def test_a_fused_adapter_learns_from_its_own_rows_only():
    p = fused()
    p.set_adapter(["a", "f"])
    p(IDS, labels=IDS, adapter_names=["f"] * 3).loss.backward()
    assert all(q.grad is None for q in own(p, "a").values())
    assert all(q.grad is not None and q.grad.any() for path, q in own(p).items() if "value" in path)
    p(IDS, labels=IDS, adapter_names=["f", "a", "f"]).loss.backward()
    mixed = {path: q.grad for path, q in own(p, "a").items()}
    p.zero_grad()
    p(IDS, labels=IDS, adapter_names=["__base__", "a", "__base__"]).loss.backward()
    for path, q in own(p, "a").items():
        np.testing.assert_allclose(q.grad, mixed[path], rtol=1e-4, atol=1e-6)


def snapshot_of(p, name):
    return {path: q.data.tobytes() for path, q in own(p, name).items()}


def test_the_penalty_holds_the_values_near_the_identity():
    p = fused("pfeiffer", dtype=np.float64)
    rest = sum(32 * 31 * 1e-12 for _ in range(2)) * 0.01
    np.testing.assert_allclose(p.penalty().item(), rest, rtol=1e-6)
    own(p)["blocks.1.mlp.value.weight"].data[3, 4] += 2.0
    np.testing.assert_allclose(p.penalty().item(), 0.04, rtol=1e-4)
    p.penalty().backward()
    np.testing.assert_allclose(own(p)["blocks.1.mlp.value.weight"].grad[3, 4], 0.04, rtol=1e-4)
    assert fused(regularization=False).penalty() is None and fused(value=False).penalty() is None


def test_it_learns_which_adapter_serves():
    """One adapter was trained on these rows, the other is noise: the attention finds out."""
    p = with_two()
    p.set_adapter("a")
    train(p, optimizer_of(p, lr=2e-2), range(40))
    good = loss(p)
    p.add_adapter("f", AdapterFusionConfig(["a", "b"], value=False))
    p.set_adapter("f")
    start, weights = loss(p), mean_weight(p)
    train(p, optimizer_of(p, lr=1e-2), range(40))
    assert mean_weight(p) > weights + 0.1 and loss(p) < start - 0.3 * (start - good)


def mean_weight(p):
    return np.mean([w[..., 0].mean() for w in fusion_weights(p, IDS, "f").values()])


# -- the weights -------------------------------------------------------------------------------------------------
def test_the_weights_can_be_read_and_are_not_kept():
    p = stirred(fused("houlsby"), "f", scale=0.3)
    before = logits(p, attention_mask=MASK)
    weights = fusion_weights(p, IDS, "f", attention_mask=MASK)
    assert list(weights) == [*p.adapters["f"].wrappers]
    for w in weights.values():
        assert w.shape == (3, 8, 2) and w.std() > 0
        np.testing.assert_allclose(w.sum(axis=-1), 1, rtol=1e-6)
    assert all(layer.weights is None for layer in p.adapters["f"].wrappers.values())
    np.testing.assert_array_equal(logits(p, attention_mask=MASK), before)
    for name in ("a", "nobody"):
        with pytest.raises(ValueError, match=f"'{name}' is no fusion that acts: .*; active: f"):
            fusion_weights(p, IDS, name)
    p.set_adapter("a")
    with pytest.raises(ValueError, match="'f' is no fusion that acts"):
        fusion_weights(p, IDS, "f")


# -- with others ---------------------------------------------------------------------------------------------------
def test_whatever_stands_around_whatever():
    p = stirred(fused(), "f", scale=0.3)
    expected = logits(p)
    for names in ("a", "b", "f"):
        p.set_adapter(names)
    np.testing.assert_array_equal(logits(p), expected)
    p.set_adapter(["a", "b"])
    rows = logits(p, adapter_names=["f", "a", "__base__"])  # a and b stand around f now
    p.set_adapter("f")
    np.testing.assert_allclose(rows[0], expected[0], **TIGHT)
    np.testing.assert_allclose(rows[2], logits(gpt("gpt2"))[2], **TIGHT)


def test_saved_and_loaded_together(tmp_path):
    p = stirred(fused(), "f", scale=0.3)
    p.save_pretrained(tmp_path, ["a", "b", "f"])
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert again.active_adapters == ("f",) and again.adapters["f"].config == p.adapters["f"].config
    np.testing.assert_array_equal(logits(again), logits(p))


def test_a_fusion_on_a_low_rank_change():
    p = stirred(fused(), "f", scale=0.3)
    p.add_adapter("lora", LoraConfig(r=2, target_modules=["up_proj"]))
    stirred(p, "lora", scale=0.3)
    before = logits(p)
    p.set_adapter(["lora", "f"], train="f")
    together = logits(p)
    assert np.abs(together - before).max() > 1e-3
    merged = PeftModel(gpt("gpt2")).eval()
    merged.add_adapter("lora", p.adapters["lora"].config)
    for path, q in own(merged, "lora").items():
        q.data[...] = own(p, "lora")[path].data
    merged.set_adapter("lora")
    base = PeftModel(merged.merge_and_unload())
    for name in ("a", "b", "f"):
        base.add_adapter(name, p.adapters[name].config)
        for path, q in own(base, name).items():
            q.data[...] = own(p, name)[path].data
    base.set_adapter("f")
    np.testing.assert_allclose(logits(base.eval()), together, rtol=1e-4, atol=1e-4)


# -- errors --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "adapters, message",
    [
        (["a", "c"], "no adapter 'c' stands around a module; those that do: .*a.*; attach it first"),
        (
            ["a", "lora"],
            "lora is no bottleneck adapter: fuse adapters of SeqBnConfig, DoubleSeqBnConfig or ParBnConfig",
        ),
        (
            ["a", "houlsby"],
            "houlsby stands at blocks.0.attn, .* a at blocks.0.mlp, .*: fuse adapters of the same places",
        ),
        (["a", "parallel"], "some of a, parallel are parallel, some not: fuse adapters of one kind"),
    ],
)
def test_what_cannot_be_fused_is_named_and_nothing_changes(adapters, message):
    p = with_two()
    p.add_adapter("lora", LoraConfig(r=2))
    p.add_adapter("houlsby", DoubleSeqBnConfig())
    p.add_adapter("parallel", ParBnConfig())
    tree, bits = repr(p), snapshot(p.base_model)
    with pytest.raises(ValueError, match=message):
        p.add_adapter("f", AdapterFusionConfig(adapters))
    assert repr(p) == tree and snapshot(p.base_model) == bits and "f" not in p.adapters


@pytest.mark.parametrize("adapters", [[], ["a", "a"], "a"])
def test_settings_are_checked_at_once(adapters):
    with pytest.raises(ValueError, match="adapters must name the adapters to fuse, each once, got"):
        AdapterFusionConfig(adapters)


def test_a_fused_adapter_that_was_deleted_is_named_at_the_next_pass():
    p = fused()
    expected, config, values = logits(p), p.adapters["a"].config, {path: q.data for path, q in own(p, "a").items()}
    p.delete_adapter("a")
    with pytest.raises(ValueError, match="f fuses a, which was deleted: add or load it again, or delete f too"):
        logits(p)
    with p.disable_adapter():
        np.testing.assert_array_equal(logits(p), logits(gpt("gpt2")))
    p.add_adapter("a", LoraConfig(r=2, target_modules=["down_proj"]))
    with pytest.raises(ValueError, match="f fuses a, which was deleted"):
        logits(p)
    p.delete_adapter("a")
    p.add_adapter("a", config)
    for path, q in own(p, "a").items():
        q.data[...] = values[path]
    np.testing.assert_array_equal(logits(p), expected)
    p.delete_adapter("f")
    np.testing.assert_array_equal(logits(p), logits(gpt("gpt2")))


def test_a_fused_adapter_does_not_act_as_well():
    p = fused()
    p.set_adapter(["a", "f"], train="f")
    with pytest.raises(ValueError, match=r"a is fused by f and acts itself, which is twice: set_adapter\('f'\) alone"):
        logits(p)


def test_a_fused_adapter_is_not_replaced_by_one_of_another_kind():
    p = fused()
    p.delete_adapter("b")
    p.add_adapter("b", ParBnConfig(bottleneck_size=3))
    with pytest.raises(ValueError, match="some of a, b are parallel, some not: fuse adapters of one kind"):
        logits(p)
    p.delete_adapter("b")
    p.add_adapter("b", SeqBnConfig(bottleneck_size=5))
    assert np.isfinite(logits(p)).all()
