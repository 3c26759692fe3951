"""Adapter files: two formats, both written whole; what does not fit exactly is refused and changes nothing."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest
import toy_methods
from peft_cases import gpt, logits, snapshot, stirred

from minitorch_peft.formats import files as files_module
from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, write_arrays
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import (
    BitFitConfig,
    FullConfig,
    LoraConfig,
    LoraPlusConfig,
    MAMConfig,
    PartialConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PTuningV2Config,
    VeraConfig,
    get_peft_model,
)

LORA = LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
JSON, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def adapted(config=LORA, family="llama", dtype=np.float32):
    return stirred(get_peft_model(gpt(family, dtype), config))


@pytest.fixture(params=["native", "peft"])
def saved(request, tmp_path):
    """(directory, format) of an adapter of a Llama-style model."""
    adapted().save_pretrained(tmp_path, format=request.param)
    return tmp_path, request.param


def refused(directory, message, family="llama", model=None, load=None):
    """Loading raises one clear error and leaves the model as it was, whether it had adapters or not."""
    base = model or gpt(family)
    before = repr(base), snapshot(base), [q.requires_grad for q in base.parameters()]
    with pytest.raises(FileFormatError, match=message) as caught:
        if load is None:
            PeftModel.from_pretrained(base, directory)
        else:
            with (p := PeftModel(base)).unloaded_on_error():
                load(p, directory, "mine")
    assert (repr(base), snapshot(base), [q.requires_grad for q in base.parameters()]) == before
    p = stirred(get_peft_model(base, LoraConfig(r=1), "first"), "first")
    outputs, tree = logits(p), repr(p)
    with pytest.raises(FileFormatError):
        p.load_adapter(directory, "second")
    assert list(p.adapters) == ["first"] and repr(p) == tree
    np.testing.assert_array_equal(logits(p), outputs)
    return str(caught.value)


def edit(directory, change):
    """Rewrite the tensors of a saved adapter after ``change(arrays)``."""
    arrays = read_arrays(directory / TENSORS)
    change(arrays)
    write_arrays(directory / TENSORS, arrays)


def edit_json(directory, **settings):
    (directory / JSON).write_text(json.dumps(read_json(directory / JSON) | settings))


# -- what is written -----------------------------------------------------------------------------------------------
def test_the_two_files(saved):
    directory, format = saved
    assert sorted(path.name for path in directory.iterdir()) == [JSON, TENSORS]
    settings, arrays = read_json(directory / JSON), read_arrays(directory / TENSORS)
    assert settings["peft_type"] == "LORA" and settings["r"] == 2
    assert ("minitorch_peft" in settings) == (format == "native")
    name = "blocks.0.attn.q_proj.lora_A" if format == "native" else (
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    )  # fmt: skip
    assert name in arrays and arrays[name].shape == (2, 32)


def test_the_format_is_chosen_by_method_and_model(tmp_path):
    assert adapted().save_pretrained(tmp_path) == "peft"
    assert adapted(BitFitConfig(), "gpt2").save_pretrained(tmp_path) == "native"
    odd = GPT(GPTConfig(vocab_size=5, n_positions=8, n_embd=4, n_layer=1, n_head=1, position_embedding="rotary"))
    p = get_peft_model(odd, LoraConfig(r=1))
    assert p.save_pretrained(tmp_path) == "native"
    with pytest.raises(ValueError, match=r"no Hugging Face format: .* save it with format='native'"):
        p.save_pretrained(tmp_path, format="peft")
    with pytest.raises(ValueError, match="unknown format 'torch': expected 'native' or 'peft'"):
        p.save_pretrained(tmp_path, format="torch")
    with pytest.raises(ValueError, match="no adapter named other; there are: default"):
        p.save_pretrained(tmp_path, "other")


def test_any_of_several_adapters_and_under_another_name(tmp_path):
    p = adapted()
    p.add_adapter("second", LoraConfig(r=1, target_modules=["v_proj"]), seed=3)
    stirred(p, "second")
    p.save_pretrained(tmp_path, "second")
    p.set_adapter("second")
    again = PeftModel.from_pretrained(gpt("llama"), tmp_path, "third")
    assert again.active_adapters == ("third",) and not again.trainable_parameters()
    np.testing.assert_array_equal(logits(again), logits(p))
    trainable = PeftModel.from_pretrained(gpt("llama"), tmp_path, "third", is_trainable=True)
    assert {q.owner for q in trainable.trainable_parameters().values()} == {"third"}
    again.load_adapter(tmp_path, "fourth")
    assert again.active_adapters == ("third",) and not again.adapters["fourth"].active


def test_saving_replaces_what_was_there(saved):
    directory, _ = saved
    p = adapted(LoraConfig(r=1, target_modules=["v_proj"]))
    p.save_pretrained(directory)
    np.testing.assert_array_equal(logits(PeftModel.from_pretrained(gpt("llama"), directory)), logits(p))


def test_a_full_disk_leaves_the_adapter_that_was_there(saved, monkeypatch):
    directory, _ = saved
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def fail(path):
        if path.name.startswith(f".{TENSORS}"):
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(files_module, "_flush", fail)
    with pytest.raises(OSError, match="no space left"):
        adapted(LoraConfig(r=1)).save_pretrained(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize("config", [FullConfig(), PartialConfig(top_layers=1), LORA])
def test_saving_does_not_depend_on_what_acts(config, tmp_path):
    p = adapted(config)
    p.save_pretrained(tmp_path / "a", format="native")
    with p.disable_adapter():
        p.save_pretrained(tmp_path / "b", format="native")
    assert (tmp_path / "a" / TENSORS).read_bytes() == (tmp_path / "b" / TENSORS).read_bytes()
    p.merge_adapter()
    with pytest.raises(RuntimeError, match="cannot save an adapter while it is merged: unmerge_adapter"):
        p.save_pretrained(tmp_path / "c")  # a copy that stands in the base may have another adapter merged into it


def test_an_adapter_without_parameters_is_not_saved(tmp_path):
    with toy_methods.registered():
        p = get_peft_model(gpt("gpt2"), toy_methods.PromptConfig())
        p.adapters["default"].named_parameters = dict
        with pytest.raises(ValueError, match="adapter 'default' has no parameters: there is nothing to save"):
            p.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_dtypes(tmp_path):
    """Wider is exact; narrower would lose bits and is refused."""
    adapted(dtype=np.float64).save_pretrained(tmp_path / "double", format="native")
    assert "would be lost: save the adapter in the model's dtype" in refused(
        tmp_path / "double", "is float64, the model float32"
    )
    p = adapted()
    p.save_pretrained(tmp_path / "single")
    wide = PeftModel.from_pretrained(gpt("llama", np.float64), tmp_path / "single")
    for name, q in wide.adapters["default"].named_parameters().items():
        assert q.dtype == np.float64
        np.testing.assert_array_equal(q.data, p.adapters["default"].named_parameters()[name].data)
    edit(tmp_path / "single", lambda arrays: arrays.update({k: v.astype(np.float16) for k, v in arrays.items()}))
    PeftModel.from_pretrained(gpt("llama"), tmp_path / "single")
    edit(tmp_path / "single", lambda arrays: arrays.update({k: v.astype(np.int8) for k, v in arrays.items()}))
    refused(tmp_path / "single", "is int8, the model float32")


# -- what is refused ---------------------------------------------------------------------------------------------
def test_a_missing_tensor(saved):
    directory, format = saved
    name = "blocks.1.attn.q_proj.lora_A" if format == "native" else "layers.1.self_attn.q_proj.lora_A.weight"
    edit(directory, lambda arrays: [arrays.pop(n) for n in list(arrays) if n.endswith(name)])
    message = refused(directory, "the model expects .*q_proj.*, the file has instead nothing")
    assert name in message


def test_an_unexpected_tensor(saved):
    directory, _ = saved
    edit(directory, lambda arrays: arrays.update({"blocks.0.attn.v_proj.lora_A": np.zeros((2, 32), np.float32)}))
    refused(directory, "the model expects nothing, the file has instead blocks.0.attn.v_proj.lora_A")


def test_an_adapter_name_left_in_the_names(saved):
    """``peft`` writes names without the adapter's; a file that kept them would land nowhere."""
    directory, _ = saved

    def rename(arrays):
        for name in [n for n in arrays if "lora_A" in n]:
            arrays[name.replace("lora_A", "lora_A.default")] = arrays.pop(name)

    edit(directory, rename)
    message = refused(directory, "the model expects .* and 1 more, the file has instead .*lora_A.default")
    assert "saved from another model or method" in message


