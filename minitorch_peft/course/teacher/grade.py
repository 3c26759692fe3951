"""Grade submissions: each in a process of its own, task by task, several at a time; what is done is not done again."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing as mp
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from minitorch_peft import __version__
from minitorch_peft.course import checks, sandbox
from minitorch_peft.course.library import Library, solutions, sources
from minitorch_peft.course.manifest import Assignment, Task, available, load
from minitorch_peft.course.marks import task_of
from minitorch_peft.course.process import START_SECONDS, Limits
from minitorch_peft.course.runner import NOT_DONE, Outcome, TaskResult, failed, judge
from minitorch_peft.course.teacher.results import Result
from minitorch_peft.course.teacher.submission import Submission, read
from minitorch_peft.formats.files import FileFormatError

MEMORY = 8 << 30  # bytes of address space of a grading process, whatever a solution makes a check do
ADVICE = {
    "limits": "a system with Python's resource module",
    "capabilities": "Linux",
    "landlock": "Linux 5.13 or newer with Landlock switched on, and pip install 'minitorch-peft[teach]'",
    "seccomp": "the system's package libseccomp2, and pip install 'minitorch-peft[teach]'",
}


class GradeError(ValueError):
    """What was asked for cannot be graded as it is."""


@dataclass(frozen=True)
class Job:
    """All that one grading process needs."""

    submission: Submission
    assignment: Assignment
    seed: int
    fingerprint: str
    layers: tuple[str, ...]
    limits: Limits
    scratch: str
    target: str

    def result(self, **found: Any) -> Result:
        one = self.submission
        missing = [layer for layer in sandbox.ALL_LAYERS if layer not in self.layers]
        empty = Result(one.name, self.assignment.id, self.seed, self.fingerprint)
        return replace(empty, regions=one.regions, notes=one.notes, missing=missing, **found)


def layers_for(weak: bool) -> tuple[str, ...]:
    """The sandbox's layers. Raises GradeError where one is missing, unless ``weak`` says that this is known."""
    layers = sandbox.available()
    if (missing := [layer for layer in sandbox.ALL_LAYERS if layer not in layers]) and not weak:
        needs = "; ".join(f"{layer} needs {ADVICE[layer]}" for layer in missing)
        raise GradeError(
            f"the sandbox lacks {', '.join(missing)}: {needs}. To grade code that you trust, add --weak-sandbox"
        )
    return layers


def submissions_at(paths: Sequence[Path]) -> list[Submission]:
    """All of them, by name. Raises FileNotFoundError for a missing one, GradeError where two have one name."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no submission {path}")
    found = sorted((read(path) for path in paths), key=lambda s: s.name)
    counts = Counter(s.name for s in found)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise GradeError(f"two submissions are called {', '.join(twice)}: rename a folder or file")
    return found


def assignment_of(submissions: Sequence[Submission]) -> Assignment:
    """The assignment that the submissions' marks belong to. Raises GradeError where that is none, or several."""
    owners = {t.id: a.id for a in map(load, available()) for t in a.tasks}
    found = {owners[task_of(id)] for s in submissions for id in (*s.regions, *s.spoiled) if task_of(id) in owners}
    if len(found) != 1:
        which = f"belong to {', '.join(sorted(found))}" if found else "have no marks of any assignment"
        raise GradeError(f"the submissions {which}: name the assignment with --assignment")
    return load(found.pop())


