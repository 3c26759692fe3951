"""Windows: every token counted once, nothing foreign seen, any step made again from its number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch_peft.data import IGNORE, Corpus, PackedText, Tokenizer, load_corpus, targets

PAD = 10_000
sizes = st.integers(2, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n)))


def counting(n):
    return PackedText(np.arange(n), nbytes=3 * n, pad=PAD)


def predicted(batch):
    """The tokens that a model is scored on: each label but a row's first."""
    labels = batch["labels"][:, 1:]
    return labels[labels != IGNORE].tolist()


@given(n=st.integers(2, 200), length=st.integers(2, 250), batch_size=st.integers(1, 7))
def test_evaluation_predicts_every_token_but_the_first_exactly_once(n, length, batch_size):
    batches = list(counting(n).windows(batch_size, length))
    assert [token for batch in batches for token in predicted(batch)] == list(range(1, n))
    assert sum(targets(batch) for batch in batches) == n - 1
    for batch in batches:
        assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
        assert batch["input_ids"].shape[1] == length
        real = batch["attention_mask"] == 1
        np.testing.assert_array_equal(batch["input_ids"] == PAD, ~real)
        np.testing.assert_array_equal(batch["labels"], np.where(real, batch["input_ids"], IGNORE))


def test_a_limit_takes_whole_rows_from_all_over_the_text():
    rows = np.concatenate([b["input_ids"] for b in counting(1000).windows(4, 11, limit=7)])
    assert rows.shape == (7, 11)
    assert rows[0, 0] == 0 and rows[-1, 0] == 990 and (np.diff(rows[:, 0]) > 100).all()


@given(sizes, st.integers(0, 50), st.integers(1, 9), st.integers(0, 2**32))
def test_training_windows_are_pieces_of_the_text(size, step, batch_size, seed):
    n, length = size
    batch = counting(n).batch(step, batch_size, length, seed)
    rows = batch["input_ids"]
    assert rows.shape == (batch_size, length) and rows.dtype == np.int64
    assert (np.diff(rows, axis=1) == 1).all() and rows.min() >= 0 and rows.max() < n
    np.testing.assert_array_equal(batch["labels"], rows)
    assert batch["attention_mask"].all()
    batch["input_ids"][:] = 0  # nobody's batch is a view of the text
    assert counting(n).ids.sum() == n * (n - 1) // 2


def test_a_step_is_made_again_from_its_number_alone():
    text = counting(5000)
    straight = [text.batch(step, 8, 33, seed=5)["input_ids"] for step in range(60)]
    for step in (59, 0, 30, 7):  # any order, in any object
        np.testing.assert_array_equal(counting(5000).batch(step, 8, 33, seed=5)["input_ids"], straight[step])
    assert not np.array_equal(straight[0], straight[1])
    assert not np.array_equal(straight[0], text.batch(0, 8, 33, seed=6)["input_ids"])


def test_an_epoch_sees_the_text_once_and_the_next_one_cuts_it_elsewhere():
    text, length, per_epoch = counting(1000), 11, 98
    epochs = [
        np.concatenate([text.batch(e * 14 + i, 7, length)["input_ids"][:, 1:] for i in range(14)]) for e in range(3)
    ]
    assert all(len(rows) == per_epoch for rows in epochs)
    for rows in epochs:
        counts = np.bincount(rows.ravel(), minlength=1000)
        assert counts.max() == 1 and counts[20:-20].min() == 1
        assert (np.diff(rows[:, 0]) != length - 1).any(), "shuffled"
    assert len({int(rows.min()) % (length - 1) for rows in epochs}) > 1


@pytest.mark.parametrize("length", [1, 0, -3])
def test_a_window_needs_two_tokens(length):
    with pytest.raises(ValueError, match="expected at least 2"):
        counting(10).batch(0, 1, length)
    with pytest.raises(ValueError, match="expected at least 2"):
        next(counting(10).windows(1, length))


def test_bad_requests_say_so():
    with pytest.raises(ValueError, match="has 10 tokens, fewer than one window of 11"):
        counting(10).batch(0, 1, 11)
    with pytest.raises(ValueError, match="got step -1"):
        counting(10).batch(-1, 1, 5)
    with pytest.raises(ValueError, match="batch_size 0"):
        counting(10).batch(0, 0, 5)
    with pytest.raises(ValueError, match="tyn: no verses to pack"):
        PackedText.from_corpus(Corpus("tyn", {}), Tokenizer.shipped())


@pytest.mark.parametrize(("batch_size", "limit"), [(0, None), (1, 0)])
def test_no_windows_is_not_a_measurement(batch_size, limit):
    with pytest.raises(ValueError, match="expected batch_size and limit >= 1"):
        next(counting(10).windows(batch_size, 3, limit))


def test_layout_and_bits_per_byte():
    tokenizer = Tokenizer.shipped()
    corpus = Corpus("mine", {1_001_001: "In þe", 1_001_002: "And"})
    text = PackedText.from_corpus(corpus, tokenizer)
    assert text.ids.tolist() == [0, *tokenizer.encode("In þe"), 0, *tokenizer.encode("And")]
    assert text.nbytes == 6 + 3
    # A model that spends 9 ln 2 nats on the whole text spends one bit on each of its 9 bytes.
    assert text.bits_per_byte(9 * math.log(2) / (len(text) - 1)) == pytest.approx(1)
    assert text.bytes_per_token * (len(text) - 1) == pytest.approx(9)


def test_training_text_is_the_training_books_and_nothing_else():
    tokenizer, corpus = Tokenizer.shipped(), load_corpus("tyn")
    text = PackedText.from_corpus(corpus.split("train"), tokenizer)
    verses = np.split(text.ids, np.flatnonzero(text.ids == 0))[1:]
    assert tuple(tokenizer.decode(ids) for ids in verses) == corpus.split("train").texts