def test_another_shape(saved):
    directory, _ = saved
    edit_json(directory, r=3)
    refused(directory, r"lora_A.* has shape \(2, 32\), the model and adapter_config.json make it \(3, 32\)")


def test_a_model_of_another_size(saved):
    directory, _ = saved
    small = GPT(GPTConfig.llama(vocab_size=29, n_positions=8, n_embd=16, n_layer=2, n_head=2, n_inner=40))
    refused(directory, r"has shape .*32\), .*16\)", model=small)


def test_a_model_of_another_depth(saved):
    directory, _ = saved
    deep = GPT(GPTConfig.llama(vocab_size=29, n_positions=8, n_embd=32, n_layer=3, n_head=4, n_inner=40))
    refused(directory, r"the model expects .*2.*the file has instead nothing", model=deep)


def test_a_model_of_another_family(saved, tmp_path):
    directory, format = saved
    if format == "peft":
        refused(
            directory,
            r"target_modules=\['q_proj', 'down_proj'\] names no module of this model; its modules are: .*c_attn",
            "gpt2",
        )
        odd = GPT(GPTConfig(vocab_size=29, n_positions=8, n_embd=4, n_layer=1, n_head=1, position_embedding="rotary"))
        refused(directory, "names modules as transformers does, but this model has no Hugging Face format", model=odd)
    adapted(LoraConfig(r=2, target_modules=["gate_proj"])).save_pretrained(tmp_path / "gate", format="native")
    refused(tmp_path / "gate", "does not fit this model: 'gate_proj' matches no layer", "gpt2")


