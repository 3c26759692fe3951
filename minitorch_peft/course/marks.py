"""Marks: the lines that say which region of a source is the solution of which task.

    # BEGIN SOLUTION(task="1.3a")
    return e / e.sum(-1, keepdims=True)
    # END SOLUTION

A region's id is its task's id, with a letter where a task has several regions. It is found by lines, not by parsing:
a student's file may not parse, and one task's mistake must not hide the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BEGIN = re.compile(r'^(?P<indent>[ \t]*)# BEGIN SOLUTION\((?P<kind>task|question)="(?P<id>[\w.]+)"\)\s*$')
END = re.compile(r"^[ \t]*# END SOLUTION\s*$")


class MarkError(ValueError):
    """A mark that is not closed, not opened, or there twice."""


@dataclass(frozen=True)
class Region:
    """Lines ``start`` to ``stop`` (exclusive, counted from 0) of a source, between the two marks."""

    id: str
    kind: str
    start: int
    stop: int
    indent: str

    @property
    def task(self) -> str:
        return task_of(self.id)


def task_of(region: str) -> str:
    """The task that a region belongs to.

    >>> task_of("1.3b"), task_of("1.3")
    ('1.3', '1.3')
    """
    return region.rstrip("abcdefghijklmnopqrstuvwxyz")


def find(text: str) -> dict[str, Region]:
    """Every region of ``text`` by id, in order. Raises MarkError, naming the line, where marks do not pair up."""
    regions, broken = scan(text)
    if broken:
        raise MarkError(next(iter(broken.values())))
    return regions


def scan(text: str) -> tuple[dict[str, Region], dict[str, str]]:
    """The sound regions of ``text`` by id, and what is wrong with the others (id "": a mark that belongs to none)."""
    regions: dict[str, Region] = {}
    broken: dict[str, str] = {}
    opened: tuple[re.Match[str], int] | None = None
    for number, line in enumerate(text.split("\n")):
        if begin := BEGIN.match(line):
            if opened is not None:
                inside = f"a solution begins inside that of {opened[0]['id']}, which has no END SOLUTION"
                broken[opened[0]["id"]] = f"line {number + 1}: {inside}"
            opened = begin, number + 1
        elif END.match(line):
            if opened is None:
                broken[""] = f"line {number + 1}: a solution ends that did not begin"
                continue
            mark, start = opened
            if mark["id"] in regions or mark["id"] in broken:
                broken[mark["id"]] = f"line {start}: the solution of {mark['id']} is there twice"
            regions[mark["id"]] = Region(mark["id"], mark["kind"], start, number, mark["indent"])
            opened = None
    if opened is not None:
        broken[opened[0]["id"]] = f"line {opened[1]}: the solution of {opened[0]['id']} has no END SOLUTION"
    return {id: region for id, region in regions.items() if id not in broken}, broken


def body(text: str, region: Region) -> str:
    """What stands between the marks, as it stands there."""
    return "".join(f"{line}\n" for line in text.split("\n")[region.start : region.stop])


def replace(text: str, new: dict[str, str]) -> str:
    """``text`` with other contents in the sound regions that ``new`` names by id; the marks and the rest stay.

    >>> source = '  # BEGIN SOLUTION(task="1")\\n  return 1\\n  # END SOLUTION\\n'
    >>> print(replace(source, {"1": "return 2"}), end="")
      # BEGIN SOLUTION(task="1")
      return 2
      # END SOLUTION
    """
    lines = text.split("\n")
    for region in reversed(scan(text)[0].values()):
        if region.id in new:
            lines[region.start : region.stop] = shifted(new[region.id], region.indent)
    return "\n".join(lines)


def shifted(source: str, indent: str) -> list[str]:
    """The lines of ``source``, moved so that its first statement is indented by ``indent``.

    What is right already is left alone to the letter, a comment or the rest of a string at column 0 too.
    """
    lines = source.strip("\n").split("\n")
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    old = first[: len(first) - len(first.lstrip())]
    return [indent + line[len(old) :] if line.strip() and line.startswith(old) else line for line in lines]
