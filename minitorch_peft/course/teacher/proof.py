"""Proof that an assignment's checks judge rightly: known wrong solutions lose the points, known right ones get them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
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
    """One solution of one task, and whether it is ``right``. ``kind``: reference, hole, alone, right or wrong.

    ``others``: regions of other tasks that are changed too.
    """

    task: str
    kind: str
    name: str
    right: bool
    solutions: Solutions
    others: Solutions = field(default_factory=dict)


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
        open_ = {r: hole for r, hole in every.items() if not is_in(library, r, (task.id, *task.needs))}
        found.append(Case(task.id, "reference", "the library", True, mine))
        found.append(Case(task.id, "hole", "the handout", False, {r: every[r] for r in mine}))
        found.append(Case(task.id, "alone", "the library, all other tasks open", True, mine, open_))
        proof = proofs_of(assignment).get(task.id, Proof({}, {}))
        found += [Case(task.id, "right", name, True, mine | dict(s)) for name, s in proof.right.items()]
        found += [Case(task.id, "wrong", name, False, mine | dict(s)) for name, s in proof.wrong.items()]
    return found


def is_in(library: Library, region: str, tasks: Sequence[str]) -> bool:
    return library.regions[region][1].task in tasks


def prove(assignment: Assignment, tasks: Sequence[Task], seed: int, jobs: int) -> Iterator[tuple[int, Verdict]]:
    """Judge every case in both variants, ``jobs`` at a time; gives (number of cases, verdict) as they end."""
    with Library() as library:
        todo = cases(assignment, library, tasks)
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(assignment.id, seed)) as pool:
        for verdict in pool.map(_judge, todo):
            yield len(todo), verdict


_judge_case: Callable[[Case], Verdict]


def _start(id: str, seed: int) -> None:
    """In each process of the pool: one copy of the library for all of its cases."""
    global _judge_case
    assignment, layers = load(id), sandbox.available()
    library = Library(assignment.leave_out)
    variants = (checks.PUBLIC, checks.hidden(seed))

    def judge_case(case: Case) -> Verdict:
        task = assignment.task(case.task)
        solutions = {**case.solutions, **case.others}
        return Verdict(case, judge(library, assignment, task, solutions, variants, layers, first_only=True))

    _judge_case = judge_case


def _judge(case: Case) -> Verdict:
    return _judge_case(case)
