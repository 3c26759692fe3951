"""The laws: what every method promises, run over the registry.

A new method is tested by being registered. A case is one of its example configs on one family of models. QLoRA is no
method of its own: it is LoRA on a base whose linear layers are in four bits, and that base is one more family to it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import pytest
from peft_cases import (
    IDS,
    MASK,
    TIGHT,
    gpt,
    logits,
    loss,
    optimizer_of,
    originals,
    snapshot,
    stirred,
    train,
)

import minitorch_peft as mp
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import METHODS, PeftConfig, PeftModel, get_peft_model
from minitorch_peft.peft.inject import Wrapper
from minitorch_peft.peft.registry import method_named, method_of, register
from minitorch_peft.peft.saving import no_peft_format

INAPPLICABLE = {
    ("bitfit", "llama"): "no biases",
    ("bitfit", "llama-4bit"): "no biases",
    ("full", "gpt2-4bit"): "blocks.0.attn.k_proj.weight .* is stored in four bits and cannot be trained",
    ("full", "llama-4bit"): "is stored in four bits and cannot be trained: leave it out, use LoRA",
    ("random_mask", "gpt2-4bit"): "is stored in four bits and cannot be trained",
    ("random_mask", "llama-4bit"): "is stored in four bits and cannot be trained",
    ("partial", "gpt2-4bit"): "blocks.1.attn.k_proj.weight .* is stored in four bits and cannot be trained",
    ("partial", "llama-4bit"): "is stored in four bits and cannot be trained",
}


def cases(methods, families=("gpt2", "llama")):
    """Every example on GPT-2, the last on Llama. Fast: the first on GPT-2, and of four methods the last on Llama."""
    return [
        pytest.param(
            method, config, family, id=f"{method.name}-{i}-{family}", marks=() if fast(method, i, family) else SLOW
        )
        for method in methods
        for family in families
        if (method.name, family) not in INAPPLICABLE
        for i, config in enumerate(method.examples)
        if family != "llama" or i == len(method.examples) - 1 or method.name == "lora"
    ]


def slow_cases(methods, families):
    return [
        pytest.param(m, m.examples[0], family, id=f"{m.name}-0-{family}", marks=SLOW)
        for m in methods
        for family in families
    ]


def fast(method, i, family):
    on_llama = method.name in ("lora", "par_bn", "prefix_tuning", "partial") and i == len(method.examples) - 1
    return (family, i) in (("gpt2", 0), ("gpt2-4bit", 0), ("llama-4bit", 1)) or (family == "llama" and on_llama)


SLOW = pytest.mark.slow
QLORA = [*cases([METHODS["lora"]], ["gpt2-4bit"])[::2], cases([METHODS["lora"]], ["llama-4bit"])[1]]
FOUR_BITS = [
    METHODS[name] for name in ("dora", "seq_bn", "prompt_tuning")
]  # one more of each shape that four bits allow
ROWWISE = [m for m in METHODS.values() if m.rowwise]
laws = pytest.mark.parametrize(
    "method, config, family", [*cases(METHODS.values()), *QLORA, *slow_cases(FOUR_BITS, ["gpt2-4bit", "llama-4bit"])]
)


def merge_laws(wanted):
    having = cases(m for m in METHODS.values() if m.mergeable is wanted)
    packed = slow_cases([m for m in FOUR_BITS if m.mergeable is wanted], ["gpt2-4bit", "llama-4bit"])
    return pytest.mark.parametrize("method, config, family", having + (QLORA if wanted else []) + packed)


def another(method, config):
    """Another of the method's examples than ``config``, where it has one."""
    return next((c for c in method.examples if c != config), config)


untying = pytest.mark.filterwarnings("ignore:merging changed a weight that the embedding and the head shared")


def adapted(config, family, dtype=np.float32, seed=0):
    """A fresh model under ``config``, and under what its method builds on."""
    p = with_companions(gpt(family, dtype), config)
    p.add_adapter("default", config, seed=seed)
    p.set_adapter("default")
    return p


def with_companions(base, config):
    p = PeftModel(base)
    for name, companion in method_of(config).companions.items():
        p.add_adapter(name, companion, seed=8)
        stirred(p, name)
    return p.eval()


def loaded(config, family, directory):
    p = with_companions(gpt(family), config)
    p.load_adapter(directory, "default")
    p.set_adapter("default")
    return p


