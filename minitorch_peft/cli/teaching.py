"""``minitorch-peft course build`` and ``prove``: a teacher's. A handout has neither this nor ``course/teacher``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minitorch_peft.cli.course import course, escaped, require, the_assignment
from minitorch_peft.cli.errors import USAGE, CommandError
from minitorch_peft.cli.screen import JsonFlag, Screen

if TYPE_CHECKING:
    from minitorch_peft.course.teacher.proof import Verdict

AssignmentArgument = Annotated[str, typer.Argument(help="Such as a1.")]
JobsOption = Annotated[int, typer.Option(min=1, help="Processes at a time.")]


@course.command()
def build(
    assignment: AssignmentArgument,
    out: Annotated[Path, typer.Option(help="Folder for the handout's folder and its zip.")] = Path("handouts"),
    autograder: Annotated[
        bool, typer.Option("--autograder", help="Build Gradescope's autograder zip instead.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of the autograder's hidden examples: students must not know it. `course grade --seed` with the same "
            "one gives the same scores.",
            show_default="drawn",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Build what students get: the library with holes, the notebook, public tests and a README.

    OUT/ASSIGNMENT and OUT/ASSIGNMENT.zip hold nothing that gives a solution away: this is checked. With
    `--autograder`, OUT/ASSIGNMENT-autograder.zip is what Gradescope asks for.

    Examples:

        minitorch-peft course build a1
        minitorch-peft course build a1 --autograder
    """
    require("jupytext")
    require("hypothesis")
    from minitorch_peft.course.teacher import build as building
    from minitorch_peft.course.teacher.grade import fresh_seed

    screen = Screen(json)
    manifest = the_assignment(assignment)
    seed = fresh_seed() if seed is None else seed
    try:
        if autograder:
            files = building.autograder(manifest, seed)
            made = building.write_zip(files, out / f"{manifest.id}-autograder.zip", ("run_autograder", "setup.sh"))
        else:
            files = building.handout(manifest)
            made = building.write(files, out / manifest.id)
    except building.BuildError as error:
        raise CommandError(str(error), USAGE) from error
    screen.say(f"{made}: {len(files)} files, {made.stat().st_size / 1e6:.1f} MB, {len(manifest.tasks)} tasks")
    if autograder:
        screen.say(f"hidden examples: seed {seed}, kept in the zip: do not give it to students")
    screen.result({"zip": str(made), "files": len(files), "seed": seed if autograder else None})


@course.command()
def prove(
    assignment: AssignmentArgument,
    task: Annotated[list[str] | None, typer.Option(help="Of these tasks only.")] = None,
    seed: Annotated[int, typer.Option(help="Of the hidden examples.")] = 1,
    jobs: JobsOption = 2,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what was said of every solution.")] = False,
    json: JsonFlag = False,
) -> None:
    """Prove the checks: every known mistake loses the points, every right solution gets them all.

    For each task: the library's own solution, the open hole, the library's with all other tasks open, and the wrong
    and right solutions in `course/teacher/proofs`. Exit code 1 where one is judged wrongly.

    Examples:

        minitorch-peft course prove a1
        minitorch-peft course prove a1 --task 1.3 --verbose
    """
    require("hypothesis")
    from rich.progress import track

    from minitorch_peft.course.teacher.proof import prove as verdicts

    screen = Screen(json)
    manifest = the_assignment(assignment)
    tasks = [manifest.task(id) for id in task] if task else list(manifest.tasks)
    found: dict[str, list[Verdict]] = {t.id: [] for t in tasks}
    for verdict in track(verdicts(manifest, tasks, seed, jobs), console=screen.err, description=manifest.id):
        found[verdict.case.task].append(verdict)
    screen.say(proof_table(manifest.id, found))
    bad = [v for several in found.values() for v in several if not v.good]
    for v in bad:
        screen.say(f"[red]{v.case.task} {v.case.kind}: {escaped(v.case.name)}[/red] {escaped(v.said)}", soft_wrap=True)
    if verbose:
        for v in (v for several in found.values() for v in several if v.good):
            line = (
                f"{v.case.task} {v.case.kind}: {escaped(v.case.name)} [dim]{escaped(v.said)}[/dim] {v.result.seconds} s"
            )
            screen.say(line, soft_wrap=True)
    screen.result({"judged_wrongly": [[v.case.task, v.case.kind, v.case.name, v.said] for v in bad]})
    if bad:
        raise typer.Exit(1)


def proof_table(id: str, found: dict[str, list[Verdict]]):  # type: ignore[no-untyped-def]
    from rich.table import Table

    table = Table(title=f"{id.upper()}: are its checks right?", title_justify="left")
    for name in ("task", "points", "library", "open", "others open", "right get all", "wrong lose all"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for verdicts in found.values():
        first = verdicts[0].result
        cells = []
        for kind in ("reference", "hole", "alone", "right", "wrong"):
            some = [v for v in verdicts if v.case.kind == kind]
            if kind in ("right", "wrong"):
                good = sum(v.good for v in some)
                cells.append(f"{good}/{len(some)}" if good == len(some) else f"[red]{good}/{len(some)}[/red]")
            else:
                text = "/".join(str(v.result.earned) for v in some)
                cells.append(text if all(v.good for v in some) else f"[red]{text}[/red]")
        table.add_row(f"{first.task} {escaped(first.title)}", str(first.points), *cells)
    return table