def grade(
    submissions: Sequence[Submission],
    assignment: Assignment,
    out: Path,
    seed: int,
    jobs: int = 1,
    weak: bool = False,
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
) -> Iterator[Result]:
    """Grade into ``out/results/NAME.json``; gives each result as it is there, stored ones of the same inputs first.

    The score of a submission depends on nothing but its contents, the sources of this package and ``seed``.
    Raises GradeError where the sandbox is incomplete and not ``weak``, another grader writes to ``out``, or it holds
    results of another assignment or seed.
    """
    layers = layers_for(weak)
    results = out / "results"
    results.mkdir(parents=True, exist_ok=True)
    with locked(out), scratch_in(out) as scratch:
        require_same(out, assignment, seed)
        inputs = digest_of_inputs(assignment, seed, layers, limits)
        todo, known = [], solutions().keys()
        for one in submissions:
            if strange := sorted(one.regions.keys() - known):
                listed = ", ".join(id[:20] for id in strange[:5])
                one = replace(one, notes=[*one.notes, f"no task has the marks {listed}: were they changed?"])
            fingerprint = hashlib.sha256(f"{inputs} {one.digest} {one.name}".encode()).hexdigest()
            target = results / f"{one.name}.json"
            job = Job(one, assignment, seed, fingerprint, layers, limits, str(scratch), str(target))
            try:
                stored = stored_result(target, fingerprint)
                if stored is None:
                    target.unlink(missing_ok=True)
            except OSError as error:
                yield given_up(job, f"its result cannot be stored ({error.strerror or error})")
                continue
            if stored is not None:
                yield stored
            elif one.error:
                yield given_up(job, one.error)
            else:
                todo.append(job)
        yield from run_jobs(todo, jobs, len(assignment.tasks))


def fresh_seed() -> int:
    """A seed of hidden examples that nobody can guess."""
    return secrets.randbelow(10**9)


def seed_of(out: Path) -> int:
    """The seed of the results that ``out`` holds; a fresh one where it holds none."""
    first = next(results_in(out), None)
    return fresh_seed() if first is None else first.seed


def results_in(out: Path) -> Iterator[Result]:
    """The stored results of ``out``, without damaged ones."""
    for path in sorted((out / "results").glob("*.json")):
        with contextlib.suppress(FileFormatError, OSError):
            yield Result.load(path)


def require_same(out: Path, assignment: Assignment, seed: int) -> None:
    """Raise GradeError where the folder holds results of another assignment or seed: a report is of one."""
    for other in results_in(out):
        if other.assignment != assignment.id:
            raise GradeError(f"{out} holds results of {other.assignment}: name another --out for {assignment.id}")
        if other.seed != seed:
            raise GradeError(
                f"{out} holds results of seed {other.seed}: leave --seed out to go on with these, "
                f"or name another --out for seed {seed}"
            )


def stored_result(path: Path, fingerprint: str) -> Result | None:
    """What an earlier run found for the same inputs; None where it found nothing, or failed."""
    try:
        result = Result.load(path)
    except FileFormatError:
        return None
    return result if result.fingerprint == fingerprint and not result.error else None


def digest_of_inputs(assignment: Assignment, seed: int, layers: Sequence[str], limits: Limits) -> str:
    """A fingerprint of all that scores depend on beside the submission."""
    whole = hashlib.sha256(repr((__version__, asdict(assignment), seed, tuple(layers), asdict(limits))).encode())
    for name, path in sources().items():
        whole.update(f"{name}\n".encode() + path.read_bytes())
    return whole.hexdigest()


# -- processes ------------------------------------------------------------------------------------------------
def run_jobs(todo: Sequence[Job], jobs: int, tasks: int) -> Iterator[Result]:
    """Each job in a fresh process, ``jobs`` at a time. One that dies or does not end costs its own result only."""
    waiting, running = list(reversed(todo)), dict[Any, tuple[Any, Job, float]]()
    context = mp.get_context("spawn")
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                job = waiting.pop()
                process = context.Process(target=grade_one, args=(job,), daemon=False)
                process.start()
                longest = START_SECONDS + 2 * tasks * (START_SECONDS + job.limits.total_seconds + 60)  # see judged_task
                running[process.sentinel] = process, job, time.monotonic() + longest
            ready = wait(list(running), timeout=1.0)
            late = [s for s, (_, _, until) in running.items() if time.monotonic() > until]
            for sentinel in {*ready, *late}:
                process, job, until = running.pop(sentinel)
                yield ended(process, job, time.monotonic() > until)
    finally:
        for process, _, _ in running.values():
            process.kill()
            process.join()


