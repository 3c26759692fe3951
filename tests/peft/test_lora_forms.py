"""LoRA's fused forms in the model: dropout that is drawn again, and rows of one batch under several adapters."""

from __future__ import annotations

import numpy as np
import pytest
import toy_methods
from minitorch_peft.kernels.four_bit.reference import quantize_4bit
from peft_cases import IDS, TIGHT, gpt, logits, loss, optimizer_of, stir, stirred

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.autograd.random import counter_seed
from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.nn import ForwardContext
from minitorch_peft.ops.linear_4bit import linear_4bit
from minitorch_peft.peft import LoraConfig, PeftModel, get_peft_model
from minitorch_peft.peft.parameter import lora, lora_functions
from minitorch_peft.peft.parameter.lora import LoraLayer
from minitorch_peft.peft.parameter.lora_functions import LoraDropout, LoraDropout4bit, LoraGathered

DROPPING = LoraConfig(r=2, lora_dropout=0.4, target_modules="all-linear")
NAMES = ("a", "b", "c")
ROWS = ["b", "__base__", "a"]


@pytest.fixture
def calls(monkeypatch):
    """How often each fused operation was applied in the LoRA layers."""
    counts = {"LoraLinear": 0, "LoraDropout": 0, "LoraGathered": 0}

    def counted(name):
        class Counted(getattr(lora, name)):
            @classmethod
            def apply(cls, *args, **constants):
                counts[name] += 1
                return super().apply(*args, **constants)

        return Counted

    for name in counts:
        monkeypatch.setattr(lora, name, counted(name))
    return counts


# -- dropout ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [(), ("W",), ("W", "b", "x")])
def test_gradients_with_dropout(bias, trained):
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 5), "W": (4, 5), "b": (4,), "A": (2, 5), "B": (4, 2)}
    t = {n: mp.tensor(rng.standard_normal(s), requires_grad=n in (*trained, "A", "B")) for n, s in shapes.items()}
    t["b"] = t["b"] if bias else None
    inputs = [v for v in t.values() if v is not None and v.requires_grad]
    assert mp.gradcheck(lambda *_: LoraDropout.apply(*t.values(), s=0.7, p=0.4, seed=3), inputs)


@pytest.mark.parametrize("shape", [(2, 3, 5), (5,), (0, 5)])
@pytest.mark.parametrize("trained", ["x", "AB", "xbAB"])
def test_dropout_over_four_bits(shape, trained, monkeypatch):
    """Against dropout as an operation of its own; the mask of two rows at a time."""
    monkeypatch.setattr(lora_functions, "MASKED", 10)
    rng = np.random.default_rng(0)
    q = quantize_4bit(rng.standard_normal((4, 5)), 32, compress_statistics=True)
    shapes = {"x": shape, "b": (4,), "A": (2, 5), "B": (4, 2)}
    t = {n: mp.tensor(rng.standard_normal(s), requires_grad=n in trained) for n, s in shapes.items()}
    constants = {"q": q, "s": 0.7, "p": 0.4, "seed": counter_seed(1, "site", 2)}
    low = F.linear(F.linear(F.dropout(t["x"], 0.4, key=(1, "site", 2)), t["A"]), t["B"]) * 0.7
    expected = linear_4bit(t["x"], q, t["b"]) + low
    np.testing.assert_allclose(LoraDropout4bit.apply(*t.values(), **constants).data, expected.data, 1e-12, 1e-12)
    inputs = [v for v in t.values() if v.requires_grad]
    assert mp.gradcheck(lambda *_: LoraDropout4bit.apply(*t.values(), **constants), inputs)


def with_an_idle_adapter_below(config):
    """The same adapter over another one, where it runs as base plus difference."""
    p = PeftModel(gpt("gpt2"))
    p.add_adapter("idle", LoraConfig(r=2, target_modules="all-linear"), seed=3)
    p.add_adapter("default", config)
    p.set_adapter("default")
    return stirred(p)


