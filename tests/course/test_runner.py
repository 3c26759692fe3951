"""One solution against the checks of its task: what is found, and how it is told."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from minitorch_peft.course.checks import PUBLIC, hidden
from minitorch_peft.course.library import Library
from minitorch_peft.course.manifest import load
from minitorch_peft.course.process import GRACE, Limits, Process
from minitorch_peft.course.runner import TaskResult, judge

LAYERS = ("limits",)
BOTH = (PUBLIC, hidden(1))


@pytest.fixture(scope="module")
def judged():
    assignment = load("a1")
    with Library() as library:

        def run(solutions, task="1.3", variants=(PUBLIC,), **options):
            mine = {r: library.solution(r) for r in library.regions_of(task)}
            return judge(library, assignment, assignment.task(task), mine | solutions, variants, LAYERS, **options)

        run.library = library
        yield run


def test_the_library_passes_and_a_hole_is_not_done(judged):
    assert judged({}, variants=BOTH).status == "passed"
    hole = load("a1").task("1.3").hole()
    result = judged({"1.3a": hole, "1.3b": hole})
    assert (result.status, result.earned) == ("not done", 0)
    assert result.failure.message.startswith("Task 1.3: ")


def test_a_wrong_solution_gets_a_small_counter_example_and_a_cause(judged):
    result = judged({"1.3b": "return -y * (grad - (grad * y).sum(-1, keepdims=True))"})
    failure = result.failure
    assert (result.status, result.earned) == ("failed", 0)
    assert failure.because == "the sign"
    assert 0 < len(failure.example) < 120
    assert "expected" in failure.message


def test_an_exception_is_told_with_its_line(judged):
    result = judged({"1.3a": "z = x - 1\nreturn np.exponential(z)"})
    assert "AttributeError" in result.failure.message
    assert "line 2 of your solution 1.3a: return np.exponential(z)" in result.failure.message


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        ("return np.exp(", "SyntaxError: '(' was never closed (line 1 of your solution 1.3a: return np.exp()"),
        ("z = 1\nretrun z", "SyntaxError: invalid syntax (line 2 of your solution 1.3a: retrun z)"),
        ("z = 1\n  return z", "IndentationError: unexpected indent (line 2 of your solution 1.3a: return z)"),
        ("for row in x:", "IndentationError: expected an indented block"),
        ("return 'a\0b'", "source code string cannot contain null bytes"),
    ],
)
def test_what_is_no_python_is_told_by_its_own_lines(judged, solution, message):
    assert message in judged({"1.3a": solution}).failure.message


def test_names_from_outside_the_marks_are_not_there(judged):
    result = judged({"1.3a": "return helper(x)"})
    assert "must be inside the marks" in result.failure.because


def test_changing_an_input_is_a_failure(judged):
    result = judged(
        {"1.3a": "x -= x.max(-1, keepdims=True)\nnp.exp(x, out=x)\nx /= x.sum(-1, keepdims=True)\nreturn x"}
    )
    assert "changed an array that it was given" in result.failure.message


def test_state_between_calls_is_found(judged):
    counting = "calls = globals().setdefault('calls', [])\ncalls.append(1)\n"
    softmax = "e = np.exp(x - x.max(-1, keepdims=True))\nreturn e / e.sum(-1, keepdims=True)"
    result = judged({"1.3a": f"{counting}{softmax} + (len(calls) == 7)"})
    assert result.status == "failed"
    assert "keep state between calls" in result.failure.because


def test_what_is_printed_is_kept_short_and_disturbs_nothing(judged):
    solution = "print('here', x.shape)\ne = np.exp(x - x.max(-1, keepdims=True))\nreturn e / e.sum(-1, keepdims=True)"
    result = judged({"1.3a": solution})
    assert result.status == "passed"
    assert result.printed.startswith("here (") and len(result.printed) <= Limits().printed


def test_a_process_that_cannot_answer_fails_the_task_quickly(judged):
    limits = replace(Limits(), call_seconds=1.0, total_seconds=3.0)
    assert "no answer within 1 s" in judged({"1.3a": "while True: pass"}, limits=limits).failure.message
    assert "without an answer" in judged({"1.3a": "import os; os._exit(0)"}, limits=limits).failure.message


def test_hidden_variants_find_what_fits_the_public_shapes_only(judged):
    solution = "e = np.exp(x - x.max(-1, keepdims=True))\nreturn e / e.sum(-1, keepdims=True) + (x.shape[0] == 5)"
    assert judged({"1.3a": solution}, variants=BOTH).failure.variant == "hidden"


def test_the_same_solution_gets_the_same_words(judged):
    solution = {"1.3b": "return y * grad"}
    first, second = (replace(judged(solution, variants=BOTH), seconds=0.0) for _ in range(2))
    assert first == second
    assert TaskResult.from_dict(first.to_dict()) == first


@pytest.mark.slow
@pytest.mark.parametrize("id", [t.id for t in load("a1").tasks])
def test_no_task_costs_another(judged, id):
    """All other holes open: the task's checks pass by themselves."""
    others = {r: t.hole() for t in load("a1").tasks if t.id != id for r in judged.library.regions_of(t.id)}
    assert judged(others, task=id).status == "passed"


def test_the_time_that_the_grader_takes_is_not_the_solutions():
    limits = Limits(call_seconds=1.0, total_seconds=1.0)
    with Library() as library, Process(library.root, load("a1").probes_module, limits, LAYERS) as process:
        assert process.call("ops.shape:as_sizes", [[2, 3]], {})["value"] == [2, 3]
        time.sleep(limits.total_seconds + GRACE + 0.5)  # longer than a process is left alone whose time is over
        assert process.call("ops.shape:as_sizes", [[2, 3]], {})["value"] == [2, 3]


def test_a_solution_is_judged_as_it_stands_comments_at_column_0_too(judged):
    solution = (
        "    e = np.exp(x - x.max(-1, keepdims=True))\n#    e = np.exp(x)\n    return e / e.sum(-1, keepdims=True)\n"
    )
    assert judged({"1.3a": solution}).status == "passed"


def test_what_is_closed_to_a_task_is_not_there(judged):
    """A gradient that is to be derived cannot be had from the engine."""
    assignment = load("a1")
    task = replace(assignment.task("1.3"), closed=("1.7",))
    engine = (
        "import minitorch_peft as mp\nx = mp.tensor(np.log(y), requires_grad=True)\n(x.exp() / x.exp().sum(-1, "
        "keepdim=True)).backward(gradient=grad)\nreturn x.grad"
    )
    solutions = {"1.3a": judged.library.solution("1.3a"), "1.3b": engine}
    result = judge(judged.library, assignment, task, solutions, (PUBLIC,), LAYERS)
    assert "not available in task 1.3" in result.failure.message
