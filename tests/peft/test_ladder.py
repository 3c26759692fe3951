"""Ladder side-tuning: no gradient passes through a block of the base, and the side network starts from its weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import toy_methods
from peft_cases import CONFIGS, IDS, MASK, TIGHT, gpt, logits, loss, optimizer_of, stirred, train

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.analysis.memory import peak_memory
from minitorch_peft.autograd.profiler import profile
from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import LadderConfig, LoraConfig, get_peft_model
from minitorch_peft.peft.function.ladder_pass import side_context
from minitorch_peft.peft.function.ladder_start import side_config

families = pytest.mark.parametrize("family", ["gpt2", "llama"])


@pytest.fixture(autouse=True)
def toys():
    with toy_methods.registered():
        yield


def layer_of(p, name="default"):
    return p.adapters[name].wrappers["blocks"]


def graph(tensor):
    """Every node behind a tensor."""
    found, stack = {}, [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and id(node) not in found:
            found[id(node)] = node
            stack += [t.grad_fn for t in node.inputs if t is not None]
    return list(found.values())


# -- nothing goes back through the base --------------------------------------------------------------------------
def backward_calls(p):
    out = p(IDS, labels=IDS, context=ForwardContext())
    with profile() as watched:
        out.loss.backward()
    return {name: calls for (name, phase), calls in watched.calls.items() if phase == "backward"}


@families
def test_no_operation_of_a_base_s_block_is_in_the_graph(family):
    p = stirred(get_peft_model(gpt(family), LadderConfig()))
    out = p(IDS, labels=IDS, context=ForwardContext())
    side = layer_of(p).side[0].attn
    attention = [node for node in graph(out.loss) if node.name == "Attention"]
    assert len(attention) == 2 and {node.saved[0].shape[-1] for node in attention} == {side.head_dim}
    base = {id(q.data): name for name, q in p.named_parameters() if q.owner == "base"}
    kept = {base[id(a)] for node in graph(out.loss) for a in node.saved if id(a) in base}
    assert kept and all(name.split(".")[0] in ("ln_f", "lm_head", "embed") for name in kept)  # embed: the tied head
    lora = stirred(get_peft_model(gpt(family), LoraConfig()))
    assert backward_calls(p)["Attention"] == backward_calls(lora)["Attention"] == 2  # the side network's own two


def test_its_peak_of_memory_is_lower_than_that_of_lora():
    config = GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=6, n_head=4)
    ids = np.random.default_rng(0).integers(0, 97, (8, 64))

    def peak(method):
        def prepare():
            p = get_peft_model(GPT(config), method).train()
            optimizer = optimizer_of(p)

            def step():
                p(ids, labels=ids, context=ForwardContext()).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            return step

        prepare()()  # kernels are compiled
        return peak_memory(prepare)

    ladder, lora = peak(LadderConfig(reduction_factor=8)), peak(LoraConfig(r=1, target_modules=["q_proj"]))
    assert ladder < 0.6 * lora


def test_a_cache_of_its_own_keys_gives_the_base_no_graph():
    p = stirred(get_peft_model(gpt("gpt2"), LadderConfig()))
    cache = p(IDS[:, :5], use_cache=True).past_key_values
    assert p(IDS[:, 5:], past_key_values=cache).logits.requires_grad
    base = [t for layer, pair in cache.entries.items() if isinstance(layer, int) for t in pair]
    own = [t for layer, pair in cache.entries.items() if str(layer).startswith("default.side.") for t in pair]
    assert len(base) == len(own) == 4
    assert not any(t.requires_grad for t in base) and all(t.requires_grad for t in own)


# -- where another adapter trains ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "other", [LoraConfig(r=2), toy_methods.PromptConfig(2), toy_methods.PrefixConfig(2)], ids=lambda c: c.peft_type
)
def test_another_adapter_that_trains_along_gets_its_gradient(other):
    p = stirred(get_peft_model(gpt("gpt2", np.float64), LadderConfig()))
    p.add_adapter("other", other)
    stirred(p, "other")
    p.set_adapter(["default", "other"])
    assert mp.gradcheck(lambda: p(IDS, context=ForwardContext()).logits, (), parameters=p.trainable_parameters())
    p.set_adapter(["default", "other"], train="default")
    p(IDS, labels=IDS).loss.backward()
    assert all((q.grad is None) == (q.owner != "default") for _, q in p.named_parameters())


def test_rows_of_a_ladder_and_of_a_prefix_in_one_batch():
    p = stirred(get_peft_model(gpt("llama"), LadderConfig()))
    p.add_adapter("other", toy_methods.PrefixConfig(3))
    names = ["default", "other", "__base__"]
    mixed = logits(p, attention_mask=MASK, adapter_names=names)
    new = p.generate(IDS, max_new_tokens=5, attention_mask=MASK, adapter_names=names)
    for row, name in enumerate(names):
        alone = {"adapter_names": [name]}
        ids = IDS[row : row + 1, 8 - MASK[row].sum() :]
        np.testing.assert_allclose(mixed[row, -ids.shape[1] :], logits(p, ids, **alone)[0], **TIGHT)
        assert np.array_equal(new[row, 8 - ids.shape[1] :], p.generate(ids, max_new_tokens=5, **alone)[0])


@families
def test_the_side_network_sees_no_key_of_a_prefix(family):
    p = stirred(get_peft_model(gpt(family), LadderConfig()))
    p.add_adapter("prefix", toy_methods.PrefixConfig(3))
    p.set_adapter(["default", "prefix"])
    layer, seen = layer_of(p), []
    beside = layer.beside
    layer.beside = lambda rungs, context: seen.append((rungs, context, beside(rungs, context))) or seen[-1][2]
    with no_grad():
        cache = p(IDS, attention_mask=MASK, use_cache=True).past_key_values
        rungs, context, added = seen[0]
        alone = beside(rungs, replace(context, cache=None, past_length=0, keep=MASK[:, None, None, :]))
    np.testing.assert_allclose(added.data[MASK], alone.data[MASK], **TIGHT)
    keys = cache.entries["default.side.0"][0].data
    assert keys.shape[2] == cache.length == 11 and not keys[:, :, :3].any() and keys[:, :, 3:].any()


# -- what it computes ----------------------------------------------------------------------------------------------
@families
def test_it_is_the_sum_of_the_base_and_of_what_climbs_along_it(family):
    base = gpt(family)
    with no_grad():
        *rungs, _ = base(IDS, output_hidden_states=True).hidden_states
        context = ForwardContext()
        base.encode_ids(IDS, context)
        h = base.blocks(rungs[0], context)
    p = stirred(get_peft_model(base, LadderConfig(reduction_factor=4, gate_temperature=0.5)))
    layer = layer_of(p)
    context = side_context(context, rungs[0], layer.shape, layer.adapter)
    with no_grad():
        s = F.linear(rungs[0], layer.down[0].weight)
        for i, h_i in enumerate([*rungs[1:], h]):
            mu = 1 / (1 + np.exp(-layer.gate.data[i] / 0.5))
            s = layer.side[i](s * mu + F.linear(h_i, layer.down[i + 1].weight) * (1 - mu), context)
        expected = base.lm_head(base.ln_f(h + F.linear(layer.norm(s), layer.up.weight)))
    np.testing.assert_allclose(logits(p), expected.data, **TIGHT)


def test_hidden_states_are_the_base_s_with_the_ladder_s_at_the_end():
    plain = gpt("gpt2")(IDS, output_hidden_states=True).hidden_states
    p = stirred(get_peft_model(gpt("gpt2"), LadderConfig()))
    p.add_adapter("second", LadderConfig(reduction_factor=4))
    p.set_adapter(["default", "second"])
    seen = p(IDS, output_hidden_states=True).hidden_states
    assert len(seen) == len(plain) == 3
    for a, b in zip(seen[:2], plain[:2], strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    assert np.abs(seen[2].data - plain[2].data).max() > 1e-3


# -- the start -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama", "llama-4bit"])
def test_a_side_network_as_wide_as_the_base_starts_as_the_base(family):
    base = gpt(family)
    p = get_peft_model(base, LadderConfig(reduction_factor=1))
    context, x = ForwardContext(), Tensor(np.random.default_rng(0).standard_normal((3, 8, 32)).astype(np.float32))
    with no_grad():
        base.encode_ids(IDS, context)
        for side, block in zip(layer_of(p).side, layer_of(p).base_layer, strict=True):
            np.testing.assert_allclose(side(x, context).data, block(x, context).data, **TIGHT)


@families
def test_what_is_cut_matters_less_than_what_is_kept(family):
    base = gpt(family)
    table = base.embed.tokens.weight.data
    table[:, [3, 9, 20, 31]] *= 5
    mlp, attn = base.blocks[0].mlp, base.blocks[1].attn
    mlp.down_proj.weight.data[:, 1::8] *= 9  # every eighth neuron
    attn.o_proj.weight.data[:, 16:24] *= 9  # the third head
    layer = layer_of(get_peft_model(base, LadderConfig()))
    channels = [3, 9, 20, 31]
    assert all(np.array_equal(down.weight.data, np.eye(32)[channels]) for down in layer.down)
    side = layer.side[0].mlp.up_proj.weight.data
    assert np.array_equal(side, mlp.up_proj.weight.data[1::8][:, channels])
    q = attn.q_proj.weight.data[16:24][:, channels]
    assert all(any(np.array_equal(row, r) for r in q) for row in layer.side[1].attn.q_proj.weight.data)


def test_the_start_helps():
    """From the base's weights the side network learns faster than from noise of the same size."""
    p, q = (get_peft_model(gpt("gpt2"), LadderConfig(reduction_factor=2)) for _ in range(2))
    rng = np.random.default_rng(0)
    for parameter in layer_of(q).side.parameters():
        parameter.data[...] = parameter.data.std() * rng.standard_normal(parameter.shape)
    for model in (p, q):
        train(model, optimizer_of(model, lr=3e-3), range(20))
    assert loss(p) < loss(q)


