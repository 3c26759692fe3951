"""The checks as plain pytest tests, marked ``task(id, points, hidden)``: ``pytest -k 1.3`` runs those of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from minitorch_peft.course.checks import PUBLIC, Check, Variant, checks_of, in_this_process
from minitorch_peft.course.manifest import load
from minitorch_peft.course.runner import run_check


def as_tests(
    assignment: str, variants: Sequence[Variant] = (PUBLIC,), tasks: Sequence[str] = ()
) -> Callable[..., None]:
    """A test function over every check of an assignment (of some ``tasks``), on the package that is imported here."""
    manifest = load(assignment)
    points = {task.id: task.points for task in manifest.tasks}
    cases = [
        pytest.param(
            check,
            variant,
            id=f"{check.task}-{check.name}" + ("-hidden" if variant.name == "hidden" else ""),
            marks=pytest.mark.task(id=check.task, points=points[check.task], hidden=variant.name == "hidden"),
        )
        for check in checks_of(manifest)
        if check.task in (tasks or points)
        for variant in variants
    ]

    @pytest.mark.parametrize(("check", "variant"), cases)
    def test(check: Check, variant: Variant) -> None:
        outcome = run_check(check, in_this_process(manifest), variant)
        if not outcome.passed:
            cause = f"\nlikely cause: {outcome.because}" if outcome.because else ""
            example = f"\nfor {outcome.example}" if outcome.example else ""
            pytest.fail(f"{outcome.title}{example}\n{outcome.message}{cause}", pytrace=False)

    return test
