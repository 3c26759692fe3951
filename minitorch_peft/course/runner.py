"""Hold one solution against the checks of its task."""

from __future__ import annotations

import inspect
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky, FlakyFailure
from hypothesis.internal.conjecture import providers

from minitorch_peft.course import marks
from minitorch_peft.course.checks import Check, Code, NotDone, Variant, checks_of
from minitorch_peft.course.expect import Failed, readable, shown
from minitorch_peft.course.library import KERNELS, PACKAGE, Library
from minitorch_peft.course.manifest import Assignment, Task
from minitorch_peft.course.process import Limits, Process, Stopped

STATE = (
    "the same call gave two different answers: does the solution keep state between calls, draw random numbers, or "
    "return memory that it never wrote to?"
)
NOT_DONE = "still to be written"
PYTHON = "it is Python"
NO_PYTHON = ("SyntaxError", "IndentationError", "TabError")
AGREED = 0.7  # of the failing examples must point to the same cause, for it to be told


@dataclass(frozen=True)
class Outcome:
    """What came of one check: ``example`` is the smallest input found that fails it.

    ``concealed``: the message may hold what a student must not see.
    """

    title: str
    variant: str
    passed: bool
    message: str = ""
    because: str | None = None
    example: str = ""
    concealed: bool = False

    @property
    def status(self) -> str:
        """ "passed", "failed" or "not done"."""
        return "passed" if self.passed else "not done" if self.because == NOT_DONE else "failed"


