"""The shapes that no registered method has yet, on toys: around modules, prompts, prefixes. Real text is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import toy_methods
from peft_cases import IDS, MASK, TIGHT, gpt, logits, stirred

from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.models import Cache
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import LoraConfig, get_peft_model
from minitorch_peft.peft.inject import Wrapper

REAL = np.array([3, 1, 4])  # the tokens that prompts and prefixes stand for here
families = pytest.mark.parametrize("family", ["gpt2", "llama"])


@pytest.fixture(autouse=True)
def toys():
    with toy_methods.registered():
        yield


def with_real(ids):
    return np.concatenate([np.broadcast_to(REAL, (len(ids), len(REAL))), ids], axis=1)


def prompted(family):
    """A model whose prompt is the embedding of three real tokens."""
    p = get_peft_model(gpt(family), toy_methods.PromptConfig(3))
    vectors = next(iter(p.trainable_parameters().values()))
    vectors.data[...] = p.base_model.embed.tokens.weight.data[REAL]
    return p


def prefixed(family):
    """A model whose prefix is the keys and values of three real tokens."""
    base = gpt(family)
    cache = Cache()
    with no_grad():
        base(REAL[None], past_key_values=cache)
    p = get_peft_model(base, toy_methods.PrefixConfig(3))
    table = p.adapters["default"].parts["prefix_encoder"]
    for layer, (k, v) in cache.entries.items():
        table.keys.data[layer], table.values.data[layer] = k.data[0], v.data[0]
    return p


makers = pytest.mark.parametrize("make", [prompted, prefixed])


@families
@makers
def test_a_prompt_of_real_tokens_equals_these_tokens(family, make):
    expected = logits(gpt(family), with_real(IDS))[:, 3:]
    np.testing.assert_allclose(logits(make(family)), expected, **TIGHT)


@families
@makers
def test_padding_stands_after_the_prompt(family, make):
    p = make(family)
    together = logits(p, attention_mask=MASK)
    for row, start in enumerate((~MASK).sum(axis=1)):
        alone = logits(gpt(family), with_real(IDS[row : row + 1, start:]))
        np.testing.assert_allclose(together[row, start:], alone[0, 3:], **TIGHT)


@families
@makers
def test_generation_goes_on_from_the_prompt(family, make):
    p, plain = make(family), gpt(family)
    expected = plain.generate(with_real(IDS), max_new_tokens=8)[:, 3:]
    assert np.array_equal(p.generate(IDS, max_new_tokens=8), expected)
    assert np.array_equal(p.generate(IDS, max_new_tokens=8, use_cache=False), expected)


@families
def test_the_loss_counts_the_first_token_after_a_prompt(family):
    labels = np.concatenate([np.full((3, 3), -100), IDS], axis=1)
    expected = gpt(family)(with_real(IDS), labels=labels)
    out = prompted(family)(IDS, labels=IDS)
    assert out.logits.shape == (3, 8, 29) and out.num_targets == expected.num_targets == 24
    np.testing.assert_allclose(out.loss.item(), expected.loss.item(), rtol=1e-5)


@families
def test_the_loss_after_a_prefix_has_no_position_before_the_first(family):
    labels = np.concatenate([np.full((3, 4), -100), IDS[:, 1:]], axis=1)
    expected = gpt(family)(with_real(IDS), labels=labels)
    out = prefixed(family)(IDS, labels=IDS)
    assert out.num_targets == 21
    np.testing.assert_allclose(out.loss.item(), expected.loss.item(), rtol=1e-5)


@families
def test_prefix_and_prompt_act_together(family):
    """The prefix is the first three tokens, the prompt the next three."""
    p = prefixed(family)
    p.add_adapter("prompt", toy_methods.PromptConfig(3))
    next(iter(p.adapters["prompt"].named_parameters().values())).data[...] = p.base_model.embed.tokens.weight.data[REAL]
    p.set_adapter(["default", "prompt"])
    plain = gpt(family)
    np.testing.assert_allclose(logits(p), logits(plain, with_real(with_real(IDS)))[:, 6:], **TIGHT)
    expected = plain.generate(with_real(with_real(IDS)), max_new_tokens=5)[:, 6:]
    assert np.array_equal(p.generate(IDS, max_new_tokens=5), expected)


@families
def test_two_prefixes_stand_side_by_side(family):
    """They were computed apart, so neither sees the other: not six tokens of text, but both are attended to."""
    p = prefixed(family)
    alone = logits(p)
    p.add_adapter("second", toy_methods.PrefixConfig(2), seed=4)
    p.set_adapter(["default", "second"])
    out = p(IDS, use_cache=True)
    assert out.past_key_values.length == 3 + 2 + 8 and out.past_key_values.next_position == 13
    assert np.abs(out.logits.data - alone).max() > 1e-3


def test_a_given_cache_is_started_once_and_written_to():
    p, cache, parts = prefixed("llama"), Cache(), []
    for part in np.split(np.arange(8), [3, 4]):
        parts.append(logits(p, IDS[:, part], past_key_values=cache))
    assert cache.length == cache.next_position == 11
    np.testing.assert_allclose(np.concatenate(parts, axis=1), logits(p), **TIGHT)


def test_a_context_that_serves_a_second_pass_does_not_prompt_again():
    p, context = prompted("gpt2"), ForwardContext()
    cache = p(IDS[:, :3], use_cache=True, context=context).past_key_values
    rest = logits(p, IDS[:, 3:], past_key_values=cache, context=context)
    np.testing.assert_allclose(rest, logits(p)[:, 3:], **TIGHT)


@makers
def test_no_cache_is_handed_out_that_was_not_asked_for(make):
    p = make("gpt2")
    assert p(IDS).past_key_values is None
    assert p(IDS, use_cache=True).past_key_values.length == 11


@makers
def test_prompts_need_room(make):
    p = make("gpt2")
    with pytest.raises(ValueError, match="the sequence needs 26 positions, the model has 24"):
        p(np.zeros((1, 23), int))


@makers
def test_prompts_go_before_given_vectors_too(make):
    p = make("gpt2")
    vectors = p.base_model.embed.tokens(IDS)
    np.testing.assert_array_equal(logits(p, None, inputs_embeds=vectors), logits(p))


def test_parts_beside_the_base_belong_to_the_model():
    p = prefixed("gpt2")
    assert set(p.trainable_parameters()) == {"prefix_encoder.keys.default", "prefix_encoder.values.default"}
    part = p.adapters["default"].parts["prefix_encoder"]
    assert part in [m for _, m in p.named_modules()]
    p.train()
    assert part.training
    p.eval()
    assert not part.training


# -- around ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("place", ["attn", "mlp", "blocks", "blocks.0", "embed", "ln_f", "blocks.**.q_proj"])
@families
def test_lora_inside_a_wrapped_place(place, family):
    """The paths of the inner adapter are the base's; both act; either may be attached first and taken out first."""
    base = gpt(family)
    tree = repr(base)
    lora, around = LoraConfig(r=2, target_modules=["q_proj", "embed.tokens"]), toy_methods.BottleneckConfig([place])
    outputs = []
    for first, second in ((lora, around), (around, lora)):
        p = get_peft_model(base, first, "lora" if first is lora else "around", seed=1)
        p.add_adapter("around" if first is lora else "lora", second, seed=1)
        p.set_adapter(["lora", "around"])
        stirred(stirred(p, "lora"), "around")
        assert set(p.adapters["lora"].wrappers) == {
            "embed.tokens", "blocks.0.attn.q_proj", "blocks.1.attn.q_proj",
        }  # fmt: skip
        outputs.append(logits(p))
        p.delete_adapter("lora")
        p.set_adapter("around")
        around_alone = logits(p)
        p.unload()
        assert repr(base) == tree
    if place != "blocks.**.q_proj":  # on one and the same layer the later one is the outer one
        np.testing.assert_allclose(outputs[0], outputs[1], **TIGHT)
    assert np.abs(outputs[0] - around_alone).max() > 1e-3


def test_modules_of_a_method_start_by_seed_and_name():
    def start(seed):
        p = get_peft_model(gpt("gpt2"), toy_methods.BottleneckConfig(), seed=seed)
        return {n: q.data for n, q in p.trainable_parameters().items() if "down.weight" in n}

    first, again, other = start(0), start(0), start(1)
    assert all(np.array_equal(first[n], again[n]) and not np.array_equal(first[n], other[n]) for n in first)
    assert len({array.tobytes() for array in first.values()}) == len(first) == 4


def test_the_later_one_on_a_layer_is_the_outer_one():
    config = toy_methods.BottleneckConfig(["ln_f"])
    p = get_peft_model(gpt("gpt2"), config, "inner")
    p.add_adapter("outer", config, seed=1)
    chain, here = [], p.base_model.ln_f
    while isinstance(here, Wrapper):
        chain.append(here.adapter.name)
        here = here.base_layer
    assert chain == ["outer", "inner"]