# -- the start -------------------------------------------------------------------------------------------------
@laws
def test_the_start_is_what_the_method_declares(method, config, family):
    before = logits(gpt(family))
    p = adapted(config, family)
    for training in (False, True):
        after = logits(p.train(training), context=ForwardContext(seed=1, step=2))
        if method.start == "bitwise":
            np.testing.assert_array_equal(after, before)
        elif method.start == "rounding":
            np.testing.assert_allclose(after, before, **TIGHT)
        else:
            assert np.abs(after - before).max() > 1e-3


@laws
def test_only_the_methods_parameters_train_and_their_number_is_the_formula(method, config, family):
    p = adapted(config, family)
    assert {q.owner for q in p.trainable_parameters().values()} == {"default"}
    count = method.count(with_companions(gpt(family), config).base_model, config)
    assert p.get_nb_trainable_parameters()[0] == count == sum(q.data.size for q in p.trainable_parameters().values())
    assert method.count(p.base_model, config) == count  # the formula sees through wrappers
    assert p.trainable_parameters() == {f"{n}.default": q for n, q in p.adapters["default"].named_parameters().items()}
    p.set_adapter("default", train=())
    assert not p.trainable_parameters()


@laws
def test_same_seed_same_bits_whatever_was_called_before(method, config, family):
    first = adapted(config, family).state_dict()
    np.random.seed(3)
    np.random.standard_normal(5)
    later = with_companions(gpt(family), config)
    others = [m for m in METHODS.values() if (m.name, family) not in INAPPLICABLE and not m.companions]
    for other in np.random.default_rng([*method.name.encode()]).choice(others, 4, replace=False):
        later.add_adapter(f"other-{other.name}", other.examples[0], seed=4)
    later.add_adapter("default", config, seed=0)
    same = later.state_dict()
    assert first.keys() <= same.keys()
    assert all(first[name].tobytes() == same[name].tobytes() for name in first)


@laws
def test_a_config_survives_json(method, config, family):
    again = method.config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    with pytest.raises(ValueError, match=f"{method.config.__name__} has no no_such_setting"):
        method.config.from_dict({"no_such_setting": 1})


# -- training --------------------------------------------------------------------------------------------------
@laws
def test_gradients_are_right_and_never_reach_the_base(method, config, family):
    p = stirred(adapted(config, family, np.float64)).train()
    context = ForwardContext(seed=1, step=2)  # the same mask of dropout at every call

    def run():
        out, penalty = p(IDS, attention_mask=MASK, context=context).logits, p.penalty()
        return out if penalty is None else out + penalty

    assert mp.gradcheck(run, (), parameters=p.trainable_parameters())
    p(IDS, labels=IDS, context=context).loss.backward()
    for name, q in p.named_parameters():
        assert (q.grad is None) == (q.owner != "default"), name


@laws
def test_ten_steps_lower_the_loss(method, config, family):
    p = adapted(config, family)
    before = loss(p)
    train(p, optimizer_of(p, lr=3e-2), range(10))
    assert loss(p) < before - 0.01


@laws
def test_training_leaves_the_base_alone_and_unloading_gives_it_back_bit_for_bit(method, config, family):
    base = gpt(family)
    bytes_before, logits_before, tree = snapshot(base), logits(base), repr(base)
    p = with_companions(base, config)
    p.add_adapter("default", config)
    p.set_adapter("default")
    train(p, optimizer_of(p), range(3))
    assert originals(p) == bytes_before
    assert np.abs(logits(p) - logits_before).max() > 1e-4  # it did train
    with p.disable_adapter():
        np.testing.assert_array_equal(logits(p), logits_before)
    plain = p.unload()
    assert plain is base and repr(plain) == tree
    assert not any(isinstance(m, Wrapper) for _, m in plain.named_modules())
    assert snapshot(plain) == bytes_before
    assert all(q.requires_grad and q.owner == "base" for q in plain.parameters())
    np.testing.assert_array_equal(logits(plain), logits_before)


@laws
def test_interrupted_and_resumed_equals_uninterrupted(method, config, family):
    whole = adapted(config, family)
    train(whole, optimizer_of(whole), range(6))

    first = adapted(config, family)
    optimizer = optimizer_of(first)
    train(first, optimizer, range(3))
    saved = [{k: np.array(v) for k, v in state.items()} for state in (first.state_dict(), optimizer.state_dict())]
    method_state = {k: np.array(v) for k, v in first.method_state().items()}

    second = adapted(config, family, seed=9)
    second.load_state_dict(saved[0])
    optimizer = optimizer_of(second)
    optimizer.load_state_dict(saved[1])
    second.load_method_state(method_state)
    train(second, optimizer, range(3, 6))
    assert snapshot_all(second) == snapshot_all(whole)


