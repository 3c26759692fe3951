"""Partial fine-tuning by layer or pattern, and its control: scalars that are drawn at random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_cases import CONFIGS, IDS, gpt, logits, optimizer_of, snapshot, stirred, train

import minitorch_peft as mp
from minitorch_peft.models import GPT
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import (
    METHODS,
    BitFitConfig,
    FullConfig,
    PartialConfig,
    PeftModel,
    RandomMaskConfig,
    get_peft_model,
)
from minitorch_peft.peft.inject import parameter_sizes
from minitorch_peft.peft.parameter.partial import partial_targets
from minitorch_peft.peft.parameter.random_mask import AddAt, added_at, random_entries

MODEL = gpt("gpt2")


# -- by layer, by pattern ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_top_layers_are_the_last_blocks_and_the_final_norm(k):
    chosen = partial_targets(MODEL, PartialConfig(top_layers=k))
    above = [f"blocks.{i}." for i in range(2 - k, 2)]
    assert chosen == {n: s for n, s in parameter_sizes(MODEL).items() if n.startswith((*above, "ln_f."))}


def test_a_head_of_its_own_is_at_the_top_and_a_tied_one_is_not():
    assert "lm_head.weight" not in parameter_sizes(MODEL)
    assert "embed.tokens.weight" not in partial_targets(MODEL, PartialConfig(top_layers=2))
    untied = GPT(replace(CONFIGS["gpt2"], tie_word_embeddings=False))
    assert "lm_head.weight" in partial_targets(untied, PartialConfig(top_layers=0))


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "give either top_layers"),
        ({"top_layers": 1, "target_parameters": ["bias"]}, "give either top_layers"),
        ({"top_layers": -1}, "top_layers must be a whole number of at least 0, got -1"),
        ({"top_layers": 3}, "top_layers=3, the model has 2 blocks"),
        ({"target_parameters": ["up_proj.wieght"]}, "'up_proj.wieght' matches no parameter; nearest: up_proj.weight"),
    ],
)
def test_bad_settings_say_what_would_be_valid(options, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(gpt("gpt2"), PartialConfig(**options))


# -- at random -----------------------------------------------------------------------------------------------------
def entries(p):
    """(path, flat index) of all that a random mask has chosen."""
    made = p.adapters["default"].reparametrized
    return {(path, int(i)) for path, m in made.items() for i in m.index}


@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 3000), seed=st.integers(0, 9), family=st.sampled_from(["gpt2", "llama"]))
def test_exactly_the_chosen_entries_change(count, seed, family):
    base = gpt(family)
    before = {path: p.data.copy() for path, p in base.named_parameters()}
    p = get_peft_model(base, RandomMaskConfig(num_parameters=count, mask_seed=seed))
    chosen = entries(p)
    assert len(chosen) == count == p.get_nb_trainable_parameters()[0]
    train(p, optimizer_of(p), range(2))  # with weight decay
    stirred(p)
    changed = set()
    for path, after in p.merge_and_unload().named_parameters():
        flat = after.data.reshape(-1) != before[path].reshape(-1)
        changed |= {(path, int(i)) for i in np.flatnonzero(flat)}
    assert changed == chosen


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 10**6), st.data())
def test_entries_are_distinct_and_as_many_as_asked_for(sizes, seed, data):
    sizes = {f"p{i}": size for i, size in enumerate(sizes)}
    count = data.draw(st.integers(1, sum(sizes.values())))
    chosen = random_entries(sizes, count, seed)
    assert sum(map(len, chosen.values())) == count
    for path, index in chosen.items():
        assert len(index) and (np.diff(index) > 0).all() and index[0] >= 0 and index[-1] < sizes[path]


def test_every_set_is_equally_likely():
    """Of 4 + 2 entries, 3: 20 sets, each drawn 100 times in 2000 but for chance (χ², 19 degrees: below 50)."""
    counts: dict = {}
    for seed in range(2000):
        chosen = random_entries({"a": 4, "b": 2}, 3, seed)
        key = tuple((path, *index) for path, index in chosen.items())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 20 and sum((n - 100) ** 2 / 100 for n in counts.values()) < 50


def test_the_choice_does_not_change_with_versions():
    """A saved adapter has no indices: they must be drawn again alike, for ever."""
    chosen = random_entries({"a": 1000, "b": 10, "c": 500}, 6, seed=3)
    assert {path: index.tolist() for path, index in chosen.items()} == {"a": [35, 94, 227, 762], "c": [82, 490]}


def test_the_choice_is_the_mask_seed_s_alone(tmp_path):
    config = RandomMaskConfig(num_parameters=50, mask_seed=4)
    first, second = (get_peft_model(gpt("gpt2"), config, seed=seed) for seed in (0, 1))
    assert entries(first) == entries(second)
    assert entries(get_peft_model(gpt("gpt2"), replace(config, mask_seed=5))) != entries(first)
    stirred(first).save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert entries(again) == entries(first)
    np.testing.assert_array_equal(logits(again), logits(first))


def test_as_many_as_bitfit_has_are_spread_over_the_model():
    count = METHODS["bitfit"].count(MODEL, BitFitConfig())
    p = get_peft_model(gpt("gpt2"), RandomMaskConfig(num_parameters=count))
    in_biases = sum(path.endswith("bias") for path, _ in entries(p))
    assert 0 < in_biases < 0.1 * count  # a bias is as likely as any other entry
    share = RandomMaskConfig(fraction=0.25, target_parameters=["bias"])
    assert METHODS["random_mask"].count(MODEL, share) == round(0.25 * count)
    assert all(path.endswith(".bias") for path, _ in entries(get_peft_model(gpt("gpt2"), share)))


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=st.integers(0, 99), data=st.data())
def test_add_at_and_its_gradients(shape, seed, data):
    rng = np.random.default_rng(seed)
    index = np.array(sorted(data.draw(st.sets(st.integers(0, shape[0] * shape[1] - 1), min_size=1))))
    theta, delta = rng.standard_normal(shape[::-1]).T, rng.standard_normal(len(index))
    y, before = added_at(theta, delta, index), theta.copy()
    assert np.array_equal(theta, before) and y.shape == theta.shape
    np.testing.assert_allclose((y - theta).reshape(-1)[index], delta)
    assert np.count_nonzero(y != theta) == len(index)
    inputs = mp.tensor(theta, requires_grad=True), mp.tensor(delta, requires_grad=True)
    assert mp.gradcheck(lambda t, d: AddAt.apply(t, d, index=index), inputs)


def test_the_gradient_is_that_of_full_training_at_the_chosen_entries():
    full = get_peft_model(gpt("llama", np.float64), FullConfig())
    p = get_peft_model(gpt("llama", np.float64), RandomMaskConfig(num_parameters=300))
    for model in (full, p):
        model(IDS, labels=IDS).loss.backward()
    whole = {path: q.grad for path, q in full.adapters["default"].named_parameters().items()}
    for path, made in p.adapters["default"].reparametrized.items():
        np.testing.assert_allclose(made.delta.grad, whole[path].reshape(-1)[made.index], rtol=1e-9, atol=1e-14)


def test_a_mask_of_everything_is_full_training():
    models = [get_peft_model(gpt("gpt2", np.float64), c) for c in (FullConfig(), RandomMaskConfig(fraction=1.0))]
    for p in models:
        train(p, AdamW(p.trainable_parameters(), lr=1e-2, weight_decay=0.0), range(3))
    np.testing.assert_allclose(logits(models[0]), logits(models[1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "give either num_parameters"),
        ({"num_parameters": 3, "fraction": 0.5}, "give either num_parameters"),
        ({"num_parameters": 0}, "num_parameters must be a whole number of at least 1, got 0"),
        ({"fraction": 1.5}, "fraction must be above 0 and at most 1, got 1.5"),
        ({"num_parameters": 10**9}, r"num_parameters=1000000000 cannot be drawn from \d+ parameters: from 1 to"),
        ({"fraction": 1e-9}, "num_parameters=0 cannot be drawn"),
        ({"num_parameters": 3, "target_parameters": ["wte"]}, "'wte' matches no parameter"),
    ],
)
def test_bad_masks_say_what_would_be_valid(options, message):
    base = gpt("gpt2")
    before = snapshot(base)
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, RandomMaskConfig(**options))
    assert snapshot(base) == before


def test_a_weight_in_four_bits_is_refused_and_the_rest_of_such_a_base_is_not():
    with pytest.raises(ValueError, match="is stored in four bits and cannot be trained"):
        get_peft_model(gpt("gpt2-4bit"), RandomMaskConfig(fraction=0.5))
    p = get_peft_model(gpt("gpt2-4bit"), RandomMaskConfig(fraction=0.5, target_parameters=["bias", "embed.**"]))
    train(p, optimizer_of(p), range(2))
    assert np.abs(logits(p) - logits(gpt("gpt2-4bit"))).max() > 1e-3
