"""What is learned from and what is measured."""

from __future__ import annotations

import numpy as np
import pytest

from minitorch_peft.analysis.texts import TextError, Texts, pack_file
from minitorch_peft.data.packed import PackedText
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.training import evaluate


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    train, measured = (PackedText(rng.integers(0, 50, n), nbytes=3 * n, pad=1) for n in (300, 101))
    return Texts(train, {"other": measured}, batch_size=4, length=16)


@pytest.fixture(scope="module")
def model():
    return GPT(GPTConfig(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2), seed=0)


def test_leaving_out_the_mask_changes_no_figure(texts, model):
    """The last row is padded on the right: causality hides the padding, and its labels do not count."""
    text = texts.measured["other"]
    masked = text.bits_per_byte(evaluate(model, text.windows(4, 16)).loss)
    assert texts.bits_per_byte(model, "other") == pytest.approx(masked, rel=1e-6)
    assert any((b["attention_mask"] == 0).any() for b in text.windows(4, 16))


def test_batches_depend_on_the_seed_and_the_step_only(texts):
    first, again, other = texts.batches(1), texts.batches(1), texts.batches(2)
    assert np.array_equal(first(3)["input_ids"], again(3)["input_ids"])
    assert not np.array_equal(first(3)["input_ids"], other(3)["input_ids"])
    assert first(0)["input_ids"].shape == (4, 16)


def test_a_limit_takes_rows_from_all_of_the_text(texts):
    rows = np.concatenate([b["input_ids"] for b in texts.windows("other", limit=2)])
    whole = np.concatenate([b["input_ids"] for b in texts.windows("other")])
    assert len(rows) == 2 and np.array_equal(rows, whole[[0, -1]])


def test_a_text_shorter_than_a_row_is_refused():
    with pytest.raises(TextError, match="9 tokens, fewer than a row of 16"):
        Texts(PackedText(np.arange(9), 9, 1), {}, batch_size=1, length=16)


def test_a_file_is_cut_by_lines_and_nothing_is_in_both_parts(tmp_path):
    path, tokenizer = tmp_path / "a.txt", Tokenizer.shipped()
    path.write_text("".join(f"line number {i}\n\n" for i in range(20)), encoding="utf-8")
    first, last = (tokenizer.decode(part.ids) for part in pack_file(path, tokenizer, held_out=0.1))
    assert first.endswith("number 17") and last == "line number 18line number 19"


@pytest.mark.parametrize("count", [2, 3])
def test_a_short_file_still_has_two_parts(tmp_path, count):
    (tmp_path / "a.txt").write_text("words here\n" * count)
    assert all(len(part) > 1 for part in pack_file(tmp_path / "a.txt", Tokenizer.shipped()))
