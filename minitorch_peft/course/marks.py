"""Marks: the lines that say which region of a source is the solution of which task.

    # BEGIN SOLUTION(task="1.3a")
    return e / e.sum(-1, keepdims=True)
    # END SOLUTION

A region's id is its task's id, with a letter where a task has several regions. It is found by lines, not by parsing:
a student's file may not parse, and one task's syntax error must not hide the others.
"""

from __future__ import annotations

import re
import textwrap
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
    regions: dict[str, Region] = {}
    opened: tuple[re.Match[str], int] | None = None
    for number, line in enumerate(text.split("\n")):
        if begin := BEGIN.match(line):
            if opened is not None:
                raise MarkError(f"line {number + 1}: a solution begins inside that of {opened[0]['id']}")
            opened = begin, number + 1
        elif END.match(line):
            if opened is None:
                raise MarkError(f"line {number + 1}: a solution ends that did not begin")
            mark, start = opened
            if mark["id"] in regions:
                raise MarkError(f"line {start}: the solution of {mark['id']} is there twice")
            regions[mark["id"]] = Region(mark["id"], mark["kind"], start, number, mark["indent"])
            opened = None
    if opened is not None:
        raise MarkError(f"line {opened[1]}: the solution of {opened[0]['id']} has no END SOLUTION")
    return regions


def body(text: str, region: Region) -> str:
    """What stands between the marks, without the indentation that all of it has."""
    return textwrap.dedent("\n".join(text.split("\n")[region.start : region.stop])).strip("\n") + "\n"


def replace(text: str, new: dict[str, str]) -> str:
    """``text`` with other contents in the regions that ``new`` names by id; the marks stay, the rest is untouched.

    >>> source = '# BEGIN SOLUTION(task="1")\\nreturn 1\\n# END SOLUTION\\n'
    >>> print(replace(source, {"1": "return 2"}))
    # BEGIN SOLUTION(task="1")
    return 2
    # END SOLUTION
    <BLANKLINE>
    """
    lines = text.split("\n")
    for region in reversed(find(text).values()):
        if region.id in new:
            indented = textwrap.indent(textwrap.dedent(new[region.id]).strip("\n"), region.indent)
            lines[region.start : region.stop] = indented.split("\n")
    return "\n".join(lines)
