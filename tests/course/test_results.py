"""What is stored, what a student is told, what Gradescope and a spreadsheet get."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import jsonschema
import pytest

from minitorch_peft.course.manifest import Assignment, Task
from minitorch_peft.course.runner import Outcome, TaskResult
from minitorch_peft.course.teacher.results import (
    SCHEMA,
    SHOWN,
    Result,
    class_csv,
    gradescope,
    harmless,
    in_words,
    remarks,
    told,
)
from minitorch_peft.formats.files import FileFormatError

TASKS = tuple(Task(f"1.{i}", title, 10 * i, 5, (), "", ()) for i, title in enumerate(("Sums", "Products, all"), 1))
ASSIGNMENT = Assignment("a1", "Autograd", 3, "", "", TASKS)

PUBLIC = Outcome("sums add up", "public", True)
SEEN = Outcome("signs", "public", False, "f(x) is 1; expected -1", "the sign", "x = 1")
HIDDEN = Outcome("signs", "hidden", False, "f(x) is 2; expected -2", "the sign", "x = secret")


def task(outcome: Outcome | None, printed: str = "") -> TaskResult:
    outcomes = [PUBLIC, *([outcome] if outcome else [])]
    return TaskResult("1.1", "Sums", 10, "failed" if outcome else "passed", outcomes, printed, 1.5)


OPEN = TaskResult("1.2", "Products, all", 20, "not done", [Outcome("x", "public", False, "Task 1.2: write it", "due")])
RESULT = Result(
    "anna", "a1", 7, "print", [task(HIDDEN, "x = secret"), OPEN], {"1.1": "return 1\n"}, ["a note"], [], 3.0
)


def test_a_result_is_stored_and_read_again(tmp_path):
    RESULT.save(tmp_path / "anna.json")
    assert Result.load(tmp_path / "anna.json") == RESULT
    assert RESULT.score == 0 and replace(RESULT, tasks=[task(None)]).score == 10


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "name": "x"}', '{"format": 1, "a": 2}']
)
def test_what_is_no_result_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"x\.json"):
        Result.load(tmp_path / "x.json")


def test_of_a_public_failure_everything_is_told():
    seen = told(task(SEEN, "hello"))
    assert (seen.failed, seen.example, seen.printed, seen.because) == ("signs", "x = 1", "hello", "the sign")
    assert seen.checks == [(True, "sums add up"), (False, "signs")]
    assert in_words(seen).splitlines() == [
        "✓ sums add up", "✗ signs", "", "signs", "for x = 1", "f(x) is 1; expected -1", "likely cause: the sign",
        "it printed:", "hello",
    ]  # fmt: skip


def test_of_a_hidden_failure_the_input_is_not_told():
    said = in_words(told(task(HIDDEN, "x = secret")))
    assert "secret" not in said
    assert "signs (a hidden example)" in said and "f(x) is 2; expected -2" in said and "the sign" in said


def test_of_a_concealed_failure_only_the_check_and_the_cause_are_told():
    said = in_words(told(task(replace(SEEN, message="secret", example="secret", concealed=True), "secret")))
    assert "secret" not in said and "not shown, as it could give" in said and "likely cause: the sign" in said


def test_long_messages_are_cut():
    assert len(told(task(replace(SEEN, message="x" * 10_000))).message) == SHOWN + 4


def test_gradescope_gets_a_test_for_each_task_and_the_teacher_what_is_hidden():
    table = gradescope(RESULT)
    jsonschema.validate(table, SCHEMA)
    assert (table["score"], table["execution_time"], table["output"]) == (0, 3.0, "a note")
    first, secret, second = table["tests"]
    assert [t["visibility"] for t in table["tests"]] == ["visible", "hidden", "visible"]
    assert (first["number"], first["score"], first["max_score"], first["status"]) == ("1.1", 0, 10, "failed")
    assert "secret" not in str(first) and "x = secret" in secret["output"] and secret["max_score"] == 0
    assert (second["name"], second["max_score"], second["output"]) == (
        "Products, all",
        20,
        "✗ x\n\nx\nTask 1.2: write it\nlikely cause: due",
    )
    assert sum(t["max_score"] for t in table["tests"]) == ASSIGNMENT.points


@pytest.mark.parametrize(
    "change",
    [{"visibility": "secret"}, {"tests": [{"status": "ok"}]}, {"tests": [{"max_score": -1}]}, {"points": 3},
     {"execution_time": "3"}],
)  # fmt: skip
def test_the_schema_refuses_what_gradescope_would(change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**gradescope(RESULT), **change}, SCHEMA)


def test_the_class_is_a_table():
    ungraded = Result("ben", "a1", 7, "", error="ValueError: x")
    weak = replace(RESULT, name="=cmd()", tasks=[task(None), OPEN], missing=["landlock"])
    rows = list(csv.reader(io.StringIO(class_csv(ASSIGNMENT, [RESULT, ungraded, weak]))))
    assert rows == [
        ["name", "1.1 Sums (10)", "1.2 Products, all (20)", "total", "notes"],
        ["anna", "0", "0", "0", "a note"],
        ["ben", "", "", "", "could not be graded: ValueError: x"],
        ["'=cmd()", "10", "0", "10", "graded under a weak sandbox, without landlock; a note"],
    ]
    assert remarks(ungraded) == ["could not be graded: ValueError: x"]


@pytest.mark.parametrize(("cell", "same"), [("=1+1", False), ("@x", False), ("-3", False), ("anna", True), (-3, True)])
def test_no_cell_is_a_formula(cell, same):
    assert (harmless(cell) == cell) == same