@dataclass(frozen=True)
class TaskResult:
    """``status``: "passed", "failed" or "not done". ``printed``: the first of what the solution printed."""

    task: str
    title: str
    points: int
    status: str
    outcomes: list[Outcome] = field(default_factory=list)
    printed: str = ""
    seconds: float = 0.0

    @property
    def earned(self) -> int:
        """All of the points or none."""
        return self.points if self.status == "passed" else 0

    @property
    def failure(self) -> Outcome | None:
        """The first check that failed; a public one before a hidden one, what is wrong before what is not done."""
        wrong = [o for o in self.outcomes if not o.passed]
        return next((o for o in wrong if o.because != NOT_DONE), wrong[0] if wrong else None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> TaskResult:
        return cls(**{**table, "outcomes": [Outcome(**o) for o in table["outcomes"]]})


def failed(task: Task, message: str, because: str | None = None, status: str = "failed") -> TaskResult:
    """The result of a task whose checks could not even start."""
    return TaskResult(task.id, task.title, task.points, status, [Outcome("", "public", False, message, because)])


def judge(
    library: Library,
    assignment: Assignment,
    task: Task,
    solutions: Mapping[str, str],
    variants: Sequence[Variant],
    layers: tuple[str, ...],
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
    first_only: bool = False,
) -> TaskResult:
    """Splice ``solutions`` (region id to source) into the library and run the checks of one task.

    A region of the task without a solution is a hole; what is not named stays as the library has it, but for what is
    closed to the task. Raises MarkError where the library's own marks are damaged.
    """
    if library.broken:
        raise marks.MarkError(next(iter(library.broken.values())))
    holes = {region: task.hole() for region in library.regions_of(task.id)}
    root = library.spliced({**holes, **solutions, **closed_to(library, task)})
    try:
        hidden = [str(PACKAGE), str(KERNELS), str(library.root)]
        return run_task(assignment, task, root, variants, layers, hidden, limits, first_only)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def judge_own(
    library: Library, assignment: Assignment, task: Task, variant: Variant, layers: tuple[str, ...]
) -> TaskResult:
    """Run the checks of one task on one's own library, as it is.

    Where a file does not compile, the solutions of other tasks are cut out of it: their mistakes are not this task's.
    """
    if damaged := [message for id, message in library.broken.items() if marks.task_of(id) == task.id]:
        return failed(task, damaged[0], "each mark must stay as it was, alone on its line")
    holes = {
        region: assignment.task(place.task).hole()
        for region, (name, place) in library.regions.items()
        if name in library.broken_files and place.task != task.id
    }
    root = library.spliced({**holes, **closed_to(library, task)})
    return run_task(assignment, task, root, [variant], layers)


def closed_to(library: Library, task: Task) -> dict[str, str]:
    """What stands in the place of solutions that would do the task's work."""
    closed = [id for id, (_, region) in library.regions.items() if region.task in task.closed]
    return dict.fromkeys(closed, f'raise RuntimeError("not available in task {task.id}: find it by hand")')


def run_task(
    assignment: Assignment,
    task: Task,
    root: Path,
    variants: Sequence[Variant],
    layers: tuple[str, ...],
    hidden: list[str] | None = None,
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
    first_only: bool = False,
) -> TaskResult:
    """Run the checks of ``task`` on the library at ``root``, in a process of its own.

    ``first_only``: stop at the first check that fails.
    """
    started = time.monotonic()
    if not (checks := checks_of(assignment, task.id)):
        raise ValueError(f"task {task.id} of {assignment.id} has no checks")
    with Process(root, assignment.probes_module, limits, layers, hidden) as process:
        code = Code(process.call, Locator(root, task.id))
        outcomes = list(_outcomes(code, checks, variants, first_only))
    status = "passed" if all(o.passed for o in outcomes) else "failed"
    if status == "failed" and all(o.passed or o.because == NOT_DONE for o in outcomes):
        status = "not done"
    seconds = round(time.monotonic() - started, 2)
    outcomes = [replace(o, message=without(root, o.message)) for o in outcomes]
    return TaskResult(task.id, task.title, task.points, status, outcomes, without(root, process.printed), seconds)


def without(root: Path, text: str) -> str:
    """``text`` without the folder that the library happened to be copied to."""
    return text.replace(f"{root}{os.sep}", "")


def _outcomes(code: Code, checks: Sequence[Check], variants: Sequence[Variant], first_only: bool) -> Iterable[Outcome]:
    """Of each check in each variant; where one fails, the variants that follow have nothing to add."""
    for variant in variants:
        passed = True
        for check in checks:
            try:
                outcome = run_check(check, code, variant)
            except Stopped as stopped:
                yield Outcome(check.title, variant.name, False, str(stopped))
                return
            yield outcome
            passed &= outcome.passed
            if not outcome.passed and (first_only or outcome.title == PYTHON):
                return
        if not passed:
            return


def run_check(check: Check, code: Code, variant: Variant) -> Outcome:
    """One check in one variant. Raises Stopped where the solution's process cannot answer any more."""
    adjusted = check.adjusted(variant)
    wanted = {"variant": adjusted} if "variant" in inspect.signature(check.run).parameters else {}
    failures: list[tuple[dict[str, Any], Exception]] = []

    def attempt(**drawn: Any) -> None:
        kept = {name: np.array(v, copy=True) if isinstance(v, np.ndarray) else v for name, v in drawn.items()}
        try:
            check.run(code, **drawn, **wanted)
        except Exception as error:
            failures.append((kept, error))
            raise

    try:
        if check.given is None:
            attempt()
        else:
            drawing(attempt, check.given(adjusted), adjusted)()
    except (Flaky, FlakyFailure):
        return _failed(check, variant, *failures[-1], because=STATE)
    except Stopped:
        if not failures:
            raise
        return _failed(
            check, variant, *failures[-1], because=agreed_cause(failures)
        )  # it got stuck while a smaller example was looked for
    except (NameError, ImportError):  # a bug of the check
        raise
    except Exception:
        if not failures:  # the draw itself failed: a bug of the check too
            raise
        return _failed(check, variant, *failures[-1], because=agreed_cause(failures))
    return Outcome(check.title, variant.name, True)


def agreed_cause(failures: Sequence[tuple[dict[str, Any], Exception]]) -> str | None:
    """The cause that most failing examples point to: the smallest one alone may look like something else."""
    causes = Counter(getattr(error, "because", None) for _, error in failures)
    cause, count = causes.most_common(1)[0]
    return cause if count >= AGREED * len(failures) else None


def drawing(attempt: Callable[..., None], strategies: dict[str, Any], variant: Variant) -> Callable[[], None]:
    """``attempt`` on drawn arguments: reproducibly, without a database, without a clock."""
    chosen = settings(
        max_examples=variant.examples, database=None, deadline=None, report_multiple_bugs=False, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    run = seed(variant.seed)(chosen(given(**strategies)(attempt)))

    def draw() -> None:
        with only_general_constants():
            run()

    return draw


@contextmanager
def only_general_constants() -> Iterator[None]:
    """Hypothesis also tries numbers that stand in the modules that happen to be loaded: then what it draws depends on
    what ran before, and on where the package is installed. In here it does not."""
    if not hasattr(providers, "_get_local_constants"):  # a version without them
        yield
        return
    cache = providers.CONSTANTS_CACHE.cache
    with mock.patch.object(providers, "_get_local_constants", providers.Constants):
        cache.clear()
        yield
    cache.clear()


def _failed(
    check: Check, variant: Variant, drawn: dict[str, Any], error: Exception, because: str | None = None
) -> Outcome:
    if isinstance(error, NotDone):
        return Outcome(check.title, variant.name, False, error.message, NOT_DONE)
    if isinstance(error, Failed):
        message = error.message
    else:  # the check could not use what it got
        message = f"the result does not have the expected form ({type(error).__name__}: {error})"
    example = "\n".join(f"{name} = {shown(value)}" for name, value in drawn.items())
    if message.startswith(NO_PYTHON):
        return Outcome(PYTHON, variant.name, False, readable(message))
    return Outcome(check.title, variant.name, False, readable(message), because, example)


class Locator:
    """Turns the lines of a traceback into "line 2 of your solution (1.3a)"."""

    def __init__(self, root: Path, task: str) -> None:
        self.root, self.task = root, task

    def __call__(self, lines: list[list[Any]]) -> str:
        for name, number in reversed(lines):
            path = (self.root / name).resolve()
            if not path.is_relative_to(self.root.resolve()) or not path.is_file():
                continue
            text = path.read_text(encoding="utf-8")
            for region in marks.scan(text)[0].values():
                if region.task == self.task and region.start < number <= region.stop + 1:  # a block may lack its end
                    line = text.splitlines()[number - 1].strip()[:100]
                    return f" (line {number - region.start} of your solution {region.id}: {line})"
        return ""
