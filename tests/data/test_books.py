"""The split by book, and that nothing crosses it."""

from __future__ import annotations

import re

import pytest

from minitorch_peft.data.books import BOOKS, HELD_OUT, OUT_OF_DOMAIN, reference, split_of
from minitorch_peft.data.corpora import SPLITS, TRANSLATIONS, load_corpus


def test_the_split_names_real_books_and_no_book_twice():
    names = set(BOOKS.values())
    assert len(names) == 66
    assert sorted(BOOKS) == list(range(1, 67))
    assert names >= HELD_OUT | OUT_OF_DOMAIN
    assert not HELD_OUT & OUT_OF_DOMAIN


def test_numbers_and_names_of_books_agree():
    verses = load_corpus("kjv").verses
    assert verses[8_001_016].startswith("And Ruth said") and reference(8_001_016) == "Ruth 1:16"
    assert verses[32_001_001].endswith("Jonah the son of Amittai, saying,") and BOOKS[32] == "Jonah"
    assert verses[66_001_001].startswith("The Revelation of Jesus Christ") and BOOKS[66] == "Revelation"


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_every_translation_has_every_split_and_each_verse_is_in_one(name):
    corpus = load_corpus(name)
    parts = {split: corpus.split(split) for split in SPLITS}
    assert all(len(part) > 400 for part in parts.values())
    keys = [verse for part in parts.values() for verse in part.verses]
    assert sorted(keys) == sorted(corpus.verses)
    assert not set(parts["train"].books) & (HELD_OUT | OUT_OF_DOMAIN)
    assert set(parts["held_out"].books) <= HELD_OUT and set(parts["out_of_domain"].books) <= OUT_OF_DOMAIN
    assert len(parts["train"]) > 0.9 * len(corpus), "tokens are scarce"


def test_held_out_books_have_no_parallel_in_the_training_books():
    """The figures of the module's docstring."""

    def runs(text: str) -> list[tuple[str, ...]]:
        words = re.findall("[a-z']+", text.lower())
        return [tuple(words[i : i + 8]) for i in range(len(words) - 7)]

    def shared(book: str) -> float:
        members = [run for verse, text in verses.items() if BOOKS[verse // 1_000_000] == book for run in runs(text)]
        elsewhere = {
            run
            for verse, text in verses.items()
            if split_of(verse) == "train" and BOOKS[verse // 1_000_000] != book
            for run in runs(text)
        }
        return sum(run in elsewhere for run in members) / len(members)

    verses = load_corpus("web").verses
    assert shared("John") < 0.005
    assert 0.09 < shared("Matthew") < 0.1
