"""Defects of ``peft`` 0.21 that were verified on the real library, and what its users report: not here.

The tests against the library itself, where it is seen to fail, are in ``test_lora_family_parity`` and its siblings.
"""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from peft_cases import IDS, TIGHT, gpt, logits, loss, optimizer_of, snapshot, stirred, train

from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.formats.files import FileFormatError, read_arrays
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import (
    METHODS,
    AdaLoraConfig,
    BitFitConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    get_peft_model,
)
from minitorch_peft.peft.check import check_file
from minitorch_peft.training import TrainConfig, Trainer

untying = pytest.mark.filterwarnings("ignore:merging changed a weight that the embedding and the head shared")
STARTS = [{}, {"init_lora_weights": "pissa"}, {"use_dora": True}]


# -- starts ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", STARTS, ids=["lora", "pissa", "dora"])
def test_a_start_is_a_start_on_every_shape(settings):
    """``peft``'s OLoRA forgets that GPT-2 stores (in, out): an error on c_attn, silently another model on c_proj."""
    for family in ("gpt2", "llama"):
        before, base = logits(gpt(family)), gpt(family)
        p = get_peft_model(base, LoraConfig(r=3, target_modules="all-linear", **settings))
        np.testing.assert_allclose(logits(p), before, **TIGHT)
        assert snapshot(p.unload()) == snapshot(gpt(family))  # nor does a start change the base


@pytest.mark.parametrize("start", ["olora", "loftq", "eva", "pissa_niter_4"])
def test_a_start_that_is_not_here_is_refused_at_once(start):
    with pytest.raises(ValueError, match='must be True or "pissa"'):
        LoraConfig(init_lora_weights=start)


@pytest.mark.parametrize("format", ["native", "peft"])
def test_pissa_is_loaded_like_any_other(format, tmp_path):
    p = stirred(get_peft_model(gpt("llama"), LoraConfig(r=3, init_lora_weights="pissa")))
    p.save_pretrained(tmp_path, format=format)
    np.testing.assert_allclose(logits(PeftModel.from_pretrained(gpt("llama"), tmp_path)), logits(p), **TIGHT)


def test_one_factor_starts_at_zero_and_the_product_is_never_formed():
    """loralib's comment has A and B the wrong way round, and its merged layer forms B A in every pass."""
    C = 512
    base = GPT(GPTConfig(vocab_size=7, n_positions=8, n_embd=C, n_layer=1, n_head=2)).eval()
    p = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    layer = base.blocks[0].attn.q_proj
    assert layer.lora_A.data.any() and not layer.lora_B.data.any()
    stirred(p)
    x = Tensor(np.ones((1, 2, C), np.float32))
    with no_grad():
        layer(x, None)
        tracemalloc.start()
        layer(x, None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < C * C * 4 / 8


# -- merging -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "gpt2-4bit"])
def test_merging_again_and_again_restores_every_bit(family):
    """``peft`` adds and subtracts: 1e-3 in bfloat16, and in four bits the weights are quantized anew each time."""
    p = stirred(get_peft_model(gpt(family), LoraConfig(r=2)))
    before, unmerged = snapshot(p.base_model), logits(p)
    for _ in range(20):
        p.merge_adapter(IDS[:1, :2])
        p.unmerge_adapter()
    assert snapshot(p.base_model) == before
    np.testing.assert_array_equal(logits(p), unmerged)


def test_four_bits_and_biases_merge_with_their_factors():
    """``peft`` adds a LoRA's bias to a 4-bit layer without its factor. Here biases are BitFit's, beside the LoRA."""
    p = stirred(get_peft_model(gpt("gpt2-4bit"), LoraConfig(r=2, lora_alpha=16), "lora"), "lora")
    p.add_adapter("biases", BitFitConfig())
    stirred(p, "biases")
    p.set_adapter(["lora", "biases"])
    unmerged = logits(p)
    p.merge_adapter()
    np.testing.assert_allclose(logits(p), unmerged, rtol=1e-4, atol=1e-4)


def test_adapters_add_up_without_cross_terms():
    """``peft``'s linear combination multiplies sums of factors: (A1 + A2) with (B1 + B2)."""
    p = stirred(get_peft_model(gpt("gpt2"), LoraConfig(r=2, lora_alpha=4), "a"), "a")
    p.add_adapter("b", LoraConfig(r=2, lora_alpha=6), seed=1)
    stirred(p, "b")
    p.set_adapter(["a", "b"])
    path = "blocks.0.attn.q_proj"
    expected = p.base_model.get("blocks.0.attn").q_proj.base.weight.data.astype(np.float64)
    for name, s in (("a", 2), ("b", 3)):
        layer = p.adapters[name].wrappers[path]
        expected = expected + s * layer.lora_B.data.astype(np.float64) @ layer.lora_A.data.astype(np.float64)
    p.merge_adapter()
    merged = p.adapters["a"].wrappers[path].base.weight.data
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-7)


