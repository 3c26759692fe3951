"""merge and inspect."""

from __future__ import annotations

import numpy as np
import pytest
from cli_cases import adapt_options

from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.formats.files import read_arrays, write_arrays
from minitorch_peft.models import GPT
from minitorch_peft.models.pretrained import embedded_names, save_embedded
from minitorch_peft.peft import AdapterFusionConfig, PeftModel, SeqBnConfig
from minitorch_peft.quant import QLORA, quantized_layers


def test_the_merged_model_says_what_the_adapted_one_says(call, base, adapted, tmp_path):
    value = call("merge", adapted, "--out", tmp_path / "merged", "--json").json
    certificate = value["certificate"]
    assert certificate["restores_base"] and certificate["logit_difference"] < 1e-4
    merged = GPT.from_pretrained(tmp_path / "merged")
    model = PeftModel.from_pretrained(GPT.from_pretrained(base), adapted)
    ids = np.arange(20).reshape(2, 10)
    np.testing.assert_allclose(merged(ids).logits.data, model(ids).logits.data, atol=1e-5)
    assert Tokenizer.from_pretrained(tmp_path / "merged").vocab_size == 1024
    shown = call("merge", adapted, "--out", tmp_path / "again")
    assert shown.code == 0 and "bit for bit" in shown.out


@pytest.mark.parametrize("requantize", [False, True])
def test_merging_into_a_base_in_four_bits(call, base, letters, tmp_path, requantize):
    options = ["--method", "qlora", "--set", "r=2", "--set", "target_modules=q_proj,k_proj,v_proj", "--lr", 0.3]
    assert call(*adapt_options(base, letters), "--out", tmp_path / "adapted", *options).code == 0
    more = ["--requantize"] if requantize else []
    value = call("merge", tmp_path / "adapted", "--out", tmp_path / "merged", *more, "--json").json
    certificate = value["certificate"]
    assert certificate["restores_base"] and certificate["requantized"] == (6 if requantize else 0)
    assert (certificate["relative_logit_difference"] > 1e-4) == requantize
    merged = GPT.from_pretrained(tmp_path / "merged")
    assert len(quantized_layers(merged)) == (12 if requantize else 0)
    model = PeftModel.from_pretrained(GPT.from_pretrained(base, quantization_config=QLORA), tmp_path / "adapted")
    ids = np.arange(20).reshape(2, 10)
    close = np.abs(merged(ids).logits.data - model(ids).logits.data).max() < 1e-4
    assert close != requantize
    shown = call("merge", tmp_path / "adapted", "--out", tmp_path / "again", *more)
    assert shown.code == 0 and ("put back into four bits" in shown.out) == requantize
    look = call("inspect", tmp_path / "merged", "--json").json
    assert look["parameters"] == GPT.from_pretrained(base).num_parameters()
    assert look.get("layers_in_four_bits", 0) == (12 if requantize else 0)


def test_requantizing_needs_a_base_in_four_bits(call, adapted, tmp_path):
    done = call("merge", adapted, "--out", tmp_path / "merged", "--requantize")
    assert done.code == 2 and "stored in four bits" in done.error and not (tmp_path / "merged").exists()


def test_merge_never_writes_into_a_folder_that_holds_something(call, base, adapted):
    before = sorted(base.iterdir())
    done = call("merge", adapted, "--out", base)
    assert done.code == 2 and "not empty" in done.error and sorted(base.iterdir()) == before


def test_a_damaged_adapter_is_a_bad_file(call, adapted, tmp_path):
    weights = adapted / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    for command in (("merge", adapted, "--out", tmp_path / "merged"), ("inspect", adapted)):
        done = call(*command)
        assert done.code == 3 and str(weights) in done.error
    assert not (tmp_path / "merged").exists()


def test_inspect_a_model_folder(call, base):
    value = call("inspect", base, "--json").json
    model = GPT.from_pretrained(base)
    assert value["kind"] == "model" and value["parameters"] == model.num_parameters()
    assert value["settings"] == model.config.to_dict()
    assert value["shapes"]["embed.tokens.weight"] == [1024, 16]
    assert value["files"][str(base / "model.safetensors")] == (base / "model.safetensors").stat().st_size
    assert "q_proj" not in call("inspect", base).out and "q_proj" in call("inspect", base, "--depth", 4).out


