"""``minitorch-peft course grade`` and ``report``: what a teacher runs when the submissions are in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minitorch_peft.cli.course import MARKS, course, escaped, require
from minitorch_peft.cli.errors import USAGE, CommandError
from minitorch_peft.cli.screen import JsonFlag, Screen

if TYPE_CHECKING:
    from minitorch_peft.course.manifest import Assignment
    from minitorch_peft.course.teacher.results import Result


@course.command()
def grade(
    submissions: Annotated[list[Path], typer.Argument(help="Folders, zips or .py files, one a student.")],
    out: Annotated[
        Path, typer.Option(help="Folder for results and reports. What is in it is not graded again.")
    ] = Path("graded"),
    assignment: Annotated[
        str | None, typer.Option(help="Such as a1. Default: the one that the submissions' marks belong to.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of the hidden examples: students must not know it. The same seed gives the same scores.",
            show_default="the one of the results in OUT; drawn where it has none",
        ),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Submissions at a time. Default: one a processor.")] = None,
    weak_sandbox: Annotated[
        bool, typer.Option("--weak-sandbox", help="Grade although the sandbox is incomplete here. Reports say so.")
    ] = False,
    gradescope: Annotated[
        Path | None, typer.Option(help="Of one submission: write Gradescope's results.json here.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Grade submissions, task by task: what a student wrote between the marks, in the library that is otherwise right.

    OUT gets index.html (the class), students/NAME.html, class.csv and results/NAME.json. A run that was stopped goes
    on where it was. OUT is of one assignment and one seed, which its results name. Exit code 3 if a submission is
    missing, 1 if one could not be graded.

    Examples:

        minitorch-peft course grade submissions/*
        minitorch-peft course grade submissions/*.zip --out graded --assignment a1 --jobs 4
    """
    require_all()
    from minitorch_peft.course.manifest import load
    from minitorch_peft.course.teacher import grade as grading
    from minitorch_peft.course.teacher import report, results
    from minitorch_peft.formats.files import write_json

    screen = Screen(json)
    if gradescope is not None and len(submissions) != 1:
        raise CommandError("--gradescope is for one submission at a time", USAGE)
    found = grading.submissions_at(submissions)
    manifest = load(assignment) if assignment else grading.assignment_of(found)
    seed = grading.seed_of(out) if seed is None else seed
    arriving = grading.grade(found, manifest, out, seed, jobs or os.cpu_count() or 1, weak_sandbox)
    graded = sorted(followed(screen, arriving, len(found)), key=lambda r: r.name)
    report.write(out)
    if gradescope is not None and not graded[0].error:
        gradescope.parent.mkdir(parents=True, exist_ok=True)
        write_json(gradescope, results.gradescope(graded[0]))
    show_class(screen, manifest, graded, out)
    for result in graded:
        if result.error:
            screen.note(f"error: {result.name} could not be graded: {result.error}")
    if any(r.error for r in graded):
        raise typer.Exit(1)


@course.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of `course grade`.")],
    json: JsonFlag = False,
) -> None:
    """Write the reports of graded submissions again: index.html, students/NAME.html and class.csv.

    Example:

        minitorch-peft course report graded
    """
    require_all()
    from minitorch_peft.course.manifest import load
    from minitorch_peft.course.teacher import report

    screen = Screen(json)
    results = report.write(folder)
    show_class(screen, load(results[0].assignment), results, folder)


def require_all() -> None:
    for module in ("hypothesis", "jinja2", "copydetect", "jsonschema"):
        require(module)


def followed(screen: Screen, arriving: Iterator[Result], total: int) -> Iterator[Result]:
    """The results as they arrive, shown: a bar in a terminal, a line each in a log file."""
    from rich import progress as rp

    columns = (rp.TextColumn("graded"), rp.BarColumn(bar_width=30), rp.MofNCompleteColumn(),
               rp.TextColumn("{task.fields[last]}"), rp.TimeRemainingColumn())  # fmt: skip
    with rp.Progress(*columns, console=screen.err, disable=not screen.err.is_terminal) as bars:
        bar = bars.add_task("", total=total, last="")
        for count, result in enumerate(arriving, 1):
            said = f"{result.name}: {result.error or result.score}"
            bars.update(bar, completed=count, last=escaped(said))
            if not screen.err.is_terminal:
                screen.note(f"{count}/{total} {said}")
            yield result


def show_class(screen: Screen, assignment: Assignment, results: list[Result], out: Path) -> None:
    """The class as a table, and where its reports are."""
    from rich.table import Table

    from minitorch_peft.course.teacher.results import remarks

    table = Table(title=f"{assignment.id.upper()} {assignment.title}", title_justify="left")
    table.add_column("name", overflow="fold")
    for task in assignment.tasks:
        table.add_column(f"{task.id}\n[dim]{task.points}[/dim]", justify="right")
    table.add_column(f"total\n[dim]{assignment.points}[/dim]", justify="right")
    table.add_column("notes", overflow="fold")
    for result in results:
        marks = {t.task: MARKS[t.status] for t in result.tasks}
        total = "" if result.error else str(result.score)
        notes = escaped("; ".join(remarks(result)))
        table.add_row(escaped(result.name), *(marks.get(t.id, "") for t in assignment.tasks), total, notes)
    screen.say(table)
    scores = [r.score for r in results if not r.error]
    if scores:
        screen.say(f"{len(scores)} graded, {sum(scores) / len(scores):.1f} of {assignment.points} points on average")
    if results:
        screen.say(f"hidden examples: seed {results[0].seed}, kept in {out}")
    screen.say(f"the class: {out / 'index.html'}, {out / 'class.csv'} · each student: {out / 'students'}")
    seed = results[0].seed if results else None
    screen.result({"assignment": assignment.id, "seed": seed, "submissions": [row(r) for r in results]})


def row(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "score": None if result.error else result.score,
        "tasks": {t.task: t.earned for t in result.tasks},
        "notes": result.notes,
        "error": result.error,
    }
