"""Byte-level BPE: nothing is lost, ids are where they were promised, training is repeatable."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from minitorch_peft.data import make_tokenizer as making
from minitorch_peft.data.corpora import Corpus
from minitorch_peft.data.tokenizer import RESERVED, Tokenizer, train_tokenizer
from minitorch_peft.formats.files import FileFormatError

TOKENIZER = Tokenizer.shipped()


def test_reserved_ids():
    assert RESERVED[:4] == ("<|endoftext|>", "<|pad|>", "<|sep|>", "<|spare_0|>")
    assert [TOKENIZER.token_id(token) for token in RESERVED] == list(range(19))
    assert (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id, TOKENIZER.sep_token_id) == (0, 1, 2)
    assert TOKENIZER.vocab_size == 1024
    with pytest.raises(KeyError, match="no token '<mask>'"):
        TOKENIZER.token_id("<mask>")


@given(st.text())
def test_any_text_survives_the_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(19 <= i < 1024 for i in ids)
    assert TOKENIZER.encode_batch([text, "a"]) == [ids, TOKENIZER.encode("a")]


@pytest.mark.parametrize("token", RESERVED)
def test_a_text_cannot_smuggle_in_a_reserved_id(token):
    ids = TOKENIZER.encode(f"so {token} it")
    assert min(ids) >= 19
    assert TOKENIZER.decode(ids) == f"so {token} it"


def test_reserved_ids_are_left_out_of_a_text_unless_asked_for():
    ids = [0, *TOKENIZER.encode("wept"), 0, 1]
    assert TOKENIZER.decode(ids) == "wept"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == "<|endoftext|>wept<|endoftext|><|pad|>"


def test_save_and_load(tmp_path):
    folder = tmp_path / "new" / "folder"
    TOKENIZER.save_pretrained(folder)
    for again in (Tokenizer.from_file(folder / "tokenizer.json"), Tokenizer.from_pretrained(folder)):
        assert again.encode("In þe bigynnyng") == TOKENIZER.encode("In þe bigynnyng")
        assert (again.eos_token_id, again.pad_token_id) == (0, 1)


def test_files_that_are_no_tokenizers_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"none\.json: no such file; expected a Hugging Face tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "none.json")
    with pytest.raises(FileFormatError, match=r"no-such-model: no such model; .*such as 'tiny'"):
        Tokenizer.from_pretrained("no-such-model")
    for content in (b"", b"{", b"{}", b"\xff\x00"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(FileFormatError, match=r"bad\.json: is not a tokenizer"):
            Tokenizer.from_file(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"eos_token": "</s>", "pad_token": "<pad>"}, ("</s>", "<pad>")),
        ({"eos_token": {"content": "</s>"}, "pad_token": None}, ("</s>", "</s>")),
        ({"eos_token": "</s>", "pad_token": "[not there]"}, ("</s>", "</s>")),
    ],
)
def test_a_model_s_directory_names_its_own_end_and_pad(tmp_path, config, expected):
    words = tokenizers.models.WordLevel({"</s>": 0, "<pad>": 1, "wept": 2}, "wept")
    tokenizers.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert (tokenizer.end, tokenizer.pad) == expected
    assert tokenizer.pad_token_id == tokenizer.token_id(expected[1])
    with pytest.raises(KeyError, match="no token '<|sep|>'".replace("|", r"\|")):
        _ = tokenizer.sep_token_id


def test_what_a_foreign_file_asks_for_cannot_cut_or_pad(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<|pad|>",
    }
    foreign = Tokenizer.from_json(json.dumps(content))
    assert foreign.encode_batch(["Jesus wept.", "a"]) == TOKENIZER.encode_batch(["Jesus wept.", "a"])


def test_training_is_repeatable_and_exact_in_size():
    texts = ["In the beginning God created the heaven and the earth."] * 3
    first, second = (train_tokenizer(texts, 300).backend.to_str() for _ in range(2))
    assert first == second
    assert Tokenizer.from_json(first).vocab_size == 300
    with pytest.raises(ValueError, match=r"gave \d+ entries, expected 1024"):
        train_tokenizer(texts)


def test_held_out_books_teach_the_tokenizer_nothing(monkeypatch):
    words = [f"{a}{b}{c}" for a in "bcdfghklmnprstvw" for b in "aeiou" for c in "bcdfghklmnprstvw"]

    def corpus(name):
        seen = {1_001_001 + i: f"{word} {word}" for i, word in enumerate(words[:900])}
        return Corpus(name, {**seen, 43_001_001: "zyzzyx " * 5000, 66_001_001: "qoqoqo " * 5000})

    monkeypatch.setattr(making, "load_corpus", corpus)
    vocabulary = making.make_tokenizer().backend.get_vocab()
    assert not [token for token in vocabulary if "zy" in token or "qo" in token]


@pytest.mark.slow
def test_the_shipped_file_is_what_its_command_makes(tmp_path):
    command = [sys.executable, "-m", "minitorch_peft.data.make_tokenizer", str(tmp_path / "tokenizer.json")]
    subprocess.run(command, check=True)
    shipped = resources.files("minitorch_peft.data").joinpath("tokenizer.json").read_bytes()
    assert (tmp_path / "tokenizer.json").read_bytes() == shipped


@pytest.mark.parity
def test_transformers_reads_what_was_saved_alike(tmp_path):
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "In þe bigynnyng, God's Spirit 🙂\n  was"
    assert theirs(text)["input_ids"] == TOKENIZER.encode(text)
    assert theirs.decode(TOKENIZER.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (0, 1)


def test_importing_data_loads_no_heavy_package():
    heavy = {"tokenizers", "numba", "scipy", "pythonbible"}
    code = f"import sys, minitorch_peft.data; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
