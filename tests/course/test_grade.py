"""Grading a class: scores, refusals, several at a time, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from typer.testing import CliRunner

from minitorch_peft.cli.app import app
from minitorch_peft.course import sandbox
from minitorch_peft.course.checks import PUBLIC
from minitorch_peft.course.library import Library
from minitorch_peft.course.manifest import load
from minitorch_peft.course.process import Limits
from minitorch_peft.course.runner import NOT_DONE, Outcome, TaskResult, drawing
from minitorch_peft.course.teacher import build
from minitorch_peft.course.teacher import grade as grading
from minitorch_peft.course.teacher.grade import GradeError
from minitorch_peft.course.teacher.results import SCHEMA, Result
from minitorch_peft.course.teacher.submission import read

A1 = load("a1")
SMALL = replace(A1, tasks=(A1.task("1.3"), A1.task("1.6")))
WHOLE = sandbox.available() == sandbox.ALL_LAYERS
WRONG = "return x / x.sum(-1, keepdims=True)"


@pytest.fixture(scope="module")
def own():
    with Library() as library:
        yield {id: library.solution(id) for task in SMALL.tasks for id in library.regions_of(task.id)}


@pytest.fixture
def hand_in(tmp_path, own):
    """Writes a submission of the library's solutions with changes; None leaves one out."""

    def write(name: str, **changes: str | None) -> Path:
        regions = own | {id.replace("_", "."): source for id, source in changes.items()}
        path = tmp_path / f"{name}.py"
        path.write_text(
            "".join(
                f'# BEGIN SOLUTION(task="{id.removeprefix("t")}")\n{source}\n# END SOLUTION\n'
                for id, source in {k.removeprefix("t"): v for k, v in regions.items()}.items()
                if source is not None
            )
        )
        return path

    return write


def graded(paths, out, jobs=2, assignment=SMALL, seed=1, **options):
    submissions = grading.submissions_at(paths)
    found = list(grading.grade(submissions, assignment, out, seed, jobs, weak=not WHOLE, **options))
    return {r.name: r for r in sorted(found, key=lambda r: r.name)}


def scores(results):
    return {name: [t.status for t in r.tasks] for name, r in results.items()}


# -- what is refused --------------------------------------------------------------------------------------------
def test_an_incomplete_sandbox_is_refused_unless_that_is_known(monkeypatch):
    monkeypatch.setattr(sandbox, "available", lambda: ("limits", "capabilities"))
    with pytest.raises(GradeError, match=r"lacks landlock, seccomp: .*5\.13.*teach.*libseccomp2.*--weak-sandbox"):
        grading.layers_for(weak=False)
    assert grading.layers_for(weak=True) == ("limits", "capabilities")
    monkeypatch.setattr(sandbox, "available", lambda: sandbox.ALL_LAYERS)
    assert grading.layers_for(weak=False) == sandbox.ALL_LAYERS


def test_an_autograders_image_says_whether_its_sandbox_is_complete(monkeypatch, capsys):
    monkeypatch.setattr(sandbox, "available", lambda: sandbox.ALL_LAYERS)
    assert grading.main() == 0 and capsys.readouterr().out.startswith("the sandbox is complete: limits, ")
    monkeypatch.setattr(sandbox, "available", lambda: ("limits", "capabilities", "seccomp"))
    assert grading.main() == 1 and "lacks landlock" in capsys.readouterr().err


def test_missing_submissions_and_equal_names_are_refused(tmp_path, hand_in):
    first = hand_in("anna")
    with pytest.raises(FileNotFoundError, match="no submission"):
        grading.submissions_at([first, tmp_path / "nobody"])
    (tmp_path / "anna").mkdir()
    with pytest.raises(GradeError, match="two submissions are called anna"):
        grading.submissions_at([first, tmp_path / "anna"])


def test_what_the_system_refuses_of_one_costs_that_one_only(tmp_path, hand_in, monkeypatch):
    paths = [hand_in(name) for name in ("anna", "ben")]
    submissions = grading.submissions_at(paths)
    submissions[0] = replace(submissions[0], error="it cannot be read (Permission denied)")
    (tmp_path / "out" / "results" / "ben.json" / "folder").mkdir(parents=True)
    found = list(grading.grade(submissions, SMALL, tmp_path / "out", 1, weak=not WHOLE))
    assert [r.name for r in found] == ["anna", "ben"]
    assert found[0].error == "it cannot be read (Permission denied)"
    assert found[1].error.startswith("its result cannot be stored (")


