"""DoRA: the norm by the low-rank identity, the gradient through it, and what the layer keeps and makes again."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minitorch_peft.kernels.four_bit.reference import dequantize_4bit, quantize_4bit
from peft_cases import IDS, MASK, TIGHT, gpt, logits, optimizer_of, stirred, train

import minitorch_peft as mp
from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.nn import Embedding, ForwardContext, Linear, Linear4bit, init
from minitorch_peft.peft import (
    BitFitConfig,
    FullConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    RandomMaskConfig,
    get_peft_model,
)
from minitorch_peft.peft.inject import base_module
from minitorch_peft.peft.parameter.dora import DoraLayer, DoraNorm
from minitorch_peft.peft.parameter.dora_files import MAGNITUDE
from minitorch_peft.peft.parameter.dora_functions import Rescaled, RowLengths

sides = st.integers(1, 9)
DORA = {"use_dora": True}


def drawn(seed, *shapes, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def squares(W):
    return (W.astype(np.float64) ** 2).sum(axis=1)


def norm_of(W, A, B, s, q=None):
    weight = dequantize_4bit(q) if W is None else W
    inputs = [None if a is None else mp.tensor(a, dtype=a.dtype) for a in (W, A, B)]
    return DoraNorm.apply(*inputs, s=s, q=q, squares=squares(weight)).data


# -- the norm --------------------------------------------------------------------------------------------------------
@given(sides, sides, sides, st.floats(0.1, 4), st.integers(0, 99), st.sampled_from(["float32", "float64"]))
@settings(max_examples=60, deadline=None)
def test_the_norm_is_that_of_the_weight_that_is_not_formed(out, n, r, s, seed, dtype):
    W, A, B = drawn(seed, (out, n), (r, n), (out, r), dtype=dtype)
    expected = np.linalg.norm(W.astype(float) + s * B.astype(float) @ A.astype(float), axis=1)
    got = norm_of(W, A, B, s)
    eps = 1e-12 if dtype == "float64" else 1e-5  # of what cancels: ‖w‖ + ‖s b A‖
    assert got.dtype == dtype
    np.testing.assert_allclose(
        got**2, expected**2, atol=eps * (expected + s * np.linalg.norm(B @ A, axis=1)).max() ** 2
    )


@given(sides, sides, st.integers(1, 4), st.integers(0, 99), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_norm_of_a_weight_in_four_bits(out, n, r, seed, nested):
    W, A, B = drawn(seed, (out, n), (r, n), (out, r))
    q = quantize_4bit(W, 32, compress_statistics=nested)
    np.testing.assert_allclose(norm_of(None, A, B, 0.7, q), norm_of(dequantize_4bit(q), A, B, 0.7), rtol=1e-6)


@pytest.mark.parametrize("out, n, r", [(4, 5, 2), (1, 3, 1), (3, 1, 2)])
@pytest.mark.parametrize("trained", ["AB", "A", "WAB", "W"])
def test_the_gradient_through_the_norm(out, n, r, trained):
    t = dict(zip("WAB", drawn(0, (out, n), (r, n), (out, r)), strict=True))
    t = {name: mp.tensor(a, requires_grad=name in trained) for name, a in t.items()}

    def run(*_):  # the lengths follow W while it is moved
        return DoraNorm.apply(*t.values(), s=0.7, q=None, squares=squares(t["W"].data))

    assert mp.gradcheck(run, [t[name] for name in trained])


def test_the_gradient_through_the_norm_of_four_bits():
    W, A, B = drawn(0, (4, 5), (2, 5), (4, 2))
    q = quantize_4bit(W, 32)
    A, B = (mp.tensor(a, requires_grad=True) for a in (A, B))
    lengths = squares(dequantize_4bit(q))
    assert mp.gradcheck(lambda *_: DoraNorm.apply(None, A, B, s=0.7, q=q, squares=lengths), (A, B))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (4,), (0, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_rescaling(shape, bias):
    v, g, b = (mp.tensor(a, requires_grad=True) for a in drawn(1, shape, (4,), (4,)))
    b = b if bias else None
    out = Rescaled.apply(v, g, b).data
    np.testing.assert_allclose(out, g.data * (v.data - (b.data if bias else 0)) + (b.data if bias else 0), 1e-12, 1e-12)
    assert mp.gradcheck(lambda *_: Rescaled.apply(v, g, b), [t for t in (v, g, b) if t is not None])
    ones = mp.tensor(np.ones(4, np.float32))
    x = mp.tensor(v.data.astype(np.float32))
    assert np.array_equal(Rescaled.apply(x, ones, None if b is None else mp.tensor(b.data.astype("f"))).data, x.data)


@pytest.mark.parametrize("packed", [False, True])
def test_no_array_of_the_weight_s_size_is_made(packed):
    W, A, B = drawn(0, (600, 512), (2, 512), (600, 2), dtype=np.float32)
    q = quantize_4bit(W) if packed else None
    lengths = squares(W)
    A, B = mp.tensor(A, requires_grad=True), mp.tensor(B, requires_grad=True)
    W = None if packed else mp.tensor(W)

    def run():
        DoraNorm.apply(W, A, B, s=0.7, q=q, squares=lengths).backward(gradient=np.ones(600, np.float32))

    run()  # compiles
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600 * 512 * 4 / 4


# -- the layer -------------------------------------------------------------------------------------------------------
def layer_of(base, r=2, **options):
    """A layer that matters, on a base of its own, in float64."""
    init.initialize(base, seed=3)
    base.astype(np.float64)
    if getattr(base, "bias", None) is not None:
        base.bias.data += 0.5

    def new_parameter(name, shape, start):
        return mp.nn.Parameter(start(np.random.default_rng(1), shape).astype(np.float64))

    adapter = SimpleNamespace(name="a", new_parameter=new_parameter, rows=lambda context: True)
    layer = DoraLayer(base, "x", adapter, LoraConfig(r=r, lora_alpha=3, **DORA, **options)).eval()
    for p in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        p.data += 0.3 * np.random.default_rng(p.data.size).standard_normal(p.shape)
    return layer


@given(sides, sides, st.integers(1, 9), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_output_is_that_of_the_effective_weight(n, out, r, bias):
    base = Linear(n, out, bias=bias)
    layer = layer_of(base, r)
    (x,) = drawn(2, (3, n))
    expected = x @ layer.effective(base.dense_weight()).T + (base.bias.data if bias else 0)
    np.testing.assert_allclose(layer(mp.tensor(x)).data, expected, rtol=1e-9, atol=1e-9)
    rows = np.linalg.norm(layer.effective(base.dense_weight()), axis=1)
    np.testing.assert_allclose(rows, np.abs(layer.lora_magnitude_vector.data), rtol=1e-12)  # that is what m is


def test_embeddings_and_four_bits():
    table = Embedding(7, 5)
    layer = layer_of(table)
    ids = np.array([[0, 6, 3]])
    np.testing.assert_allclose(layer(ids).data, layer.effective(table.dense_weight()).T[ids], rtol=1e-12)
    dense = Linear(64, 5)
    init.initialize(dense, 0)
    packed = Linear4bit.from_linear(dense)
    layer = layer_of(packed)
    (x,) = drawn(2, (3, 64))
    expected = x @ layer.effective(packed.dense_weight().astype(float)).T + packed.bias.data
    np.testing.assert_allclose(layer(mp.tensor(x)).data, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2-4bit", "llama-4bit"])
def test_a_model_in_four_bits(family):
    config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.2, **DORA)
    base = gpt(family)
    before = logits(base)
    p = get_peft_model(base, config)
    np.testing.assert_array_equal(logits(p), before)
    p = stirred(p)
    unmerged = logits(p)
    p.merge_adapter()
    np.testing.assert_allclose(logits(p), unmerged, rtol=1e-4, atol=1e-4)
    p.unmerge_adapter()
    np.testing.assert_array_equal(logits(p), unmerged)
    p = stirred(get_peft_model(gpt(family, np.float64), config)).train()
    context = ForwardContext(seed=1, step=2)
    assert mp.gradcheck(
        lambda: p(IDS, attention_mask=MASK, context=context).logits, (), parameters=p.trainable_parameters()
    )


def test_with_the_norm_held_constant_outputs_agree_and_gradients_do_not():
    def gradients(**options):
        p = stirred(get_peft_model(gpt("llama", np.float64), LoraConfig(r=2, **DORA, **options)))
        out = p(IDS, labels=IDS)
        out.loss.backward()
        return out.logits.data, {n: q.grad for n, q in p.trainable_parameters().items()}

    (outputs, exact), (same, held) = gradients(), gradients(dora_detach_norm=True)
    np.testing.assert_array_equal(outputs, same)
    for name, g in exact.items():
        assert np.allclose(g, held[name], rtol=1e-9) is ("magnitude" in name), name


def test_the_fused_layer_is_the_one_over_another_adapter():
    """In one operation, and as base plus difference over an idle adapter; dropout by the same mask."""
    config = LoraConfig(r=2, lora_dropout=0.4, target_modules="all-linear", **DORA)
    alone = stirred(get_peft_model(gpt("llama"), config)).train()
    p = PeftModel(gpt("llama"))
    p.add_adapter("idle", LoraConfig(r=2, target_modules="all-linear"), seed=3)
    p.add_adapter("default", config)
    p.set_adapter("default")
    stirred(p).train()
    context = ForwardContext(seed=1, step=2)
    np.testing.assert_allclose(logits(alone, context=context), logits(p, context=context), **TIGHT)


def test_a_base_that_trains_under_it_gets_its_gradient_through_the_norm():
    p = get_peft_model(gpt("gpt2", np.float64), LoraConfig(r=2, target_modules=["v_proj", "embed.tokens"], **DORA))
    stirred(p)
    p.add_adapter("full", FullConfig())
    p.set_adapter(["default", "full"])
    names = ["blocks.0.attn.v_proj.weight.full", "embed.tokens.weight.full", "blocks.0.attn.v_proj.lora_A.default"]
    parameters = {n: q for n, q in p.trainable_parameters().items() if n in names}

    def run():
        for q in parameters.values():
            q.version.count += 1  # gradcheck moves them through .data
        return p(IDS).logits

    assert len(parameters) == 3 and mp.gradcheck(run, (), parameters=parameters)


def test_rows_of_dora_of_lora_and_of_none():
    p = PeftModel(gpt("llama"))
    configs = {"d": LoraConfig(r=2, **DORA), "l": LoraConfig(r=2), "e": LoraConfig(r=3, **DORA)}
    for name, config in configs.items():
        p.add_adapter(name, config, seed=len(name))
        stirred(p, name, scale=0.2)
    names = ["e", "l", "d"]
    mixed = logits(p, adapter_names=names)
    for row, name in enumerate(names):
        p.set_adapter(name)
        np.testing.assert_allclose(mixed[row], logits(p)[row], **TIGHT)
    with p.disable_adapter():
        np.testing.assert_array_equal(logits(p, adapter_names=["__base__"] * 3), logits(p))


@pytest.mark.parametrize(
    "inner",
    [IA3Config(), BitFitConfig(), RandomMaskConfig(fraction=0.5, target_parameters=["v_proj.bias", "v_proj.weight"])],
    ids=["ia3", "bitfit", "random_mask"],
)
@pytest.mark.parametrize("dora_first", [False, True])
def test_merged_with_what_changes_the_bias_it_is_the_same_function(inner, dora_first):
    """IA3 inside makes another bias: DoRA rescales its difference from the base's. The others change the base's."""
    p = PeftModel(gpt("gpt2", np.float64))
    for name, config in {"inner": inner, "dora": LoraConfig(r=2, **DORA)}.items():
        p.add_adapter(name, config)
        stirred(p, name)
    p.set_adapter(["dora", "inner"] if dora_first else ["inner", "dora"])
    assert p.merge_adapter().logit_difference < 1e-9


# -- what is made once -----------------------------------------------------------------------------------------------
def test_lengths_are_made_once_and_again_when_the_weight_has_changed(monkeypatch):
    base = Linear(4, 3)
    layer, known = layer_of(base), RowLengths()
    first = known.of_rows(base)
    assert known.of_rows(base) is first and known.current(base)
    base.weight.data = base.weight.data * 2
    np.testing.assert_allclose(known.of_rows(base), 4 * first)
    base.weight.data *= 2  # in place, and announced
    base.weight.version.count += 1
    np.testing.assert_allclose(known.of_rows(base), 16 * first)
    x = mp.tensor(drawn(2, (2, 4))[0])
    np.testing.assert_allclose(layer(x).data, x.data @ layer.effective(base.dense_weight()).T + base.bias.data)


def test_lengths_of_four_bits_follow_what_is_loaded():
    first, second = (Linear(64, 3, weight_init=init.normal(std)) for std in (1.0, 3.0))
    for layer in (first, second):
        init.initialize(layer, 1)
    layer, other = Linear4bit.from_linear(first), Linear4bit.from_linear(second)
    known = RowLengths()
    before = known.of_rows(layer).copy()
    layer.load_state_dict(other.state_dict())
    np.testing.assert_allclose(known.of_rows(layer), squares(other.dense_weight()))
    assert not np.allclose(before, known.of_rows(layer))


def test_without_gradients_the_norm_is_made_once_for_the_same_weights(monkeypatch):
    p = stirred(get_peft_model(gpt("gpt2"), LoraConfig(r=2, target_modules=["q_proj"], **DORA)))
    made = []
    forward = DoraNorm.forward
    monkeypatch.setattr(DoraNorm, "forward", staticmethod(lambda *a, **k: made.append(1) or forward(*a, **k)))
    first = logits(p)
    assert len(made) == 2  # one for each layer
    p.generate(IDS, max_new_tokens=5)
    assert len(made) == 2
    p.adapters["default"].wrappers["blocks.0.attn.q_proj"].lora_B.data[0, 0] += 1  # unannounced
    assert np.abs(logits(p) - first).max() > 1e-3 and len(made) == 3
    train(p, optimizer_of(p), range(2))
    assert len(made) == 7  # two steps of two layers: the gradient passes through it
    with no_grad():
        base_module(p.base_model, "blocks.1.attn.q_proj").weight.data *= 2
        base_module(p.base_model, "blocks.1.attn.q_proj").weight.version.count += 1
    p(IDS)  # learns of it, with gradients
    logits(p)
    assert len(made) == 7 + 2 + 2
    q_proj = p.adapters["default"].wrappers["blocks.1.attn.q_proj"]
    change = q_proj.scaling * q_proj.lora_B.data @ q_proj.lora_A.data
    expected = np.linalg.norm(q_proj.base.dense_weight() + change, axis=1)
    np.testing.assert_allclose(q_proj.known.norm.data, expected, rtol=1e-5)


# -- what is refused -------------------------------------------------------------------------------------------------
def test_a_row_of_zeros_has_no_direction():
    base = gpt("gpt2")
    base.blocks[1].attn.v_proj.weight.data[3] = 0
    with pytest.raises(ValueError, match=r"row 3 of the weight of blocks.1.attn.v_proj is zero: it has no direction"):
        get_peft_model(base, LoraConfig(r=2, **DORA))
    assert all(q.requires_grad for q in base.parameters())
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], **DORA))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dora_detach_norm": True}, "set use_dora=True as well"),
        ({"use_dora": True, "init_lora_weights": "pissa"}, "are two methods"),
        ({"init_lora_weights": "olora"}, "init_lora_weights must be True or \"pissa\", got 'olora'"),
        ({"init_lora_weights": False}, "got False"),
    ],
)
def test_bad_configs(options, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**options)


def test_a_part_of_a_fused_file_that_cannot_be_split_says_so(tmp_path):
    from minitorch_peft.formats.files import FileFormatError, read_arrays, write_arrays

    p = stirred(get_peft_model(gpt("gpt2"), LoraConfig(r=2, target_modules=["q_proj"], **DORA)))
    p.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert list(again.adapters["default"].wrappers) == ["blocks.0.attn.q_proj", "blocks.1.attn.q_proj"]
    arrays = read_arrays(tmp_path / "adapter_model.safetensors")
    name = f"base_model.model.transformer.h.0.attn.c_attn.{MAGNITUDE}"
    assert arrays[name].shape == (96,)
    arrays[name][40] *= 2  # k's, which has no other change
    write_arrays(tmp_path / "adapter_model.safetensors", arrays)
    with pytest.raises(FileFormatError, match=r"changes the lengths of blocks.0.attn.k_proj, whose part of lora_B is"):
        PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
