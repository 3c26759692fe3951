"""Merging beyond the laws: what the certificate says, tied embeddings, several adapters, drift, refusals."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
from peft_cases import IDS, gpt, logits, snapshot, stirred

from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import Linear, TiedLinear
from minitorch_peft.peft import BitFitConfig, FullConfig, LoraConfig, get_peft_model
from minitorch_peft.peft.merge import checksum

QV = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
TOKENS = LoraConfig(r=2, target_modules=["embed.tokens"])
HEAD = LoraConfig(r=2, target_modules=["lm_head"])
untying = pytest.mark.filterwarnings("ignore:merging changed a weight that the embedding and the head shared")


def adapted(config, family="gpt2", dtype=np.float32):
    return stirred(get_peft_model(gpt(family, dtype), config))


def test_the_certificate_measures_what_it_says():
    p = adapted(QV)
    unmerged = logits(p)
    weights = {path: m.base.weight.data.astype(np.float64) for path, m in p.adapters["default"].wrappers.items()}
    exact = {path: p.adapters["default"].wrappers[path].effective(w) for path, w in weights.items()}
    certificate = p.merge_adapter(IDS)
    stored = {path: m.base.weight.data for path, m in p.adapters["default"].wrappers.items()}
    assert certificate.layers == 4 and certificate.restores_base and not certificate.untied
    assert certificate.weight_difference == max(np.abs(stored[path] - exact[path]).max() for path in exact) > 0
    merged = logits(p)
    np.testing.assert_allclose(certificate.logit_difference, np.abs(merged - unmerged).max(), rtol=1e-6)
    q, r = (np.exp(z.astype(np.float64)) for z in (unmerged, merged))
    q, r = q / q.sum(-1, keepdims=True), r / r.sum(-1, keepdims=True)
    assert certificate.kl_divergence == pytest.approx((q * np.log(q / r)).sum(-1).mean(), abs=1e-12)
    assert json.loads(json.dumps(certificate.to_dict()))["layers"] == 4


def test_a_coarse_store_shows_in_the_certificate():
    """In float16 the sum of base and change is rounded: the certificate says by how much, and the logits move."""
    fine, coarse = adapted(QV).merge_adapter(), adapted(QV, dtype=np.float16)
    coarse = coarse.merge_adapter()
    assert coarse.restores_base and coarse.weight_difference > 1000 * fine.weight_difference
    assert coarse.logit_difference > 100 * fine.logit_difference and coarse.kl_divergence > fine.kl_divergence


def test_a_hundred_merges_do_not_drift():
    """``peft`` adds the difference and subtracts it again: in float32 its base has moved by 1.5e-8 after a hundred."""
    p = adapted(QV)
    before, subtracted = checksum(p.base_model), p.base_model.blocks[0].attn.q_proj.base.weight.data.copy()
    layer = p.adapters["default"].wrappers["blocks.0.attn.q_proj"]
    delta = layer.effective(np.zeros_like(subtracted))
    for _ in range(100):
        p.merge_adapter(IDS[:1, :2])
        p.unmerge_adapter()
        subtracted = (subtracted + delta) - delta
    assert checksum(p.base_model) == before
    assert np.abs(subtracted - layer.base.weight.data).max() > 0  # the other way does drift


@untying
@pytest.mark.parametrize("config", [TOKENS, HEAD, LoraConfig(r=2, target_modules=["embed.tokens", "lm_head"])])
def test_merging_into_a_shared_weight_unties_it_and_says_so(config, tmp_path):
    base = gpt("gpt2")
    bits, tied = snapshot(base), base.lm_head
    p = stirred(get_peft_model(base, config))
    unmerged = logits(p)
    with pytest.warns(UserWarning, match="the head was untied first and has its own copy now"):
        certificate = p.merge_adapter()
    assert certificate.untied and certificate.logit_difference < 1e-4
    np.testing.assert_allclose(logits(p), unmerged, rtol=1e-4, atol=1e-4)
    assert not p.config.tie_word_embeddings
    p.unmerge_adapter()
    assert p.config.tie_word_embeddings and snapshot(base) == bits
    np.testing.assert_array_equal(logits(p), unmerged)

    plain = p.merge_and_unload()
    np.testing.assert_allclose(logits(plain), unmerged, rtol=1e-4, atol=1e-4)
    assert type(plain.lm_head) is Linear and plain.lm_head is not tied and plain.lm_head.weight.requires_grad
    changed = snapshot(plain)["embed.tokens.weight"] != bits["embed.tokens.weight"]
    assert changed == ("embed.tokens" in config.target_modules)
    head_changed = snapshot(plain)["lm_head.weight"] != bits["embed.tokens.weight"]
    assert head_changed == ("lm_head" in config.target_modules)
    plain.save_pretrained(tmp_path)
    np.testing.assert_array_equal(logits(GPT.from_pretrained(tmp_path)), logits(plain))


def test_other_merges_keep_the_weight_shared():
    p = adapted(QV)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not p.merge_adapter().untied
    assert type(p.merge_and_unload().lm_head) is TiedLinear


def test_full_fine_tuning_of_a_shared_weight_keeps_it_shared():
    p = adapted(FullConfig())
    trained = logits(p)
    plain = p.merge_and_unload()
    assert type(plain.lm_head) is TiedLinear and plain.config.tie_word_embeddings
    np.testing.assert_array_equal(logits(plain), trained)


def test_an_untied_family_has_nothing_to_untie():
    assert not adapted(LoraConfig(r=2, target_modules=["embed.tokens", "lm_head"]), "llama").merge_adapter().untied


@pytest.mark.parametrize("order", [["a", "b", "full"], ["full", "b", "a"]])
def test_several_adapters_are_merged_at_once(order):
    base = gpt("gpt2")
    bits = snapshot(base)
    p = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]), "seed")
    configs = {"a": QV, "b": LoraConfig(r=1, target_modules=["q_proj", "up_proj"]), "full": FullConfig()}
    for i, name in enumerate(order):
        p.add_adapter(name, configs[name], seed=i)
        stirred(p, name)
    p.set_adapter(order)
    unmerged = logits(p)
    p.merge_adapter()
    np.testing.assert_allclose(logits(p), unmerged, rtol=1e-4, atol=1e-4)
    p.unmerge_adapter()
    np.testing.assert_array_equal(logits(p), unmerged)
    twin = copy.deepcopy(p)
    assert snapshot(p.unload()) == bits
    np.testing.assert_allclose(logits(twin.merge_and_unload()), unmerged, rtol=1e-4, atol=1e-4)


def test_only_active_adapters_are_merged():
    p = adapted(QV)
    p.add_adapter("idle", BitFitConfig())
    stirred(p, "idle")
    unmerged = logits(p)
    plain = p.merge_and_unload()
    np.testing.assert_allclose(logits(plain), unmerged, rtol=1e-4, atol=1e-4)
    assert {q.owner for q in plain.parameters()} == {"base"}


def test_what_is_refused_while_merged():
    p = adapted(QV)
    p.merge_adapter()
    merged = logits(p)
    for action in (
        lambda: p.merge_adapter(),
        lambda: p.add_adapter("more", QV),
        lambda: p.set_adapter("default"),
        lambda: p.delete_adapter("default"),
        lambda: p.unload(),
        lambda: p(IDS, adapter_names=["default"] * 3),
        lambda: p.disable_adapter().__enter__(),
    ):
        with pytest.raises(RuntimeError, match="unmerge_adapter"):
            action()
    np.testing.assert_array_equal(logits(p), merged)
    p.unmerge_adapter()
    with pytest.raises(RuntimeError, match="nothing is merged"):
        p.unmerge_adapter()
    p.set_adapter(())
    with pytest.raises(ValueError, match="no active adapter"):
        p.merge_adapter()


@pytest.mark.parametrize("ids", [[[99]], [[0] * 30], [1, 2]])
def test_ids_that_do_not_fit_leave_everything_as_it_was(ids):
    p = adapted(TOKENS)
    before, bits = logits(p), checksum(p.base_model)
    with pytest.raises(ValueError, match=r"input_ids|positions"):
        p.merge_adapter(ids)
    assert p.merger is None and checksum(p.base_model) == bits
    np.testing.assert_array_equal(logits(p), before)


def test_an_adapter_that_is_not_finite_is_not_merged():
    p = adapted(LoraConfig(r=2, target_modules=["embed.tokens", "q_proj"]))
    bits = checksum(p.base_model)
    p.adapters["default"].wrappers["blocks.1.attn.q_proj"].lora_B.data[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"not finite into blocks\.1\.attn\.q_proj"), np.errstate(invalid="ignore"):
        p.merge_adapter()
    assert p.merger is None and checksum(p.base_model) == bits and p.config.tie_word_embeddings
    assert not p.adapters["default"].merged


def test_modes_are_kept():
    p = adapted(LoraConfig(r=2, lora_dropout=0.5)).train()
    p.base_model.ln_f.training = False
    p.merge_adapter()
    assert p.training and p.base_model.blocks.training and not p.base_model.ln_f.training


def test_merging_needs_only_a_few_positions():
    small = GPT(GPTConfig(vocab_size=5, n_positions=1, n_embd=4, n_layer=1, n_head=1))
    assert get_peft_model(small, LoraConfig(r=1)).merge_adapter().restores_base


def test_a_merge_that_changes_the_outputs_warns(monkeypatch):
    p = adapted(QV)
    layer = p.adapters["default"].wrappers["blocks.1.attn.q_proj"]
    effective = layer.effective
    monkeypatch.setattr(layer, "effective", lambda weight: 1.02 * effective(weight))
    with pytest.warns(UserWarning, match="the merged model is not the unmerged one: its logits differ by") as caught:
        certificate = p.merge_adapter()
    assert certificate.relative_logit_difference > 2e-4 and caught[0].filename == __file__
    p.unmerge_adapter()
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (np.float16, np.float32, np.float64):
            adapted(QV, dtype=dtype).merge_adapter()