def snapshot_all(p):
    return {name: array.tobytes() for name, array in p.state_dict().items()}


REWORDED = {
    "alpha_pattern", "init_ids", "init_weights", "layers_to_transform", "prompt_tuning_init", "prompt_tuning_init_ids",
    "target_modules",
}  # fmt: skip
"""Settings that a file of peft's has in other words, or whose effect is in the tensors."""


# -- files -----------------------------------------------------------------------------------------------------
@laws
def test_our_own_file_gives_back_the_same_bits(method, config, family, tmp_path):
    p = stirred(adapted(config, family))
    assert p.save_pretrained(tmp_path, format="native") == "native"
    again = loaded(config, family, tmp_path)
    assert again.adapters["default"].config == config
    assert snapshot_all(again) == snapshot_all(p)
    np.testing.assert_array_equal(logits(again), logits(p))


@laws
def test_peft_s_file_gives_the_same_outputs(method, config, family, tmp_path):
    p = stirred(adapted(config, family))
    if no_peft_format(p.adapters["default"]):
        with pytest.raises(ValueError, match="peft's files cannot hold the method"):
            p.save_pretrained(tmp_path, format="peft")
        assert p.save_pretrained(tmp_path) == "native" and not method.peft_files
        return
    assert p.save_pretrained(tmp_path) == "peft" and method.peft_files
    again = loaded(config, family, tmp_path)
    assert {n: q.shape for n, q in again.named_parameters()} == {n: q.shape for n, q in p.named_parameters()}
    np.testing.assert_allclose(logits(again), logits(p), rtol=1e-6, atol=1e-6)
    kept, found = config.to_dict(), again.adapters["default"].config.to_dict()
    assert {k: v for k, v in kept.items() if k not in REWORDED} == {k: v for k, v in found.items() if k not in REWORDED}


# -- merging ---------------------------------------------------------------------------------------------------
@merge_laws(True)
@untying
def test_merged_equals_unmerged_and_unmerging_restores_the_base_bit_for_bit(method, config, family):
    p = stirred(adapted(config, family))
    base = p.base_model
    bytes_before, unmerged = originals(p), logits(p)
    standing = snapshot(base)
    certificate = p.merge_adapter()
    merged = logits(p)
    np.testing.assert_allclose(merged, unmerged, rtol=1e-4, atol=1e-4)
    assert certificate.restores_base and certificate.weight_difference < 1e-6
    assert certificate.logit_difference < 1e-4 and certificate.kl_divergence < 1e-8
    for _ in range(3):
        p.unmerge_adapter()
        assert snapshot(base) == standing and originals(p) == bytes_before
        np.testing.assert_array_equal(logits(p), unmerged)
        p.merge_adapter()
    plain = p.merge_and_unload()
    assert plain is base and not any(isinstance(m, Wrapper) for _, m in plain.named_modules())
    assert all(q.owner == "base" and q.requires_grad for q in plain.parameters())
    np.testing.assert_array_equal(logits(plain), merged)


@merge_laws(True)
@untying
def test_merging_in_float64_is_exact_to_its_rounding(method, config, family):
    p = stirred(adapted(config, family, np.float64))
    unmerged = logits(p)
    assert p.merge_adapter().weight_difference == 0
    np.testing.assert_allclose(logits(p), unmerged, rtol=1e-11, atol=1e-11)


@merge_laws(False)
def test_what_cannot_be_merged_says_so(method, config, family):
    p = stirred(adapted(config, family))
    before = logits(p)
    with pytest.raises(ValueError, match="default cannot be merged"):
        p.merge_adapter()
    np.testing.assert_array_equal(logits(p), before)


