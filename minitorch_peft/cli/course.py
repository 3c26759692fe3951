"""``minitorch-peft course``: the student's ``check``; what a teacher runs is in ``cli/teaching.py``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from minitorch_peft.cli.errors import USAGE, CommandError
from minitorch_peft.cli.screen import JsonFlag, Screen

if TYPE_CHECKING:
    from minitorch_peft.course.manifest import Assignment, Task
    from minitorch_peft.course.runner import TaskResult

course = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Assignments: check your solutions; for teachers: build, grade, report, prove.",
)

MARKS = {"passed": "[green]✓[/green]", "failed": "[red]✗[/red]", "not done": "[dim]○[/dim]"}
DEFAULT = typer.Option(help="Which assignment. Default: the one that this package holds.")
AssignmentOption = Annotated[str | None, DEFAULT]


@course.command()
def check(
    tasks: Annotated[list[str] | None, typer.Argument(help="Tasks, such as 1.3. Default: all.")] = None,
    assignment: AssignmentOption = None,
    hint: Annotated[int, typer.Option("--hint", count=True, help="Show a hint too; again for the next one.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Check your solutions: a table of tasks, and for each failure a small counter-example and the likely cause.

    Every task is checked by itself, in a process of its own. The grader runs the same checks with other seeds and
    larger shapes. Exit code 0: everything that was checked is right; 1: something is not.

    Examples:

        minitorch-peft course check
        minitorch-peft course check 1.3
        minitorch-peft course check 1.3 --hint --hint
    """
    require("hypothesis")
    from minitorch_peft.course.checks import PUBLIC
    from minitorch_peft.course.library import Library
    from minitorch_peft.course.marks import task_of
    from minitorch_peft.course.outside import changed_files, handed_out
    from minitorch_peft.course.runner import judge_own

    screen = Screen(json)
    manifest = the_assignment(assignment)
    chosen = [manifest.task(task_of(id)) for id in tasks] if tasks else list(manifest.tasks)
    layers = ("limits",) if find_spec("resource") else ()
    results = []
    with Library(frames=handed_out()) as library, screen.err.status("") as status:
        for task in chosen:
            status.update(f"{task.id} {task.title}")
            results.append(judge_own(library, manifest, task, PUBLIC, layers))
    show(screen, manifest, chosen, results, hint)
    for name in changed_files():
        screen.note(f"warning: {name} was changed outside the marks: that is neither used here nor graded")
    if any(r.status != "passed" for r in results):
        raise typer.Exit(1)


def the_assignment(id: str | None) -> Assignment:
    """The assignment of that id, or the only one there is."""
    from minitorch_peft.course.manifest import available, load

    if id is None:
        ids = available()
        if len(ids) != 1:
            raise CommandError(f"--assignment is needed: there are {', '.join(ids)}", USAGE)
        (id,) = ids
    return load(id)


def require(module: str) -> None:
    """Raise CommandError, naming the extra to install, unless the module is there."""
    if find_spec(module) is None:
        extra = "course" if find_spec("minitorch_peft.course.teacher") is None else "teach"
        raise CommandError(f"this needs {module}: pip install 'minitorch-peft[{extra}]'", USAGE)


def show(screen: Screen, assignment: Assignment, tasks: list[Task], results: list[TaskResult], hint: int) -> None:
    from rich.table import Table

    table = Table(title=f"{assignment.id.upper()} {assignment.title}", title_justify="left")
    for name in ("task", "", "points", "what is checked"):
        table.add_column(name, justify="right" if name == "points" else "left")
    for result in results:
        checked = "still to be written"
        if result.status == "failed" or any(o.passed for o in result.outcomes):
            checked = "\n".join(f"{MARKS[o.status]} {escaped(o.title)}" for o in result.outcomes)
        points = f"{result.earned}/{result.points}"
        table.add_row(f"{result.task} {escaped(result.title)}", MARKS[result.status], points, checked)
    screen.say(table)
    for task, result in zip(tasks, results, strict=True):
        if result.status == "failed":
            passed = {r.task for r in results if r.status == "passed"}
            show_failure(screen, result, [id for id in task.needs if id not in passed])
            if not hint:
                screen.say(f"[dim]a hint: minitorch-peft course check {task.id} --hint[/dim]")
        if hint and result.status != "passed":
            show_hints(screen, task, hint)
    earned = sum(r.earned for r in results)
    screen.say(f"{earned} of {sum(r.points for r in results)} points")
    screen.result({"assignment": assignment.id, "score": earned, "tasks": [r.to_dict() for r in results]})


def show_failure(screen: Screen, result: TaskResult, needs: list[str]) -> None:
    """The first check that failed: what, for which input, and why, likely. ``needs``: tasks to solve first."""
    failure = result.failure
    assert failure is not None
    screen.say(f"\n[bold red]{result.task}[/bold red] {escaped(failure.title)}")
    if failure.example:
        screen.say(f"for {escaped(failure.example)}", soft_wrap=True)
    screen.say(escaped(failure.message), soft_wrap=True)
    if failure.because:
        screen.say(f"[yellow]likely cause:[/yellow] {escaped(failure.because)}", soft_wrap=True)
    if result.printed:
        screen.say(f"[dim]it printed: {escaped(result.printed[:500])}[/dim]", soft_wrap=True)
    if needs:
        screen.say(f"[yellow]here it needs {', '.join(needs)} first[/yellow] (the grader has its own)")


def show_hints(screen: Screen, task: Task, count: int) -> None:
    for text in task.hints[:count]:
        screen.say(f"[bold]Hint for {task.id}:[/bold] {escaped(text)}")
    more = f"one more: minitorch-peft course check {task.id}{' --hint' * (count + 1)}"
    screen.say(f"[dim]{more if count < len(task.hints) else 'that was the last hint'}[/dim]")


def escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
