"""PiSSA: the principal part, a base that is not changed, and the LoRA of twice the rank that its files hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_cases import IDS, TIGHT, gpt, logits, optimizer_of, snapshot, stir, stirred, train

from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, read_metadata, write_arrays
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import LoraConfig, PeftModel, get_peft_model
from minitorch_peft.peft.lowrank_files import PRINCIPAL
from minitorch_peft.peft.principal import principal
from minitorch_peft.peft.registry import method_of

PISSA = {"init_lora_weights": "pissa"}
ALL = LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", **PISSA)
sides = st.integers(1, 9)


# -- the principal part ----------------------------------------------------------------------------------------------
@given(sides, sides, st.integers(1, 9), st.floats(0.1, 9), st.integers(0, 99), st.sampled_from(["float32", "float64"]))
@settings(max_examples=60, deadline=None)
def test_it_is_the_best_approximation_of_its_rank(out, n, r, s, seed, dtype):
    r = min(r, out, n)
    W = np.random.default_rng(seed).standard_normal((out, n)).astype(dtype)
    A, B = principal(W, r, s)
    assert A.shape == (r, n) and B.shape == (out, r) and A.dtype == B.dtype == dtype
    values = np.linalg.svd(W.astype(float), compute_uv=False)
    eps = 1e-5 if dtype == "float32" else 1e-12
    # Eckart and Young: what is left has the other singular values
    assert np.linalg.norm(W - s * B.astype(float) @ A) == pytest.approx(np.linalg.norm(values[r:]), abs=eps * values[0])
    np.testing.assert_allclose((A**2).sum(1), (B**2).sum(0), rtol=1e-4)  # the root of S is in each
    np.testing.assert_allclose((A.astype(float) ** 2).sum(1), values[:r] / s, rtol=1e-4, atol=eps)
    assert (B[np.abs(B).argmax(0), np.arange(r)] > 0).all()


def test_a_weight_of_low_rank_is_refused():
    base = gpt("llama")
    base.blocks[1].attn.v_proj.weight.data[1:] = 0
    with pytest.raises(ValueError, match=r"cannot start at blocks.1.attn.v_proj: a weight of rank 1 has no 2 prin"):
        get_peft_model(base, LoraConfig(r=2, **PISSA))
    get_peft_model(base, LoraConfig(r=1, **PISSA))


# -- the layer -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt2-4bit", "llama-4bit"])
def test_it_starts_as_the_base_bit_for_bit_and_leaves_it_alone(family):
    base = gpt(family)
    before, kept = logits(base), snapshot(base)
    p = get_peft_model(base, ALL)
    np.testing.assert_array_equal(logits(p), before)
    for layer in p.adapters["default"].wrappers.values():
        A0, B0 = principal(layer.base.dense_weight(), 3, 5 / 3)
        assert np.array_equal(layer.lora_A.data, A0) and np.array_equal(layer.lora_B.data, B0)
    train(p, optimizer_of(p), range(3))
    assert np.abs(logits(p) - before).max() > 1e-3
    unmerged = logits(p)
    p.merge_adapter()
    np.testing.assert_allclose(logits(p), unmerged, rtol=1e-4, atol=1e-4)
    p.unmerge_adapter()
    assert snapshot(p.unload()) == kept


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_lora_on_the_rest_of_the_weight(family):
    """What the paper does: a base without its principal part, under a LoRA with the same A and B."""
    p = stirred(get_peft_model(gpt(family, np.float64), ALL))
    rest = gpt(family, np.float64)
    for path, layer in p.adapters["default"].wrappers.items():
        A0, B0 = principal(layer.base.dense_weight(), 3, 5 / 3)
        rest.get(path).weight.data = layer.base.dense_weight() - 5 / 3 * B0 @ A0
    plain = get_peft_model(rest, LoraConfig(r=3, lora_alpha=5, target_modules="all-linear"))
    for name, q in plain.adapters["default"].named_parameters().items():
        q.data[...] = p.adapters["default"].named_parameters()[name].data
    np.testing.assert_allclose(logits(plain), logits(p), rtol=1e-10, atol=1e-10)
    for model in (p, plain):
        model(IDS, labels=IDS).loss.backward()
    for name, q in plain.trainable_parameters().items():
        np.testing.assert_allclose(p.trainable_parameters()[name].grad, q.grad, rtol=1e-8, atol=1e-12)


def test_the_fused_layer_is_the_one_over_another_adapter():
    config = LoraConfig(r=2, lora_dropout=0.4, target_modules="all-linear", **PISSA)
    alone = stirred(get_peft_model(gpt("llama"), config)).train()
    p = PeftModel(gpt("llama"))
    p.add_adapter("idle", LoraConfig(r=2, target_modules="all-linear"), seed=3)
    p.add_adapter("default", config)
    p.set_adapter("default")
    stirred(p).train()
    context = ForwardContext(seed=1, step=2)
    np.testing.assert_allclose(logits(alone, context=context), logits(p, context=context), **TIGHT)


def test_signs_of_singular_vectors_do_not_matter():
    """Another machine's decomposition may have them otherwise; a file then still means the same."""
    p = stirred(get_peft_model(gpt("llama"), ALL))
    before = logits(p)
    for layer in p.adapters["default"].wrappers.values():
        for part in layer.start:
            part.data *= -1
    np.testing.assert_allclose(logits(p), before, **TIGHT)


