"""generate: streamed, in one piece, sampled, adapted."""

from __future__ import annotations

import numpy as np
import pytest
from cli_cases import POSITIONS, adapt_options

from minitorch_peft.cli.generate import Printer
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.models import GPT, GPTConfig


def test_streamed_text_is_what_the_model_says(call, base):
    streamed = call("generate", "--base", base, "--prompt", "And he", "--max-new-tokens", 12)
    whole = call("generate", "--base", base, "--prompt", "And he", "--max-new-tokens", 12, "--no-stream")
    value = call("generate", "--base", base, "--prompt", "And he", "--max-new-tokens", 12, "--json").json
    tokenizer, model = Tokenizer.shipped(), GPT.from_pretrained(base)
    ids = [tokenizer.eos_token_id, *tokenizer.encode("And he")]
    expected = model.generate(np.array([ids]), 12, eos_token_id=tokenizer.eos_token_id)[0, len(ids) :]
    assert value["continuation"] == tokenizer.decode(expected) and value["tokens"] == len(expected)
    assert streamed.out == whole.out == f"And he{value['continuation']}\n"


def test_sampling_depends_on_the_seed_and_only_on_it(call, base):
    def text(seed):
        options = ("--sample", "--temperature", 2.0, "--top-k", 500, "--top-p", 0.99, "--seed", seed, "--json")
        return call("generate", "--base", base, *options).json["continuation"]

    assert text(1) == text(1) != text(2)


def test_an_adapter_changes_the_text_and_knows_its_base(call, base, letters, tmp_path):
    made = call(*adapt_options(base, letters), "--method", "full", "--lr", 0.1, "--out", tmp_path / "full")
    assert made.code == 0, made.err
    alone = call("generate", "--base", base, "--prompt", "Dear", "--json").json
    value = call("generate", "--adapter", tmp_path / "full", "--prompt", "Dear", "--json").json
    assert value["base"] == str(base) and value["continuation"] != alone["continuation"]


def test_half_a_character_waits_for_the_rest(capsys):
    tokenizer = Tokenizer.shipped()
    printer = Printer(tokenizer, "")
    shown = []
    for i in tokenizer.encode("a🙂b"):
        printer(np.array([i]))
        shown.append(printer.shown)
    printer.close()
    assert capsys.readouterr().out == "a🙂b\n"
    assert not any("\ufffd" in text for text in shown)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--max-new-tokens", POSITIONS], 2, [f"{POSITIONS} positions", f"leaves {POSITIONS - 1}"]),
        (["--prompt", "word " * 200], 2, ["leaves 0"]),
        (["--top-k", 5], 2, ["--sample"]),
        (["--sample", "--temperature", 0], 2, ["temperature"]),
        (["--sample", "--top-p", 2], 2, ["top_p"]),
        (["--adapter", "nowhere"], 3, ["nowhere", "no such folder"]),
        (["--tokenizer", "nowhere.json"], 3, ["nowhere.json"]),
    ],
)
def test_what_cannot_be_generated(call, base, options, code, words):
    done = call("generate", "--base", base, "--max-new-tokens", 5, *options)
    assert done.code == code and all(word in done.error for word in words), done.error


def test_an_adapter_of_another_model_is_refused(call, adapted, tmp_path):
    other = tmp_path / "other"
    GPT(GPTConfig(1024, n_positions=8, n_embd=8, n_layer=1, n_head=2)).save_pretrained(other)
    Tokenizer.shipped().save_pretrained(other)
    done = call("generate", "--base", other, "--adapter", adapted, "--max-new-tokens", 2)
    assert done.code == 3 and str(adapted) in done.error