def test_an_empty_file(saved):
    directory, _ = saved
    write_arrays(directory / TENSORS, {})
    refused(directory, "holds no tensors; the adapter was empty when it was saved")


def test_damaged_and_missing_files(saved, tmp_path):
    directory, _ = saved
    for name, content in ((TENSORS, (directory / TENSORS).read_bytes()[:-5]), (JSON, b'{"peft_type": ')):
        broken = tmp_path / f"broken-{name}"
        shutil.copytree(directory, broken, ignore=shutil.ignore_patterns("broken*", "missing*"))
        (broken / name).write_bytes(content)
        refused(broken, "cannot be read" if name == TENSORS else "is not JSON")
        gone = tmp_path / f"missing-{name}"
        shutil.copytree(directory, gone, ignore=shutil.ignore_patterns("broken*", "missing*"))
        (gone / name).unlink()
        refused(gone, "no such file")
    refused(tmp_path / "nowhere", "no such file")


def test_what_the_json_says_wrong(saved):
    directory, format = saved
    edit_json(directory, peft_type="LORO")
    refused(directory, "unknown method 'LORO'; known: .*lora")
    edit_json(directory, peft_type="LORA", r="two")
    refused(directory, r"r must be a whole number of at least 1, got .two.|r=.two. is not understood")
    edit_json(directory, r=2, lora_bias=True)
    refused(
        directory,
        "LoraConfig has no lora_bias; it has: r, " if format == "native" else "no counterpart here: lora_bias=True",
    )


def test_a_later_version_of_our_format(tmp_path):
    adapted().save_pretrained(tmp_path, format="native")
    edit_json(tmp_path, minitorch_peft=2)
    refused(tmp_path, "is of version 2 of this format, known is 1")


def test_a_method_that_peft_s_files_cannot_hold(tmp_path):
    adapted(FullConfig()).save_pretrained(tmp_path)
    settings = read_json(tmp_path / JSON)
    del settings["minitorch_peft"]
    (tmp_path / JSON).write_text(json.dumps(settings))
    refused(tmp_path, "peft_type 'FULL' in peft's format; of peft's files these can be read: .*LORA")


@pytest.mark.parametrize("name", ["default", "__base__", "no.dots"])
def test_a_bad_name_for_a_loaded_adapter(saved, name):
    p = adapted()
    with pytest.raises(ValueError, match="adapter"):
        p.load_adapter(saved[0], name)


# -- several in one folder ---------------------------------------------------------------------------------------
def two(**configs):
    p = PeftModel(gpt("gpt2"))
    for seed, (name, config) in enumerate((configs or {"a": LORA, "b": LoraConfig(r=1)}).items()):
        p.add_adapter(name, config, seed=seed)
        stirred(p, name)
    return p


def test_one_adapter_saved_over_several_is_what_comes_back(tmp_path):
    p = two()
    p.set_adapter(["a", "b"])
    p.save_pretrained(tmp_path, ["a", "b"])
    with pytest.raises(ValueError, match=r"adapter_name='mine': .* holds several adapters .*\(a, b\); leave it out"):
        PeftModel.from_pretrained(gpt("gpt2"), tmp_path, "mine")
    refused(
        tmp_path,
        r"several adapters, saved together: a, b; PeftModel\.from_pretrained",
        "gpt2",
        load=PeftModel.load_adapter,
    )
    stirred(p, "a")
    p.set_adapter("a")
    p.save_pretrained(tmp_path, "a")
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path, "mine")
    assert list(again.adapters) == ["mine"]
    np.testing.assert_array_equal(logits(again), logits(p))


