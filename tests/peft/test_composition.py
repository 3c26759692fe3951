"""Adapters that act together: their order, parameters that are reparametrized, files of several."""

from __future__ import annotations

import numpy as np
import pytest
import toy_methods
from peft_cases import IDS, TIGHT, gpt, logits, snapshot, stirred

import minitorch_peft as mp
from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.models import Cache
from minitorch_peft.peft import (
    AdapterFusionConfig,
    BitFitConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    get_peft_model,
)
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.training.fingerprint import settings_of


@pytest.fixture(autouse=True)
def toys():
    with toy_methods.registered():
        yield


def two_bottlenecks():
    p = PeftModel(gpt("gpt2"))
    for seed, name in enumerate(("a", "b")):
        p.add_adapter(name, toy_methods.BottleneckConfig(), seed=seed)
        stirred(p, name, scale=0.3 + seed / 4)
    return p


def test_adapters_act_in_the_order_of_their_names():
    p = two_bottlenecks()
    p.set_adapter(["a", "b"])
    inner_first = logits(p)
    p.set_adapter(["b", "a"])
    other = logits(p)
    assert np.abs(inner_first - other).max() > 1e-3
    layer = p.base_model.blocks[0].mlp
    assert (layer.adapter.name, layer.base_layer.adapter.name) == ("a", "b")
    p.set_adapter(["a", "b"])
    np.testing.assert_array_equal(logits(p), inner_first)


def test_what_was_added_later_may_stand_inside(tmp_path):
    p = two_bottlenecks()
    p.set_adapter(["b", "a"])
    expected = logits(p)
    p.save_pretrained(tmp_path, ["a", "b"])
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path, is_trainable=True)
    assert again.active_adapters == ("b", "a") and {q.owner for q in again.trainable_parameters().values()} == {
        "a",
        "b",
    }
    np.testing.assert_array_equal(logits(again), expected)


def test_moving_wrappers_loses_none():
    p = two_bottlenecks()
    base = snapshot(gpt("gpt2"))
    for names in (["a"], ["b", "a"], ["b"], ["a", "b"], ["a"]):
        p.set_adapter(names)
        chain = p.base_model.blocks[1].attn
        assert sorted((chain.adapter.name, chain.base_layer.adapter.name)) == ["a", "b"]
    assert snapshot(p.unload()) == base


def test_what_builds_on_others_is_loaded_after_them(tmp_path):
    p = PeftModel(gpt("gpt2"))
    for name in ("a", "b"):
        p.add_adapter(name, SeqBnConfig(), seed=ord(name))
        stirred(p, name)
    p.add_adapter("fused", AdapterFusionConfig(adapters=["a", "b"]))
    p.set_adapter("fused")
    expected = logits(p)
    p.set_adapter("a")  # the last to act stands last in the model's own order
    p.set_adapter("fused")
    p.set_adapter(["a"])
    p.save_pretrained(tmp_path, ["a", "b", "fused"])
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert again.active_adapters == ("a",)
    again.set_adapter("fused")
    np.testing.assert_array_equal(logits(again), expected)


def test_of_several_those_act_after_loading_that_acted_before(tmp_path):
    p = two_bottlenecks()
    p.set_adapter("b")
    p.save_pretrained(tmp_path, ["a", "b"])
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert again.active_adapters == ("b",) and list(again.adapters) == ["a", "b"]
    (tmp_path / "adapters.json").write_text('{"adapters": ["a"], "active": ["c"]}')
    with pytest.raises(FileFormatError, match="does not list adapters and those that act"):
        PeftModel.from_pretrained(gpt("gpt2"), tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_reparametrized_weight_is_what_other_adapters_act_on(family):
    """theta (1 + d) under LoRA is (theta (1 + d)) + s B A, as if the base had these weights."""
    p = stirred(
        get_peft_model(gpt(family), toy_methods.ScaleConfig(["up_proj.weight", "tokens.weight"]), "scale"), "scale"
    )
    p.add_adapter("lora", LoraConfig(r=2, target_modules=["up_proj"]))
    stirred(p, "lora")
    p.set_adapter(["scale", "lora"])
    together = logits(p)
    other = gpt(family)
    for path, scale in p.adapters["scale"].reparametrized.items():
        other.get(path).data = scale.effective(other.get(path).data)
    q = stirred(get_peft_model(other, p.adapters["lora"].config, "lora"), "lora")
    np.testing.assert_allclose(together, logits(q), **TIGHT)
    certificate = p.merge_adapter()
    np.testing.assert_allclose(logits(p), together, rtol=1e-4, atol=1e-4)
    assert certificate.restores_base
    p.unmerge_adapter()
    np.testing.assert_array_equal(logits(p), together)


def test_a_pass_that_fails_leaves_the_parameters_in_their_places():
    p = stirred(get_peft_model(gpt("gpt2"), toy_methods.ScaleConfig()))
    before = snapshot(p.base_model)
    with pytest.raises(ValueError, match="vocabulary"):
        p([[1, 999]])
    assert snapshot(p.base_model) == before


def test_a_reparametrized_parameter_of_which_a_copy_trains():
    p = stirred(get_peft_model(gpt("gpt2", np.float64), toy_methods.ScaleConfig(["up_proj.bias"]), "scale"), "scale")
    p.add_adapter("bias", BitFitConfig(target_parameters=["up_proj.bias"]))
    p.set_adapter(["scale", "bias"])
    assert mp.gradcheck(lambda: p(IDS).logits, (), parameters=p.trainable_parameters())


class Forgetful(toy_methods.Bottleneck):
    """Hides every token 5 from those after the next one."""

    def hidden(self, ids, new):
        S = ids.shape[1]
        later = np.arange(S)[:, None] > np.arange(S) + 1
        return ((ids == 5)[:, None] & later)[:, S - new :]


def test_an_adapter_may_hide_keys_with_a_cache_and_without(monkeypatch):
    ids = np.array([[1, 5, 2, 3, 5, 4, 6, 7]])
    p = get_peft_model(gpt("gpt2"), toy_methods.BottleneckConfig())
    plain = logits(p, ids)
    adapter = p.adapters["default"]
    monkeypatch.setattr(adapter, "__class__", Forgetful)
    hidden = logits(p, ids)
    np.testing.assert_array_equal(hidden[:, :3], plain[:, :3])
    assert (np.abs(hidden[:, 3:] - plain[:, 3:]).max(axis=-1) > 1e-3).all()
    changed = ids.copy()
    changed[0, 1] = 9
    mask = np.tril(np.ones((8, 8), bool)) & ~adapter.hidden(ids, 8)
    np.testing.assert_allclose(hidden, logits(gpt("gpt2"), ids, attention_mask=mask[:, None]), **TIGHT)
    cache, parts = Cache(), []
    for part in (ids[:, :3], ids[:, 3:4], ids[:, 4:]):
        parts.append(p(part, past_key_values=cache, use_cache=True).logits.data)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), hidden, **TIGHT)
    assert np.array_equal(cache.ids, ids)
    cache.select([0, 4, 5, 6, 7])
    assert cache.ids.tolist() == [[1, 5, 4, 6, 7]]
    assert type(adapter).hidden is not Adapter.hidden