def test_inspect_an_adapter(call, base, adapted):
    value = call("inspect", adapted, "--json").json
    model = PeftModel.from_pretrained(GPT.from_pretrained(base), adapted)
    own = sum(p.data.size for p in model.adapters["default"].named_parameters().values())
    assert (value["kind"], value["method"], value["parameters"]) == ("adapter", "lora", own)
    assert value["percent_of_base"] == pytest.approx(100 * own / GPT.from_pretrained(base).num_parameters(), abs=1e-3)


def test_checking_an_adapter_s_files(call, base, adapted):
    shown = call("inspect", adapted, "--check")
    assert shown.code == 0 and "no failure" in shown.out
    value = call("inspect", adapted, "--check", "--json").json
    assert value == {"ok": True, "base": str(base), "findings": []}
    weights = adapted / "adapter_model.safetensors"
    arrays = read_arrays(weights)
    write_arrays(weights, {name: array * ("lora_B" not in name) for name, array in arrays.items()})
    done = call("inspect", adapted, "--check")
    assert done.code == 3 and "FAILURE file-without-effect" in done.out and "do: save it after training" in done.out
    write_arrays(weights, dict(list(arrays.items())[1:]))
    done = call("inspect", adapted, "--check", "--json")
    assert done.code == 3 and [f["code"] for f in done.json["findings"]] == ["file-refused"]
    assert call("inspect", adapted / "nowhere", "--check").code == 3


@pytest.fixture
def together(base, tmp_path):
    """The folder of two bottlenecks and their fusion."""
    p, rng = PeftModel(GPT.from_pretrained(base)), np.random.default_rng(0)
    for name in ("a", "b"):
        p.add_adapter(name, SeqBnConfig(bottleneck_size=2))
        for q in p.adapters[name].named_parameters().values():
            q.data[...] += rng.normal(0, 0.3, q.shape)
    p.add_adapter("f", AdapterFusionConfig(["a", "b"]))
    p.set_adapter("f")
    p.save_pretrained(tmp_path / "together", ["a", "b", "f"])
    return tmp_path / "together"


def test_inspect_adapters_that_were_saved_together(call, base, together):
    value = call("inspect", together, "--base", base, "--json").json
    assert value["kind"] == "adapters" and value["active"] == ["f"]
    assert value["methods"] == {"a": "seq_bn", "b": "seq_bn", "f": "fusion"}
    assert value["settings"]["f"]["adapters"] == ["a", "b"] and len(value["files"]) == 7
    model = PeftModel.from_pretrained(GPT.from_pretrained(base), together)
    own = [p.data.size for a in model.adapters.values() for p in a.named_parameters().values()]
    assert value["parameters"] == sum(own)
    shown = call("inspect", together, "--base", base).out
    assert "b/adapter_config.json" in shown and "settings of f: peft_type=ADAPTER_FUSION" in shown


def test_checking_adapters_that_were_saved_together(call, base, together):
    shown = call("inspect", together, "--base", base, "--check")
    assert shown.code == 0 and "no failure" in shown.out
    (together / "a" / "adapter_model.safetensors").write_bytes(b"")
    done = call("inspect", together, "--base", base, "--check", "--json")
    assert done.code == 3 and [f["code"] for f in done.json["findings"]] == ["file-refused"] * 2  # f builds on it


def test_inspect_a_training_checkpoint(call, adapted):
    value = call("inspect", adapted / "run" / "step-00000004.safetensors", "--json").json
    assert value["kind"] == "training checkpoint" and value["run step"] == 4 and value["settings"]["lr"] == 0.01
    assert value["parameters"] == call("inspect", adapted, "--json").json["parameters"]


def test_inspect_an_embedded_checkpoint_and_a_plain_file(call, base, tmp_path):
    save_embedded(GPT.from_pretrained(base), tmp_path / "mine.safetensors", {"seed": 7})
    value = call("inspect", tmp_path / "mine.safetensors", "--json").json
    assert value["kind"] == "embedded checkpoint" and value["seed"] == 7
    assert call("inspect", base / "model.safetensors", "--json").json["kind"] == "safetensors file"
    for name in embedded_names():
        assert call("inspect", name, "--json").json["parameters"] > 100_000


def test_inspect_nothing(call, tmp_path):
    done = call("inspect", tmp_path)
    assert done.code == 3 and "nothing to inspect" in done.error
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    assert call("inspect", tmp_path / "x.safetensors").code == 3
