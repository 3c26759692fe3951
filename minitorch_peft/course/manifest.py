"""Manifests: what the tasks of an assignment are, from ``assignments/<id>/manifest.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "assignments"


class ManifestError(ValueError):
    """A manifest, or the name of one, that cannot be used."""


@dataclass(frozen=True)
class Task:
    """One task: all or nothing for ``points``. ``where`` names a "file: function" for each of its regions.

    ``needs``: tasks that must be solved first in a student's own library. ``closed``: tasks, of any assignment, whose
    solutions are not there while this one is judged, as they would do its work (the engine, where a gradient is to be
    derived by hand).
    """

    id: str
    title: str
    points: int
    minutes: int
    where: tuple[str, ...]
    read: str
    hints: tuple[str, ...]
    needs: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()

    def hole(self) -> str:
        """What a handout has in place of the solution."""
        return f'raise NotImplementedError("Task {self.id}: {self.title}; read {self.read}")'


@dataclass(frozen=True)
class Replacement:
    """Text of the library that a handout has otherwise, as it would give an answer away."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Assignment:
    """``leave_out``: files that a handout lacks, and the library that a solution is judged in: names from the
    repository's root, or patterns such as "kernels/lora*/numba.py"."""

    id: str
    title: str
    hours: float
    summary: str
    notebook: str
    tasks: tuple[Task, ...]
    leave_out: tuple[str, ...] = ()
    replacements: tuple[Replacement, ...] = field(default=(), repr=False)

    @property
    def points(self) -> int:
        return sum(t.points for t in self.tasks)

    @property
    def checks_module(self) -> str:
        return f"minitorch_peft.course.assignments.{self.id}.checks"

    @property
    def probes_module(self) -> str:
        return f"minitorch_peft.course.assignments.{self.id}.probes"

    def task(self, id: str) -> Task:
        for task in self.tasks:
            if task.id == id:
                return task
        raise ManifestError(f"{self.id} has no task {id!r}; it has: {', '.join(t.id for t in self.tasks)}")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Is this file meant by one of the patterns?

    >>> matches("kernels/lora/numba.py", ["kernels/lora*/numba.py"]), matches("kernels/lora/jit.py", ["kernels/lora"])
    (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def available() -> list[str]:
    """The ids of the assignments that this package holds, in order."""
    return sorted(path.parent.name for path in FOLDER.glob("*/manifest.toml"))


def load(id: str) -> Assignment:
    """The manifest of one assignment. Raises ManifestError, naming what is wrong."""
    path = FOLDER / id / "manifest.toml"
    if not path.is_file():
        raise ManifestError(f"there is no assignment {id!r}; there are: {', '.join(available()) or 'none'}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        tasks = tuple(_made(Task, t, path) for t in table.pop("task", []))
        replacements = tuple(_made(Replacement, r, path) for r in table.pop("replace", []))
        assignment = _made(Assignment, {**table, "tasks": tasks, "replacements": replacements}, path)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{path.name} of {id}: {error}") from error
    ids = [t.id for t in tasks]
    if not ids or len(set(ids)) < len(ids):
        raise ManifestError(f"{path.name} of {id}: no tasks, or two of one id ({', '.join(ids)})")
    for task in tasks:
        if unknown := set(task.needs) - set(ids):
            raise ManifestError(f"{path.name} of {id}: task {task.id} needs {', '.join(sorted(unknown))}: no such task")
    return assignment


def _made(cls: Any, table: dict[str, Any], path: Path) -> Any:
    """A dataclass of the table's values; a missing or an unknown name is an error."""
    known = {f.name for f in fields(cls)}
    name = f"{path.parent.name}/{path.name}"
    if unknown := sorted(table.keys() - known):
        raise ManifestError(f"{name}: {cls.__name__} has no {', '.join(unknown)}; it has: {', '.join(sorted(known))}")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()})
    except TypeError as error:
        raise ManifestError(f"{name}: {cls.__name__} {table.get('id', '')}: {error}") from error
