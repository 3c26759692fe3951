"""The loss falls on the target alone; padding changes nothing else; every example is seen once an epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch_peft.data import IGNORE, Corpus, LabelledVerses, Pairs, Tokenizer, load_corpus, pad_rows

TOKENIZER = Tokenizer.shipped()
MODERN_VERSES = {1: "I am", 2: "You saw the light", 3: "He went", 4: "only here", 5: "He wept " * 30}
OLD_VERSES = {1: "Y am", 2: "Thou saie the liyt", 3: "He yede", 5: "He wepte", 6: "Here"}
MODERN = Corpus("web", MODERN_VERSES)
OLD = Corpus("wyc", OLD_VERSES, frozenset({3}))


def pairs(max_length=64):
    return Pairs.from_corpora(MODERN, OLD, TOKENIZER, max_length)


@given(st.lists(st.lists(st.integers(2, 99), min_size=1), min_size=1), st.sampled_from(["left", "right"]))
def test_padding_adds_pads_on_one_side_only(rows, side):
    padded = pad_rows(rows, 1, side)
    assert padded.shape == (len(rows), max(map(len, rows)))
    for row, before in zip(padded.tolist(), rows, strict=True):
        pads = [1] * (padded.shape[1] - len(before))
        assert row == (pads + before if side == "left" else before + pads)


def test_an_unknown_side_is_an_error():
    with pytest.raises(ValueError, match="'middle': expected 'left' or 'right'"):
        pad_rows([[1]], 0, "middle")


def test_only_verses_that_mean_the_same_and_fit_are_paired():
    assert pairs().verses == (1, 2)  # 3 is renumbered, 4 and 6 have no partner, 5 is too long
    assert pairs().left_out == 1
    back = Pairs.from_corpora(OLD, MODERN, TOKENIZER, 64)
    assert back.verses == (1, 2) and back.source_texts == ("Y am", "Thou saie the liyt")
    assert pairs().source_texts == ("I am", "You saw the light")
    assert pairs().target_texts == ("Y am", "Thou saie the liyt")
    longest = max(len(x) + len(y) for x, y in zip(pairs().prompts, pairs().answers, strict=True))
    assert len(pairs(longest)) == 2 and len(pairs(longest - 1)) == 1
    with pytest.raises(ValueError, match="no pairs of web and wyc left: 3 are there, and none fits into 3 tokens"):
        pairs(3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_are_the_target_and_its_end_and_nothing_else(side):
    (batch,) = pairs().batches(8, side)
    texts = zip(pairs().source_texts, pairs().target_texts, strict=True)
    columns = (batch["input_ids"], batch["labels"], batch["attention_mask"])
    for (source, target), ids, labels, mask in zip(texts, *columns, strict=True):
        prompt = [0, *TOKENIZER.encode(source), 2]
        answer = [*TOKENIZER.encode(target), 0]
        assert ids[mask == 1].tolist() == prompt + answer
        assert labels[mask == 1].tolist() == [IGNORE] * len(prompt) + answer
        assert (ids[mask == 0] == 1).all() and (labels[mask == 0] == IGNORE).all()
        assert mask[-1 if side == "left" else 0] == 1
    assert (batch["attention_mask"] == 0).any(), "the rows differ in length, so one of them is padded"


def test_prompts_to_generate_from_end_with_the_separator():
    batch = pairs().prompt_batch([1, 0])
    assert (batch["input_ids"][:, -1] == 2).all() and (batch["attention_mask"][:, -1] == 1).all()
    assert batch["input_ids"][1][batch["attention_mask"][1] == 1].tolist() == pairs().prompts[0]


def test_real_pairs_come_from_their_split():
    source, target = (load_corpus(name).split("held_out") for name in ("web", "tyn"))
    found = Pairs.from_corpora(source, target, TOKENIZER, 256)
    assert {verse // 1_000_000 for verse in found.verses} == {32, 43, 57}
    assert len(found) > 940 and found.left_out < 5
    assert max(batch["input_ids"].shape[1] for batch in found.batches(64)) <= 256


def labelled(max_length=64):
    return LabelledVerses.from_corpora([MODERN, OLD], TOKENIZER, max_length)


def test_classes_are_equally_large_and_hold_the_same_verses():
    data = labelled()
    assert data.names == ("web", "wyc") and data.left_out == 1
    assert data.texts == ("I am", "Y am", "You saw the light", "Thou saie the liyt", "He went", "He yede")
    assert data.labels.tolist() == [0, 1] * 3
    assert data.rows[3] == [0, *TOKENIZER.encode("Thou saie the liyt"), 0]
    with pytest.raises(ValueError, match="no verses that web, wyc share left: 4 are there"):
        labelled(2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_labelled_batches(side):
    (batch,) = labelled().batches(99, side)
    assert batch["labels"].tolist() == [0, 1] * 3
    for ids, mask, row in zip(batch["input_ids"], batch["attention_mask"], labelled().rows, strict=True):
        assert ids[mask == 1].tolist() == row and (ids[mask == 0] == 1).all()
        assert mask[-1 if side == "left" else 0] == 1


@pytest.mark.parametrize("make", [pairs, labelled])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 13])
def test_each_example_is_seen_once_an_epoch_and_a_step_is_made_again_from_its_number(make, batch_size):
    data = make()
    steps = [data.batch(step, batch_size, seed=3) for step in range(2 * len(data))]
    rows = [
        tuple(ids[mask == 1].tolist())
        for batch in steps
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    for at in range(0, len(rows), len(data)):
        counts = Counter(rows[at : at + len(data)])
        assert len(counts) == len(data) and set(counts.values()) == {1}
    for step in (len(data), 0):
        again = make().batch(step, batch_size, seed=3)
        assert all(np.array_equal(again[key], steps[step][key]) for key in again)
