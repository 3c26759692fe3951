"""Models into four bits and out: what is packed, what stays, what is refused; and what it costs."""

from __future__ import annotations

import copy

import numba
import numpy as np
import pytest
from minitorch_peft.kernels.four_bit.reference import dequantize_4bit, quantize_4bit

import minitorch_peft as mp
from minitorch_peft.analysis.memory import peak_memory
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import Embedding, Linear, Linear4bit, TiedLinear
from minitorch_peft.peft import LoraConfig, get_peft_model
from minitorch_peft.peft.inject import packed_sizes
from minitorch_peft.peft.merge import checksum
from minitorch_peft.quant import (
    QLORA,
    BitsAndBytesConfig,
    bits_per_parameter,
    dequantize_model,
    prepare_model_for_kbit_training,
    quantization_of,
    quantize_model,
    quantized_layers,
)
from minitorch_peft.training import TrainConfig, Trainer
from minitorch_peft.training.fingerprint import fingerprint

IDS = np.arange(12).reshape(2, 6)


def gpt(family="gpt2", **fields):
    sizes = {"vocab_size": 17, "n_positions": 12, "n_embd": 32, "n_layer": 2, "n_head": 2} | fields
    return GPT(GPTConfig(**sizes) if family == "gpt2" else GPTConfig.llama(**sizes), seed=3).eval()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("nested", [False, True])
def test_every_linear_layer_but_the_head_is_packed_and_nothing_else_changes(family, nested):
    dense = gpt(family)
    before = {name: a.copy() for name, a in dense.state_dict().items()}
    names = [path for path, m in dense.named_modules() if isinstance(m, Linear) and path != "lm_head"]
    model = quantize_model(dense, compress_statistics=nested)
    assert model is dense and list(quantized_layers(model)) == names
    for path, packed in quantized_layers(model).items():
        expected = quantize_4bit(before[f"{path}.weight"], compress_statistics=nested)
        np.testing.assert_array_equal(packed.dense_weight(), dequantize_4bit(expected))
    for name, p in model.named_parameters():
        assert p.data.tobytes() == before[name].tobytes()
    assert type(model.embed.tokens) is Embedding
    assert type(model.lm_head) is (TiedLinear if family == "gpt2" else Linear)
    assert not model.blocks.training and model.blocks[0].attn.q_proj.training is False


def test_the_numbers_are_counted_as_before_and_the_bytes_are_not():
    dense = gpt(n_embd=128, n_layer=1)
    count, size = dense.num_parameters(), dense.get_memory_footprint()
    assert size == 4 * count
    model = quantize_model(dense)
    packed = sum(packed_sizes(model).values())
    assert model.num_parameters() == count and packed == 12 * 128 * 128
    assert bits_per_parameter(model) == pytest.approx(4.127, abs=0.002)
    assert model.get_memory_footprint() == 4 * (count - packed) + round(packed * bits_per_parameter(model) / 8)
    assert bits_per_parameter(quantize_model(gpt(n_embd=128), compress_statistics=False)) == 4.5
    with pytest.raises(ValueError, match="nothing in this model is in four bits"):
        bits_per_parameter(gpt())


def test_the_quantized_model_is_the_model_of_the_dequantized_weights():
    model = quantize_model(gpt("llama"))
    twin = dequantize_model(copy.deepcopy(model))
    assert not quantized_layers(twin) and all(p.requires_grad for p in twin.parameters())
    np.testing.assert_allclose(model(IDS).logits.data, twin(IDS).logits.data, rtol=1e-5, atol=1e-6)
    assert np.abs(model(IDS).logits.data - gpt("llama")(IDS).logits.data).max() > 1e-4
    np.testing.assert_array_equal(twin.astype(np.float64)(IDS).logits.data, model.astype(np.float64)(IDS).logits.data)


def test_gradients_reach_the_inputs_through_four_bits():
    model = quantize_model(gpt("llama")).astype(np.float64).requires_grad_(False)
    x = mp.tensor(np.random.default_rng(0).standard_normal((2, 4, 32)), requires_grad=True)
    assert mp.gradcheck(lambda x: model(inputs_embeds=x).logits, (x,))