@untying
@pytest.mark.parametrize("targets", [["embed.tokens"], ["lm_head"], ["embed.tokens", "lm_head"]], ids="+".join)
def test_a_tied_weight_is_merged_into_what_was_adapted(targets, tmp_path):
    p = stirred(get_peft_model(gpt("gpt2"), LoraConfig(r=2, target_modules=targets)))
    unmerged = logits(p)
    assert "tied-weights" in p.check({"input_ids": IDS, "labels": IDS}).codes
    p.merge_and_unload().save_pretrained(tmp_path)
    np.testing.assert_allclose(logits(GPT.from_pretrained(tmp_path).eval()), unmerged, rtol=1e-4, atol=1e-4)


# -- training ----------------------------------------------------------------------------------------------------
def test_adalora_trains_where_no_rank_is_to_go():
    """``peft`` fails at the first allocation where init_r is target_r."""
    p = get_peft_model(gpt("gpt2"), AdaLoraConfig(init_r=2, target_r=2))
    before = loss(p)
    Trainer(p, lambda i: {"input_ids": IDS, "labels": IDS}, TrainConfig(steps=6, lr=3e-2)).run()
    assert loss(p.eval()) < before and set(p.adapters["default"].ranks().values()) == {2}


@pytest.mark.parametrize(
    "config",
    [PromptEncoderConfig(num_virtual_tokens=3), PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True)],
    ids=lambda config: config.peft_type,
)
def test_prompts_train_on_from_their_file(config, tmp_path):
    """``peft`` drops the network that makes the prompt: what is loaded cannot be trained on."""
    p = get_peft_model(gpt("gpt2"), config)
    train(p, optimizer_of(p), range(2))
    p.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path, is_trainable=True)
    assert again.trainable_parameters().keys() == p.trainable_parameters().keys()
    for model in (p, again):
        train(model, optimizer_of(model), range(2, 4))
    np.testing.assert_array_equal(logits(again), logits(p))


@pytest.mark.parametrize("settings", STARTS[:1] + STARTS[2:], ids=["lora", "dora"])
def test_rows_train_under_adapters_of_their_own(settings):
    """``peft`` has mixed batches in inference only, and none with DoRA."""
    p = stirred(get_peft_model(gpt("gpt2"), LoraConfig(r=2, **settings), "a"), "a")
    p.add_adapter("b", LoraConfig(r=2, **settings), seed=1)
    stirred(p, "b")
    p.set_adapter(["a", "b"])
    batch = {"input_ids": IDS, "labels": IDS, "adapter_names": ["a", "b", "a"]}
    p(**batch).loss.backward()
    assert all(q.grad is not None and q.grad.any() for q in p.trainable_parameters().values())
    assert p.check(batch).ok
    before = p(**batch).loss.item()
    optimizer = optimizer_of(p)
    optimizer.step()
    assert p(**batch).loss.item() < before


# -- files -------------------------------------------------------------------------------------------------------
def test_a_saved_adapter_is_never_empty(tmp_path):
    """Users of others find an adapter of 443 bytes after days of training."""
    for i, name in enumerate(["lora", "bitfit", "prompt_tuning", "ia3", "diff_pruning"]):
        p = stirred(get_peft_model(gpt("gpt2"), METHODS[name].examples[0]))
        p.save_pretrained(tmp_path / str(i))
        arrays = read_arrays(tmp_path / str(i) / "adapter_model.safetensors")
        assert sum(a.size for a in arrays.values()) >= p.get_nb_trainable_parameters()[0]
        assert check_file(PeftModel(gpt("gpt2")), tmp_path / str(i)).ok


@pytest.mark.parametrize("name", ["lora_A", "weight", "q_proj", "base_model", "default_lora"])
@pytest.mark.parametrize("format", ["native", "peft"])
def test_an_adapter_may_be_called_like_a_part_of_its_names(name, format, tmp_path):
    """In ``peft`` a name that stands in the parameters' names loses tensors without a word."""
    p = stirred(get_peft_model(gpt("gpt2"), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]), name), name)
    p.save_pretrained(tmp_path, name, format=format)
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path, name)
    np.testing.assert_allclose(logits(again), logits(p), **TIGHT)
    assert check_file(again, tmp_path).ok


def test_targets_that_match_in_part_are_an_error():
    """``peft`` is content when one entry of the list matches."""
    base = gpt("gpt2")
    with pytest.raises(ValueError, match=r"'vproj' matches no layer .*v_proj"):
        get_peft_model(base, LoraConfig(target_modules=["q_proj", "vproj"]))
    for settings in ({"layers_to_transform": [0, 7]}, {"exclude_modules": ["k_proj"]}, {"rank_pattern": {"k_proj": 4}}):
        with pytest.raises(ValueError, match=r"layers_to_transform names \[7\]|matches no target"):
            get_peft_model(base, LoraConfig(**settings))


def test_an_adapter_of_a_layer_that_is_not_there_is_not_loaded(tmp_path):
    get_peft_model(gpt("llama"), LoraConfig(r=2)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["q_proj"]}))
    before, base = snapshot(gpt("llama")), gpt("llama")
    with pytest.raises(FileFormatError, match="the file has instead"):
        PeftModel.from_pretrained(base, tmp_path)
    assert snapshot(base) == before