@pytest.mark.slow
def test_a_very_long_name_is_graded_like_any_other(tmp_path, hand_in):
    long = hand_in("anna").rename(tmp_path / f"{'a' * 252}.py")
    results = graded([long, hand_in("ben")], tmp_path / "out")
    assert [(len(name), r.score, r.error) for name, r in results.items()] == [(109, 18, ""), (3, 18, "")]


def test_the_assignment_is_the_one_of_the_marks(tmp_path, hand_in):
    path = hand_in("anna")
    assert grading.assignment_of([read(path)]) == A1
    path.write_text(path.read_text() + '# BEGIN SOLUTION(task="2.1a")\nreturn 1\n# END SOLUTION\n')
    with pytest.raises(GradeError, match=r"belong to a1, a2: name the assignment"):
        grading.assignment_of([read(path)])
    path.write_text("x = 1")
    with pytest.raises(GradeError, match="have no marks of any assignment"):
        grading.assignment_of([read(path)])


def test_a_task_without_a_solution_or_with_two_is_not_run(hand_in):
    task = A1.task("1.3")
    found = grading.refusal(read(hand_in("a", t1_3a=None, t1_3b=None)), task, ["1.3a", "1.3b"])
    assert found.status == "not done" and "no solution of 1.3" in found.failure.message
    spoiled = replace(read(hand_in("b")), spoiled={"1.3a": "two solutions"})
    assert grading.refusal(spoiled, task, ["1.3a", "1.3b"]).failure.message == "two solutions"
    assert grading.refusal(read(hand_in("c")), task, ["1.3a", "1.3b"]) is None


def test_results_are_used_again_for_the_same_inputs_only(tmp_path):
    result = Result("anna", "a1", 1, "fingerprint")
    result.save(tmp_path / "anna.json")
    assert grading.stored_result(tmp_path / "anna.json", "fingerprint") == result
    assert grading.stored_result(tmp_path / "anna.json", "another") is None
    replace(result, error="crashed").save(tmp_path / "anna.json")
    assert grading.stored_result(tmp_path / "anna.json", "fingerprint") is None
    (tmp_path / "anna.json").write_text("{")
    assert grading.stored_result(tmp_path / "anna.json", "fingerprint") is None


def test_the_fingerprint_is_of_all_that_scores_depend_on():
    inputs = (SMALL, 1, sandbox.ALL_LAYERS, Limits())
    first = grading.digest_of_inputs(*inputs)
    assert grading.digest_of_inputs(*inputs) == first
    for i, other in enumerate((A1, 2, ("limits",), Limits(memory=1))):
        assert grading.digest_of_inputs(*inputs[:i], other, *inputs[i + 1 :]) != first


def test_one_grader_at_a_time(tmp_path, hand_in):
    with grading.locked(tmp_path), pytest.raises(GradeError, match="another grader is writing"):
        graded([hand_in("anna")], tmp_path)


def test_a_folder_holds_one_assignment(tmp_path, hand_in):
    (tmp_path / "out" / "results").mkdir(parents=True)
    Result("ben", "a2", 1, "").save(tmp_path / "out" / "results" / "ben.json")
    with pytest.raises(GradeError, match="holds results of a2"):
        graded([hand_in("anna")], tmp_path / "out")


def test_a_folder_holds_one_seed_which_is_drawn_once(tmp_path, hand_in):
    (tmp_path / "out" / "results").mkdir(parents=True)
    (tmp_path / "out" / "results" / "anna.json").write_text("{")  # damaged: it says nothing
    assert grading.seed_of(tmp_path / "out") != grading.seed_of(tmp_path / "nothing")
    Result("ben", "a1", 7, "").save(tmp_path / "out" / "results" / "ben.json")
    assert grading.seed_of(tmp_path / "out") == 7
    with pytest.raises(GradeError, match=r"results of seed 7: leave --seed out .* another --out for seed 8"):
        graded([hand_in("anna")], tmp_path / "out", seed=8)


# -- with the other tasks open, and solved ----------------------------------------------------------------------
GOOD = Outcome("check", "public", True)
BAD = Outcome("check", "public", False, "what came", "a sign")
OPEN = Outcome("check", "public", False, "Task 1.6: Matrix product; read", NOT_DONE)
OWN = replace(OPEN, message="Task 1.3: Softmax; read")
SECRET = replace(BAD, message="the library's own")


