"""Many users in one batch: each row under its own adapter, of one method or of several, equals the separate runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_cases import IDS, TIGHT, gpt, logits, stirred

import minitorch_peft as mp
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import METHODS, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig

USERS = {
    **{m.name: m.examples[0] for m in METHODS.values() if m.rowwise and not m.companions},
    "lora-wide": LoraConfig(r=6),
    "long-prompt": PromptTuningConfig(num_virtual_tokens=5),
    "long-prefix": PrefixTuningConfig(num_virtual_tokens=4),
}
MASK = np.arange(8) >= np.array([0, 3, 6])[:, None]


def served(names, family="gpt2", dtype=np.float32):
    p = PeftModel(gpt(family, dtype))
    for seed, name in enumerate(sorted(set(names) - {"__base__"})):
        p.add_adapter(name, USERS[name], seed=seed)
        stirred(p, name)
    return p


@settings(max_examples=12, deadline=None)
@given(names=st.lists(st.sampled_from([*USERS, "__base__"]), min_size=3, max_size=3), padded=st.booleans())
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_row_among_others_equals_the_row_alone(family, names, padded):
    p = served(names, family)
    mask = {"attention_mask": MASK} if padded else {}
    together = logits(p, adapter_names=names, **mask)
    for row, name in enumerate(names):
        start = int((~MASK[row]).sum()) if padded else 0
        alone = logits(p, IDS[row : row + 1, start:], adapter_names=[name])
        np.testing.assert_allclose(together[row, start:], alone[0], **TIGHT)
        if name != "__base__":
            p.set_adapter(name)
            np.testing.assert_allclose(alone, logits(p, IDS[row : row + 1, start:]), **TIGHT)


@settings(max_examples=8, deadline=None)
@given(names=st.lists(st.sampled_from([*USERS, "__base__"]), min_size=3, max_size=3))
def test_generation_of_a_mixed_batch_equals_the_rows_alone(names):
    p = served(names)
    together = p.generate(IDS, max_new_tokens=6, adapter_names=names, attention_mask=MASK)
    slowly = p.generate(IDS, max_new_tokens=6, adapter_names=names, attention_mask=MASK, use_cache=False)
    assert np.array_equal(together, slowly)
    for row, name in enumerate(names):
        start = int((~MASK[row]).sum())
        alone = p.generate(IDS[row : row + 1, start:], max_new_tokens=6, adapter_names=[name])
        assert np.array_equal(together[row, start:], alone[0])


@pytest.mark.parametrize("names", [["prompt_tuning", "lora", "__base__"], ["prefix_tuning", "long-prompt", "dora"]])
def test_the_loss_and_the_gradients_of_a_mixed_batch_are_those_of_the_rows(names):
    p = served(names, dtype=np.float64)
    p.set_adapter(dict.fromkeys(n for n in names if n != "__base__"))
    out = p(IDS, labels=IDS, adapter_names=names)
    out.loss.backward()
    together = {n: q.grad for n, q in p.trainable_parameters().items()}
    p.zero_grad()
    total, count = 0.0, 0
    for row, name in enumerate(names):
        one = p(IDS[row : row + 1], labels=IDS[row : row + 1], adapter_names=[name])
        assert one.num_targets == 7 + ("prompt" in name)  # a prompt's last vector predicts the first token
        total, count = total + one.loss * one.num_targets, count + one.num_targets
    assert out.num_targets == count
    np.testing.assert_allclose(out.loss.item(), total.item() / count, rtol=1e-12)
    (total * (1 / count)).backward()
    for name, q in p.trainable_parameters().items():
        np.testing.assert_allclose(together[name], q.grad, rtol=1e-9, atol=1e-12)


def test_gradients_of_rows_with_their_own_prompts_and_prefixes():
    names = ["long-prompt", "prefix_tuning", "long-prefix"]
    p = served(names, "llama", np.float64)
    p.set_adapter(names)
    assert mp.gradcheck(lambda: p(IDS, adapter_names=names).logits, (), parameters=p.trainable_parameters())


def test_n_users_with_n_prefixes_take_the_places_of_the_longest():
    p = PeftModel(gpt("gpt2"))
    for i in range(3):
        p.add_adapter(f"user-{i}", PrefixTuningConfig(num_virtual_tokens=2 + i), seed=i)
        stirred(p, f"user-{i}")
    out = p(IDS, adapter_names=["user-0", "user-1", "user-2"], use_cache=True)
    cache = out.past_key_values
    assert cache.length == 4 + IDS.shape[1]
    assert cache.real[:, :4].sum(axis=1).tolist() == [2, 3, 4]


def test_a_prompt_of_one_user_is_no_prompt_of_another():
    names = ["prompt_tuning", "long-prompt", "prompt_tuning"]
    p = served(names)
    before = logits(p, adapter_names=names)
    next(iter(p.adapters["long-prompt"].named_parameters().values())).data[...] *= -1
    after = logits(p, adapter_names=names)
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert np.abs(after[1] - before[1]).max() > 1e-3


def test_what_changes_the_whole_batch_says_so():
    names = ["lora", "seq_bn", "prompt_tuning"]
    p = served(names)
    whole = {m.name: m.examples[0] for m in METHODS.values() if not m.rowwise}
    assert {"full", "bitfit", "diff_pruning"} <= set(whole)
    for name, config in whole.items():
        p.add_adapter(name, config)
        with pytest.raises(ValueError, match=f"adapter {name} changes the whole batch at once"):
            p(IDS, adapter_names=["lora", name, "prompt_tuning"])


SERVED = ["long-prefix", "prompt_tuning", "lora"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_given_positions_are_counted_from_each_row_s_own_text(family):
    p, places = served(SERVED, family), np.arange(8)[None]
    options = {"adapter_names": SERVED}
    whole = logits(p, **options)
    np.testing.assert_array_equal(logits(p, position_ids=places, **options), whole)
    np.testing.assert_array_equal(logits(p, position_ids=np.repeat(places, 3, axis=0), **options), whole)
    cache = None
    for part in np.split(np.arange(8), [3, 4]):
        out = p(IDS[:, part], position_ids=part[None], past_key_values=cache, use_cache=True, **options)
        cache = out.past_key_values
        np.testing.assert_allclose(out.logits.data, whole[:, part], **TIGHT)
    moved = logits(p, position_ids=places * 2, **options)
    for row, name in enumerate(SERVED):
        alone = logits(p, IDS[row : row + 1], position_ids=places * 2, adapter_names=[name])
        np.testing.assert_allclose(moved[row], alone[0], **TIGHT)


def test_positions_are_given_under_prompts_and_prefixes_that_act_together():
    p = served(SERVED)
    p.set_adapter(["prompt_tuning", "long-prefix"])
    np.testing.assert_array_equal(logits(p, position_ids=np.arange(8)[None]), logits(p))


def test_a_left_padded_row_s_prompt_predicts_its_first_word():
    names = ["prompt_tuning", "long-prompt", "prompt_tuning"]
    p = served(names)
    labels = np.where(MASK, IDS, -100)
    out = p(IDS, labels=labels, attention_mask=MASK, adapter_names=names)
    total, count = 0.0, 0
    for row, name in enumerate(names):
        alone = IDS[row : row + 1, (~MASK[row]).sum() :]
        one = p(alone, labels=alone, adapter_names=[name])
        total, count = total + one.loss.item() * one.num_targets, count + one.num_targets
    assert out.num_targets == count == MASK.sum()
    np.testing.assert_allclose(out.loss.item(), total / count, rtol=1e-5)


def test_where_adapters_are_disabled_no_row_runs_under_one():
    p = served(["lora", "prompt_tuning"])
    base = logits(gpt("gpt2"))
    with p.disable_adapter(), p.disable_adapter():
        np.testing.assert_array_equal(logits(p, adapter_names=["lora", "__base__", "prompt_tuning"]), base)
        assert np.array_equal(p.generate(IDS, 3, adapter_names=["prompt_tuning"] * 3), gpt("gpt2").generate(IDS, 3))
        with pytest.raises(ValueError, match="no adapter named nobody"):
            p(IDS, adapter_names=["nobody"] * 3)
    assert np.abs(logits(p, adapter_names=["lora"] * 3) - base).max() > 1e-3


def test_generation_counts_each_row_s_prompt_before_it_starts():
    p, written = served(["long-prompt", "long-prefix"]), []
    names = ["long-prefix", "long-prompt", "__base__"]  # 4, 5 and 0 places; rows of 8, 5 and 2 words; 24 positions
    assert p.generate(IDS, 13, attention_mask=MASK, adapter_names=names).shape == (3, 21)
    p.set_adapter("long-prompt")
    assert p.generate(IDS, 12).shape == (3, 20)
    for options in ({"max_new_tokens": 14, "adapter_names": names, "attention_mask": MASK}, {"max_new_tokens": 13}):
        with pytest.raises(ValueError, match="needs 25 positions, the model has 24"):
            p.generate(IDS, stream=written.append, **options)
    assert not written


def test_a_prompt_that_no_row_has_is_not_made(monkeypatch):
    p = served(["prompt_tuning", "long-prompt", "p_tuning"])
    names = ["prompt_tuning", "long-prompt", "__base__"]
    expected = logits(p, adapter_names=names)
    monkeypatch.setattr(p.adapters["p_tuning"].parts["prompt_encoder"], "forward", None)
    np.testing.assert_array_equal(logits(p, adapter_names=names), expected)


def test_the_rows_of_an_adapter_are_looked_for_once_a_pass():
    context = ForwardContext(adapter_names=("a", "b"))
    assert context.rows("a").tolist() == [True, False] and context.rows("a") is context.rows("a")
    context.adapter_names = ("b", "b")
    assert context.rows("a").tolist() == [False, False]
