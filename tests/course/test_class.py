"""From a class of submissions to its grades: every student gets what the work is worth."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from minitorch_peft.course import marks
from minitorch_peft.course.library import Library
from minitorch_peft.course.manifest import load
from minitorch_peft.course.teacher import build

from . import classroom


def graded(folder, assignment, *options):
    command = [sys.executable, "-P", "-m", "minitorch_peft.cli", "course", "grade", *sorted(folder.iterdir())]
    command += ["--out", folder.parent / "graded", "--assignment", assignment.id, "--jobs", "2", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {s["name"]: s for s in json.loads(done.stdout)["submissions"]}


@pytest.mark.slow
@pytest.mark.parametrize(("id", "count"), [("a1", 3), ("a2", 3), ("a3", 2), ("a4", 2), ("a5", 3)])
def test_a_class_gets_the_scores_that_it_earned(tmp_path, id, count):
    """Fewer students where a task trains (A3) or compiles (A4)."""
    assignment = load(id)
    expected = classroom.make_class(assignment, tmp_path / "in", count)
    assert {name: s["score"] for name, s in graded(tmp_path / "in", assignment).items()} == expected
    assert len(set(expected.values())) > 1


@pytest.mark.slow
def test_each_task_blanked_alone_loses_exactly_its_own_points(tmp_path):
    """And the library itself gets 100 %, the untouched handout 0 %.

    Of A1, for the time that it takes; `course prove` shows of all assignments that an open task gets nothing and that
    a solved one gets its points with all others open.
    """
    assignment = load("a1")
    files = {name: data.decode() for name, data in build.handout(assignment).items() if name.endswith(".py")}
    with Library() as library:
        solved = {r: library.solution(r) for t in assignment.tasks for r in library.regions_of(t.id)}
        homes = {library.regions[r][0] for r in solved}

        def hand_in(name, solutions):
            changed = {path: marks.replace(files[path], solutions) for path in homes}
            classroom.write(changed, tmp_path / "in", name, as_zip=False)

        hand_in("whole", solved)
        hand_in("untouched", {})
        for task in assignment.tasks:
            hand_in(task.id, {r: s for r, s in solved.items() if library.regions[r][1].task != task.id})
    scores = {name: s["score"] for name, s in graded(tmp_path / "in", assignment).items()}
    assert scores == {"whole": 100, "untouched": 0} | {t.id: 100 - t.points for t in assignment.tasks}