def ended(process: Any, job: Job, late: bool) -> Result:
    """The result that a process left behind, or that it left none."""
    process.kill()
    process.join()
    if (result := stored_result(Path(job.target), job.fingerprint)) is not None:
        return result
    with contextlib.suppress(FileFormatError, OSError):
        return Result.load(Path(job.target))  # it says what went wrong
    code = process.exitcode
    how = "did not end in time" if late else f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return given_up(job, f"its grading process {how}")


def given_up(job: Job, why: str) -> Result:
    """The result of a submission that could not be graded, stored if that can be done."""
    result = job.result(error=why)
    with contextlib.suppress(OSError):
        result.save(Path(job.target))
    return result


def grade_one(job: Job) -> None:
    """In a process of its own: judge every task and store the result, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    limit_memory()
    tempfile.tempdir = job.scratch
    started = time.monotonic()
    try:
        result = job.result(tasks=judged(job))
    except Exception as error:
        result = job.result(error=f"{type(error).__name__}: {error}")
    replace(result, seconds=round(time.monotonic() - started, 1)).save(Path(job.target))


def judged(job: Job) -> list[TaskResult]:
    with Library(job.assignment.leave_out) as library:
        found = []
        for task in job.assignment.tasks:
            ids = library.regions_of(task.id)
            found.append(refusal(job.submission, task, ids) or judged_task(job, library, task, ids))
    return found


def judged_task(job: Job, library: Library, task: Task, ids: Sequence[str]) -> TaskResult:
    """All other tasks count as solved. First they are open all the same, so that no message can give them away; only
    a solution that does not pass like that, as it may reach one, is judged with the others solved."""
    variants = (checks.PUBLIC, checks.hidden(job.seed))

    def judged_with(solutions: dict[str, str]) -> TaskResult:
        return judge(library, job.assignment, task, solutions, variants, job.layers, job.limits)

    mine = {id: job.submission.regions[id] for id in ids if id in job.submission.regions}
    others = {id: t.hole() for t in job.assignment.tasks if t.id != task.id for id in library.regions_of(t.id)}
    first = judged_with({**others, **mine})
    if first.failure is None or is_own_hole(first.failure, task):
        return first
    second = judged_with(mine)
    if second.failure is None:
        return second
    if first.failure.because != NOT_DONE:
        return first
    return replace(second, outcomes=[replace(o, concealed=True) for o in second.outcomes])


def is_own_hole(failure: Outcome, task: Task) -> bool:
    return failure.because == NOT_DONE and failure.message.startswith(f"Task {task.id}:")


def refusal(submission: Submission, task: Task, ids: Sequence[str]) -> TaskResult | None:
    """The result of a task that the submission has no sound solution of, or two; None where it can be judged."""
    if spoiled := [submission.spoiled[id] for id in ids if id in submission.spoiled]:
        return failed(task, spoiled[0], "an old copy of a file, or a mark that was changed: hand in one version")
    if not any(id in submission.regions for id in ids):
        place = ", ".join(f'# BEGIN SOLUTION(task="{id}")' for id in ids)
        message = f"the submission has no solution of {task.id}: no readable file has the marks {place}"
        return failed(task, message, "a file is missing from it, or its marks were changed", "not done")
    return None


def end_with_parent() -> None:
    """A grading process must not outlive the grader, even one that was killed."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))


# -- folders --------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """One grader at a time. The lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GradeError(f"another grader is writing to {out}: wait for it, or name another folder") from None
        yield


@contextlib.contextmanager
def scratch_in(out: Path) -> Iterator[Path]:
    """A folder for copies of the library. What a killed grader left there goes first."""
    scratch = out.resolve() / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    """Say whether submissions can be graded here, as an autograder's image does when it is built."""
    try:
        print(f"the sandbox is complete: {', '.join(layers_for(weak=False))}")
    except GradeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
