"""Hugging Face directories without transformers: the tables are complete, exact inverses, and strict."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from minitorch_peft.formats import hf
from minitorch_peft.formats.families import FAMILIES
from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, read_metadata, write_arrays
from minitorch_peft.formats.hf_config import choose_family, read_config, write_config
from minitorch_peft.models import GPT, GPTConfig

SIZES = {"vocab_size": 13, "n_positions": 9, "n_embd": 12, "n_layer": 2, "n_head": 6}
CONFIGS = {
    "gpt2": GPTConfig(**SIZES),
    "gpt2 untied, wide": GPTConfig(**SIZES, tie_word_embeddings=False, n_inner=20, activation_function="relu"),
    "gpt2 dropout": GPTConfig(**SIZES, embd_pdrop=0.1, attn_pdrop=0.2, layer_norm_epsilon=1e-6),
    "llama": GPTConfig.llama(**SIZES),
    "llama grouped, tied": GPTConfig.llama(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "llama biases": GPTConfig.llama(**SIZES, attention_bias=True, mlp_bias=True, rope_theta=500.0, n_inner=7),
}


@pytest.fixture(params=CONFIGS, ids=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def saved(tmp_path):
    """A GPT-2 directory, to be damaged."""
    GPT(CONFIGS["gpt2"], seed=1).save_pretrained(tmp_path)
    return tmp_path


def edit_config(directory, **changes):
    config = read_json(directory / "config.json") | changes
    (directory / "config.json").write_text(json.dumps(config))


def edit_tensors(directory, change):
    arrays = read_arrays(directory / "model.safetensors")
    change(arrays)
    write_arrays(directory / "model.safetensors", arrays)


def refused(directory, message):
    with pytest.raises(FileFormatError, match=message) as error:
        hf.read_directory(directory)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)


def test_a_directory_gives_back_the_same_bits(config, tmp_path):
    model = GPT(config, seed=3)
    model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    for name in state:
        assert state[name].dtype == other[name].dtype and state[name].tobytes() == other[name].tobytes(), name
    # what a config leaves to a default may come back as its value
    resolved = {"num_key_value_heads": config.kv_heads, "n_inner": config.inner}
    assert again.config.to_dict() | resolved == config.to_dict() | resolved
    assert (again.config.kv_heads, again.config.inner) == (config.kv_heads, config.inner)


def test_writing_what_was_read_gives_the_same_files(config, tmp_path):
    GPT(config, seed=3).save_pretrained(tmp_path / "a")
    GPT.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert read_metadata(tmp_path / "a" / "model.safetensors") == {"format": "pt"}


def test_the_config_that_is_read_is_the_config_that_was_written(config):
    family = choose_family(config.to_dict())
    again, fields = read_config(write_config(family, config.to_dict()))
    assert again is family
    assert set(fields) <= set(config.to_dict())


def test_every_field_of_a_config_is_stored_or_implied():
    for family in FAMILIES.values():
        covered = {ours for ours, _ in family.keys.values()} | set(family.implied)
        left = set(CONFIGS["gpt2"].to_dict()) - covered
        assert left <= ({"rope_theta"} if family.model_type == "llama" else {"rope_theta", "num_key_value_heads"})


def test_a_model_that_was_untied_is_saved_with_its_own_head(tmp_path):
    model = GPT(CONFIGS["gpt2"], seed=2)
    model.untie()
    model.lm_head.weight.data += 1
    model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert np.array_equal(again.lm_head.weight.data, model.lm_head.weight.data)
    assert np.array_equal(again.embed.tokens.weight.data, model.embed.tokens.weight.data)


# -- other people's files ------------------------------------------------------------------------------------
def test_names_without_the_prefix_are_read(saved):
    expected = hf.read_directory(saved)[1]

    def strip(arrays):
        for name in list(arrays):
            arrays[name.removeprefix("transformer.")] = arrays.pop(name)

    edit_tensors(saved, strip)
    assert not any(n.startswith("transformer") for n in read_arrays(saved / "model.safetensors"))
    state = hf.read_directory(saved)[1]
    assert all(np.array_equal(state[n], expected[n]) for n in expected)


def test_mask_buffers_of_old_files_are_passed_over(saved):
    expected = set(hf.read_directory(saved)[1])
    buffers = {"h.0.attn.bias": np.ones((1, 1, 9, 9)), "transformer.h.1.attn.masked_bias": np.array(-1e4)}
    edit_tensors(saved, lambda arrays: arrays.update(buffers))
    assert set(hf.read_directory(saved)[1]) == expected


def test_a_tied_head_may_be_stored_twice_but_not_differ(saved):
    expected = set(hf.read_directory(saved)[1])
    edit_tensors(saved, lambda a: a.update({"lm_head.weight": a["transformer.wte.weight"]}))
    assert set(hf.read_directory(saved)[1]) == expected
    edit_tensors(saved, lambda a: a.update({"lm_head.weight": a["transformer.wte.weight"] + 1}))
    refused(saved, "lm_head.weight differs from transformer.wte.weight .* set tie_word_embeddings to false")


def test_half_precision_is_read_as_float32(saved):
    half = {n: a.astype(np.float16) for n, a in read_arrays(saved / "model.safetensors").items()}
    write_arrays(saved / "model.safetensors", half)
    state = hf.read_directory(saved)[1]
    assert {a.dtype for a in state.values()} == {np.dtype(np.float32)}
    assert np.array_equal(state["embed.tokens.weight"], half["transformer.wte.weight"].astype(np.float32))


def test_defaults_are_those_of_transformers(saved):
    config = read_json(saved / "config.json")
    for key in ("n_inner", "activation_function", "layer_norm_epsilon", "tie_word_embeddings", "attn_pdrop"):
        del config[key]
    _, fields = read_config(config)
    assert fields["activation_function"] == "gelu_new" and fields["layer_norm_epsilon"] == 1e-5
    assert fields["tie_word_embeddings"] is True and fields["n_inner"] is None and fields["attn_pdrop"] == 0.1


def test_two_names_of_one_activation(saved):
    edit_config(saved, activation_function="gelu_pytorch_tanh")
    assert GPT.from_pretrained(saved).config.activation_function == "gelu_new"


# -- refusals ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; expected gpt2 or llama"),
        ({"model_type": None}, "model_type is None"),
        ({"n_embd": None}, "n_embd is None; expected the positive number"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_layer": "two"}, "n_layer is 'two'"),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            "only scale_attn_by_inverse_layer_idx=False is supported",
        ),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"quantization_config": {}}, "quantized"),
    ],
)
def test_configs_that_are_refused(saved, changes, message):
    edit_config(saved, **changes)
    refused(saved, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "mish"}, "describes no GPT .unknown activation 'mish'; known: gelu"),
        ({"n_head": 5}, "describes no GPT .n_embd=12 is not a multiple of n_head=5"),
    ],
)
def test_configs_that_no_gpt_has(saved, changes, message):
    edit_config(saved, **changes)
    with pytest.raises(FileFormatError, match=f"config.json: {message}"):
        GPT.from_pretrained(saved)


def llama_config(**changes):
    fields = CONFIGS["llama"].to_dict()
    config = write_config(FAMILIES["llama"], fields)
    for key, value in changes.items():
        config[key] = value
    return {key: value for key, value in config.items() if value != "absent"}


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": "absent"}, 500.0),
        ({"rope_parameters": "absent", "rope_theta": 700.0}, 700.0),
        ({"rope_parameters": "absent", "rope_theta": 700.0, "rope_scaling": None}, 700.0),
        ({"rope_parameters": "absent", "rope_theta": "absent"}, 10000.0),
        ({"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 700.0}, 500.0),
    ],
)
def test_where_the_rotary_base_is_kept(changes, theta):
    assert read_config(llama_config(**changes))[1]["rope_theta"] == theta


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0, "factor": 8.0}},
            "rope_type 'llama3'",
        ),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
        (
            {"rope_parameters": None, "rope_scaling": {"rope_type": "dynamic"}},
            "only plain ones are supported",
        ),
        ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"head_dim": 4}, "head_dim is 4 with hidden_size 12 and 6 heads; only head_dim ="),
    ],
)
def test_llamas_that_are_refused(changes, message):
    with pytest.raises(FileFormatError, match=re.escape(message)):
        read_config(llama_config(**changes))


def test_tensors_that_do_not_fit_the_config(saved):
    def lose(arrays):
        for name in [n for n in arrays if ".ln_1." in n]:
            del arrays[name]

    def rename(arrays):
        arrays["h.7.ln_1.bias"] = arrays.pop("transformer.h.1.ln_1.bias")

    name = "transformer.h.1.attn.c_attn.weight"
    turned = re.escape("c_attn.weight is float32 (36, 12), config.json makes it (12, 36)")
    whole = read_arrays(saved / "model.safetensors")
    for change, message in (
        (lose, r"model\.safetensors: lacks transformer.h.0.ln_1.bias, .* and 1 more, holds unknown nothing"),
        (rename, "unknown transformer.h.7.ln_1"),
        (lambda a: a.update({name: a[name].T}), turned),
        (lambda a: a.update({name: a[name].astype(np.float64)}), "c_attn.weight is float64"),
        (lambda a: a.update({name: a[name].astype(np.int8)}), "c_attn.weight is int8"),
    ):  # fmt: skip
        write_arrays(saved / "model.safetensors", whole)
        edit_tensors(saved, change)
        refused(saved, message)


def test_other_kinds_of_directory(saved, tmp_path_factory):
    refused(tmp_path_factory.mktemp("empty"), "config.json: no such file")
    (saved / "model.safetensors").rename(saved / "model-00001-of-00002.safetensors")
    refused(saved, r"model\.safetensors: is missing \(found config.json, model-00001.*save it with transformers")
    (saved / "model.safetensors.index.json").write_text("{}")
    refused(saved, "is in several shards")
    (saved / "config.json").write_text("{'model_type': 'gpt2'}")
    refused(saved, "config.json: is not JSON")


# -- writing -------------------------------------------------------------------------------------------------
def test_the_format_is_chosen_by_the_config(config, tmp_path):
    family = "llama" if config.norm == "rms" else "gpt2"
    GPT(config).save_pretrained(tmp_path)
    assert read_json(tmp_path / "config.json")["model_type"] == family


@pytest.mark.parametrize(
    ("config", "format", "message"),
    [
        (
            CONFIGS["gpt2"],
            "llama",
            r"llama cannot hold norm='layer', position_embedding='learned', gated_mlp=F",
        ),
        (CONFIGS["llama"], "gpt2", r"gpt2 cannot hold norm='rms'.*attention_bias=False, mlp_bias=False"),
        (
            GPTConfig(**SIZES, norm="rms"),
            None,
            r"gpt2 cannot hold norm='rms'; llama cannot hold position_embedding",
        ),
        (GPTConfig(**SIZES, num_key_value_heads=3), "gpt2", "gpt2 cannot hold num_key_value_heads=3"),
        (GPTConfig.llama(**SIZES, resid_pdrop=0.1), None, r"llama cannot hold resid_pdrop=0.1"),
        (CONFIGS["gpt2"], "onnx", "unknown format 'onnx': expected gpt2 or llama"),
    ],
)
def test_impossible_formats_say_why(config, format, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        GPT(config).save_pretrained(tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_only_plain_float32_states_are_written(tmp_path):
    model = GPT(CONFIGS["gpt2"])
    fields, state = model.config.to_dict(), model.state_dict()
    with pytest.raises(ValueError, match=r"lacks nothing, holds unknown blocks.0.lora_A; merge or unload"):
        hf.write_directory(tmp_path / "out", fields, state | {"blocks.0.lora_A": state["ln_f.bias"]})
    with pytest.raises(ValueError, match=r"lacks embed.tokens.weight, holds unknown nothing"):
        hf.write_directory(tmp_path / "out", fields, {n: a for n, a in state.items() if "tokens" not in n})
    with pytest.raises(ValueError, match=r"embed.tokens.weight is float64"):
        model.astype(np.float64).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