def test_the_shape_of_the_side_network():
    wide = GPTConfig(vocab_size=7, n_positions=8, n_embd=768, n_layer=1, n_head=12)
    side = side_config(wide, 8)
    assert (side.n_embd, side.n_head, side.head_dim, side.inner) == (96, 2, 48, 384)
    side = side_config(CONFIGS["llama"], 8)
    assert (side.n_embd, side.n_head, side.kv_heads, side.inner) == (4, 1, 1, 5)
    assert side_config(CONFIGS["llama"], 2).n_head == 2


@pytest.mark.parametrize(
    "family, settings, message",
    [
        ("gpt2", {"reduction_factor": 0}, "at least 1, got 0"),
        ("gpt2", {"reduction_factor": 5}, "does not divide the width 32: 2, 4, 8, 16, 32 do"),
        ("llama", {"reduction_factor": 32}, "leaves a width of 1, and rotary positions need an even one"),
        ("gpt2", {"reduction_factor": True}, "at least 1, got True"),
        ("gpt2", {"gate_temperature": 0}, "gate_temperature must be a positive number, got 0"),
        ("gpt2", {"gate_temperature": "x"}, "gate_temperature must be a number, got 'x'"),
    ],
)
def test_bad_settings_say_what_would_be_valid(family, settings, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(gpt(family), LadderConfig(**settings))