def test_fused_dropout_is_the_plain_one_with_the_same_mask(calls):
    """And so are its gradients."""
    found = []
    for p in (stirred(get_peft_model(gpt("gpt2"), DROPPING)), with_an_idle_adapter_below(DROPPING)):
        out = p.train()(IDS, labels=IDS, context=ForwardContext(seed=1, step=2))
        out.loss.backward()
        found.append((out.logits.data, *(q.grad for q in p.trainable_parameters().values())))
    assert calls["LoraDropout"] == 12
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_dropout_repeats_with_its_key_and_acts_in_training_only(calls):
    p = stirred(get_peft_model(gpt("gpt2"), DROPPING)).train()

    def run(**key):
        with no_grad():
            return p(IDS, context=ForwardContext(**key)).logits.data

    first = run(seed=1, step=2)
    assert np.array_equal(first, run(seed=1, step=2))
    for key in ({"seed": 1, "step": 3}, {"seed": 2, "step": 2}):
        assert np.abs(run(**key) - first).max() > 1e-3
    assert calls == {"LoraLinear": 0, "LoraDropout": 48, "LoraGathered": 0}
    p.eval()
    assert np.array_equal(run(seed=1, step=2), run(seed=1, step=3)) and calls["LoraDropout"] == 48


def test_dropout_keeps_nothing_of_the_size_of_x_but_x():
    x, W, A, B = (mp.tensor(np.ones(s, np.float32)) for s in ((50, 64), (96, 64), (2, 64), (96, 2)))
    A.requires_grad_(True)
    saved = LoraDropout.apply(x, W, None, A, B, s=1.0, p=0.5, seed=0).grad_fn.saved
    assert [a.shape for a in saved if a is not x.data] == [(50, 2), (96, 64), (2, 64), (96, 2)]


# -- several adapters in one batch -----------------------------------------------------------------------------------
def mixture(config=None, family="gpt2", dtype=np.float32):
    """A model with three adapters, all of which matter and train; each row of ROWS under its own."""
    p = PeftModel(gpt(family, dtype))
    for i, name in enumerate(NAMES):
        p.add_adapter(name, config or LoraConfig(r=2, lora_alpha=2 + i, target_modules="all-linear"), seed=i)
        stir(p.adapters[name].named_parameters(), seed=i)
    p.set_adapter(NAMES)
    return p


def alone(p, row, name, ids=IDS):
    """The logits of one row that runs by itself."""
    trained = p.active_adapters
    if name == "__base__":
        with p.disable_adapter():
            return logits(p, ids[row : row + 1])[0]
    p.set_adapter(name)
    out = logits(p, ids[row : row + 1])[0]
    p.set_adapter(trained)
    return out


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("names", [ROWS, ["a", "a", "b"], ["__base__", "__base__", "c"]])
def test_a_mixed_batch_is_one_gathered_call_a_layer(calls, family, names):
    p = mixture(family=family)
    mixed = logits(p, adapter_names=names)
    layers = len(p.adapters["a"].wrappers)
    assert calls == {"LoraLinear": 0, "LoraDropout": 0, "LoraGathered": layers}
    for row, name in enumerate(names):
        np.testing.assert_allclose(mixed[row], alone(p, row, name), **TIGHT)


def test_rows_that_agree_need_no_gathering(calls):
    p = mixture()
    same = logits(p, adapter_names=["b"] * 3)
    assert calls["LoraGathered"] == 0
    p.set_adapter("b")
    np.testing.assert_allclose(same, logits(p), **TIGHT)


def gradients(p, names, ids=IDS):
    p.zero_grad()
    p(ids, labels=ids, adapter_names=names).loss.backward()
    return {n: q.grad for n, q in p.named_parameters()}


def test_training_a_mixed_batch_trains_each_adapter_on_its_own_rows(calls):
    p = mixture(dtype=np.float64)
    p.set_adapter(NAMES, train=["a", "b"])
    mixed = gradients(p, ["b", "c", "a"])
    assert calls["LoraGathered"] == 12
    assert all((g is None) == (not n.endswith((".a", ".b"))) for n, g in mixed.items())
    for row, name in ((0, "b"), (2, "a")):
        own = gradients(p, [name], IDS[row : row + 1])
        for n in (n for n in mixed if n.endswith(f".{name}")):
            np.testing.assert_allclose(3 * mixed[n], own[n], rtol=1e-9, atol=1e-12)  # the loss is a mean over rows