def test_of_several_none_acts_that_did_not_act(tmp_path):
    p = two()
    plain = logits(p)
    p.save_pretrained(tmp_path, ["a", "b"])
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert list(again.adapters) == ["a", "b"] and again.active_adapters == ()
    np.testing.assert_array_equal(logits(again), plain)
    p = two(a=FullConfig(), b=FullConfig())  # which could not act together
    p.save_pretrained(tmp_path / "full", ["a", "b"])
    assert PeftModel.from_pretrained(gpt("gpt2"), tmp_path / "full").active_adapters == ()


def test_several_that_cannot_act_together_leave_the_base_as_it_was(tmp_path):
    two(a=FullConfig(), b=FullConfig()).save_pretrained(tmp_path, ["a", "b"])
    (tmp_path / "adapters.json").write_text('{"adapters": ["a", "b"], "active": ["a", "b"]}')
    base = gpt("gpt2")
    before = snapshot(base)
    with pytest.raises(ValueError, match="both put a copy in place"):
        PeftModel.from_pretrained(base, tmp_path)
    assert snapshot(base) == before and all(q.requires_grad for q in base.parameters())


@pytest.mark.parametrize("trained, expected", [(["b"], {"b"}), ([], {"a", "b"})])
def test_of_several_those_train_that_trained(tmp_path, trained, expected):
    p = two()
    p.set_adapter(["a", "b"], train=trained)
    p.save_pretrained(tmp_path, ["a", "b"])
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path, is_trainable=True)
    assert {q.owner for q in again.trainable_parameters().values()} == expected
    assert not PeftModel.from_pretrained(gpt("gpt2"), tmp_path).trainable_parameters()


def test_of_several_none_is_written_where_one_cannot_be(tmp_path):
    p = two(a=LORA, b=BitFitConfig())
    with pytest.raises(ValueError, match="peft's files cannot hold the method 'bitfit'"):
        p.save_pretrained(tmp_path, ["a", "b"], format="peft")
    assert not list(tmp_path.iterdir())


# -- settings that peft has no word for --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config",
    [
        LoraPlusConfig(r=2, loraplus_lr_ratio=4),
        LoraConfig(r=2, use_dora=True, dora_detach_norm=True),
        PTuningV2Config(2, prefix_dropout=0.5),
    ],
)
def test_peft_s_files_lose_no_setting(config, tmp_path):
    p = adapted(config, "gpt2")
    assert p.save_pretrained(tmp_path) == "peft"
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path, is_trainable=True)
    assert again.adapters["default"].config == config
    np.testing.assert_allclose(logits(again), logits(p), rtol=1e-6, atol=1e-6)


def test_what_peft_s_json_says_comes_before_our_own_words(tmp_path):
    adapted(LoraPlusConfig(r=2, loraplus_lr_ratio=4), "gpt2").save_pretrained(tmp_path)
    edit_json(tmp_path, lora_alpha=64)
    config = PeftModel.from_pretrained(gpt("gpt2"), tmp_path).adapters["default"].config
    assert config.lora_alpha > 20 and config.loraplus_lr_ratio == 4
    for text in ('{"peft_type": "FULL"}', '{"peft_type": "IA3"}', "[1]", "{"):
        write_arrays(tmp_path / TENSORS, read_arrays(tmp_path / TENSORS), {"minitorch_peft.settings": text})
        refused(tmp_path, r"do not belong together|metadata minitorch_peft\.settings", "gpt2")


# -- what running an adapter needs -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config",
    [
        PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=5),
        PrefixTuningConfig(num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=5),
    ],
    ids=["p_tuning", "prefix_tuning"],
)
def test_a_prompt_is_deployed_without_the_network_that_made_it(config, tmp_path):
    p = stirred(get_peft_model(gpt("gpt2"), config))
    assert p.save_pretrained(tmp_path) == "peft"
    deployed = p.adapters["default"].deployed()
    assert deployed.keys() == {"prompt_embeddings"}  # what peft's file holds for peft
    np.testing.assert_array_equal(deployed["prompt_embeddings"], read_arrays(tmp_path / TENSORS)["prompt_embeddings"])


def test_vera_is_deployed_without_its_drawn_matrices_and_mam_with_its_adapter():
    vera = get_peft_model(gpt("gpt2"), VeraConfig(r=4)).adapters["default"]
    assert vera.deployed().keys() == vera.named_parameters().keys() < vera.stored().keys()
    mam = get_peft_model(gpt("gpt2"), MAMConfig(num_virtual_tokens=2, encoder_hidden_size=5)).adapters["default"]
    beside = {name for name in mam.named_parameters() if not name.startswith("prompt_encoder.")}
    assert beside and mam.deployed().keys() == beside | {"prompt_embeddings"}
    lora = get_peft_model(gpt("gpt2"), LoraConfig(r=2)).adapters["default"]
    assert lora.deployed().keys() == lora.named_parameters().keys()