def test_skipped_layers():
    model = quantize_model(gpt("llama"), skip=["lm_head", "down_proj", "blocks.0.attn"])
    assert sorted(quantized_layers(model)) == [
        *(f"blocks.0.mlp.{name}_proj" for name in ("gate", "up")),
        *(f"blocks.1.attn.{name}_proj" for name in "koqv"),
        *(f"blocks.1.mlp.{name}_proj" for name in ("gate", "up")),
    ]
    assert "lm_head" in quantized_layers(quantize_model(gpt("llama"), skip=()))
    with pytest.raises(ValueError, match="skip: 'q_prj' names no module"):
        quantize_model(gpt(), skip=["q_prj"])
    with pytest.raises(ValueError, match="no linear layer to quantize"):
        quantize_model(gpt(), skip=["blocks"])
    with pytest.raises(TypeError, match=r"skip must be names of layers, \(\) for none, got None"):
        quantize_model(gpt(), skip=None)
    with pytest.raises(TypeError, match=r"quantization_config must be a BitsAndBytesConfig.*, got a dict"):
        GPT.from_pretrained("tiny", quantization_config={"load_in_4bit": True})


def refused(model, message, **how):
    before, tree = checksum(model), repr(model)
    with pytest.raises(ValueError, match=message):
        quantize_model(model, **how)
    assert checksum(model) == before and repr(model) == tree


def test_what_cannot_be_quantized_is_left_as_it_was():
    refused(quantize_model(gpt()), r"quantized already \(12 layers\): dequantize_model")
    refused(get_peft_model(gpt(), LoraConfig(r=1)).base_model, r"carries adapters \(default\)")
    refused(gpt(), "blocks.0.attn.q_proj: .*blocksize must be one of 32, 64", blocksize=48)
    refused(gpt(), "quant_type must be one of nf4", quant_type="nf5")
    bad = gpt()
    bad.blocks[1].mlp.down_proj.weight.data[3, 5] = np.nan
    refused(bad, "blocks.1.mlp.down_proj: ")


def test_preparing_for_training():
    model = quantize_model(gpt())
    for path in ("ln_f.weight", "blocks.0.ln_1.bias"):
        model.get(path).data = model.get(path).data.astype(np.float16)
    assert prepare_model_for_kbit_training(model) is model
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}
    assert not any(p.requires_grad for p in model.parameters())
    assert prepare_model_for_kbit_training(model.astype(np.float64)).ln_f.weight.dtype == np.float64
    with pytest.raises(ValueError, match=r"quantize_model\(model\) first"):
        prepare_model_for_kbit_training(gpt())


@pytest.mark.parametrize("change", [dequantize_model, prepare_model_for_kbit_training])
def test_a_model_with_adapters_is_neither_dequantized_nor_frozen(change):
    p = get_peft_model(quantize_model(gpt()), LoraConfig(r=1))
    before, trains = checksum(p.base_model), [q.requires_grad for q in p.parameters()]
    for model in (p, p.base_model):
        with pytest.raises(ValueError, match=r"carries adapters \(default\): (detach them|prepare the base)"):
            change(model)
    assert checksum(p.base_model) == before and [q.requires_grad for q in p.parameters()] == trains
    change(p.unload())


@pytest.mark.parametrize(
    "config",
    [
        BitsAndBytesConfig(),
        QLORA,
        BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=()),
        BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=("blocks.0.attn.q_proj", "lm_head")),
    ],
)
def test_how_a_model_is_stored_is_read_from_it(config):
    model = gpt("llama")
    if config.load_in_4bit:
        quantize_model(model, **config.arguments())
    assert quantization_of(model) == config
    if config.load_in_4bit:
        model.blocks[1].attn.q_proj = Linear4bit(quantize_4bit(np.ones((32, 32), np.float32), 64, "int4"))
        with pytest.raises(ValueError, match=r"stored in different types: (fp4, int4|int4, nf4)"):
            quantization_of(model)


