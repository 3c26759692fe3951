"""What the GPT promises to every method: masks, positions, caches, prompts, errors, exact gradients."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.models import GPT, Cache, GPTConfig
from minitorch_peft.nn import Activation, Dropout, ForwardContext, Linear, Module, Parameter, TiedLinear

TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def logits(model, *args, **kwargs):
    return model(*args, **kwargs).logits.data


# -- shape of the tree ---------------------------------------------------------------------------------------
def test_every_branching_point_has_a_name(model):
    names = {name for name, _ in model.named_modules()}
    leaves = [
        "attn.q_proj",
        "attn.k_proj",
        "attn.v_proj",
        "attn.o_proj",
        "mlp.act",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    assert {f"blocks.1.{leaf}" for leaf in leaves} <= names
    assert {"embed.tokens", "blocks", "blocks.0.ln_1", "blocks.0.ln_2", "ln_f", "lm_head"} <= names
    assert isinstance(model.get("blocks.1.mlp.act"), Activation)
    assert ("embed.positions" in names) == (model.config.position_embedding == "learned")
    assert ("blocks.0.mlp.gate_proj" in names) == model.config.gated_mlp


def test_a_weight_depends_on_its_name_and_the_seed_only():
    config = GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    deeper = dataclasses.replace(config, n_layer=3, tie_word_embeddings=False)
    one, three = GPT(config, seed=4).state_dict(), GPT(deeper, seed=4).state_dict()
    down = "blocks.0.mlp.down_proj.weight"
    residual = {down, "blocks.0.attn.o_proj.weight"}  # scaled by the depth
    for name in one.keys() - residual:
        assert np.array_equal(one[name], three[name]), name
    np.testing.assert_allclose(one[down], three[down] * np.sqrt(3), rtol=1e-6)
    assert not np.array_equal(one[down], GPT(config, seed=5).state_dict()[down])


def test_the_start_is_gpt2s():
    state = GPT(GPTConfig(vocab_size=300, n_positions=64, n_embd=64, n_layer=4, n_head=4)).state_dict()
    np.testing.assert_allclose(state["embed.tokens.weight"].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(state["blocks.2.attn.q_proj.weight"].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(state["blocks.2.attn.o_proj.weight"].std(), 0.02 / np.sqrt(8), rtol=0.05)
    assert (state["blocks.0.ln_1.weight"] == 1).all() and not state["blocks.0.mlp.up_proj.bias"].any()


def test_a_tied_head_is_no_parameter_until_it_is_untied(ids):
    model = GPT(GPTConfig(vocab_size=31, n_positions=24, n_embd=8, n_layer=1, n_head=2))
    before = logits(model, ids)
    assert isinstance(model.lm_head, TiedLinear) and "lm_head.weight" not in model.state_dict()
    model.untie()
    assert isinstance(model.lm_head, Linear) and np.array_equal(logits(model, ids), before)
    assert not model.config.tie_word_embeddings  # so that it is saved with its own head
    model.embed.tokens.weight.data[...] = 0
    assert not np.shares_memory(model.lm_head.weight.data, model.embed.tokens.weight.data)
    assert np.abs(model.lm_head.weight.data).max() > 0


# -- masks and positions -------------------------------------------------------------------------------------
def test_a_position_sees_nothing_that_comes_later(model, ids):
    changed = ids.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % 31
    a, b = logits(model, ids), logits(model, changed)
    assert np.array_equal(a[:, :4], b[:, :4])
    assert (np.abs(a[:, 4:] - b[:, 4:]).max(axis=(0, 2)) > 1e-3).all()


def test_a_left_padded_row_equals_the_row_alone(model, ids):
    lengths = [7, 4, 1]
    mask = np.arange(7) >= 7 - np.array(lengths)[:, None]
    padded = logits(model, np.where(mask, ids, 9), attention_mask=mask)
    for row, n in enumerate(lengths):
        alone = logits(model, ids[row : row + 1, 7 - n :])
        np.testing.assert_allclose(padded[row, 7 - n :], alone[0], **TIGHT)


def test_a_right_padded_row_equals_the_row_alone(model, ids):
    mask = np.arange(7) < np.array([7, 4, 1])[:, None]
    padded = logits(model, ids, attention_mask=mask.astype(np.int64))
    for row, n in enumerate([7, 4, 1]):
        np.testing.assert_allclose(padded[row, :n], logits(model, ids[row : row + 1, :n])[0], **TIGHT)


def test_a_four_dimensional_mask_says_the_same_as_a_flat_one(model, ids):
    mask = np.arange(7) >= np.array([0, 3, 6])[:, None]
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    flat = logits(model, ids, attention_mask=mask)
    per_query = np.broadcast_to(mask[:, None, None], (3, 1, 7, 7))
    full = logits(model, ids, attention_mask=per_query, position_ids=positions)
    assert np.array_equal(full[mask], flat[mask])


def test_a_mask_for_each_query(model, ids):
    """A query that sees only itself gives what its token gives alone."""
    mask = np.tril(np.ones((7, 7), bool))[None, None].repeat(3, axis=0)
    mask[:, :, 5, :5] = False
    out = logits(model, ids, attention_mask=mask)
    alone = logits(model, ids[:, 5:6], position_ids=np.array([[5]]))
    np.testing.assert_allclose(out[:, 5], alone[:, 0], **TIGHT)
    np.testing.assert_allclose(out[:, :5], logits(model, ids)[:, :5], **TIGHT)


def test_position_ids_move_the_text(model, ids):
    default = logits(model, ids)
    assert np.array_equal(logits(model, ids, position_ids=np.arange(7)[None]), default)
    assert np.array_equal(logits(model, ids, position_ids=np.arange(7)[None].repeat(3, 0)), default)
    moved = logits(model, ids, position_ids=np.arange(7)[None] + 11)
    if model.config.position_embedding == "learned":
        assert np.abs(moved - default).max() > 1e-2
    else:  # rotary attention sees differences of positions only
        np.testing.assert_allclose(moved, default, rtol=1e-4, atol=1e-4)
        stretched = logits(model, ids, position_ids=np.arange(7)[None] * 3)
        assert np.abs(stretched - default).max() > 1e-2


def test_embeddings_in_place_of_ids(model, ids):
    vectors = model.embed.tokens(ids)
    assert np.array_equal(logits(model, inputs_embeds=vectors), logits(model, ids))
    out = model(inputs_embeds=mp.tensor(vectors.data, requires_grad=True), labels=ids)
    assert out.loss.item() == model(ids, labels=ids).loss.item()


def test_hidden_states_begin_with_the_embedding_and_end_with_the_norm(model, ids):
    states = model(ids, output_hidden_states=True).hidden_states
    assert len(states) == model.config.n_layer + 1
    assert np.array_equal(F.linear(states[-1], model.lm_head.dense_weight()).data, logits(model, ids))
    context = ForwardContext(position_ids=np.arange(7)[None])
    assert np.array_equal(states[0].data, model.embed(model.embed.tokens(ids), context).data)
    assert model(ids).hidden_states is None


# -- loss ----------------------------------------------------------------------------------------------------
def test_the_loss_is_the_mean_over_the_labels_that_count(model, ids):
    labels = np.where(np.arange(7) < 3, -100, ids)
    out = model(ids, labels=labels)
    z = out.logits.data[:, :-1].astype(np.float64)
    p = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, ids[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(out.loss.item(), p[:, 2:].mean(), rtol=1e-5)
    assert out.num_targets == 3 * 4


# -- caches --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cuts", [(1,), (3, 4), (2, 5, 6), tuple(range(1, 7))])
def test_cached_equals_uncached(model, ids, cuts):
    whole = logits(model, ids)
    cache, parts = Cache(), []
    for chunk in np.split(ids, cuts, axis=1):
        out = model(chunk, past_key_values=cache)
        assert out.past_key_values is cache
        parts.append(out.logits.data)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, **TIGHT)
    assert cache.length == cache.next_position == 7


def test_cached_equals_uncached_in_a_padded_batch(model, ids):
    mask = np.arange(7) >= np.array([0, 2, 4])[:, None]
    whole = logits(model, ids, attention_mask=mask)
    cache = Cache()
    parts = [logits(model, ids[:, :5], attention_mask=mask[:, :5], past_key_values=cache)]
    parts += [logits(model, ids[:, i : i + 1], attention_mask=mask[:, : i + 1], past_key_values=cache) for i in (5, 6)]
    got = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(got[mask], whole[mask], **TIGHT)


def test_use_cache_makes_one(model, ids):
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values.length == 7


@pytest.mark.parametrize("given", [None, np.ones((3, 2), bool), np.ones((3, 4), bool)], ids=["none", "new", "all"])
def test_dropping_keys_keeps_the_positions(model, ids, given):
    """What follows dropped keys equals the whole text with those keys masked, at the same positions."""
    cache = Cache()
    model(ids[:, :5], past_key_values=cache)
    cache.select([0, 3])
    assert (cache.length, cache.next_position) == (2, 5)
    rest = logits(model, ids[:, 5:], past_key_values=cache, attention_mask=given)
    mask = np.tril(np.ones((7, 7), bool))[None, None].repeat(3, axis=0)
    mask[:, :, 5:, [1, 2, 4]] = False
    expected = logits(model, ids, attention_mask=mask, position_ids=np.arange(7)[None])
    np.testing.assert_allclose(rest, expected[:, 5:], **TIGHT)
    assert (cache.length, cache.next_position) == (4, 7)


def prefix_of(model, n, rows=3):
    config, rng = model.config, np.random.default_rng(8)
    shape = (rows, config.kv_heads, n, config.head_dim)
    return [
        tuple(mp.tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True) for _ in "kv")
        for _ in range(config.n_layer)
    ]


def test_a_prefix_is_seen_by_all_and_moves_the_positions(model, ids):
    pairs = prefix_of(model, 4)
    out = logits(model, ids, past_key_values=Cache.from_prefix(pairs))
    assert out.shape == (3, 7, 31)
    # a mask of the text alone leaves the prefix visible; one of both may hide it
    text = np.ones((3, 7), bool)
    assert np.array_equal(logits(model, ids, past_key_values=Cache.from_prefix(pairs), attention_mask=text), out)
    hidden = np.concatenate([np.zeros((3, 4), bool), text], axis=1)
    alone = logits(
        model,
        ids,
        past_key_values=Cache.from_prefix(pairs),
        attention_mask=hidden,
        position_ids=np.arange(7)[None],
    )
    np.testing.assert_allclose(alone, logits(model, ids), **TIGHT)
    moved = logits(
        model, ids, past_key_values=Cache.from_prefix(pairs), attention_mask=hidden,
        position_ids=np.arange(4, 11)[None],
    )  # fmt: skip
    assert np.abs(moved - out).max() > 1e-3


def test_gradients_reach_the_prefix(model, ids):
    pairs = prefix_of(model, 2)
    model.requires_grad_(False)
    model(ids, labels=ids, past_key_values=Cache.from_prefix(pairs)).loss.backward()
    for pair in pairs:
        for t in pair:
            assert t.grad is not None and np.abs(t.grad).max() > 0
    assert all(p.grad is None for p in model.parameters())


def test_a_prefix_is_not_changed_by_a_pass(model, ids):
    pairs = prefix_of(model, 2)
    first = logits(model, ids, past_key_values=Cache.from_prefix(pairs))
    assert all(t.shape[2] == 2 for pair in pairs for t in pair)
    assert np.array_equal(first, logits(model, ids, past_key_values=Cache.from_prefix(pairs)))


def test_prefixes_of_two_lengths_are_refused(model):
    pairs = prefix_of(model, 2)
    pairs[1] = prefix_of(model, 3)[1]
    with pytest.raises(ValueError, match=r"one length, got \[2, 3\]"):
        Cache.from_prefix(pairs)


def test_a_recomputed_block_gives_the_same_and_appends_nothing(model, ids):
    context, cache = ForwardContext(), Cache.from_prefix(prefix_of(model, 2))
    seen = []
    block = model.blocks[1]
    original = block.forward
    block.forward = lambda x, c: seen.append(x) or original(x, c)
    model.encode_ids(ids, context, cache)
    keys, length = cache.entries[1][0].data.copy(), cache.length
    again, third = original(seen[0], context), original(seen[0], context)
    assert np.array_equal(again.data, third.data)
    assert cache.length == length == 9 and cache.next_position == 9
    assert np.array_equal(cache.entries[1][0].data, keys)


# -- prompts -------------------------------------------------------------------------------------------------
class Prompted(Module):
    """``embed`` with the same vectors put before every row, as a method of the Tokens shape does it."""

    def __init__(self, inner, prompt):
        self.inner, self.prompt, self.tokens = inner, Parameter(prompt), inner.tokens

    def forward(self, vectors, context):
        if context.prompt_length:
            vectors = F.cat([F.expand(self.prompt, len(vectors), -1, -1), vectors], dim=1)
        return self.inner(vectors, context)


@pytest.fixture
def prompted(plain):
    """A model whose prompt is the embedding of tokens 3, 1, 4: as if these stood before every text."""
    plain.embed = Prompted(plain.embed, plain.embed.tokens.weight.data[[[3, 1, 4]]])
    return plain


def with_prompt(ids):
    return np.concatenate([np.broadcast_to([3, 1, 4], (len(ids), 3)), ids], axis=1)


def test_logits_are_those_of_the_given_positions(prompted, model, ids):
    out = logits(prompted, ids, context=ForwardContext(prompt_length=3))
    assert out.shape == (3, 7, 31)
    np.testing.assert_allclose(out, logits(model, with_prompt(ids))[:, 3:], **TIGHT)


def test_the_loss_counts_the_first_token_after_a_prompt(prompted, model, ids):
    out = prompted(ids, labels=ids, context=ForwardContext(prompt_length=3))
    labels = with_prompt(ids)
    labels[:, :3] = -100
    expected = model(with_prompt(ids), labels=labels)
    np.testing.assert_allclose(out.loss.item(), expected.loss.item(), rtol=1e-5)
    assert out.num_targets == expected.num_targets == 21
    assert out.logits.shape == (3, 7, 31)


def test_a_prompt_before_padding(prompted, model, ids):
    mask = np.arange(7) >= np.array([0, 3, 6])[:, None]
    out = logits(prompted, ids, attention_mask=mask, context=ForwardContext(prompt_length=3))
    for row, pad in enumerate([0, 3, 6]):
        alone = logits(model, with_prompt(ids[row : row + 1, pad:]))
        np.testing.assert_allclose(out[row, pad:], alone[0, 3:], **TIGHT)


def test_a_prompt_with_a_mask_for_each_query(prompted, model, ids):
    mask = np.tril(np.ones((7, 7), bool))[None, None].repeat(3, axis=0)
    mask[:, :, 5, :5] = False
    out = logits(prompted, ids, attention_mask=mask, context=ForwardContext(prompt_length=3))
    full = np.ones((3, 1, 10, 10), bool)
    full[:, :, 3:, 3:] = mask
    np.testing.assert_allclose(out, logits(model, with_prompt(ids), attention_mask=full)[:, 3:], **TIGHT)


def test_given_positions_are_counted_from_the_prompt(prompted, ids):
    out = logits(prompted, ids, context=ForwardContext(prompt_length=3))
    given = np.arange(7)[None]
    assert np.array_equal(logits(prompted, ids, position_ids=given, context=ForwardContext(prompt_length=3)), out)


def test_a_prompt_is_cached_with_the_first_pass(prompted, model, ids):
    cache, parts = Cache(), []
    for chunk in np.split(ids, [4, 5], axis=1):
        context = ForwardContext(prompt_length=0 if parts else 3)
        parts.append(logits(prompted, chunk, past_key_values=cache, context=context))
    assert cache.length == cache.next_position == 10
    expected = logits(model, with_prompt(ids))[:, 3:]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, **TIGHT)


def test_gradients_reach_the_prompt(prompted, ids):
    prompted(ids, labels=ids, context=ForwardContext(prompt_length=3)).loss.backward()
    assert (np.abs(prompted.embed.prompt.grad).max(axis=-1) > 0).all()


# -- dropout -------------------------------------------------------------------------------------------------
def test_dropout_is_a_function_of_seed_site_and_step(ids):
    config = GPTConfig(vocab_size=31, n_positions=24, n_embd=16, n_layer=2, n_head=4)
    config = dataclasses.replace(config, embd_pdrop=0.3, resid_pdrop=0.3, attn_pdrop=0.3)
    model = GPT(config)

    def run(seed, step):
        return logits(model, ids, context=ForwardContext(seed=seed, step=step))

    first = run(0, 0)
    assert np.array_equal(first, run(0, 0))
    assert not np.array_equal(first, run(0, 1)) and not np.array_equal(first, run(1, 0))
    sites = [m.site for _, m in model.named_modules() if isinstance(m, Dropout)]
    assert len(sites) == len(set(sites)) == 1 + 3 * 2
    model.eval()
    assert np.array_equal(run(0, 0), run(0, 1)) and not np.array_equal(run(0, 0), first)


@pytest.mark.parametrize("field", ["embd_pdrop", "resid_pdrop", "attn_pdrop"])
def test_each_dropout_acts(field, ids):
    config = GPTConfig(vocab_size=31, n_positions=24, n_embd=16, n_layer=2, n_head=4)
    plain = logits(GPT(config), ids)
    assert not np.array_equal(logits(GPT(dataclasses.replace(config, **{field: 0.5})), ids), plain)


# -- errors --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"input_ids": [[0, 31]]},
            r"contains 31, the model's vocabulary is 0..30: .* this model's tokenizer",
        ),
        ({"input_ids": [[0, -1]]}, r"contains -1"),
        ({"input_ids": [0, 1]}, r"integers of shape \(B, T\), got int64 \(2,\)"),
        ({"input_ids": [[0.0, 1.0]]}, r"got float64"),
        ({"input_ids": np.zeros((1, 25), int)}, r"needs 25 positions, the model has 24: shorten"),
        ({"input_ids": [[0, 1]], "position_ids": [[23, 24]]}, r"needs 25 positions"),
        ({"input_ids": [[0, 1]], "position_ids": [[0, 1, 2]]}, r"position_ids has shape \(1, 3\); expected"),
        ({"input_ids": [[0, 1]], "labels": [[0, 1, 2]]}, r"labels must be integers of the input's shape"),
        ({"input_ids": [[0, 1]], "labels": [[0, 31]]}, r"labels must be -100 or within the vocabulary 0..30"),
        ({"input_ids": [[0, 1]], "labels": [[0, -1]]}, r"labels must be -100 or within"),
        ({"input_ids": [[0, 1]], "attention_mask": [[1]]}, r"has shape \(1, 1\); expected .* S from 2 to 2"),
        ({"input_ids": [[0, 1]], "attention_mask": [[1, 1, 1]]}, r"attention_mask has shape \(1, 3\)"),
        ({"input_ids": [[0, 1]], "attention_mask": np.ones((1, 4, 2, 2), bool)}, r"\(1, 4, 2, 2\); expected"),
        (
            {"input_ids": [[0, 1]], "attention_mask": np.zeros((1, 1, 2, 2))},
            r"must be bool or 0 and 1.*float64",
        ),
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": [[0]], "inputs_embeds": mp.tensor(np.zeros((1, 1, 16)))}, "either input_ids or"),
    ],
)
def test_bad_inputs_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_a_cache_counts_towards_the_positions(model):
    cache = Cache()
    model(np.zeros((1, 20), int), past_key_values=cache)
    with pytest.raises(ValueError, match="needs 25 positions"):
        model(np.zeros((1, 5), int), past_key_values=cache)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layer": 0}, "n_layer must be at least 1"),
        ({"n_head": 5}, "n_embd=16 is not a multiple of n_head=5"),
        ({"num_key_value_heads": 3}, "n_head=4 is not a multiple of num_key_value_heads=3"),
        ({"norm": "batch"}, "norm='batch': expected one of"),
        ({"position_embedding": "alibi"}, "position_embedding='alibi'"),
        ({"position_embedding": "rotary", "n_head": 16}, "rotary positions need an even head_dim, got 1"),
        ({"activation_function": "mish"}, "unknown activation 'mish'; known: gelu"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    sizes = {"vocab_size": 31, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 4}
    with pytest.raises(ValueError, match=message):
        GPT(GPTConfig(**(sizes | fields)))


# -- gradients -----------------------------------------------------------------------------------------------
FAMILIES = {
    "gpt2": GPTConfig(vocab_size=7, n_positions=5, n_embd=4, n_layer=2, n_head=2, n_inner=6),
    "llama": GPTConfig.llama(
        vocab_size=7, n_positions=5, n_embd=8, n_layer=2, n_head=4, num_key_value_heads=2, n_inner=6
    ),
    "llama tied, biases": GPTConfig.llama(
        vocab_size=7, n_positions=5, n_embd=4, n_layer=1, n_head=2, n_inner=6,
        attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_whole_gpt(family, lively):
    model = lively(GPT(FAMILIES[family])).astype(np.float64)
    ids = np.array([[1, 2, 3, 0], [4, 5, 6, 1]])
    labels = np.where(np.arange(4) < 2, -100, ids)
    mask = np.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert mp.gradcheck(
        lambda: model(ids, labels=labels, attention_mask=mask).loss,
        (),
        parameters=dict(model.named_parameters()),
    )
    assert mp.gradcheck(lambda: model(ids).logits, (), parameters=dict(model.named_parameters()))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_inputs_and_prefix(family, lively):
    model = lively(GPT(FAMILIES[family])).astype(np.float64).requires_grad_(False)
    config, rng = model.config, np.random.default_rng(0)
    vectors = mp.tensor(rng.standard_normal((2, 3, config.n_embd)), requires_grad=True)
    shape = (2, config.kv_heads, 2, config.head_dim)
    prefix = [mp.tensor(rng.standard_normal(shape), requires_grad=True) for _ in range(2 * config.n_layer)]

    def run(vectors, *prefix):
        cache = Cache.from_prefix(list(zip(prefix[::2], prefix[1::2], strict=True)))
        return model(inputs_embeds=vectors, past_key_values=cache).logits

    assert mp.gradcheck(run, (vectors, *prefix))


def test_a_frozen_model_builds_no_graph(model, ids):
    model.requires_grad_(False)
    out = model(ids, labels=ids)
    assert out.loss.grad_fn is None and not out.loss.requires_grad
