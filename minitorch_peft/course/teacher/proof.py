"""Proof that an assignment's checks judge rightly: known wrong solutions lose the points, known right ones get them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from minitorch_peft.course import checks, sandbox
from minitorch_peft.course.library import Library
from minitorch_peft.course.manifest import Assignment, Task, load
from minitorch_peft.course.runner import TaskResult, judge

Solutions = Mapping[str, str]


@dataclass(frozen=True)
class Proof:
    """Of one task: the mistake (or the other way) in words -> the contents of its regions; others stay as they are."""

    wrong: Mapping[str, Solutions]
    right: Mapping[str, Solutions]


@dataclass(frozen=True)
class Case:
    """A solution of one task, and whether it is ``right``. ``kind``: reference, hole, alone, right or wrong.

    ``solutions``: its regions; regions of other tasks too, where they are not what the library has.
    """

    task: str
    kind: str
    name: str
    right: bool
    solutions: Solutions


@dataclass(frozen=True)
class Verdict:
    case: Case
    result: TaskResult

    @property
    def good(self) -> bool:
        """Was the case judged as it should be?"""
        return (self.result.earned == self.result.points) == self.case.right

    @property
    def said(self) -> str:
        failure = self.result.failure
        return "passed" if failure is None else f"{failure.title}: {failure.message} ({failure.because})"


def proofs_of(assignment: Assignment) -> dict[str, Proof]:
    return importlib.import_module(f"minitorch_peft.course.teacher.proofs.{assignment.id}").PROOFS


def cases(assignment: Assignment, library: Library, tasks: Sequence[Task]) -> list[Case]:
    """Everything that has to be judged to prove the checks of these tasks."""
    every = {r: t.hole() for t in assignment.tasks for r in library.regions_of(t.id)}
    found = []
    for task in tasks:
        mine = {r: library.solution(r) for r in library.regions_of(task.id)}
        solved = (task.id, *task.needs)
        others = {r: hole for r, hole in every.items() if library.regions[r][1].task not in solved}
        found.append(Case(task.id, "reference", "the library", True, mine))
        found.append(Case(task.id, "hole", "the handout", False, {r: every[r] for r in mine}))
        found.append(Case(task.id, "alone", "the library, all other tasks open", True, mine | others))
        proof = proofs_of(assignment).get(task.id, Proof({}, {}))
        found += [Case(task.id, "right", name, True, mine | dict(s)) for name, s in proof.right.items()]
        found += [Case(task.id, "wrong", name, False, mine | dict(s)) for name, s in proof.wrong.items()]
    return found


def prove(assignment: Assignment, tasks: Sequence[Task], seed: int, jobs: int) -> Iterator[Verdict]:
    """Judge every case in both variants, ``jobs`` at a time; gives the verdicts in order."""
    with Library() as library:
        todo = cases(assignment, library, tasks)
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(assignment.id, seed)) as pool:
        yield from pool.map(_judge, todo)


_judge_case: Callable[[Case], Verdict]


def _start(id: str, seed: int) -> None:
    """In each process of the pool: one copy of the library for all of its cases."""
    global _judge_case
    assignment, layers = load(id), sandbox.available()
    library = Library(assignment.leave_out)
    variants = (checks.PUBLIC, checks.hidden(seed))

    def judge_case(case: Case) -> Verdict:
        task = assignment.task(case.task)
        return Verdict(case, judge(library, assignment, task, case.solutions, variants, layers, first_only=True))

    _judge_case = judge_case


def _judge(case: Case) -> Verdict:
    return _judge_case(case)