@pytest.mark.parametrize(
    ("with_open", "with_solved", "outcome", "runs"),
    [
        (GOOD, None, GOOD, 1),
        (OWN, None, OWN, 1),
        (OPEN, GOOD, GOOD, 2),
        (BAD, GOOD, GOOD, 2),  # it caught what a hole raised
        (BAD, SECRET, BAD, 2),  # what came with the others solved could give them away
        (OPEN, SECRET, replace(SECRET, concealed=True), 2),
    ],
)
def test_a_task_is_judged_with_the_others_open_and_if_need_be_solved(
    tmp_path, hand_in, monkeypatch, with_open, with_solved, outcome, runs
):
    calls = []

    def judge(library, assignment, task, solutions, *_):
        calls.append(solutions)
        found = with_solved if len(calls) > 1 else with_open
        return TaskResult("1.3", "Softmax", 10, "passed" if found.passed else "failed", [found])

    monkeypatch.setattr(grading, "judge", judge)
    job = grading.Job(read(hand_in("anna")), SMALL, 1, "", (), Limits(), "", "")
    with Library() as library:
        result = grading.judged_task(job, library, A1.task("1.3"), ["1.3a", "1.3b"])
    assert result.outcomes == [outcome] and [len(c) for c in calls] == [3, 2][:runs]


# -- scores -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_class_is_graded_task_by_task(tmp_path, hand_in):
    paths = [hand_in("anna"), hand_in("ben", t1_3a=WRONG), hand_in("carla", t1_6=None, t1_66="return 1")]
    first = graded(paths, tmp_path / "out")
    assert {name: r.score for name, r in first.items()} == {"anna": 18, "ben": 8, "carla": 10}
    assert scores(first)["carla"] == ["passed", "not done"]
    assert first["carla"].notes == ["no task has the marks 1.66: were they changed?"]
    assert not (tmp_path / "out" / ".scratch").exists()
    again = graded(paths, tmp_path / "out")  # from the files
    assert again == first


def test_a_mistake_of_the_teachers_is_no_zero(tmp_path, hand_in):
    (result,) = graded([hand_in("anna")], tmp_path / "out", assignment=replace(SMALL, id="a0")).values()
    assert result.error.startswith("ModuleNotFoundError: No module named") and result.tasks == []


def test_a_grading_process_that_dies_is_told(tmp_path, hand_in, monkeypatch):
    monkeypatch.setattr(grading, "grade_one", os._exit)  # which takes no Job
    results = graded([hand_in("anna"), hand_in("ben")], tmp_path / "out")
    assert {r.error for r in results.values()} == {"its grading process ended with exit code 1"}


def test_what_is_drawn_does_not_depend_on_what_is_loaded(monkeypatch):
    """Hypothesis tries constants of loaded modules too; here it must not."""
    strange = providers.Constants(integers={123_456_789})
    monkeypatch.setattr(providers, "_get_local_constants", lambda: strange)

    def drawn() -> list[int]:
        found = []
        drawing(lambda n: found.append(n), {"n": st.integers(0, 10**9)}, replace(PUBLIC, examples=300))()
        return found

    with_strange = drawn()
    monkeypatch.undo()
    assert with_strange == drawn() and 123_456_789 not in with_strange


@pytest.mark.slow
def test_neither_order_nor_jobs_nor_neighbours_change_a_result(tmp_path, hand_in):
    wrong = {"a": WRONG, "b": "return np.exp(x)", "c": "return y", "d": "return np.zeros_like(x)"}
    paths = [hand_in(name, t1_3a=source) for name, source in wrong.items()]
    one = graded(paths, tmp_path / "one", jobs=1)
    other = graded(paths[::-1], tmp_path / "other", jobs=4)
    alone = graded(paths[2:3], tmp_path / "alone")

    def timeless(result: Result) -> Result:
        return replace(result, seconds=0.0, tasks=[replace(t, seconds=0.0) for t in result.tasks])

    assert [timeless(r) for r in one.values()] == [timeless(r) for r in other.values()]
    assert timeless(one["c"]) == timeless(alone["c"])
    seeds = graded(paths[:1], tmp_path / "seed", seed=2)
    assert scores(seeds)["a"] == scores(one)["a"]


# -- the command ------------------------------------------------------------------------------------------------
OPTIONS = [] if WHOLE else ["--weak-sandbox"]


