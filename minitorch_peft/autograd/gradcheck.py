"""gradcheck: hold backward rules to the function that they claim to differentiate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Never

import numpy as np

from minitorch_peft.autograd.diagnose import Cause, diagnose
from minitorch_peft.autograd.difference import Failure, Tolerance, check
from minitorch_peft.autograd.function import Context, ContractError, checksum
from minitorch_peft.autograd.locate import Call, calls_behind, first_wrong_call, measure, recording
from minitorch_peft.autograd.report import GradcheckError, wrong_gradient
from minitorch_peft.autograd.tensor import Tensor, no_grad


def gradcheck(
    fn: Callable[..., Tensor],
    inputs: Tensor | Sequence[Any],
    eps: float = 1e-3,
    rtol: float = 1e-7,
    atol: float = 0.0,
    seed: int = 0,
    parameters: Mapping[str, Tensor] | Sequence[Tensor] = (),
) -> bool:
    """True if the gradients of ``fn(*inputs)`` are right; if not, GradcheckError says where and likely why.

    Every float64 input that requires a gradient is checked, and every one of ``parameters``: leaves that
    ``fn`` reaches by itself, such as ``dict(model.named_parameters())``. Other inputs are passed on as they
    are. ``fn`` returns one tensor of any shape.

    A random cotangent u is held against random directions v: <backward(u), v> must be the derivative of <u,
    fn(x + h v)> in h, measured by central differences with steps of ``eps`` times the size of each element,
    smaller ones where that is too far. The two may differ by ``rtol`` of the larger, plus ``atol``, plus the
    rounding of the difference; :mod:`minitorch_peft.autograd.difference` derives this. Summing the output, as
    many checkers do, is a cotangent of ones: it misses a softmax whose backward returns zeros. ``fn`` must
    give the same bits each time (freeze dropout), stay off kinks and leave its inputs alone: this is checked
    too.

    Raises GradcheckError, ValueError (nothing to check) and TypeError (not float64, or not a tensor).

    >>> import numpy as np, minitorch_peft as mp
    >>> x = mp.tensor(np.array([0.5, -2.0, 3.0]), requires_grad=True)
    >>> mp.gradcheck(lambda x: x * x, (x,))
    True
    >>> class Square(mp.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         ctx.save_for_backward(x)
    ...         return x * x
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         return g * ctx.saved[0]  # forgot the 2
    >>> try:
    ...     mp.gradcheck(Square.apply, (x,))
    ... except mp.GradcheckError as error:
    ...     print(error.operation, error.cause)
    Square factor
    """
    subject = Subject(fn, (inputs,) if isinstance(inputs, Tensor) else tuple(inputs), parameters)
    tolerance = Tolerance(eps, rtol, atol)
    with subject.isolated():
        try:
            subject.check_forward(seed, tolerance)
            failure = check(subject, seed, tolerance)
        except ContractError as error:
            _raise_broken_contract(subject, error, seed, tolerance)
        if failure is not None:
            _raise_wrong(subject, failure, seed, tolerance)
    return True


class Subject:
    """``fn`` with its leaves, as a problem: values under no_grad, gradients through the engine."""

    def __init__(self, fn: Callable[..., Tensor], inputs: tuple[Any, ...], parameters: Any) -> None:
        self.fn, self.inputs = fn, inputs
        self.leaves = _leaves(inputs, parameters)
        self.names = list(self.leaves)
        self.tensors = list(self.leaves.values())
        self.arrays = [t.data for t in self.tensors]
        self.watched = [x.data if isinstance(x, Tensor) else x for x in (*inputs, *self.tensors)]
        self.watched = [a for a in self.watched if isinstance(a, np.ndarray)]
        self.checksums = [checksum(a) for a in self.watched]

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Leaves keep their data and gradients; operations are watched for writes to what is not theirs."""
        before = [(t, t.data, t.grad) for t in self.tensors]
        debug, Context.debug = Context.debug, True
        try:
            with np.errstate(all="ignore"):  # what is not finite is reported, and steps may leave the domain
                yield
        finally:
            Context.debug = debug
            for t, data, grad in before:
                t.data, t.grad = data, grad

    def run(self) -> Tensor:
        out = self.fn(*self.inputs)
        if not isinstance(out, Tensor):
            raise TypeError(f"gradcheck: fn must return one Tensor, it returned {type(out).__name__}")
        if out.dtype != np.float64:
            raise TypeError(f"gradcheck: fn turned float64 inputs into {out.dtype}; keep float64 throughout")
        return out

    def record(self) -> tuple[Tensor, list[Call]]:
        with recording() as tape:
            out = self.run()
        return out, calls_behind(out, tape)

    def value(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        for t, a in zip(self.tensors, arrays, strict=True):
            t.data = a
        try:
            with no_grad():
                return self.run().data
        finally:
            for t, a in zip(self.tensors, self.arrays, strict=True):
                t.data = a

    def gradients(self, u: np.ndarray) -> list[Any]:
        out = self.run()
        for t in self.tensors:
            t.grad = None
        if out.requires_grad:
            out.backward(gradient=u)
        self.check_untouched("backward")
        return [t.grad for t in self.tensors]

    # -- what has to hold before a gradient can be judged --------------------------------------------------
    def check_forward(self, seed: int, tolerance: Tolerance) -> None:
        out = self.run()
        value = out.data.copy()
        self.check_untouched("forward")
        if not np.isfinite(value).all():
            self._raise_nonfinite(value)
        if not np.array_equal(self.run().data, value):
            self._raise_random()
        plain = self.value([np.array(a, order="C") for a in self.arrays])
        close = 1e-9 * float(np.abs(value).max(initial=0.0))
        if plain.shape != value.shape or not np.allclose(plain, value, rtol=0, atol=close):
            raise GradcheckError(
                "fn gives other values under no_grad(), or on contiguous copies of its inputs",
                cause="nondeterministic",
            )

    def check_untouched(self, phase: str) -> None:
        if [checksum(a) for a in self.watched] != self.checksums:
            raise GradcheckError(f"the {phase} pass changed an input in place: work on a copy", cause="mutates-input")

    def _raise_nonfinite(self, value: np.ndarray) -> Never:
        element = _index(int(np.flatnonzero(~np.isfinite(value))[0]), value.shape)
        _, calls = self.record()
        bad = next((c for c in calls if not np.isfinite(c.value(c.arrays)).all()), None)
        where = f"; the first operation with such an output is {bad.operation}" if bad else ""
        raise GradcheckError(
            f"the output is {value[element]} at {element}{where}: choose inputs inside the domain"
            " (and a large finite number to mask with)",
            operation=bad.operation if bad else None, element=element, cause="nonfinite",
        )  # fmt: skip

    def _raise_random(self) -> Never:
        _, calls = self.record()
        bad = next((c for c in calls if not np.array_equal(c.value(c.arrays), c.value(c.arrays), True)), None)
        where = f" ({bad.operation} draws numbers of its own)" if bad else ""
        raise GradcheckError(
            f"two calls of fn give different values{where}: freeze the noise (a fixed key, a saved mask)",
            operation=bad.operation if bad else None, cause="nondeterministic",
        )  # fmt: skip


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def _leaves(inputs: tuple[Any, ...], parameters: Any) -> dict[str, Tensor]:
    """What is checked, by name."""
    named = {f"input {i}": x for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad}
    given = parameters if isinstance(parameters, Mapping) else {f"parameter {i}": p for i, p in enumerate(parameters)}
    named |= {name: p for name, p in given.items() if p.requires_grad}
    leaves: dict[str, Tensor] = {}
    for name, t in named.items():
        if any(t is known for known in leaves.values()):  # the same tensor under two names, such as a tied weight
            continue
        if t.dtype != np.float64:
            raise TypeError(
                f"gradcheck: {name} is {t.dtype}; differences need float64, such as mp.tensor(array, dtype=np.float64)"
            )
        if not t.is_leaf:
            raise ValueError(f"gradcheck: {name} is not a leaf: pass tensors that no operation made")
        leaves[name] = t
    if not leaves:
        raise ValueError("gradcheck: nothing to check: no input and no parameter requires a gradient")
    return leaves


# -- what went wrong -----------------------------------------------------------------------------------------
def _raise_wrong(subject: Subject, failure: Failure, seed: int, tolerance: Tolerance) -> Never:
    name = subject.names[failure.which]
    out, calls = subject.record()
    found = first_wrong_call(calls, seed, tolerance)
    if found is not None:
        call, local, elements = found
        raise wrong_gradient(call, call, name, local, elements, diagnose(call, local, elements, tolerance))
    elements = measure(subject, failure, tolerance)
    cause = diagnose(subject, failure, elements, tolerance)
    if elements.wrong.any():
        cause = Cause("outside-graph", _outside(out, calls, cause))
    raise wrong_gradient(subject, None, name, failure, elements, cause)


def _outside(out: Tensor, calls: list[Call], cause: Cause) -> str:
    if not out.requires_grad:
        return "the output has no graph: it was computed from .data, .numpy(), detach(), or under no_grad()"
    names = ", ".join(dict.fromkeys(c.operation for c in calls))
    return (
        f"each operation's own rule is right ({names}), so a path is missing from the graph: look for .data, "
        f".numpy(), detach() or no_grad() in fn; {cause.text}"
    )


def _raise_broken_contract(subject: Subject, error: ContractError, seed: int, tolerance: Tolerance) -> Never:
    """A wrong shape is looked at more closely; everything else says enough by itself."""
    if error.cause == "shape":
        _, calls = subject.record()
        wrong = [c for c in calls if c.operation == error.operation]
        found = first_wrong_call(wrong, seed, tolerance)
        if found is not None:
            call, local, elements = found
            cause = diagnose(call, local, elements, tolerance)
            raise wrong_gradient(call, call, None, local, elements, cause) from error
    raise GradcheckError(
        str(error), operation=error.operation, input_index=error.input_index, cause=error.cause
    ) from error