# -- inference -------------------------------------------------------------------------------------------------
@laws
def test_cached_equals_uncached(method, config, family):
    p = stirred(adapted(config, family))
    whole, cache = logits(p), None
    for part in np.split(np.arange(8), [3, 4]):
        out = p(IDS[:, part], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        np.testing.assert_allclose(out.logits.data, whole[:, part], **TIGHT)
    with_cache = p.generate(IDS, max_new_tokens=6, attention_mask=MASK)
    assert np.array_equal(with_cache, p.generate(IDS, max_new_tokens=6, attention_mask=MASK, use_cache=False))


@laws
def test_a_left_padded_row_equals_the_row_alone(method, config, family):
    p = stirred(adapted(config, family))
    together = logits(p, attention_mask=MASK)
    new = p.generate(IDS, max_new_tokens=5, attention_mask=MASK)
    for row, start in enumerate((~MASK).sum(axis=1)):
        alone = IDS[row : row + 1, start:]
        np.testing.assert_allclose(together[row, start:], logits(p, alone)[0], **TIGHT)
        assert np.array_equal(new[row, start:], p.generate(alone, max_new_tokens=5)[0])


@laws
def test_rows_under_different_adapters(method, config, family):
    p = stirred(adapted(config, family))
    p.add_adapter("second", another(method, config), seed=1)
    stirred(p, "second", scale=0.2)
    names = ["second", "__base__", "default"]
    if not method.rowwise:
        with pytest.raises(ValueError, match="not row-wise"):
            p(IDS, adapter_names=names)
        return
    mixed = logits(p, attention_mask=MASK, adapter_names=names)
    for row, name in enumerate(names):
        assert (
            np.abs(mixed[row, -1] - logits(p, attention_mask=MASK, adapter_names=[names[row - 1]] * 3)[row, -1]).max()
            > 1e-3
        )
        alone = logits(p, attention_mask=MASK, adapter_names=[name] * 3)
        np.testing.assert_allclose(mixed[row], alone[row], **TIGHT)
    with p.disable_adapter():
        np.testing.assert_allclose(mixed[1], logits(p, attention_mask=MASK)[1], **TIGHT)


@pytest.mark.parametrize("method, config, family", cases(ROWWISE) + QLORA + slow_cases(FOUR_BITS, ["gpt2-4bit"]))
def test_in_training_gradients_reach_each_row_s_own_adapter_only(method, config, family):
    p = stirred(adapted(config, family, np.float64))
    p.add_adapter("second", another(method, config), seed=1)
    stirred(p, "second")
    p.set_adapter(["default", "second"])
    names = ["second", "__base__", "default"]
    p(IDS, adapter_names=names).logits.backward(gradient=np.ones((3, 8, 29)))
    both = {name: q.grad for name, q in p.trainable_parameters().items()}
    p.zero_grad()
    for name in ("second", "default"):
        row = names.index(name)
        p(IDS[row : row + 1], adapter_names=[name]).logits.backward(gradient=np.ones((1, 8, 29)))
    for name, q in p.trainable_parameters().items():
        np.testing.assert_allclose(both[name], q.grad, rtol=1e-9, atol=1e-12)
    p.zero_grad()
    p(IDS, adapter_names=["default", "__base__", "__base__"]).logits.backward(gradient=np.ones((3, 8, 29)))
    for name, q in p.adapters["second"].named_parameters().items():
        assert q.grad is None or not q.grad.any(), name


# -- stacking --------------------------------------------------------------------------------------------------
def pairs():
    """Every pair of base shapes and 16 pairs of methods that a generator draws; 80 more as slow tests."""
    alone = [m for m in METHODS.values() if not m.companions]
    everything = list(combinations_with_replacement(alone, 2))
    of_shape = {shape: [m for m in alone if m.shape == shape] for shape in ("reparam", "around", "tokens", "select")}
    chosen = {tuple(sorted((of_shape[s][0].name, of_shape[t][-1].name))) for s in of_shape for t in of_shape}
    drawn = [everything[i] for i in np.random.default_rng(5).choice(len(everything), 96, replace=False)]
    chosen |= {tuple(sorted((a.name, b.name))) for a, b in drawn[:16]}
    fast_ones = [(a, b) for a, b in everything if tuple(sorted((a.name, b.name))) in chosen]
    return [pytest.param(a, b, id=f"{a.name}+{b.name}") for a, b in fast_ones] + [
        pytest.param(a, b, id=f"{a.name}+{b.name}", marks=SLOW) for a, b in drawn[16:] if (a, b) not in fast_ones
    ]


@pytest.mark.parametrize("a, b", pairs())
@untying
def test_methods_act_together_as_they_declare(a, b, tmp_path):
    base = gpt("gpt2")
    bytes_before = snapshot(base)
    p = stirred(get_peft_model(base, a.examples[0], "first"), "first")
    p.add_adapter("second", b.examples[-1], seed=1)
    stirred(p, "second")
    refused = b.shape not in a.stackable_with or a.shape not in b.stackable_with
    if refused or p.adapters["first"].selected.keys() & p.adapters["second"].selected.keys():
        with pytest.raises(ValueError, match=r"first and second both put a copy|do not act together"):
            p.set_adapter(["first", "second"])
        assert p.active_adapters == ("first",)
        return
    for order in (["second", "first"], ["first", "second"]):
        p.set_adapter(order, train=["second"])
        check_padding_and_merge(p, a.mergeable and b.mergeable)
    together = logits(p)
    for name in ("first", "second"):
        p.set_adapter(name)
        assert np.abs(logits(p) - together).max() > 1e-3
    p.set_adapter(["first", "second"], train=["second"])
    kept = {n: q.data.copy() for n, q in p.adapters["first"].named_parameters().items()}
    train(p, optimizer_of(p, lr=3e-2), range(3))
    assert all(np.array_equal(q.data, kept[n]) for n, q in p.adapters["first"].named_parameters().items())
    assert np.abs(logits(p) - together).max() > 1e-4
    p.save_pretrained(tmp_path, ["first", "second"], format="native")
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert again.active_adapters == ("first", "second")
    np.testing.assert_allclose(logits(again), logits(p), **TIGHT)
    check_cache_and_merge(p, a.mergeable and b.mergeable)
    p.set_adapter(["first", "second"])
    before = loss(p)
    train(p, optimizer_of(p, lr=1e-2), range(5))
    assert loss(p) < before
    p.set_adapter("second")
    alone = logits(p)
    p.delete_adapter("first")
    np.testing.assert_allclose(logits(p), alone, **TIGHT)
    assert snapshot(p.unload()) == bytes_before


def check_padding_and_merge(p, mergeable):
    unmerged, start = logits(p, attention_mask=MASK), int((~MASK[1]).sum())
    np.testing.assert_allclose(unmerged[1, start:], logits(p, IDS[1:2, start:])[0], **TIGHT)
    if mergeable:
        p.merge_adapter()
        np.testing.assert_allclose(logits(p, attention_mask=MASK), unmerged, rtol=1e-4, atol=1e-4)
        p.unmerge_adapter()


def check_cache_and_merge(p, mergeable):
    with_cache = p.generate(IDS, max_new_tokens=4, attention_mask=MASK)
    assert np.array_equal(with_cache, p.generate(IDS, max_new_tokens=4, attention_mask=MASK, use_cache=False))
    if mergeable:
        unmerged = logits(p)
        p.merge_adapter()
        np.testing.assert_allclose(logits(p), unmerged, rtol=1e-4, atol=1e-4)
        p.unmerge_adapter()
        np.testing.assert_array_equal(logits(p), unmerged)


# -- the table itself --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, family", INAPPLICABLE)
def test_a_method_that_does_not_apply_says_why_and_changes_nothing(name, family):
    base = gpt(family)
    before, trainable = snapshot(base), [q.requires_grad for q in base.parameters()]
    with pytest.raises(ValueError, match=INAPPLICABLE[name, family]):
        get_peft_model(base, METHODS[name].examples[0])
    assert snapshot(base) == before and [q.requires_grad for q in base.parameters()] == trainable


def test_a_method_is_registered_once():
    lora = METHODS["lora"]
    for twin in (lora, replace(lora, name="lora2"), replace(lora, config=PeftConfig)):
        with pytest.raises(ValueError, match="is registered already"):
            register(twin)
    assert [method_named(name) for name in ("lora", "LORA")] == [lora, lora]
    with pytest.raises(ValueError, match=r"unknown method 'lorra'; known: .*lora"):
        method_named("lorra")


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_the_row_agrees_with_the_method(method):
    adapter = adapted(method.examples[0], "gpt2").adapters["default"]
    assert type(adapter) is method.adapter and method_of(method.examples[0]) is method
    kinds = {kind for w in adapter.wrappers.values() for kind in [k.__name__.lower() for k in type(w).__mro__]}
    if method.shape == "select":
        assert adapter.selected and not adapter.wrappers
    elif method.shape == "tokens":
        assert "tokens" in kinds or adapter.prefix() is not None
    else:
        assert method.shape in kinds or (method.shape == "reparam" and adapter.reparametrized)
    folder = method.adapter.__module__.split(".")
    assert folder[-2:] == ["peft", method.name] or method.folder in folder
