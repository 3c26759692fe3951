"""Which submissions resemble each other, by ``copydetect`` (winnowing; Schleimer et al. 2003) over the solutions alone.

Names and layout do not matter to it. What stands in the library's own solution, or in one that the teacher knows to be
right, does not count: a short task has few ways to be solved. A resemblance is a reason to look, and no more.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from minitorch_peft.course.library import Library
from minitorch_peft.course.manifest import Assignment
from minitorch_peft.course.teacher.proof import proofs_of
from minitorch_peft.course.teacher.results import Result
from minitorch_peft.course.teacher.submission import is_hole

NOISE = 25  # characters of normalised code (a name is one) below which a match is chance
LEAST = 0.5  # of the smaller solution, from which on a pair is shown
LEAST_LENGTH = 100  # characters of normalised code that are neither forced nor known, on each side
MOST_PAIRS = 30

Piece = tuple[str, bool]  # a run of text, and whether the other one has it too


@dataclass(frozen=True)
class Pair:
    """``shares``: of each one's own code, how much the other has too. ``texts``: both, in runs."""

    names: tuple[str, str]
    shares: tuple[float, float]
    texts: tuple[list[Piece], list[Piece]]


def similar(assignment: Assignment, results: Sequence[Result]) -> list[Pair]:
    """The pairs that resemble each other most, the closest first. Needs ``copydetect``."""
    if len(results) < 2:
        return []
    known = {h for text in known_solutions(assignment) for h in fingerprint(text).hashes}
    prints = {}
    for result in results:
        mine = fingerprint(joined(result.regions), known)
        if mine.token_coverage >= LEAST_LENGTH:
            prints[result.name] = mine
    pairs = [pair for one, two in combinations(prints, 2) if (pair := compared(one, two, prints)) is not None]
    return sorted(pairs, key=lambda p: (-sum(p.shares), p.names))[:MOST_PAIRS]


def compared(one: str, two: str, prints: Mapping) -> Pair | None:
    from copydetect import compare_files

    a, b = prints[one], prints[two]
    _, shares, slices = compare_files(a, b)
    if max(shares) < LEAST:
        return None
    texts = pieces(a.raw_code, slices[0]), pieces(b.raw_code, slices[1])
    return Pair((one, two), (float(shares[0]), float(shares[1])), texts)


def fingerprint(text: str, known: Set[int] = frozenset()):  # type: ignore[no-untyped-def]
    """copydetect's CodeFingerprint of a source, without the hashes ``known``.

    They are taken out here: copydetect's own ``boilerplate`` leaves some of those in that occur twice in a source.
    """
    from copydetect import CodeFingerprint
    from copydetect.utils import get_token_coverage

    found = CodeFingerprint("solution.py", NOISE, 1, fp=io.StringIO(text))
    found.hashes = found.hashes - known
    found.hash_idx = {h: places for h, places in found.hash_idx.items() if h in found.hashes}
    found.token_coverage = get_token_coverage(found.hash_idx, NOISE, len(found.filtered_code))
    return found


def joined(regions: Mapping[str, str]) -> str:
    """All solutions of one submission as one text, in order."""
    return "".join(f"# {id}\n{source}\n" for id, source in sorted(regions.items()) if not is_hole(source))


def known_solutions(assignment: Assignment) -> list[str]:
    """The library's own text around and in the marks, and what the proofs of the checks hold to be right."""
    with Library() as library:
        own = {id: library.solution(id) for task in assignment.tasks for id in library.regions_of(task.id)}
        files = [library.text(name) for name in sorted({library.regions[id][0] for id in own})]
    with contextlib.suppress(ModuleNotFoundError):
        return [*files, joined(own), *(joined(s) for p in proofs_of(assignment).values() for s in p.right.values())]
    return [*files, joined(own)]


def pieces(text: str, slices: np.ndarray) -> list[Piece]:
    """``text`` cut into runs that are in the slices [starts, stops), and runs that are not."""
    at, found = 0, []
    for start, stop in np.asarray(slices, int).T.tolist():
        found += [(text[at:start], False), (text[max(at, start) : stop], True)]
        at = max(at, stop)
    return [piece for piece in [*found, (text[at:], False)] if piece[0]]