@pytest.mark.slow
def test_the_command_grades_reports_and_tells_gradescope(tmp_path, hand_in, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    path, out = hand_in("anna", t1_3a=WRONG), tmp_path / "out"
    command = ["course", "grade", str(path), "--out", str(out), "--gradescope", str(tmp_path / "g" / "results.json")]
    done = CliRunner().invoke(app, [*command, *OPTIONS])
    assert done.exit_code == 0, done.output
    table = json.loads((tmp_path / "g" / "results.json").read_text())
    seed = Result.load(out / "results" / "anna.json").seed
    assert f"hidden examples: seed {seed}, kept in" in done.output
    assert table["score"] == 8 and len([t for t in table["tests"] if t["visibility"] == "visible"]) == len(A1.tasks)
    assert {p.name for p in out.iterdir()} == {".lock", "index.html", "results", "class.csv", "students"}
    assert "1 graded, 8.0 of 100 points" in done.output
    (out / "index.html").unlink()
    again = CliRunner().invoke(app, ["course", "report", str(out), "--json"])
    assert again.exit_code == 0 and (out / "index.html").is_file()
    assert json.loads(again.stdout)["submissions"][0]["tasks"]["1.6"] == 8
    assert json.loads(again.stdout)["seed"] == seed
    other = CliRunner().invoke(app, [*command, *OPTIONS, "--seed", str(seed + 1)])
    assert other.exit_code == 2 and f"holds results of seed {seed}" in other.output
    assert CliRunner().invoke(app, [*command, *OPTIONS]).exit_code == 0  # goes on with the same


@pytest.mark.slow
@pytest.mark.skipif(not WHOLE, reason="needs the whole sandbox")
def test_the_autograder_grades_as_gradescope_runs_it(tmp_path, hand_in):
    """The zip's files, installed as ``setup.sh`` does, but beside this environment's packages; then its own script."""
    home = tmp_path / "autograder"
    for name, data in build.autograder(A1, seed=7).items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(data)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", home / "lib", home / "source"], check=True, capture_output=True, cwd=home)
    command = home / "venv" / "bin" / "minitorch-peft"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m minitorch_peft.cli "$@"\n')
    command.chmod(0o755)
    (home / "submission").mkdir()
    hand_in("anna").rename(home / "submission" / "reference.py")
    environment = {**os.environ, "AUTOGRADER": str(home), "PYTHONPATH": str(home / "lib")}
    done = subprocess.run(["bash", home / "run_autograder"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = json.loads((home / "results" / "results.json").read_text())
    jsonschema.validate(table, SCHEMA)
    assert table["score"] == 18 and "seed 7" in done.stdout
    assert {t["number"] for t in table["tests"] if t["status"] == "passed"} == {"1.3", "1.6"}
    checked = [sys.executable, "-P", "-m", "minitorch_peft.course.teacher.grade"]  # the end of setup.sh
    assert "-m minitorch_peft.course.teacher.grade" in (home / "setup.sh").read_text()
    done = subprocess.run(checked, env=environment, capture_output=True, text=True, cwd=home)
    assert done.stdout.startswith("the sandbox is complete"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nobody.zip"], 3, "no submission nobody.zip"),
        (["{here}", "{here}/x.py", "--gradescope", "r.json"], 2, "one submission at a time"),
        (["{here}"], 2, "no marks of any assignment"),
        (["{here}", "--assignment", "a9"], 2, "there is no assignment 'a9'"),
    ],
)
def test_wrong_use_of_the_command_is_told(tmp_path, arguments, code, message):
    (tmp_path / "x.py").write_text("x = 1")
    words = [a.format(here=tmp_path) for a in arguments]
    done = CliRunner().invoke(app, ["course", "grade", *words, "--out", str(tmp_path / "out")])
    assert done.exit_code == code and message in done.output
    assert CliRunner().invoke(app, ["course", "report", str(tmp_path)]).exit_code == 2


@pytest.mark.slow
@pytest.mark.skipif(not WHOLE, reason="needs the whole sandbox")
def test_a_killed_grader_leaves_nothing_behind_and_goes_on(tmp_path, hand_in):
    paths = [hand_in("a"), hand_in("b", t1_3a="import time; time.sleep(1e9)"), hand_in("c")]
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-m", "minitorch_peft.cli", "course", "grade", *map(str, paths), "--out", str(out)]
    grader = subprocess.Popen([*command, "--jobs", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_for(lambda: (out / "results" / "a.json").is_file() and students_of(out))
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    assert wait_for(lambda: not students_of(out)), "a student's process outlived the grader"
    before = (out / "results" / "a.json").stat().st_mtime_ns
    assert not (out / "results" / "b.json").exists() and (out / ".scratch").is_dir()
    results = graded(paths, out, assignment=A1, seed=grading.seed_of(out))
    assert {name: r.score for name, r in results.items()} == {"a": 18, "b": 8, "c": 18}
    assert (out / "results" / "a.json").stat().st_mtime_ns == before
    assert not (out / ".scratch").exists()


def students_of(out: Path) -> bool:
    """Does a process run that a grader of ``out`` started for a student's code?"""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if "boot.py" in line and str(out) in line:
            return True
    return False


def wait_for(condition, seconds: float = 120.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False
