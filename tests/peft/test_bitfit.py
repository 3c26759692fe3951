"""BitFit: all biases, or those of some kinds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft_cases import CONFIGS, gpt, logits, optimizer_of, snapshot, train

from minitorch_peft.models import GPT
from minitorch_peft.peft import METHODS, BitFitConfig, PartialConfig, get_peft_model
from minitorch_peft.peft.parameter.bitfit import bitfit_targets

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "ln_1", "ln_2", "ln_f"]
MODEL = gpt("gpt2")


def targets(**options):
    return set(bitfit_targets(MODEL, BitFitConfig(**options)))


@given(st.sets(st.sampled_from(KINDS), min_size=1))
def test_kinds_are_the_biases_of_modules_of_that_name(kinds):
    assert targets(bias_kinds=sorted(kinds)) == {f"{p}.bias" for p in modules_with_bias() if p.split(".")[-1] in kinds}


def modules_with_bias():
    return [path.removesuffix(".bias") for path, _ in MODEL.named_parameters() if path.endswith(".bias")]


def test_the_kinds_divide_the_biases():
    found = [path for kind in KINDS for path in targets(bias_kinds=[kind])]
    assert len(found) == len(set(found)) and set(found) == targets()


def test_kinds_are_of_those_that_the_pattern_names():
    chosen = targets(target_parameters=["blocks.1.**"], bias_kinds=["q_proj", "ln_2"])
    assert chosen == {"blocks.1.attn.q_proj.bias", "blocks.1.ln_2.bias"}


def test_the_paper_s_two_kinds_are_five_parts_of_eleven_of_the_block():
    """Of a block's biases, 11 C with q, k, v, o, up (4), down, two norms, the query's and the MLP's first have 5."""
    count = METHODS["bitfit"].count
    everything = count(MODEL, BitFitConfig(target_parameters=["blocks.**"]))
    assert count(MODEL, BitFitConfig(bias_kinds=["q_proj", "up_proj"])) / everything == 5 / 11


def test_a_family_with_some_biases_has_their_kinds():
    model = GPT(replace(CONFIGS["llama"], attention_bias=True))
    assert len(bitfit_targets(model, BitFitConfig(bias_kinds=["k_proj"]))) == 2
    with pytest.raises(
        ValueError, match="'ln_1' is no kind of bias; the kinds here are q_proj, k_proj, v_proj, o_proj"
    ):
        bitfit_targets(model, BitFitConfig(bias_kinds=["ln_1"]))


@pytest.mark.parametrize(
    "kinds, message",
    [
        (["query"], "bias_kinds: 'query' is no kind of bias; the kinds here are .*q_proj"),
        ([], r"bias_kinds must be a list of names, got \[\]"),
        ("q_proj", "bias_kinds must be a list of names, got 'q_proj'"),
    ],
)
def test_bad_kinds_say_what_would_be_valid(kinds, message):
    base = gpt("gpt2")
    before = snapshot(base)
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, BitFitConfig(bias_kinds=kinds))
    assert snapshot(base) == before


def test_training_changes_the_chosen_biases_only():
    base = gpt("gpt2")
    before = snapshot(base)
    p = get_peft_model(base, BitFitConfig(bias_kinds=["q_proj", "up_proj"]))
    train(p, optimizer_of(p), range(3))
    after = snapshot(p.merge_and_unload())
    changed = {path for path in before if after[path] != before[path]}
    assert changed == targets(bias_kinds=["q_proj", "up_proj"])


def test_it_is_a_case_of_partial():
    models = [get_peft_model(gpt("gpt2"), c) for c in (BitFitConfig(), PartialConfig(target_parameters=["bias"]))]
    for p in models:
        train(p, optimizer_of(p), range(3))
    np.testing.assert_array_equal(logits(models[0]), logits(models[1]))
