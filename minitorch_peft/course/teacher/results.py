"""Results of grading: how they are stored, what a student is told, Gradescope's results.json and the class's CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minitorch_peft.course.manifest import Assignment
from minitorch_peft.course.runner import Outcome, TaskResult
from minitorch_peft.formats.files import FileFormatError, atomic_write, read_json, write_json

FORMAT = 1  # of stored results
SHOWN = 600  # characters of a message, and of what was printed
CONCEALED = "not shown, as it could give another task's solution away: `minitorch-peft course check` shows it for yours"
WRITTEN = "Written questions are marked by your teacher."
MARKS = {"passed": "✓", "failed": "✗", "not done": "○"}


@dataclass(frozen=True)
class Result:
    """One graded submission. ``error``: why it could not be graded, in which case ``tasks`` is empty.

    ``missing``: layers of the sandbox that were not there. ``regions``: what was graded.
    """

    name: str
    assignment: str
    seed: int
    fingerprint: str
    tasks: list[TaskResult] = field(default_factory=list)
    regions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    @property
    def score(self) -> int:
        return sum(t.earned for t in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Result:
        """Raises ValueError for what is no stored result."""
        kept = {k: v for k, v in table.items() if k != "format"}
        try:
            if table["format"] != FORMAT:
                raise ValueError(f"format {table['format']}, {FORMAT} is due")
            return cls(**{**kept, "tasks": [TaskResult.from_dict(t) for t in kept["tasks"]]})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no result of grading ({type(error).__name__}: {error})") from None

    def save(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Result:
        """Raises FileFormatError, naming the file, where it is none."""
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(path, str(error), "grade again") from None


# -- what a student is told -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Told:
    """One task as a student sees it. Of a hidden check: what it asks, what came, the likely cause; not the input."""

    task: str
    title: str
    status: str
    earned: int
    points: int
    checks: list[tuple[bool, str]]
    failed: str = ""
    message: str = ""
    because: str = ""
    example: str = ""
    printed: str = ""

    @property
    def mark(self) -> str:
        return MARKS[self.status]


def told(result: TaskResult) -> Told:
    rows: dict[str, bool] = {}
    for outcome in result.outcomes:
        if outcome.title:
            rows[outcome.title] = rows.get(outcome.title, True) and outcome.passed
    failure = result.failure
    about = {} if failure is None else told_of(failure, result.printed)
    checks = [(passed, title) for title, passed in rows.items()]
    return Told(result.task, result.title, result.status, result.earned, result.points, checks, **about)


def told_of(failure: Outcome, printed: str) -> dict[str, str]:
    hidden = failure.variant == "hidden"
    shown = {"failed": f"{failure.title} (a hidden example)" if hidden else failure.title,
             "message": cut(failure.message), "because": failure.because or ""}  # fmt: skip
    if failure.concealed:
        return {**shown, "message": CONCEALED}
    return shown if hidden else {**shown, "example": cut(failure.example), "printed": cut(printed)}


def cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def in_words(task: Told) -> str:
    """A task's outcome as plain text."""
    lines = [f"{MARKS['passed' if passed else 'failed']} {title}" for passed, title in task.checks]
    if task.status != "passed":
        lines += ["", task.failed] if task.failed else [""]
        lines += [f"for {task.example}"] if task.example else []
        lines.append(task.message)
        lines += [f"likely cause: {task.because}"] if task.because else []
        lines += ["it printed:", task.printed] if task.printed else []
    return "\n".join(lines).strip("\n")


def remarks(result: Result) -> list[str]:
    """What a report says about the submission as a whole."""
    weak = "graded under a weak sandbox, without " + ", ".join(result.missing)
    errors = [f"could not be graded: {result.error}"] if result.error else []
    return [*errors, *([weak] if result.missing else []), *result.notes]


# -- Gradescope -----------------------------------------------------------------------------------------------
VISIBILITY = {"enum": ["hidden", "after_due_date", "after_published", "visible"]}
FORMATS = {"enum": ["text", "html", "simple_format", "md", "ansi"]}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Gradescope's results.json (gradescope-autograders.readthedocs.io/en/latest/specs)",
    "type": "object",
    "additionalProperties": False,
    "anyOf": [{"required": ["score"]}, {"required": ["tests"]}],
    "properties": {
        "score": {"type": "number"},
        "execution_time": {"type": "number", "minimum": 0},
        "output": {"type": "string"},
        "output_format": FORMATS,
        "test_output_format": FORMATS,
        "test_name_format": FORMATS,
        "visibility": VISIBILITY,
        "stdout_visibility": VISIBILITY,
        "extra_data": {"type": "object"},
        "tests": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "score": {"type": "number"},
                    "max_score": {"type": "number", "minimum": 0},
                    "status": {"enum": ["passed", "failed"]},
                    "name": {"type": "string"},
                    "name_format": FORMATS,
                    "number": {"type": "string"},
                    "output": {"type": "string"},
                    "output_format": FORMATS,
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "visibility": VISIBILITY,
                    "extra_data": {"type": "object"},
                },
            },
        },
        "leaderboard": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "value"],
                "properties": {"name": {"type": "string"}, "order": {"enum": ["asc", "desc"]}},
            },
        },
    },
}


def gradescope(result: Result) -> dict[str, Any]:
    """Gradescope's results.json: one test a task; what students are not shown is for the teacher's eyes.

    Raises jsonschema.ValidationError for what Gradescope would not take (which would be a bug).
    """
    import jsonschema

    general = f"Each task is all or nothing. Hidden examples ask what the public ones ask. {WRITTEN}"
    table = {
        "score": result.score,
        "execution_time": result.seconds,
        "output": "\n".join(remarks(result)) or general,
        "output_format": "text",
        "test_output_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": [test for task in result.tasks for test in tests_of(task)],
    }
    jsonschema.validate(table, SCHEMA)
    return table


def tests_of(result: TaskResult) -> list[dict[str, Any]]:
    seen = told(result)
    test = {
        "name": result.title,
        "number": result.task,
        "score": result.earned,
        "max_score": result.points,
        "status": "passed" if result.status == "passed" else "failed",
        "output": in_words(seen),
        "visibility": "visible",
    }
    failure = result.failure
    if failure is None or not (failure.variant == "hidden" or failure.concealed):
        return [test]
    details = f"{failure.title}\nfor {failure.example}\n{failure.message}\nit printed: {result.printed}"
    return [test, {"name": f"{result.task}, for the teacher: what is not shown", "score": 0, "max_score": 0,
                   "status": "failed", "output": details, "visibility": "hidden"}]  # fmt: skip


# -- the class ------------------------------------------------------------------------------------------------
def class_csv(assignment: Assignment, results: Sequence[Result]) -> str:
    """One row a student: name, points by task, total, notes. An ungraded one has empty cells."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["name", *(f"{t.id} {t.title} ({t.points})" for t in assignment.tasks), "total", "notes"])
    for result in results:
        earned = {t.task: t.earned for t in result.tasks}
        total = "" if result.error else result.score
        cells = [result.name, *(earned.get(t.id, "") for t in assignment.tasks), total, "; ".join(remarks(result))]
        rows.writerow([harmless(c) for c in cells])
    return out.getvalue()


def harmless(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def write_text(path: Path, text: str) -> None:
    """A whole file or none."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
