"""Handouts: whole, importable, without any solution; and lived in, as a student would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from minitorch_peft.kernels.dispatch import FAMILIES

from minitorch_peft.course import marks
from minitorch_peft.course.checks import checks_of
from minitorch_peft.course.library import Library
from minitorch_peft.course.manifest import Replacement, available, load, matches
from minitorch_peft.course.teacher import build


@pytest.fixture(scope="module", params=available())
def assignment(request):
    return load(request.param)


@pytest.fixture(scope="module")
def files(assignment):
    return build.handout(assignment)


def test_every_solution_is_cut_and_every_mark_kept(assignment, files):
    holes = {
        region.id: marks.body(text, region).strip()
        for name, text in sources(files)
        for region in marks.find(text).values()
    }
    with Library() as library:
        expected = {r: t.hole() for t in assignment.tasks for r in library.regions_of(t.id)}
    assert holes == expected
    assert all(h.startswith(f'raise NotImplementedError("Task {assignment.id[1:]}.') for h in holes.values())


def sources(files):
    for name, data in files.items():
        if name.endswith(".py") and not (name.startswith("minitorch_peft/course/") and "/assignments/" not in name):
            yield name, data.decode()


def test_nothing_of_the_teacher_and_nothing_that_ran_is_in_it(assignment, files):
    for name in files:
        assert "teacher" not in name and "__pycache__" not in name and "proof" not in name
        assert not any(part.startswith(".") for part in Path(name).parts)
    others = [id for id in available() if id != assignment.id]
    assert not any(f"assignments/{id}/" in name for name in files for id in others)
    assert not any(matches(name, assignment.leave_out) for name in files)
    notebook = json.loads(files[f"{assignment.id}.ipynb"])
    assert all(not c.get("outputs") and not c.get("execution_count") for c in notebook["cells"])
    text = files[f"{assignment.id}.py"].decode()
    assert "BEGIN SOLUTION(question" not in text and text.count(build.YOURS) >= 5


def test_model_answers_are_cut_from_the_notebook(assignment, files):
    whole = (build.clone() / assignment.notebook).read_text(encoding="utf-8")
    for region in marks.find(whole).values():
        for line in marks.body(whole, region).splitlines():
            if len(line) > 30:
                assert line.encode() not in files[f"{assignment.id}.py"]


def test_the_same_sources_give_the_same_bytes(assignment, files, tmp_path):
    assert build.handout(assignment) == files
    first, second = (build.write(files, tmp_path / name / assignment.id) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert {n.removeprefix(f"{assignment.id}/") for n in archive.namelist()} == files.keys()


def test_a_folder_that_exists_is_not_written_over(files, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(build.BuildError, match="exists already"):
        build.write(files, tmp_path / "a")


def test_a_replacement_that_does_not_fit_is_named():
    wrong = replace(load("a1"), replacements=(Replacement("kernels/softmax/reference.py", "not there", ""),))
    with pytest.raises(build.BuildError, match=r"kernels/softmax/reference\.py that is there 0 times: 'not there'"):
        build.handout(wrong)


def test_what_is_left_out_must_exist():
    with pytest.raises(build.BuildError, match=r"leaves out kernels/nothing\.py"):
        build.handout(replace(load("a1"), leave_out=("kernels/nothing.py",)))


def test_the_table_of_kernels_names_what_is_there(assignment, files):
    rows = {
        found["family"]: re.findall(r"\w+", found["backends"])
        for found in build.ROW.finditer(files[build.DISPATCH].decode())
    }
    assert {f for f, backends in FAMILIES.items() if f"kernels/{f}/reference.py" in files} == rows.keys()
    assert all(f"kernels/{family}/{backend}.py" in files for family, backends in rows.items() for backend in backends)


def test_a_solution_that_stands_elsewhere_too_is_found():
    """A docstring, a test or another kernel that says it again would give it away."""
    assignment = load("a1")
    with Library() as library:
        line = next(x for x in library.solution("1.4b").splitlines() if len(x.replace(" ", "")) >= build.TELLING)
    leaks = build.leaked_lines({"README.md": f"as in `{line.strip()}`"}, assignment)
    assert leaks and all("README.md" in leak for leak in leaks)


def test_the_autograder_has_all_that_grading_needs(assignment):
    found = build.autograder(assignment, seed=7)
    assert {"setup.sh", "run_autograder", "source/setup.cfg"} <= found.keys()
    assert f"--assignment {assignment.id} --seed 7" in found["run_autograder"].decode()
    assert any(name.startswith("source/minitorch_peft/course/teacher/") for name in found)
    assert not any("__pycache__" in name for name in found)


# -- lived in ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def student(assignment, files, tmp_path_factory):
    """The handout, installed in a folder of its own, and a way to run commands on it."""
    folder = tmp_path_factory.mktemp("student")
    build.write(files, folder / assignment.id)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--target", folder / "lib", folder / assignment.id], check=True, capture_output=True, cwd=folder
    )
    environment = {**os.environ, "PYTHONPATH": str(folder / "lib"), "MINITORCH_KERNELS": "reference"}

    def run(*arguments):
        command = [sys.executable, "-P", *arguments]
        return subprocess.run(command, cwd=folder / assignment.id, env=environment, capture_output=True, text=True)

    run.lib = folder / "lib"
    return run


EVERYTHING = """
import importlib, pkgutil
import minitorch_peft
names = [m.name for m in pkgutil.walk_packages(minitorch_peft.__path__, "minitorch_peft.")]
for name in names:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        getattr(module, public)
print(len(names), minitorch_peft.__file__)
"""


@pytest.mark.slow
def test_every_public_name_is_importable(student):
    done = student("-c", EVERYTHING)
    assert done.returncode == 0, done.stderr
    count, place = done.stdout.split()
    assert int(count) > 100 and place.startswith(str(student.lib))


@pytest.mark.slow
def test_every_test_is_collected_and_fails_at_its_hole(student, assignment):
    done = student("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    number = len(checks_of(assignment))
    assert re.fullmatch(rf"{number} failed in .*", done.stdout.splitlines()[-1])  # no error, none passed
    assert done.stdout.count("read ") >= number  # each says what to read


@pytest.mark.slow
def test_a_student_solves_two_tasks_and_breaks_one(student, assignment):
    def check():
        done = student("-m", "minitorch_peft.cli", "course", "check", "--json")
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout), done.stderr

    before, _ = check()
    assert before["score"] == 0 and {t["status"] for t in before["tasks"]} == {"not done"}
    first, second, third = [t for t in assignment.tasks if not t.needs][:3]
    with Library() as library:
        for task in (first, second):
            for region in library.regions_of(task.id):
                solve(student.lib, library, region, library.solution(region))
        broken, *others = library.regions_of(third.id)
        for region in others:
            solve(student.lib, library, region, library.solution(region))
        solve(student.lib, library, broken, "return (")
        done = student("-m", "minitorch_peft.cli", "course", "check", third.id)
        assert done.returncode == 1 and "SyntaxError" in done.stdout + done.stderr
        solve(student.lib, library, broken, "return None")
        after, warnings = check()
    status = {t["task"]: t["status"] for t in after["tasks"]}
    assert (status[first.id], status[second.id], status[third.id]) == ("passed", "passed", "failed")
    assert after["score"] == first.points + second.points
    assert set(status.values()) == {"passed", "failed", "not done"}
    assert "warning" not in warnings


def solve(lib, library, region, solution):
    name, _ = library.regions[region]
    path = library.path(name, lib)
    path.write_text(marks.replace(path.read_text(encoding="utf-8"), {region: solution}), encoding="utf-8")
