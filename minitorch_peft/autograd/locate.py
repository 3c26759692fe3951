"""Where a gradient goes wrong: the first operation of a graph whose own rule disagrees, and the elements."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitorch_peft.autograd.difference import (
    Failure,
    Problem,
    Tolerance,
    check,
    compare,
    random_direction,
    sits_on_kink,
    step_sizes,
)
from minitorch_peft.autograd.engine import topological_order
from minitorch_peft.autograd.function import Context, Function
from minitorch_peft.autograd.random import generator
from minitorch_peft.autograd.tensor import Tensor

COMPLETE = 512  # up to this many elements are measured one by one, of more only a sample
SAMPLE = 96


class Call:
    """One operation as it ran: forward again on moved inputs, backward on any cotangent."""

    def __init__(
        self,
        function: type[Function],
        inputs: Sequence[np.ndarray | None],
        needs: Sequence[bool],
        constants: dict[str, Any],
    ) -> None:
        self.function, self.inputs, self.constants = function, inputs, constants
        given = enumerate(zip(inputs, needs, strict=True))
        checked = {i: a for i, (a, need) in given if need and a is not None and a.dtype == np.float64}
        self.needs = tuple(i in checked for i in range(len(inputs)))
        self.positions = list(checked)
        self.names = [f"input {i}" for i in self.positions]
        self.arrays = list(checked.values())

    @property
    def operation(self) -> str:
        return self.function.__name__

    def with_constants(self, **constants: Any) -> Call:
        return Call(self.function, self.inputs, self.needs, {**self.constants, **constants})

    def value(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        inputs = list(self.inputs)
        for i, a in zip(self.positions, arrays, strict=True):
            inputs[i] = a
        return self._forward(Context(self.operation, (False,) * len(inputs)), inputs)

    def gradients(self, u: np.ndarray) -> list[Any]:
        ctx = Context(self.operation, self.needs)
        self._forward(ctx, self.inputs)
        result = self.function.backward(ctx, u.copy())
        result = result if isinstance(result, tuple) else (result,)
        return [result[i] for i in self.positions]

    def _forward(self, ctx: Context, inputs: Sequence[np.ndarray | None]) -> np.ndarray:
        # a generator among the constants must give the same numbers each time
        constants = {
            k: copy.deepcopy(v) if isinstance(v, np.random.Generator) else v for k, v in self.constants.items()
        }
        return np.asarray(self.function.forward(ctx, *inputs, **constants))


@contextmanager
def recording() -> Iterator[list[tuple[Any, ...]]]:
    """Inside, every operation that joins the graph is noted, in order."""
    outer, Context.tape = Context.tape, []
    try:
        yield Context.tape
    finally:
        Context.tape = outer


def calls_behind(root: Tensor, tape: list[tuple[Any, ...]]) -> list[Call]:
    """The recorded operations that ``root`` was computed with, in the order in which they ran."""
    nodes = {id(t.grad_fn) for t in topological_order(root)} if root.requires_grad else set()
    calls = []
    for node, tensors, constants in tape:
        if id(node) in nodes:
            inputs = [None if t is None else t.data for t in tensors]
            calls.append(Call(node.function, inputs, node.needs_input_grad, constants))
    return [call for call in calls if call.positions]


def first_wrong_call(calls: list[Call], seed: int, tolerance: Tolerance) -> tuple[Call, Failure, Elements] | None:
    """The first operation whose own rule is wrong; else the first on a kink, or that cannot be measured."""
    doubtful: dict[str, tuple[Call, Failure, Elements]] = {}
    for call in calls:
        failure = check(call, seed, tolerance)
        if failure is None:
            continue
        elements = measure(call, failure, tolerance)
        if failure.verdict in ("shape", "nonfinite") or elements.wrong.any():
            return call, failure, elements
        doubtful.setdefault("kink" if elements.kink.any() else "unsettled", (call, failure, elements))
    return doubtful.get("kink") or doubtful.get("unsettled")


@dataclass(frozen=True)
class Elements:
    """Some elements of one input (all of them if ``complete``): claimed and measured gradient."""

    flat: np.ndarray  # their flat indices
    analytic: np.ndarray
    numeric: np.ndarray
    wrong: np.ndarray
    kink: np.ndarray
    complete: bool

    def worst(self) -> int:
        """The flat index of the worst one: wrong before on a kink, then the largest difference."""
        distance = np.nan_to_num(np.abs(self.numeric - self.analytic), nan=np.inf)
        for chosen in (self.wrong, self.kink, np.ones_like(self.wrong)):
            if chosen.any():
                return int(self.flat[np.argmax(np.where(chosen, distance, -1))])
        return 0


def measure(problem: Problem, failure: Failure, tolerance: Tolerance) -> Elements:
    """Claimed and measured gradient element by element; of a large input the worst and a random sample."""
    x, g, u = problem.arrays[failure.which], failure.gradient, failure.u
    usable = g is not None and np.shape(g) == x.shape
    analytic = np.array(g, np.float64).reshape(-1) if usable else np.zeros(x.size)
    flat = _chosen(problem, failure, analytic.reshape(x.shape), tolerance)
    sizes = step_sizes(x).reshape(-1)
    numeric, wrong, kink = np.full(len(flat), np.nan), np.zeros(len(flat), bool), np.zeros(len(flat), bool)
    gradients: list[Any] = [None] * len(problem.arrays)
    finite = np.isfinite(analytic)
    gradients[failure.which] = np.where(finite, analytic, 0).reshape(x.shape)
    for k, i in enumerate(flat):
        if sizes[i] == 0:  # an element that is infinite does not move
            numeric[k] = analytic[i]
            continue
        direction = np.zeros(x.shape)
        direction.flat[i] = sizes[i]
        directions = [direction if j == failure.which else None for j in range(len(gradients))]
        estimate = compare(problem, u, gradients, directions, tolerance)
        agrees = estimate.verdict == "agree"
        numeric[k] = np.where(finite, analytic, 0)[i] + (0 if agrees else estimate.residual / sizes[i])
        kink[k] = not agrees and sits_on_kink(problem, failure.which, u, int(i))
        wrong[k] = (estimate.verdict == "disagree" and not kink[k]) or not finite[i]
    return Elements(flat, analytic[flat], numeric, wrong, kink, len(flat) == x.size)


def _chosen(problem: Problem, failure: Failure, gradient: np.ndarray, tolerance: Tolerance) -> np.ndarray:
    if gradient.size <= COMPLETE:
        return np.arange(gradient.size)
    rng = generator(0, "gradcheck", "sample")
    sample = rng.choice(gradient.size, SAMPLE, replace=False)
    return np.union1d(sample, _bisect(problem, failure, gradient, tolerance, rng))


def _bisect(
    problem: Problem, failure: Failure, gradient: np.ndarray, tolerance: Tolerance, rng: np.random.Generator
) -> np.ndarray:
    """One element of a large difference: halve the candidates, keep the half with the larger residual."""
    candidates = np.arange(gradient.size)
    gradients: list[Any] = [None] * len(problem.arrays)
    gradients[failure.which] = np.where(np.isfinite(gradient), gradient, 0)
    while len(candidates) > 1:
        halves = np.array_split(candidates, 2)
        residuals = []
        for half in halves:
            mask = np.zeros(gradient.size)
            mask[half] = 1
            direction = random_direction(problem.arrays[failure.which], rng) * mask.reshape(gradient.shape)
            directions = [direction if i == failure.which else None for i in range(len(gradients))]
            estimate = compare(problem, failure.u, gradients, directions, tolerance)
            agrees = estimate.verdict == "agree"
            residuals.append(0.0 if agrees else np.nan_to_num(abs(estimate.residual), nan=np.inf))
        candidates = halves[int(np.argmax(residuals))]
    return candidates