def test_a_step_on_a_mixed_batch_leaves_other_adapters_alone():
    p = mixture()
    p.set_adapter(NAMES, train=["b"])
    kept = {n: q.data.copy() for n, q in p.named_parameters() if not n.endswith(".b")}
    before = loss(p, adapter_names=["b", "a", "b"])
    optimizer = optimizer_of(p)
    for _ in range(5):
        p(IDS, labels=IDS, adapter_names=["b", "a", "b"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss(p, adapter_names=["b", "a", "b"]) < before
    assert all(np.array_equal(q.data, kept[n]) for n, q in p.named_parameters() if n in kept)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [("A0", "B1"), ("x",), ("x", "W", "b", "A0", "A1", "B0", "B1")])
def test_gradients_of_a_mixed_batch(bias, trained):
    rng = np.random.default_rng(0)
    shapes = {
        "x": (3, 2, 2, 5), "W": (4, 5), "b": (4,), "A0": (2, 5), "A1": (2, 5), "B0": (4, 2), "B1": (4, 2),
    }  # fmt: skip
    t = {n: mp.tensor(rng.standard_normal(s), requires_grad=n in trained) for n, s in shapes.items()}
    t["b"] = t["b"] if bias else None
    inputs = [v for v in t.values() if v is not None and v.requires_grad]
    constants = {"s": (0.7, -2.0), "owner": np.array([1, -1, 0])}
    assert mp.gradcheck(lambda *_: LoraGathered.apply(*t.values(), **constants), inputs)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (3, 5)])
def test_empty_batches_and_vectors(shape):
    t = [mp.tensor(np.ones(s, np.float32), requires_grad=True) for s in (shape, (4, 5), (4,), (2, 5), (4, 2))]
    y = LoraGathered.apply(*t, s=(1.0,), owner=np.zeros(shape[0], np.int64))
    y.sum().backward()
    assert y.shape == (*shape[:-1], 4) and t[0].grad.shape == shape


# -- where the chain of wrappers is another one ----------------------------------------------------------------------
def test_unequal_ranks_run_one_after_the_other(calls):
    p = mixture(LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    p.add_adapter("wide", LoraConfig(r=3, target_modules=["q_proj"]), seed=9)
    stir(p.adapters["wide"].named_parameters(), seed=9)
    names = ["wide", "a", "b"]
    mixed = logits(p, adapter_names=names)
    assert calls["LoraGathered"] == 2 + 2  # on q_proj from the second wrapper on, and on up_proj
    for row, name in enumerate(names):
        np.testing.assert_allclose(mixed[row], alone(p, row, name), **TIGHT)


def test_adapters_that_drop_run_one_after_the_other_in_training(calls):
    p = mixture(DROPPING)
    p.train()(IDS, adapter_names=ROWS, context=ForwardContext(seed=0, step=1))
    assert calls["LoraGathered"] == 0
    p.eval()(IDS, adapter_names=ROWS)
    assert calls["LoraGathered"] == 12


def test_another_method_in_the_chain_acts_where_it_stands(calls):
    with toy_methods.registered():
        p = mixture(LoraConfig(r=2, target_modules=["q_proj"]))
        p.add_adapter("around", toy_methods.BottleneckConfig(["q_proj"]), seed=4)
        p.add_adapter("outer", LoraConfig(r=2, target_modules=["q_proj"]), seed=5)
        for name in ("around", "outer"):
            stir(p.adapters[name].named_parameters(), seed=5)
        for names, gathered in ((["around", "a", "outer"], 2), (["c", "a", "outer"], 2)):
            calls["LoraGathered"] = 0
            mixed = logits(p, adapter_names=names)
            for row, name in enumerate(names):
                np.testing.assert_allclose(mixed[row], alone(p, row, name), **TIGHT)
            assert calls["LoraGathered"] == gathered, names


def test_an_embedding_has_rows_too(calls):
    p = mixture(LoraConfig(r=2, target_modules=["embed.tokens", "lm_head"]))
    mixed = logits(p, adapter_names=ROWS)
    assert calls["LoraGathered"] == 1  # the head
    for row, name in enumerate(ROWS):
        np.testing.assert_allclose(mixed[row], alone(p, row, name), **TIGHT)
    assert all(isinstance(w, LoraLayer) for w in p.adapters["a"].wrappers.values())
