"""Merging into weights that are stored in four bits: exactly, or back into four bits with the loss on paper."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from peft_cases import IDS, gpt, logits, originals, snapshot, stirred, train

from minitorch_peft.models import GPT
from minitorch_peft.nn import Linear, Linear4bit
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import BitFitConfig, LoraConfig, get_peft_model
from minitorch_peft.quant import dequantize_model, quantize_model, quantized_layers

ALL = LoraConfig(r=2, target_modules="all-linear")
QV = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])


def adapted(config=ALL, family="gpt2-4bit", dtype=np.float32):
    return stirred(get_peft_model(gpt(family, dtype), config))


@pytest.mark.parametrize("family", ["gpt2-4bit", "llama-4bit"])
def test_the_merged_layer_is_dense_and_the_sum_exact(family):
    p = adapted(family=family)
    layers = {path: w.base for path, w in p.adapters["default"].wrappers.items()}
    exact = {
        path: p.adapters["default"].wrappers[path].effective(layer.dense_weight().astype(np.float64))
        for path, layer in layers.items()
    }
    certificate = p.merge_adapter()
    assert certificate.layers == len(layers) and certificate.requantized == 0 and certificate.restores_base
    assert certificate.weight_difference < 1e-6 and certificate.relative_logit_difference < 1e-6
    for path, wrapper in p.adapters["default"].wrappers.items():
        assert type(wrapper.base) is Linear and wrapper.base.bias is layers[path].bias
        assert not wrapper.base.weight.requires_grad
        np.testing.assert_array_equal(wrapper.base.weight.data, exact[path].astype(np.float32))
    p.unmerge_adapter()
    assert all(w.base is layers[path] for path, w in p.adapters["default"].wrappers.items())


def test_what_is_not_changed_stays_in_four_bits():
    base = gpt("gpt2-4bit")
    p = stirred(get_peft_model(base, QV))
    assert p.merge_adapter().layers == 4
    plain = p.merge_and_unload()
    assert plain is base and len(quantized_layers(plain)) == 12 - 4
    assert type(plain.blocks[0].attn.q_proj) is Linear and plain.blocks[0].attn.q_proj.weight.requires_grad
    merged = logits(plain)
    np.testing.assert_allclose(logits(dequantize_model(plain)), merged, rtol=1e-5, atol=1e-5)


def test_requantizing_says_what_it_loses():
    p = adapted()
    before, bits, exact = logits(p), snapshot(p.base_model), {}
    for path, w in p.adapters["default"].wrappers.items():
        exact[path] = w.effective(w.base.dense_weight().astype(np.float64))
    certificate = p.merge_adapter(IDS, requantize=True)
    wrappers = p.adapters["default"].wrappers
    assert certificate.requantized == certificate.layers == len(wrappers) and certificate.restores_base
    packed = {path: w.base for path, w in wrappers.items()}
    assert all(isinstance(layer, Linear4bit) and layer.nested_absmax is not None for layer in packed.values())
    worst = max(np.abs(layer.dense_weight() - exact[path]).max() for path, layer in packed.items())
    assert certificate.weight_difference == pytest.approx(worst) and worst > 0.01
    merged = logits(p)
    lost = np.linalg.norm(merged.astype(float) - before) / np.linalg.norm(before.astype(float))
    assert certificate.relative_logit_difference == pytest.approx(lost, rel=1e-4) and lost > 0.01
    assert certificate.logit_difference == pytest.approx(np.abs(merged - before).max(), rel=1e-4)
    assert certificate.kl_divergence > 1e-4
    p.unmerge_adapter()
    assert snapshot(p.base_model) == bits
    np.testing.assert_array_equal(logits(p), before)
    twin = copy.deepcopy(p)
    plain = p.merge_and_unload(IDS, requantize=True)
    assert len(quantized_layers(plain)) == 12 and all(q.owner == "base" for q in plain.parameters())
    np.testing.assert_array_equal(logits(plain), merged)
    dense = twin.merge_and_unload(IDS)
    assert not quantized_layers(dense)
    np.testing.assert_allclose(logits(dense), before, rtol=1e-4, atol=1e-4)


def test_what_is_refused():
    p = stirred(get_peft_model(gpt("gpt2"), QV))
    before, bits = logits(p), originals(p)
    with pytest.raises(ValueError, match="no weight that the adapters change is stored in four bits"):
        p.merge_adapter(requantize=True)
    assert p.merger is None and originals(p) == bits and not p.adapters["default"].merged
    np.testing.assert_array_equal(logits(p), before)
    p = adapted()
    p.merge_adapter()
    with pytest.raises(RuntimeError, match="unmerge_adapter"):
        p.merge_adapter(requantize=True)
    with pytest.raises(ValueError, match=r"merged without requantize: unmerge_adapter\(\) first"):
        p.merge_and_unload(requantize=True)
    p.unmerge_adapter()
    p.merge_adapter(requantize=True)
    assert len(quantized_layers(p.merge_and_unload(requantize=True))) == 12


def test_an_adapter_that_is_not_finite_leaves_the_four_bits_alone():
    p = adapted()
    bits, tree = snapshot(p.base_model), repr(p)
    p.adapters["default"].wrappers["blocks.1.attn.q_proj"].lora_B.data[0, 0] = np.inf
    with pytest.raises(ValueError, match=r"not finite into blocks\.1\.attn\.q_proj"), np.errstate(invalid="ignore"):
        p.merge_adapter()
    assert snapshot(p.base_model) == bits and repr(p) == tree and p.merger is None


@pytest.mark.parametrize("requantize", [False, True])
def test_biases_that_train_beside_it(requantize):
    """BitFit's copies stand in the layer that merging puts aside; they must end up in the one that takes its place."""
    base = gpt("gpt2-4bit")
    bits = snapshot(base)
    p = stirred(get_peft_model(base, ALL, "lora"), "lora")
    p.add_adapter("bias", BitFitConfig())
    stirred(p, "bias")
    p.set_adapter(["lora", "bias"])
    train(p, AdamW(p.trainable_parameters(), lr=1e-2), range(2))
    unmerged = logits(p)
    p.merge_adapter(requantize=requantize)
    merged = logits(p)
    if not requantize:
        np.testing.assert_allclose(merged, unmerged, rtol=1e-4, atol=1e-4)
    p.unmerge_adapter()
    np.testing.assert_array_equal(logits(p), unmerged)
    twin = copy.deepcopy(p)
    assert snapshot(twin.unload()) == bits
    plain = p.merge_and_unload(requantize=requantize)
    np.testing.assert_array_equal(logits(plain), merged)
    assert {q.owner for q in plain.parameters()} == {"base"}


def test_a_merged_model_is_written_dense_and_a_requantized_one_in_four_bits(tmp_path):
    for requantize in (False, True):
        plain = adapted(family="llama-4bit").merge_and_unload(requantize=requantize)
        plain.save_pretrained(tmp_path / str(requantize))
        again = GPT.from_pretrained(tmp_path / str(requantize))
        assert bool(quantized_layers(again)) == requantize
        np.testing.assert_allclose(logits(again), logits(plain), rtol=1e-5, atol=1e-5)


def test_quantizing_again_after_a_merge():
    plain = adapted().merge_and_unload()
    assert len(quantized_layers(quantize_model(plain))) == 12
