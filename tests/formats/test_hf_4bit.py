"""Hugging Face directories in four bits, without transformers: exact both ways, strict about what is damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from minitorch_peft.kernels.four_bit.reference import quantize_4bit

from minitorch_peft.formats.bitsandbytes import to_tensors
from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, write_arrays
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.models.pretrained import save_embedded
from minitorch_peft.nn import Linear
from minitorch_peft.quant import (
    QLORA,
    BitsAndBytesConfig,
    dequantize_model,
    quantize_model,
    quantized_layers,
)

SIZES = {"vocab_size": 13, "n_positions": 9, "n_layer": 2, "n_head": 4}
IDS = np.arange(8).reshape(1, 8)


def gpt(family="gpt2", n_embd=32, **fields):
    make = GPTConfig if family == "gpt2" else GPTConfig.llama
    return GPT(make(**SIZES, n_embd=n_embd, **fields), seed=3).eval()


@pytest.fixture
def saved(tmp_path):
    """A GPT-2 directory in four bits, to be damaged."""
    quantize_model(gpt()).save_pretrained(tmp_path)
    return tmp_path


def edit_config(directory, **changes):
    config = read_json(directory / "config.json") | changes
    (directory / "config.json").write_text(json.dumps(config))


def edit_tensors(directory, change):
    arrays = read_arrays(directory / "model.safetensors")
    change(arrays)
    write_arrays(directory / "model.safetensors", arrays)


def values(model):
    """Name to dense weight, whatever it is stored in, and every other parameter."""
    packed = {f"{path}.weight": layer.dense_weight() for path, layer in quantized_layers(model).items()}
    return {name: p.data for name, p in model.named_parameters()} | packed


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("family", "fields"),
    [("gpt2", {}), ("gpt2", {"n_embd": 128}), ("gpt2", {"n_embd": 40, "tie_word_embeddings": False}), ("llama", {}),
     ("llama", {"n_embd": 48, "num_key_value_heads": 2, "n_inner": 50, "attention_bias": True})],
)  # fmt: skip
def test_a_directory_gives_back_every_value(family, fields, nested, tmp_path):
    model = quantize_model(gpt(family, **fields), compress_statistics=nested)
    model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert not again.training
    before, after = values(model), values(again)
    assert before.keys() == after.keys() and quantized_layers(model).keys() == quantized_layers(again).keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    np.testing.assert_array_equal(model(IDS).logits.data, again(IDS).logits.data)
    if family == "llama":  # nothing is fused: not only the values, the stored bytes too
        one, other = model.state_dict(), again.state_dict()
        assert one.keys() == other.keys() and all(one[n].tobytes() == other[n].tobytes() for n in one)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_writing_what_was_read_gives_the_same_files(family, tmp_path):
    quantize_model(gpt(family)).save_pretrained(tmp_path / "a")
    GPT.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_files_are_smaller_and_say_so(tmp_path):
    model = gpt("llama", n_embd=64)
    model.save_pretrained(tmp_path / "dense")
    quantize_model(model).save_pretrained(tmp_path / "packed")
    dense, packed = ((tmp_path / d / "model.safetensors").stat().st_size for d in ("dense", "packed"))
    assert packed < 0.45 * dense  # each small tensor has a map of 1 KiB beside it, as bitsandbytes writes it
    config = read_json(tmp_path / "packed" / "config.json")["quantization_config"]
    assert config["quant_method"] == "bitsandbytes" and config["load_in_4bit"] and config["bnb_4bit_use_double_quant"]
    assert config["bnb_4bit_quant_type"] == "nf4" and config["llm_int8_skip_modules"] is None


def test_which_modules_are_dense_is_written_down(tmp_path):
    quantize_model(gpt("llama"), skip=["lm_head", "down_proj"]).save_pretrained(tmp_path / "a")
    config = read_json(tmp_path / "a" / "config.json")["quantization_config"]
    assert config["llm_int8_skip_modules"] == [*(f"model.layers.{i}.mlp.down_proj" for i in range(2)), "lm_head"]
    assert "blocks.0.mlp.down_proj" not in quantized_layers(GPT.from_pretrained(tmp_path / "a"))
    quantize_model(gpt("llama"), skip=()).save_pretrained(tmp_path / "b")
    assert read_json(tmp_path / "b" / "config.json")["quantization_config"]["llm_int8_skip_modules"] == []
    assert "lm_head" in quantized_layers(GPT.from_pretrained(tmp_path / "b"))


def test_what_the_formats_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match=r"k_proj.* are one module in this format: quantize all of them, or none"):
        quantize_model(gpt(), skip=["lm_head", "k_proj"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="bitsandbytes stores nf4 and fp4, not int4"):
        quantize_model(gpt(), quant_type="int4").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be written in this format: blocks of 64 elements"):
        quantize_model(gpt(n_embd=12)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"dequantize_model\(model\) first"):
        save_embedded(quantize_model(gpt()), tmp_path / "x.safetensors", {})
    assert not list(tmp_path.iterdir())
    dequantize_model(quantize_model(gpt(n_embd=12))).save_pretrained(tmp_path)


# -- loading with a config -------------------------------------------------------------------------------------------
def test_quantizing_while_loading(tmp_path):
    gpt("llama").save_pretrained(tmp_path)
    expected = quantize_model(gpt("llama")).state_dict()
    state = GPT.from_pretrained(tmp_path, quantization_config=QLORA).state_dict()
    assert state.keys() == expected.keys() and all(state[n].tobytes() == expected[n].tobytes() for n in state)
    skipping = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["down_proj", "lm_head"])
    model = GPT.from_pretrained(tmp_path, skipping)
    assert type(model.blocks[0].mlp.down_proj) is Linear and model.blocks[0].attn.q_proj.quant_type == "fp4"
    assert not quantized_layers(GPT.from_pretrained(tmp_path, BitsAndBytesConfig()))
    model.save_pretrained(tmp_path / "packed")
    with pytest.raises(ValueError, match="the model is quantized already"):
        GPT.from_pretrained(tmp_path / "packed", QLORA)


# -- what is refused -------------------------------------------------------------------------------------------------
def refused(directory, message):
    with pytest.raises(FileFormatError, match=message) as error:
        GPT.from_pretrained(directory)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)


C_FC = "transformer.h.0.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq"}, "quantized by 'gptq'; save the model in float32"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "quantized, but not in four bits"),
        ("yes", "quantized by 'yes'"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
            "bnb_4bit_quant_storage is 'bfloat16', only 'uint8'",
        ),
    ],
)
def test_other_quantizations(saved, settings, message):
    edit_config(saved, quantization_config=settings)
    refused(saved, message)


def test_config_and_weights_that_disagree(saved, tmp_path):
    edit_config(saved, quantization_config=None)
    refused(saved, "holds weights in four bits, against config.json")
    gpt().save_pretrained(tmp_path / "dense")
    edit_config(tmp_path / "dense", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(tmp_path / "dense", "holds no weights in four bits, against config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop(f"{C_FC}.absmax"), r"in four bits is damaged: .*c_fc.weight.* lacks .*absmax"),
        (lambda a: a.pop(f"{C_FC}.nested_quant_map"), "in four bits is damaged: .* lacks .*nested_quant_map"),
        (lambda a: a.pop(C_FC), "in four bits is damaged: .* lacks transformer.h.0.mlp.c_fc.weight"),
        (lambda a: a.update({C_FC: a[C_FC][:-1]}), r"damaged: .*calls for packed"),
        (lambda a: a.update({C_FC: a[C_FC].astype(np.float32)}), "damaged: .*stored as float32"),
        (lambda a: a[f"{C_FC}.nested_absmax"].fill(np.nan), "damaged: .*holds NaN"),
        (lambda a: a[f"{C_FC}.nested_quant_map"].fill(0), "nested_quant_map is not the dynamic map"),
        (lambda a: a[f"{C_FC}.quant_state.bitsandbytes__nf4"].fill(0), "damaged: .*is not JSON"),
        (lambda a: a.pop("transformer.h.0.mlp.c_fc.bias"), "lacks transformer.h.0.mlp.c_fc.bias"),
        (lambda a: [a.pop(n) for n in list(a) if n.startswith(C_FC)], "lacks transformer.h.0.mlp.c_fc.weight"),
    ],
)
def test_damaged_weights(saved, change, message):
    edit_tensors(saved, change)
    refused(saved, message)


@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight"])
def test_only_linear_layers_can_be_in_four_bits(saved, name):
    def pack(arrays):
        arrays |= to_tensors(name, quantize_4bit(arrays.pop(name)))

    edit_tensors(saved, pack)
    refused(saved, f"{name} is in four bits, which only linear layers can be here")


def test_a_head_in_four_bits_is_not_the_embedding(saved):
    edit_tensors(saved, lambda a: a.update(to_tensors("lm_head.weight", quantize_4bit(a["transformer.wte.weight"]))))
    refused(saved, "lm_head.weight is in four bits, though config.json ties it to the embedding")


def test_a_weight_of_another_shape(saved, tmp_path):
    quantize_model(gpt(n_inner=64)).save_pretrained(tmp_path / "other")
    other = read_arrays(tmp_path / "other" / "model.safetensors")
    edit_tensors(saved, lambda a: a.update({n: other[n] for n in other if n.startswith(C_FC)}))
    refused(saved, r"c_fc.weight is a 4-bit tensor of shape \(64, 32\), the config makes it \(128, 32\)")
