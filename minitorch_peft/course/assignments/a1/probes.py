"""What runs beside the solution: rules of single operations, small graphs, the checker's parts. Knows no answers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from minitorch_peft.autograd import difference, engine
from minitorch_peft.autograd.function import Context, Function
from minitorch_peft.autograd.random import generator
from minitorch_peft.autograd.tensor import Tensor


# -- 1.1, 1.2: one operation -------------------------------------------------------------------------------------------
def gradients(
    operation: str, inputs: list[np.ndarray], g: np.ndarray, needs: list[bool], constants: dict[str, Any]
) -> list[Any]:
    """The forward and the backward rule of one operation ("module.Class" of ops), as the engine would run them."""
    module, _, name = operation.partition(".")
    function = getattr(importlib.import_module(f"minitorch_peft.ops.{module}"), name)
    ctx = Context(name, tuple(needs))
    function.forward(ctx, *inputs, **{k: tuple(v) if isinstance(v, list) else v for k, v in constants.items()})
    result = function.backward(ctx, g)
    return list(result) if isinstance(result, tuple) else [result]


# -- 1.7: graphs -------------------------------------------------------------------------------------------------------
class Add(Function):
    """y = a + b."""

    runs: list[int] = []  # noqa: RUF012 (the numbers of the steps whose rules ran)

    @staticmethod
    def forward(ctx: Any, *arrays: np.ndarray, number: int) -> np.ndarray:
        ctx.number = number
        return arrays[0] + arrays[1]

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> Any:
        Add.runs.append(ctx.number)
        return g, g


class Mean(Add):
    """y = (a + b) / 2; one new array for both inputs."""

    @staticmethod
    def forward(ctx: Any, *arrays: np.ndarray, number: int) -> np.ndarray:
        ctx.number = number
        return (arrays[0] + arrays[1]) / 2

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> Any:
        Add.runs.append(ctx.number)
        half = g / 2
        return half, half


class Mul(Add):
    """y = a b."""

    @staticmethod
    def forward(ctx: Any, *arrays: np.ndarray, number: int) -> np.ndarray:
        ctx.number = number
        a, b = arrays
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> Any:
        Add.runs.append(ctx.number)
        (a, b), (da, db) = ctx.saved, ctx.needs_input_grad
        return g * b if da else None, g * a if db else None


class Sin(Add):
    """y = sin a."""

    @staticmethod
    def forward(ctx: Any, *arrays: np.ndarray, number: int) -> np.ndarray:
        ctx.number = number
        ctx.save_for_backward(arrays[0])
        return np.sin(arrays[0])

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> Any:
        Add.runs.append(ctx.number)
        return g * np.cos(ctx.saved[0])


class Same(Add):
    """y = a."""

    @staticmethod
    def forward(ctx: Any, *arrays: np.ndarray, number: int) -> np.ndarray:
        ctx.number = number
        return arrays[0].copy()

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> Any:
        Add.runs.append(ctx.number)
        return g


class First(Same):
    """y = a, whatever b is: b gets no gradient."""

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> Any:
        Add.runs.append(ctx.number)
        return g, None


OPERATIONS: dict[str, type[Function]] = {
    "add": Add, "mean": Mean, "mul": Mul, "sin": Sin, "same": Same, "first": First,
}  # fmt: skip


def graph(leaves: list[np.ndarray], trainable: list[bool], steps: list[list[Any]]) -> list[Tensor]:
    """The leaves, then what each step ("add", 0, 1) makes of earlier tensors."""
    tensors = [Tensor(a.copy(), requires_grad=t) for a, t in zip(leaves, trainable, strict=True)]
    for number, (name, *operands) in enumerate(steps):
        tensors.append(OPERATIONS[name].apply(*(tensors[i] for i in operands), number=number))
    return tensors


def backward(
    leaves: list[np.ndarray],
    trainable: list[bool],
    steps: list[list[Any]],
    passes: list[list[Any]],
    refused: bool = False,
) -> dict[str, Any]:
    """Build a graph and run backward from (tensor, gradient) for each of ``passes``.

    ``error``: where the last of them may be ``refused``, the type of what it raised, or None. ``before`` and ``after``:
    the leaves' gradients before and after the last of them. ``inner``: how many other tensors have a gradient.
    ``runs``: the steps whose rules ran.
    """
    tensors = graph(leaves, trainable, steps)
    Add.runs = []
    error, before = None, []
    for i, (root, gradient) in enumerate(passes):
        before = [_copy(t.grad) for t in tensors[: len(leaves)]]
        try:
            tensors[root].backward(gradient)
        except Exception as caught:
            if not refused or i + 1 < len(passes) or isinstance(caught, NotImplementedError):
                raise
            error = type(caught).__name__
    return {
        "error": error,
        "before": before,
        "after": [_copy(t.grad) for t in tensors[: len(leaves)]],
        "inner": sum(x is not None and x.grad is not None for t in tensors[len(leaves) :] for x in (t, t.output)),
        "runs": Add.runs,
    }


def order(leaves: list[np.ndarray], trainable: list[bool], steps: list[list[Any]], root: int) -> list[int]:
    """topological_order, each tensor by its number in the graph (-1: one that is not in it)."""
    tensors = graph(leaves, trainable, steps)
    numbers = {id(t): i for i, t in enumerate(tensors)} | {id(t.output): i for i, t in enumerate(tensors) if t.output}
    return [numbers.get(id(t), -1) for t in engine.topological_order(tensors[root])]


def chain(x: np.ndarray, length: int, g: np.ndarray) -> np.ndarray:
    """The gradient of x for y = x, then ``length`` times y = y + x."""
    leaf = Tensor(x.copy(), requires_grad=True)
    y = leaf
    for number in range(length):
        y = Add.apply(y, leaf, number=number)
    y.backward(g)
    return np.asarray(leaf.grad)


def _copy(grad: Any) -> Any:
    return None if grad is None else np.array(grad)


# -- 1.8: the checker --------------------------------------------------------------------------------------------------
class Claim:
    """A function and the gradient that is claimed for it; both are elsewhere."""

    def __init__(self, arrays: list[np.ndarray], value: Callable, gradients: Callable) -> None:
        self.names = [f"input {i}" for i in range(len(arrays))]
        self.arrays = arrays
        self.value_of, self.gradients_for = value, gradients

    def value(self, arrays: Any) -> np.ndarray:
        return self.value_of(list(arrays))

    def gradients(self, u: np.ndarray) -> list[Any]:
        return self.gradients_for(u)


def verdict(arrays: list[np.ndarray], value: Callable, gradients: Callable, seed: int) -> list[Any] | None:
    """What the checker says of a claim: None, or its verdict and the number of the input that it blames."""
    with np.errstate(all="ignore"):  # as gradcheck does
        failure = difference.check(Claim(arrays, value, gradients), seed, difference.Tolerance())
    return None if failure is None else [failure.verdict, failure.which]


def cotangents(shape: list[int], seed: int, count: int) -> list[np.ndarray]:
    """``count`` cotangents, drawn one after the other."""
    rng = generator(seed, "cotangents")
    return [np.asarray(difference.random_cotangent(tuple(shape), rng)) for _ in range(count)]


def measured(
    arrays: list[np.ndarray],
    value: Callable,
    u: np.ndarray,
    gradients: list[Any],
    directions: list[Any],
    h: float,
) -> list[float]:
    """The three numbers of _difference."""
    claim = Claim(arrays, value, lambda u: gradients)
    return [float(n) for n in difference._difference(claim, u, gradients, directions, h)]


def extrapolated(
    near: list[float], far: list[float], size: float, reach: float, step: float, rtol: float, atol: float
) -> dict[str, float]:
    """The numbers of _extrapolated's estimate."""
    tolerance = difference.Tolerance(rtol=rtol, atol=atol)
    estimate, _ = difference._extrapolated(tuple(near), tuple(far), size, reach, step, tolerance)  # type: ignore[arg-type]
    return {
        "analytic": float(estimate.analytic),
        "residual": float(estimate.residual),
        "tolerance": float(estimate.tolerance),
    }
