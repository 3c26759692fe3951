"""pretrain: a card that tells how to make the checkpoint again, and does."""

from __future__ import annotations

import numpy as np
import pytest

from minitorch_peft.analysis.texts import Texts
from minitorch_peft.cli import pretrain as command
from minitorch_peft.data.corpora import Corpus, load_corpus
from minitorch_peft.data.packed import PackedText
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.formats.files import read_arrays, read_json
from minitorch_peft.models import GPT


@pytest.fixture
def pretrain(call, monkeypatch):
    """pretrain the smallest size on a few verses."""

    def few_verses(batch_size, length):
        verses = list(load_corpus("web").verses.items())
        packed = [
            PackedText.from_corpus(Corpus("web", dict(verses[i : i + 20])), Tokenizer.shipped()) for i in (0, 20, 40)
        ]
        return Texts(packed[0], {"held_out": packed[1], "out_of_domain": packed[2]}, batch_size, length)

    monkeypatch.setattr(command, "modern_text", few_verses)
    return lambda *more: call("pretrain", "--size", "0.25m", "--batch-size", 2, "--length", 16, *more)


def test_the_checkpoint_loads_and_its_card_makes_it_again(pretrain, call, tmp_path):
    done = pretrain("--steps", 4, "--eval-every", 2, "--warmup", 1, "--out", tmp_path / "a", "--json")
    assert done.code == 0, done.err
    card = done.json
    assert card == {"checkpoint": str(tmp_path / "a" / "tiny-0.25m.safetensors"), **without_config(tmp_path / "a")}
    model = GPT.from_pretrained(card["checkpoint"])
    assert model.num_parameters() == card["parameters"] == 281_984
    assert model.config.resid_pdrop == 0
    again = call(*card["command"].split()[1:], "--out", tmp_path / "b")
    assert again.code == 0, again.err
    first, second = (read_arrays(tmp_path / x / "tiny-0.25m.safetensors") for x in "ab")
    assert all(a.dtype == np.float16 and np.array_equal(a, second[name]) for name, a in first.items())


def without_config(folder):
    return {k: v for k, v in read_json(folder / "tiny-0.25m.json").items() if k != "config"}


@pytest.mark.slow
def test_minutes_are_turned_into_steps_once(pretrain, tmp_path):
    first = pretrain("--minutes", 0.05, "--eval-every", 1000, "--out", tmp_path / "a", "--json").json
    assert first["steps"] >= 1
    again = pretrain("--minutes", 0.05, "--eval-every", 1000, "--out", tmp_path / "a", "--json", "--resume").json
    assert again["steps"] == first["steps"] == read_json(tmp_path / "a" / "steps.json")["steps"]


@pytest.mark.parametrize("options", [[], ["--steps", 3, "--minutes", 1]])
def test_steps_or_minutes(pretrain, options):
    done = pretrain(*options)
    assert done.code == 2 and "either --steps or --minutes" in done.error


@pytest.mark.parametrize("options", [["--size", "9m"], ["--length", 300], ["--steps", 0]])
def test_values_out_of_range_are_usage_errors(pretrain, options):
    assert pretrain("--steps", 1, *options).code == 2