# -- settings --------------------------------------------------------------------------------------------------------
def test_settings_survive_json_and_say_what_is_wrong():
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head", "q_proj"])
    assert BitsAndBytesConfig.from_dict(config.to_dict()) == config
    assert config.arguments()["skip"] == ("lm_head", "q_proj")
    assert QLORA.bnb_4bit_quant_type == "nf4" and QLORA.bnb_4bit_use_double_quant
    assert QLORA.arguments() == {"quant_type": "nf4", "compress_statistics": True, "skip": ("lm_head",)}
    with pytest.raises(ValueError, match="must be a list of names, got 'lm_head'"):
        BitsAndBytesConfig(llm_int8_skip_modules="lm_head")
    with pytest.raises(ValueError, match="must be 'nf4' or 'fp4', got 'int4'"):
        BitsAndBytesConfig(bnb_4bit_quant_type="int4")
    with pytest.raises(ValueError, match="bnb_4bit_compute_dtype must be one of float32"):
        BitsAndBytesConfig(bnb_4bit_compute_dtype="float8")
    with pytest.raises(TypeError, match="load_in_4bit must be True or False, got 'yes'"):
        BitsAndBytesConfig(load_in_4bit="yes")
    with pytest.raises(ValueError, match="BitsAndBytesConfig has no load_in_8bit; it has: load_in_4bit"):
        BitsAndBytesConfig.from_dict({"load_in_8bit": True})


@pytest.mark.parity
def test_the_names_and_defaults_are_those_of_transformers():
    import transformers

    theirs, ours = transformers.BitsAndBytesConfig(load_in_4bit=True).to_dict(), BitsAndBytesConfig(load_in_4bit=True)
    assert {key: theirs[key] for key in ours.to_dict()} == ours.to_dict()


@pytest.mark.parametrize("name", ["packed", "absmax", "nested_absmax", "nested_offset"])
def test_the_checksum_sees_every_array_of_four_bits(name):
    p = get_peft_model(quantize_model(gpt()), LoraConfig(r=1))
    before = checksum(p.base_model)
    getattr(p.base_model.blocks[1].mlp.down_proj, name).reshape(-1).view(np.uint8)[0] ^= 1
    assert checksum(p.base_model) != before


# -- training ----------------------------------------------------------------------------------------------------------
def test_a_run_knows_its_four_bits():
    """A run is not resumed on a base that was quantized otherwise: the frozen bytes are part of what it is."""

    def found(**how):
        p = get_peft_model(quantize_model(gpt(), **how), LoraConfig(r=1))
        return fingerprint(p, TrainConfig(steps=2, lr=0.1), lambda i: {"input_ids": IDS})["model"]["frozen weights"]

    assert found() == found() != found(compress_statistics=False)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_peak_memory_of_a_step_holds_no_dense_copy(dropout):
    """One step of QLoRA needs as much less than one of LoRA as the base is smaller, but for the tiles."""

    def peak(quantized):
        def prepare():
            model = gpt(n_embd=256, n_layer=2, n_head=4)
            model = get_peft_model(
                quantize_model(model) if quantized else model, LoraConfig(r=1, lora_dropout=dropout)
            ).train()
            return Trainer(model, lambda i: {"input_ids": IDS, "labels": IDS}, TrainConfig(steps=9, lr=0.1)).step

        prepare()()  # compiled
        return peak_memory(prepare)

    dense, packed = gpt(n_embd=256), quantize_model(gpt(n_embd=256))
    saved = dense.get_memory_footprint() - packed.get_memory_footprint()
    tiles = numba.get_num_threads() * (512 << 10)
    assert saved > 5 << 20 and peak(False) - peak(True) > saved - tiles


def test_dropout_keeps_nothing_of_the_size_of_its_input():
    """A layer's input, dropped, would be a second copy of it until the backward pass; its mask a quarter of one."""
    ids = np.arange(1024).reshape(16, 64) % 17

    def peak(dropout):
        def prepare():
            model = quantize_model(gpt(n_embd=64, n_head=4, n_positions=64))
            model = get_peft_model(model, LoraConfig(r=2, lora_dropout=dropout, target_modules="all-linear")).train()
            return Trainer(model, lambda i: {"input_ids": ids, "labels": ids}, TrainConfig(steps=9, lr=0.1)).step

        prepare()()
        return peak_memory(prepare)

    inputs = 2 * 9 * 64 * 1024 * 4  # of two blocks: to six layers, the last of which has four times the width
    without, dropped = peak(0.0), peak(0.1)
    assert dropped - without < inputs / 2
