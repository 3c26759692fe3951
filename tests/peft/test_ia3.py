"""IA3: what it scales, merging with biases, its files, ``peft``'s numbers without ``peft``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from golden_cases import RECIPE, golden_adapter, golden_model, golden_values
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_cases import gpt, logits, snapshot, stir, stirred

from minitorch_peft.autograd.tensor import tensor
from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json
from minitorch_peft.nn import Linear
from minitorch_peft.peft import BitFitConfig, IA3Config, LoraConfig, PeftModel, RandomMaskConfig, get_peft_model
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.function.ia3 import IA3Layer
from minitorch_peft.peft.inject import base_module


def adapted(family="gpt2", dtype=np.float32, **options):
    return get_peft_model(gpt(family, dtype), IA3Config(**options))


class Alone(Adapter):
    """An adapter of nothing, which a layer can be made for."""

    def attach(self, config):
        self.active = True


ALONE = Alone("default", IA3Config(), gpt("gpt2", np.float64), seed=0)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


# -- the function --------------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(out=st.integers(1, 6), inner=st.integers(1, 6), feedforward=st.booleans(), seed=st.integers(0, 99))
def test_a_layer_is_the_equation_and_its_weight_and_bias(out, inner, feedforward, seed):
    rng = np.random.default_rng(seed)
    base = Linear(inner, out).astype(np.float64)
    base.weight.data[...], base.bias.data[...] = rng.standard_normal((out, inner)), rng.standard_normal(out)
    layer = IA3Layer(base, "layer", ALONE, feedforward)
    layer.ia3_l.data[...] = rng.standard_normal(layer.ia3_l.shape)
    x, scale, W, b = rng.standard_normal((3, inner)), layer.ia3_l.data.reshape(-1), base.weight.data, base.bias.data
    y = layer(tensor(x)).data
    np.testing.assert_allclose(y, (scale * x) @ W.T + b if feedforward else scale * (x @ W.T + b), **EXACT)
    np.testing.assert_allclose(y, x @ layer.effective(W).T + layer.effective_bias(b), **EXACT)


def test_the_default_is_the_paper_s():
    p = adapted()
    shapes = {name: q.shape for name, q in p.adapters["default"].named_parameters().items() if name[7] == "0"}
    assert shapes == {
        "blocks.0.attn.k_proj.ia3_l": (32, 1), "blocks.0.attn.v_proj.ia3_l": (32, 1),
        "blocks.0.mlp.down_proj.ia3_l": (1, 128),
    }  # fmt: skip
    assert all((q.data == 1).all() for q in p.adapters["default"].named_parameters().values())


def test_zeros_for_the_values_of_a_head_switch_it_off():
    """With l_v = 0 in a head, what that head attends to does not matter any more."""
    p = adapted()
    p.adapters["default"].wrappers["blocks.1.attn.v_proj"].ia3_l.data[:8] = 0
    before = logits(p)
    for name in ("q_proj", "k_proj"):
        base_module(p.base_model, f"blocks.1.attn.{name}").weight.data[:8] += 1
    np.testing.assert_allclose(logits(p), before, rtol=1e-5, atol=1e-5)
    p.adapters["default"].wrappers["blocks.1.attn.v_proj"].ia3_l.data[:8] = 1
    assert np.abs(logits(p) - before).max() > 1e-2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"feedforward_modules": ["up_proj"]}, "'up_proj' matches no target; nearest: v_proj, k_proj, down_proj"),
        ({"target_modules": ["embed.tokens"], "feedforward_modules": []}, "embed.tokens looks rows up: leave it out"),
        ({"target_modules": ["key"]}, "'key' matches no layer"),
    ],
)
def test_bad_settings_say_what_would_be_valid(options, message):
    base = gpt("gpt2")
    before = snapshot(base)
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, IA3Config(**options))
    assert snapshot(base) == before


# -- merging -------------------------------------------------------------------------------------------------------
OTHERS = {
    "a copy": BitFitConfig(bias_kinds=["v_proj", "down_proj"]),
    "a change of the bias": RandomMaskConfig(num_parameters=20, target_parameters=["v_proj.bias"]),
    "LoRA": LoraConfig(r=2, target_modules=["v_proj", "down_proj"]),
}


@pytest.mark.parametrize("order", [["default", "other"], ["other", "default"]])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_biases_are_merged_with_what_other_adapters_make_of_them(other, order):
    p = adapted(dtype=np.float64)
    stir(dict(p.base_model.named_parameters()), scale=0.3)  # so that biases matter
    p.add_adapter("other", other)
    stirred(stirred(p), "other")
    p.set_adapter(order)
    standing, unmerged = snapshot(p.base_model), logits(p)
    p.merge_adapter()
    np.testing.assert_allclose(logits(p), unmerged, rtol=1e-10, atol=1e-10)
    p.unmerge_adapter()
    assert snapshot(p.base_model) == standing
    np.testing.assert_array_equal(logits(p), unmerged)
    plain = p.merge_and_unload()
    np.testing.assert_allclose(logits(plain), unmerged, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("requantize", [False, True])
def test_over_four_bits_the_bias_is_merged_too_and_comes_back(requantize):
    p = stirred(get_peft_model(gpt("gpt2-4bit"), IA3Config()))
    standing, unmerged = snapshot(p.base_model), logits(p)
    certificate = p.merge_adapter(requantize=requantize)
    assert certificate.restores_base
    if not requantize:
        np.testing.assert_allclose(logits(p), unmerged, rtol=1e-4, atol=1e-4)
    p.unmerge_adapter()
    assert snapshot(p.base_model) == standing
    np.testing.assert_array_equal(logits(p), unmerged)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_bias_that_would_not_be_finite_is_refused():
    p = adapted()
    base_module(p.base_model, "blocks.0.attn.k_proj").bias.data[...] = 1e38
    p.adapters["default"].wrappers["blocks.0.attn.k_proj"].ia3_l.data[...] = 1e3
    standing = snapshot(p.base_model)
    with pytest.raises(ValueError, match=r"not finite into blocks.0.attn.k_proj.bias"):
        p.merge_adapter()
    assert snapshot(p.base_model) == standing


# -- files ---------------------------------------------------------------------------------------------------------
def test_keys_and_values_alone_have_ones_for_the_query_in_peft_s_file(tmp_path):
    p = stirred(adapted())
    p.save_pretrained(tmp_path)
    arrays = read_arrays(tmp_path / "adapter_model.safetensors")
    fused = arrays["base_model.model.transformer.h.0.attn.c_attn.ia3_l"]
    assert fused.shape == (96, 1) and (fused[:32] == 1).all()
    wrappers = p.adapters["default"].wrappers
    np.testing.assert_array_equal(fused[32:64], wrappers["blocks.0.attn.k_proj"].ia3_l.data)
    settings_ = read_json(tmp_path / "adapter_config.json")
    assert settings_["target_modules"] == ["attn.c_attn", "mlp.c_proj"]
    assert settings_["feedforward_modules"] == ["mlp.c_proj"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("scale", [0, 0.1])
def test_the_targets_come_back_from_peft_s_file_also_where_ones_stayed(scale, family, tmp_path):
    p = stirred(adapted(family), scale=scale)
    p.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(gpt(family), tmp_path)
    assert again.adapters["default"].config == p.adapters["default"].config == IA3Config()


@pytest.mark.parametrize("targets", [["k_proj", "v_proj"], ["q_proj", "k_proj", "v_proj"]])
def test_inputs_of_a_fused_module_that_differ_are_refused(targets, tmp_path):
    p = stirred(adapted(target_modules=targets, feedforward_modules=targets))
    with pytest.raises(ValueError, match=r"one module transformer.h.0.attn.c_attn in peft.*format='native'"):
        p.save_pretrained(tmp_path / "peft")
    assert not (tmp_path / "peft").exists() or not list((tmp_path / "peft").iterdir())
    assert p.save_pretrained(tmp_path / "native", format="native") == "native"
    p = stirred(adapted(target_modules=["q_proj", "k_proj", "v_proj"], feedforward_modules=["v_proj"]))
    with pytest.raises(ValueError, match=r"one module transformer.h.0.attn.c_attn in peft"):
        p.save_pretrained(tmp_path / "peft")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"feedforward_modules": None}, "has no feedforward_modules"),
        ({"target_modules": ["nothing"]}, "names no module of this model"),
        ({"modules_to_save": ["lm_head"]}, "no counterpart here: modules_to_save"),
        ({"feedforward_modules": ["c_fc"]}, "has shape"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, tmp_path):
    adapted(target_modules=["up_proj"], feedforward_modules=[]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(read_json(path) | change))
    with pytest.raises(FileFormatError, match=message):
        PeftModel.from_pretrained(gpt("gpt2"), tmp_path)


# -- peft's numbers, without peft ----------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_golden_adapter(family, tmp_path):
    arrays = golden_adapter("ia3", family, tmp_path / "theirs")
    p = PeftModel.from_pretrained(golden_model(family), tmp_path / "theirs")
    expected = golden_values("ia3", family)["logits"]
    np.testing.assert_allclose(logits(p, RECIPE["IDS"]), expected, rtol=1e-5, atol=1e-5)
    with p.disable_adapter():
        assert np.abs(logits(p, RECIPE["IDS"]) - expected).max() > 1e-2
    p.save_pretrained(tmp_path / "ours")
    ours = read_arrays(tmp_path / "ours" / "adapter_model.safetensors")
    assert ours.keys() == arrays.keys() and all(np.array_equal(ours[n], arrays[n]) for n in arrays)
    np.testing.assert_allclose(logits(p.merge_and_unload(), RECIPE["IDS"]), expected, rtol=1e-5, atol=1e-5)
