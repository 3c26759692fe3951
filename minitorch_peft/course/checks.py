"""Checks: what must hold of a task's solution. One check serves students and graders, with other seeds and sizes.

    @check("1.3", "rows of probabilities", given=lambda v: {"x": arrays(shapes(1, 3, 1, v.max_side))})
    def softmax_values(code, x):
        close(code("kernels.softmax.reference:softmax_forward", x), scipy.special.softmax(x, -1), "softmax_forward(x)")

A check runs in the grader. ``code`` calls the solution, which is elsewhere: arrays in, arrays out.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minitorch_peft.course import wire, worker
from minitorch_peft.course.expect import Failed
from minitorch_peft.course.manifest import Assignment

Perform = Callable[[str, list[Any], dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Variant:
    """How a check draws: from which seed, how large, how often."""

    name: str
    seed: int
    max_side: int
    examples: int


PUBLIC = Variant("public", 0, 3, 40)


def hidden(seed: int) -> Variant:
    """The variant that a student does not see: the same ideas, another seed, larger shapes, more examples."""
    return Variant("hidden", seed, 5, 80)


@dataclass(frozen=True)
class Check:
    task: str
    title: str
    run: Callable[..., None] = field(repr=False)
    given: Callable[[Variant], dict[str, Any]] | None = field(repr=False, default=None)
    examples: int | None = None  # instead of the variant's; twice as many in the hidden one

    @property
    def name(self) -> str:
        return self.run.__name__

    def adjusted(self, variant: Variant) -> Variant:
        """The variant with this check's own number of examples and a seed of its own."""
        digest = hashlib.sha256(f"{variant.seed}:{self.task}:{self.name}".encode()).digest()
        examples = variant.examples
        if self.examples is not None:
            examples = self.examples * (2 if variant.name == "hidden" else 1)
        return replace(variant, seed=int.from_bytes(digest[:6]), examples=examples)


CHECKS: dict[str, list[Check]] = {}
"""Assignment's module of checks -> its checks, in order."""


def check(
    task: str, title: str, given: Callable[[Variant], dict[str, Any]] | None = None, examples: int | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a check of ``task``: ``function(code, **drawn)``, raising ``Failed`` where it fails.

    ``given(variant)`` gives Hypothesis strategies by argument. A function with an argument ``variant`` gets that too.
    """

    def register(run: Callable[..., None]) -> Callable[..., None]:
        known = CHECKS.setdefault(run.__module__, [])
        known[:] = [c for c in known if c.name != run.__name__]  # imported again
        known.append(Check(task, title, run, given, examples))
        return run

    return register


def checks_of(assignment: Assignment, task: str | None = None) -> list[Check]:
    """The checks of an assignment, or of one of its tasks."""
    importlib.import_module(assignment.checks_module)
    return [c for c in CHECKS[assignment.checks_module] if task in (None, c.task)]


class SolutionError(Failed):
    """The solution raised an exception."""


class NotDone(Failed):
    """The solution is still to be written."""


class Code:
    """Calls a solution through ``perform``, which knows where it is; ``locate`` says what a line of it is called."""

    def __init__(self, perform: Perform, locate: Callable[[list[list[Any]]], str] = lambda lines: "") -> None:
        self.perform, self.locate = perform, locate

    def __call__(self, target: str, *args: Any, **kwargs: Any) -> Any:
        """The value of ``target`` ("module:function") for these arguments, which it must leave as they are."""
        value, after_args, after_kwargs = self._call(target, args, kwargs)
        for before, after in [
            *zip(args, after_args, strict=False),
            *((v, after_kwargs.get(k)) for k, v in kwargs.items()),
        ]:
            if isinstance(before, np.ndarray) and not unchanged(before, after):
                raise Failed(
                    f"{target.partition(':')[2]} changed an array that it was given",
                    "an operation in place (+=, out=, sort()): work on a copy",
                )
        return value

    def inplace(self, target: str, *args: Any) -> tuple[Any, list[Any]]:
        """The value, and the positional arguments as the call left them."""
        value, after, _ = self._call(target, args, {})
        return value, after

    def _call(
        self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, list[Any], dict[str, Any]]:
        outcome = self.perform(target, list(args), kwargs)
        if "error" not in outcome:
            return outcome["value"], outcome["args"], outcome["kwargs"]
        kind, message = outcome["error"], outcome["message"]
        if kind == "NotImplementedError" and message.startswith("Task "):
            raise NotDone(message)
        if kind == "returned":
            raise SolutionError(f"{target.partition(':')[2]} returned {message}")
        at = self.locate(outcome["lines"])
        raise SolutionError(f"{kind}: {message or '(no message)'}{at}", ERRORS.get(kind))


ERRORS = {
    "SystemExit": "exit() ends the program: return a value instead",
    "RecursionError": "the function calls itself too often: use a loop",
    "MemoryError": "an array that grows without end, or an outer product of large arrays",
    "NameError": "a name that is not defined here: imports and helpers must be inside the marks",
    "PermissionError": "the solution reads or writes files, starts programs or opens connections: it need not",
}


def unchanged(before: np.ndarray, after: Any) -> bool:
    return (
        isinstance(after, np.ndarray)
        and after.shape == before.shape
        and after.dtype == before.dtype
        and np.ascontiguousarray(after).tobytes() == np.ascontiguousarray(before).tobytes()
    )


def in_this_process(assignment: Assignment) -> Code:
    """Calls the package that is imported here, as plain pytest does. What passes is copied as on the wire."""

    def perform(target: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        functions: list[Callable] = []
        frame = wire.pack({"args": args, "kwargs": kwargs}, functions)
        given = carried(frame, lambda i, arguments: carried(wire.pack(functions[i](*arguments))))
        return carried(worker.packed(worker.perform(assignment.probes_module, target, given["args"], given["kwargs"])))

    return Code(perform)


def carried(frame: bytes, call: Callable[[int, list], Any] | None = None) -> Any:
    return wire.receive(io.BytesIO(frame), call)
