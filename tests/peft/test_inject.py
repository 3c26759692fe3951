"""Putting wrappers in and taking them out, at any depth and in any order."""

from __future__ import annotations

import copy
from itertools import permutations

import numpy as np
import pytest
from peft_cases import gpt, logits, snapshot

from minitorch_peft.nn import Linear
from minitorch_peft.peft.inject import (
    Wrapper,
    base_module,
    base_modules,
    base_parameters,
    eject,
    inject,
    replace_base_module,
    unwrap,
)


class Around(Wrapper):
    """What it wraps, times ``factor``."""

    def __init__(self, base_layer, factor):
        self.base_layer, self.factor = base_layer, factor

    def forward(self, x, context=None):
        return self.base_layer(x, context) * self.factor


PLACES = ["blocks", "blocks.0", "blocks.0.attn", "blocks.0.attn.q_proj", "embed", "embed.tokens", "lm_head", "ln_f"]


def names(model):
    return [path for path, _ in base_modules(model)], [path for path, _ in base_parameters(model)]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_wrappers_are_transparent_and_come_out_in_any_order(family):
    model = gpt(family)
    before, tree, paths, bits = logits(model), repr(model), names(model), snapshot(model)
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = list(rng.permutation(PLACES))
        put = {place: inject(model, [place], lambda base, path: Around(base, 1.0)) for place in order}
        put["twice"] = inject(model, PLACES, lambda base, path: Around(base, 1.0))
        assert names(model) == paths and snapshot(model) == bits
        np.testing.assert_array_equal(logits(model), before)
        for name in rng.permutation(list(put)):
            eject(model, put[name])
            assert names(model) == paths
        assert repr(model) == tree


def test_a_wrapper_acts_where_it_stands():
    model = gpt("gpt2")
    before = logits(model)
    put = inject(model, ["lm_head"], lambda base, path: Around(base, 2.0))
    np.testing.assert_allclose(logits(model), 2 * before)
    eject(model, put)
    np.testing.assert_array_equal(logits(model), before)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_chain_on_one_place_loses_the_right_one(order):
    model = gpt("gpt2")
    base = model.ln_f
    put = [inject(model, ["ln_f"], lambda base, path, f=f: Around(base, f)) for f in (2.0, 3.0, 5.0)]
    left = {2.0, 3.0, 5.0}
    for i in order:
        eject(model, put[i])
        left.discard((2.0, 3.0, 5.0)[i])
        here, found = model.ln_f, []
        while isinstance(here, Wrapper):
            found.append(here.factor)
            here = here.base_layer
        assert here is base and found == sorted(left, reverse=True)


def test_what_a_wrapper_lacks_is_looked_up_in_what_it_wraps():
    wrapped = Around(Around(Linear(3, 5), 1.0), 2.0)
    assert wrapped.in_features == 3 and wrapped.factor == 2.0 and wrapped.base is unwrap(wrapped)
    with pytest.raises(AttributeError, match="Around has no 'lora_C', nor has what it wraps"):
        wrapped.lora_C  # noqa: B018
    twin = copy.deepcopy(wrapped)
    assert twin.out_features == 5 and twin.base is not wrapped.base


def test_where_one_wrapper_cannot_be_made_none_is_put_in():
    model = gpt("gpt2")
    tree = repr(model)

    def fail_at_the_second(base, path):
        if path == "blocks.1":
            raise ValueError("no")
        return Around(base, 1.0)

    with pytest.raises(ValueError, match="no"):
        inject(model, ["blocks.0", "blocks.1"], fail_at_the_second)
    assert repr(model) == tree


def test_ejecting_what_does_not_stand_there_is_an_error():
    model = gpt("gpt2")
    put = inject(model, ["ln_f"], lambda base, path: Around(base, 1.0))
    eject(model, put)
    with pytest.raises(ValueError, match="nothing to eject at 'ln_f'"):
        eject(model, put)


def test_replacing_the_base_s_module_under_wrappers():
    model = gpt("gpt2")
    new = Linear(32, 29, bias=False)
    put = [inject(model, ["lm_head"], lambda base, path: Around(base, 1.0)) for _ in range(2)]
    replace_base_module(model, "lm_head", new)
    assert base_module(model, "lm_head") is new and isinstance(model.lm_head.base_layer, Around)
    for wrappers in put:
        eject(model, wrappers)
    assert model.lm_head is new
    replace_base_module(model, "lm_head", other := Linear(32, 29, bias=False))
    assert model.lm_head is other
