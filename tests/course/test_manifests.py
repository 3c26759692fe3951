"""Every assignment is whole: its manifest fits its marks, its checks and its notebook."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from minitorch_peft.course import marks, plain
from minitorch_peft.course.checks import checks_of, hidden, in_this_process
from minitorch_peft.course.library import solutions, sources
from minitorch_peft.course.manifest import ManifestError, available, load
from minitorch_peft.course.runner import run_check
from minitorch_peft.course.teacher.proof import proofs_of

ROOT = Path(__file__).parents[2]


def test_there_are_five_assignments():
    assert available()[:5] == ["a1", "a2", "a3", "a4", "a5"]


@pytest.fixture(params=available())
def assignment(request):
    return load(request.param)


def test_the_tasks_make_an_assignment(assignment):
    assert 6 <= len(assignment.tasks) <= 9
    assert assignment.points == 100
    assert 2 <= assignment.hours <= 4
    assert abs(sum(t.minutes for t in assignment.tasks) / 60 - assignment.hours) <= 1
    for task in assignment.tasks:
        assert task.id.startswith(f"{assignment.id[1:]}.")
        assert len(task.hints) >= 2 and task.read


def test_where_names_the_function_of_every_region(assignment):
    found, files = solutions(), sources()
    for task in assignment.tasks:
        regions = sorted(id for id, (_, region) in found.items() if region.task == task.id)
        assert len(regions) == len(task.where), task.id
        for id, place in zip(regions, task.where, strict=True):
            name, region = found[id]
            file, _, function = place.partition(": ")
            assert file == name, (id, place)
            assert function in enclosing(files[name].read_text(encoding="utf-8"), region), (id, place)


def enclosing(source: str, region: marks.Region) -> list[str]:
    """Names of the functions around a region, with and without their classes."""
    names = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef) and child.lineno <= region.start <= (child.end_lineno or 0) + 1
            if inside:
                names.append(child.name)
                if isinstance(node, ast.ClassDef):
                    names.append(f"{node.name}.{child.name}")
    return names


def test_every_task_has_checks_and_proofs(assignment):
    for task in assignment.tasks:
        assert len(checks_of(assignment, task.id)) >= 2, task.id
        proof = proofs_of(assignment)[task.id]
        assert len(proof.wrong) >= 8 and len(proof.right) >= 3, task.id
        regions = {id for id, (_, region) in solutions().items() if region.task == task.id}
        for solution in (*proof.wrong.values(), *proof.right.values()):
            assert solution.keys() <= regions and solution
    assert {c.task for c in checks_of(assignment)} == {t.id for t in assignment.tasks}


def test_the_notebook_asks_and_answers(assignment):
    text = (ROOT / assignment.notebook).read_text(encoding="utf-8")
    questions = [r for r in marks.find(text).values() if r.kind == "question"]
    assert 5 <= len(questions) <= 8
    assert all(len(marks.body(text, q)) > 100 for q in questions)
    assert "course check" in text and "plt." in text
    for task in assignment.tasks:
        assert task.title in text, task.title


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id = ", "a9: "),
        ('id = "a9"', "missing"),
        ('id = "a9"\ncolour = "red"', "has no colour"),
        ('[[task]]\nid = "9.1"\nhalf = 1', "has no half"),
    ],
)
def test_a_manifest_that_is_wrong_says_where(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr("minitorch_peft.course.manifest.FOLDER", tmp_path)
    (tmp_path / "a9").mkdir()
    (tmp_path / "a9" / "manifest.toml").write_text(text)
    with pytest.raises(ManifestError, match=message):
        load("a9")


def test_an_unknown_assignment_or_task_is_named():
    with pytest.raises(ManifestError, match=r"no assignment 'a77'; there are: a1"):
        load("a77")
    with pytest.raises(ManifestError, match=r"no task '1\.99'; it has: 1\.1"):
        load("a1").task("1.99")


# what a student runs with plain pytest
test_a1, test_a2, test_a3, test_a5 = map(plain.as_tests, ("a1", "a2", "a3", "a5"))
test_a4 = plain.as_tests("a4", tasks=("4.1", "4.2", "4.3", "4.4", "4.6"))
COMPILED, INTERPRETED = "4.5", "4.7"


@pytest.mark.slow
def test_what_is_compiled_or_interpreted(tmp_path):
    """In a process of its own: Triton decides once in a process whether it interprets."""
    (tmp_path / "test_it.py").write_text(
        f"from minitorch_peft.course import plain\ntest = plain.as_tests('a4', tasks={(COMPILED, INTERPRETED)})\n"
    )
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    number = sum(len(checks_of(load("a4"), task)) for task in (COMPILED, INTERPRETED))
    assert done.stdout.splitlines()[-1].startswith(f"{number} passed"), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 20261122])
def test_the_hidden_variants_accept_the_library(assignment, seed):
    for check in checks_of(assignment):
        if check.task == INTERPRETED:  # `course prove` has it, in processes of their own
            continue
        outcome = run_check(check, in_this_process(assignment), hidden(seed))
        assert outcome.passed, (check.title, outcome.message, outcome.example)
