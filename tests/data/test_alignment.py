"""Wrong offsets and other countings are noticed."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minitorch_peft.data.alignment import AlignmentError, check_chapters, check_offsets, matching_verses
from minitorch_peft.data.books import reference
from minitorch_peft.data.corpora import load_corpus
from minitorch_peft.data.wheels import KNOWN_DEFECTS

VERSES = [
    "In the beginning God created the heaven and the earth.",
    "And the earth was without form, and void.",
    "And God said, Let there be light: and there was light.",
    "And God saw the light, that it was good.",
]


def offsets(chapters=1):
    """A text of numbered verses with its table of starts and ends."""
    text, starts, ends = "", {}, {}
    for chapter in range(1, chapters + 1):
        for number, body in enumerate(VERSES, start=1):
            verse = 1_000_000 + chapter * 1000 + number
            starts[verse] = len(text)
            text += f" {number}. {body}"
            ends[verse] = len(text)
    return text, starts, ends


def test_right_offsets_pass():
    check_offsets("mine", *offsets(2))


@given(at=st.integers(1, 7), by=st.integers(-40, 40))
def test_a_boundary_anywhere_else_is_noticed_at_one_of_its_verses(at, by):
    text, starts, ends = offsets(2)
    keys = list(starts)
    moved = starts[keys[at]] + by
    assume(text[min(moved, moved - by) : max(moved, moved - by)].strip())  # whitespace may belong to either side
    starts[keys[at]] = ends[keys[at - 1]] = moved
    chapter, number = divmod(keys[at] % 1_000_000, 1000)
    before = divmod(keys[at - 1] % 1_000_000, 1000)
    with pytest.raises(AlignmentError, match=rf"Genesis ({chapter}:{number}|{before[0]}:{before[1]}) "):
        check_offsets("mine", text, starts, ends)


@pytest.mark.parametrize("shift", [-1, 1])
def test_texts_under_the_next_verse_s_number_are_noticed(shift):
    text, starts, ends = offsets()

    def renumber(table):
        return {verse + shift: at for verse, at in table.items()}

    with pytest.raises(AlignmentError, match=r"should start with its number"):
        check_offsets("mine", text, renumber(starts), renumber(ends))


def test_lost_text_between_verses_is_noticed():
    text, starts, ends = offsets()
    del starts[1_001_002]
    with pytest.raises(AlignmentError, match=r"Genesis 1:3 should follow the verse before it"):
        check_offsets("mine", text, starts, ends)
    starts = {
        **dict(list(starts.items())[:1]),
        1_001_002: starts[1_001_003] - 1,
        **dict(list(starts.items())[1:]),
    }
    check_offsets("mine", text, starts, ends, known_defects={1_001_002})


@pytest.mark.parametrize(("body", "problem"), [("", "is empty"), ("...", "is empty"), ("A. 2 B.", "also holds")])
def test_empty_and_merged_verses_are_noticed(body, problem):
    text = f"1. {body}"
    with pytest.raises(AlignmentError, match=f"Genesis 1:1 {problem}"):
        check_offsets("mine", text, {1_001_001: 0}, {1_001_001: len(text)})


@pytest.mark.parametrize("name", KNOWN_DEFECTS)
def test_no_chapter_with_known_defects_passes_without_them(name):
    bible = importlib.import_module(f"pythonbible_{name}.plain_text_bible").bible
    starts = {verse: at for verse, at in bible.verse_start_indices.items() if verse < 67_000_000}
    for chapter in {verse // 1000 for verse in KNOWN_DEFECTS[name]}:
        others = {verse for verse in KNOWN_DEFECTS[name] if verse // 1000 != chapter}
        with pytest.raises(AlignmentError, match=reference(chapter * 1000).removesuffix("0")):
            check_offsets(name, bible.scripture_content, starts, bible.verse_end_indices, others)


def book(corpus, number):
    return {verse: text for verse, text in corpus.verses.items() if verse // 1_000_000 == number}


@pytest.mark.parametrize("name", ["web", "tyn", "ylt"])
def test_translations_match_verse_by_verse_across_the_centuries(name):
    mark = book(load_corpus(name), 41)
    assert matching_verses(mark, book(load_corpus("kjv"), 41)) == set(mark)


@pytest.mark.parametrize("shift", [-3, -2, -1, 1, 2, 3, 20])
def test_a_chapter_counted_otherwise_matches_nowhere(shift):
    """A translation from a wheel whose numbers are right and whose content is not."""
    kjv, tyn = book(load_corpus("kjv"), 41), book(load_corpus("tyn"), 41)
    moved = {verse: tyn.get(verse + shift, "Here endeth") if verse // 1000 == 41_004 else t for verse, t in tyn.items()}
    matching = matching_verses(moved, kjv)
    assert {verse for verse in moved if verse not in matching} <= {v for v in moved if v // 1000 == 41_004}
    with pytest.raises(AlignmentError, match="Mark 4:1 "):
        check_chapters("tyn", moved, matching)


def test_half_a_chapter_counted_otherwise_is_found_to_the_verse():
    kjv, ylt = book(load_corpus("kjv"), 41), book(load_corpus("ylt"), 41)
    moved = {v: ylt.get(v + 1, "") if 41_006_030 <= v < 41_006_056 else text for v, text in ylt.items()}
    missed = set(moved) - matching_verses(moved, kjv)
    assert set(range(41_006_032, 41_006_054)) <= missed <= set(range(41_006_027, 41_006_057))


def test_the_psalms_of_1395_are_known_to_be_numbered_otherwise():
    wyc = load_corpus("wyc")
    assert wyc.verses[19_022_002].startswith("in the place of pasture")  # Psalm 23 everywhere else
    assert 19_022_002 in wyc.renumbered and 19_022_002 not in wyc.comparable().verses
    assert 43_003_016 not in wyc.renumbered and 43_003_016 in wyc.comparable().verses
    assert 0.87 < len(wyc.comparable()) / len(wyc) < 0.9
    psalms = [verse for verse in wyc.verses if verse // 1_000_000 == 19]
    assert sum(verse in wyc.renumbered for verse in psalms) > 0.97 * len(psalms), "unlike what stands there elsewhere"
    assert 4_013_010 in wyc.renumbered, "a list, alike all over, and most alike one verse on"
    for name in ("web", "kjv", "tyn", "ylt"):
        assert len(load_corpus(name).renumbered) <= 5