def test_rows_of_pissa_and_of_lora_of_twice_the_rank_run_together():
    p = PeftModel(gpt("llama"))
    for name, config in {"p": LoraConfig(r=2, **PISSA), "l": LoraConfig(r=4), "q": LoraConfig(r=2, **PISSA)}.items():
        p.add_adapter(name, config, seed=3)
        stirred(p, name, scale=0.2)
    names = ["q", "l", "p"]
    mixed = logits(p, adapter_names=names)
    for row, name in enumerate(names):
        p.set_adapter(name)
        np.testing.assert_allclose(mixed[row], logits(p)[row], **TIGHT)


# -- files -----------------------------------------------------------------------------------------------------------
def saved(tmp_path, family, config=ALL):
    p = stirred(get_peft_model(gpt(family), config))
    assert p.save_pretrained(tmp_path) == "peft"
    return p, read_json(tmp_path / "adapter_config.json"), read_arrays(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_file_is_a_lora_of_twice_the_rank(use_rslora, tmp_path):
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["k_proj", "up_proj"], use_rslora=use_rslora, **PISSA)
    p, written, arrays = saved(tmp_path, "llama", config)
    assert written["r"] == 6 and written["init_lora_weights"] is True
    assert written["lora_alpha"] == pytest.approx(6 * 2**0.5 if use_rslora else 12)
    layer = p.adapters["default"].wrappers["blocks.1.mlp.up_proj"]
    A0, B0 = (part.data for part in layer.start)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    assert np.array_equal(arrays[name.format("A")], np.concatenate([layer.lora_A.data, A0]))
    assert np.array_equal(arrays[name.format("B")], np.concatenate([layer.lora_B.data, -B0], axis=1))
    again = PeftModel.from_pretrained(gpt("llama"), tmp_path).adapters["default"]
    assert again.config == config and method_of(again.config).name == "pissa"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_without_our_metadata_it_is_read_as_that_lora(family, tmp_path):
    p, _, arrays = saved(tmp_path, family, LoraConfig(r=2, lora_alpha=6, **PISSA))
    assert PRINCIPAL in read_metadata(tmp_path / "adapter_model.safetensors")
    write_arrays(tmp_path / "adapter_model.safetensors", arrays)
    again = PeftModel.from_pretrained(gpt(family), tmp_path)
    assert again.adapters["default"].config == LoraConfig(r=4, lora_alpha=12)
    np.testing.assert_allclose(logits(again), logits(p), **TIGHT)


def test_on_another_base_it_is_read_as_that_lora(tmp_path):
    """One in four bits has another principal part: what was taken away is what the file says, not that."""
    saved(tmp_path, "llama", LoraConfig(r=2, lora_alpha=6, **PISSA))
    p = PeftModel.from_pretrained(gpt("llama-4bit"), tmp_path)
    assert p.adapters["default"].config == LoraConfig(r=4, lora_alpha=12)


def test_our_own_file_and_a_checkpoint_hold_where_it_started(tmp_path):
    """On a base that is a little another one, both formats give the same function: B₀A₀ is that of the file."""
    config = LoraConfig(r=2, lora_alpha=6, **PISSA)
    p = stirred(get_peft_model(gpt("llama"), config))

    def other():
        base = gpt("llama")
        stir(dict(base.named_parameters()), scale=0.02)
        return base

    for name in ("native", "peft"):
        p.save_pretrained(tmp_path / name, format=name)
    native = PeftModel.from_pretrained(other(), tmp_path / "native")
    expected = logits(native)
    for start, own in zip(*(q.adapters["default"].frozen().values() for q in (native, p)), strict=True):
        np.testing.assert_array_equal(start, own)
    np.testing.assert_allclose(logits(PeftModel.from_pretrained(other(), tmp_path / "peft")), expected, **TIGHT)
    again = get_peft_model(other(), config)
    again.load_method_state(p.method_state())
    for name, q in again.trainable_parameters().items():
        q.data[...] = p.trainable_parameters()[name].data
    np.testing.assert_array_equal(logits(again), expected)
    with pytest.raises(ValueError, match=r"the state of adapter 'default' has no blocks.0.attn.q_proj.start_A"):
        again.load_method_state({})


def test_peft_s_own_files_are_read_on_a_base_with_its_principal_part(tmp_path):
    """A and B alone, ``init_lora_weights="pissa"``: here, on unfused layers, those of PiSSA itself."""
    p = stirred(get_peft_model(gpt("llama"), LoraConfig(r=2, lora_alpha=6, **PISSA)))
    own = p.adapters["default"].named_parameters()
    names = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    arrays = {}
    for name, q in own.items():
        _, i, _, leaf, x = name.split(".")
        arrays[f"base_model.model.model.layers.{i}.self_attn.{leaf}.{names[x]}"] = q.data
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **PISSA}
    write_arrays(tmp_path / "adapter_model.safetensors", arrays)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    again = PeftModel.from_pretrained(gpt("llama"), tmp_path)
    assert again.adapters["default"].config == LoraConfig(r=2, lora_alpha=6, **PISSA)
    np.testing.assert_array_equal(logits(again), logits(p))


def test_a_tied_head_of_peft_s_is_refused(tmp_path):
    """There it took the principal part out of the embedding as well."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["lm_head"], **PISSA}
    arrays = {"A": np.ones((2, 32), "f"), "B": np.ones((29, 2), "f")}
    arrays = {f"base_model.model.lm_head.lora_{x}.weight": a for x, a in arrays.items()}
    write_arrays(tmp_path / "adapter_model.safetensors", arrays)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match="tied head changed the embedding as well"):
        PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