def test_generation_goes_on_from_a_cache_and_leaves_it_as_it_was():
    model, cache = gpt("gpt2"), Cache()
    model(IDS[:, :5], past_key_values=cache)
    expected = model.generate(IDS, max_new_tokens=5)[:, 5:]
    for _ in range(2):
        assert np.array_equal(model.generate(IDS[:, 5:], max_new_tokens=5, past_key_values=cache), expected)
        assert (cache.length, cache.next_position) == (5, 5)
    with pytest.raises(ValueError, match="needs use_cache=True"):
        model.generate(IDS, past_key_values=cache, use_cache=False)
    with pytest.raises(ValueError, match=r"after 13 needs 24 positions|after 13 needs"):
        model.generate(IDS, max_new_tokens=20, past_key_values=cache)


def test_a_cache_that_was_filled_under_a_mask_is_passed_on_without_it(monkeypatch):
    ids = np.array([[1, 5, 2, 3, 5, 4, 6, 7]])
    p = stirred(get_peft_model(gpt("gpt2"), toy_methods.BottleneckConfig()))
    monkeypatch.setattr(p.adapters["default"], "__class__", Forgetful)
    cache = Cache()
    p(ids[:, :3], past_key_values=cache)
    with p.disable_adapter():
        p(ids[:, 3:5], past_key_values=cache)
    p.base_model(ids[:, 5:6], past_key_values=cache)  # tells nobody which tokens these were
    p(ids[:, 6:], past_key_values=cache)
    assert cache.ids.tolist() == [[1, 5, 2, 3, 5, -1, 6, 7]]
    p.base_model(ids[:, :1], past_key_values=cache)
    cache.select([1, 4, 8])
    assert cache.ids.tolist() == [[5, 5, -1]]


def prompts():
    p = PeftModel(gpt("gpt2"))
    for name, config in {
        "prompt": PromptTuningConfig(2),
        "a": PrefixTuningConfig(3),
        "b": PrefixTuningConfig(3),
    }.items():
        p.add_adapter(name, config, seed=len(name))
        stirred(p, name)
    return p


@pytest.mark.parametrize("first, then", [((), "prompt"), ("prompt", ()), ("a", "b"), (["a", "prompt"], "a")])
def test_a_cache_is_refused_under_another_prompt_or_prefix_than_filled_it(first, then):
    p, cache = prompts(), Cache()
    p.set_adapter(first)
    p(IDS[:, :4], past_key_values=cache)
    p(IDS[:, 4:5], past_key_values=cache)
    p.set_adapter(then)
    with pytest.raises(ValueError, match=r"the cache holds (no|the) prompt or prefix.*, but (no|the) prompt .* acts"):
        p(IDS[:, 5:], past_key_values=cache.copy())
    p.set_adapter(first)
    assert p(IDS[:, 5:], past_key_values=cache).past_key_values.length == 8 + cache.before


def test_a_cache_of_rows_belongs_to_their_adapters():
    p, cache = prompts(), Cache()
    p(IDS[:, :4], past_key_values=cache, adapter_names=["a", "prompt", "__base__"])
    assert cache.before.tolist() == [3, 2, 0]
    with pytest.raises(ValueError, match=r"the cache holds the prompt or prefix of prompt in row 1, but .* of b acts"):
        p(IDS[:, 4:], past_key_values=cache, adapter_names=["a", "b", "__base__"])
    p(IDS[:, 4:], past_key_values=cache, adapter_names=["a", "prompt", "__base__"])


def test_a_run_is_known_by_which_adapters_act_and_in_which_order():
    p = two_bottlenecks()
    found = []
    for names, train in ((["a", "b"], "a"), (["b", "a"], "a"), (["b"], "b"), (["a", "b"], "b")):
        p.set_adapter(names, train=train)
        found.append(settings_of(p))
    assert found[1]["adapters"] == {"act": ["b", "a"], "train": ["a"]}
    assert all(a != b for i, a in enumerate(found) for b in found[i + 1 :])
