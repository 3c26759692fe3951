"""Reports of stored results: a page for each student, one for the class, and the scores as CSV."""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from minitorch_peft.course.manifest import Assignment, Task, load
from minitorch_peft.course.marks import task_of
from minitorch_peft.course.teacher.results import MARKS, WRITTEN, Result, class_csv, remarks, told, write_text
from minitorch_peft.course.teacher.similarity import Pair, similar
from minitorch_peft.course.teacher.submission import is_hole

TEMPLATES = Path(__file__).parent / "templates"
CAUSES = 3  # that are shown of a task
BARS = 10  # of the distribution of totals


class ReportError(ValueError):
    """A folder without results that make one report."""


def write(out: Path) -> list[Result]:
    """All reports of the results in ``out``: index.html, class.csv and students/NAME.html; gives the results.

    Raises ReportError where there are none, or of several assignments or seeds, FileFormatError for a damaged one.
    """
    results = sorted((Result.load(path) for path in (out / "results").glob("*.json")), key=lambda r: r.name)
    ids = {r.assignment for r in results}
    if len(ids) != 1:
        found = f"of several assignments ({', '.join(sorted(ids))})" if ids else "no results of `course grade`"
        raise ReportError(f"{out} holds {found}: name the --out folder of one")
    if len(seeds := sorted({r.seed for r in results})) > 1:
        raise ReportError(f"{out} holds results of seeds {', '.join(map(str, seeds))}: remove those of all but one")
    assignment = load(ids.pop())
    (out / "students").mkdir(exist_ok=True)
    for result in results:
        write_text(out / "students" / f"{result.name}.html", student_page(assignment, result))
    write_text(out / "index.html", class_page(assignment, results, similar(assignment, results)))
    write_text(out / "class.csv", class_csv(assignment, results))
    return results


def student_page(assignment: Assignment, result: Result) -> str:
    """One student's page: what was checked, what failed and the likely cause; of hidden examples not the input."""
    sources: dict[str, list[tuple[str, str]]] = {task.id: [] for task in assignment.tasks}
    for id, source in sorted(result.regions.items()):
        if task_of(id) in sources and not is_hole(source):
            sources[task_of(id)].append((id, textwrap.dedent(source)))
    tasks = [told(task) for task in result.tasks]
    return render(
        "student.html",
        assignment=assignment,
        result=result,
        remarks=remarks(result),
        tasks=tasks,
        sources=sources,
        written=WRITTEN,
    )


def class_page(assignment: Assignment, results: Sequence[Result], pairs: Sequence[Pair]) -> str:
    """The class: totals, tasks with their most frequent causes, students, and solutions that resemble each other."""
    totals = [r.score for r in results if not r.error]
    weak = sorted({layer for r in results for layer in r.missing})
    return render(
        "class.html",
        assignment=assignment,
        results=results,
        totals=totals,
        mean=f"{statistics.mean(totals):.1f}" if totals else "",
        median=f"{statistics.median(totals):g}" if totals else "",
        bars=bars(totals, assignment.points),
        rows=[task_row(task, results) for task in assignment.tasks],
        students=[student_row(assignment, result) for result in results],
        pairs=[{"names": p.names, "percent": [round(100 * s) for s in p.shares], "texts": p.texts} for p in pairs],
        general=[f"Graded under a weak sandbox, without {', '.join(weak)}: only for code that you trust."] * bool(weak),
    )


@dataclass(frozen=True)
class TaskRow:
    task: Task
    counts: dict[str, int]
    causes: list[tuple[str, int]]


def task_row(task: Task, results: Sequence[Result]) -> TaskRow:
    of_task = [t for r in results for t in r.tasks if t.task == task.id]
    counts = {status: sum(t.status == status for t in of_task) for status in MARKS}
    failures = [t.failure for t in of_task if t.status == "failed" and t.failure is not None]
    causes = Counter(f.because or first_line(f.message) for f in failures)
    return TaskRow(task, counts, sorted(causes.items(), key=lambda c: (-c[1], c[0]))[:CAUSES])


def first_line(message: str) -> str:
    line = message.strip().partition("\n")[0].partition(" (line ")[0]
    return line if len(line) <= 100 else f"{line[:100]} ..."


def student_row(assignment: Assignment, result: Result) -> dict[str, Any]:
    status = {t.task: t.status for t in result.tasks}
    known = [status.get(task.id, "") for task in assignment.tasks]
    link = f"students/{quote(result.name)}.html"
    said = [r for r in remarks(result) if not r.startswith("graded under")]
    return {"result": result, "link": link, "marks": [(MARKS.get(s, ""), s) for s in known], "remarks": said}


def bars(totals: Sequence[int], points: int) -> list[tuple[str, int, int]]:
    """Of each tenth of the points: its range, how many are in it, and the height in percent of the tallest."""
    width = max(1, -(-points // BARS))
    counts = Counter(min(t // width, BARS - 1) for t in totals)
    most = max(counts.values(), default=1)
    found = []
    for i in range(BARS):
        last = points if i == BARS - 1 else (i + 1) * width - 1
        found.append((f"{i * width}-{last}", counts[i], round(85 * counts[i] / most)))
    return found


def render(template: str, **values: Any) -> str:
    """A page; every value is escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    pages = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template(template).render(values)
