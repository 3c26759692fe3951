"""Why a gradient is wrong: a list of the usual mistakes, each with the experiment that tells it.

A cause is a short code, for programs, and a sentence that says what to look for. The experiments compare the
claimed gradient ``a`` with the measured one ``n`` (after turning, scaling, rolling it ...), run the rule with
other cotangents, or use the measured Jacobian ``J`` (outputs, elements of the input), for which a right rule
gives ``Jᵀ u``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from minitorch_peft.autograd.difference import (
    Failure,
    Problem,
    Tolerance,
    change,
    check,
    random_cotangent,
    step_sizes,
)
from minitorch_peft.autograd.locate import Call, Elements, measure
from minitorch_peft.autograd.random import generator

CLOSE = 1e-5  # of the largest element: measured gradients are some 1e-8 exact


@dataclass(frozen=True)
class Cause:
    code: str
    text: str


@dataclass
class Evidence:
    """What the experiments look at: one input of one problem that failed."""

    problem: Problem
    failure: Failure
    elements: Elements
    tolerance: Tolerance
    others: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def x(self) -> np.ndarray:
        return self.problem.arrays[self.failure.which]

    @property
    def u(self) -> np.ndarray:
        return self.failure.u

    @cached_property
    def claimed(self) -> np.ndarray:
        return self.elements.analytic[~self.elements.kink]

    @cached_property
    def measured(self) -> np.ndarray:
        return self.elements.numeric[~self.elements.kink]

    @cached_property
    def a(self) -> np.ndarray:
        """The claimed gradient as it came (its shape may be wrong)."""
        g = self.failure.gradient
        return np.zeros(self.x.shape) if g is None else np.asarray(g)

    @cached_property
    def n(self) -> np.ndarray | None:
        """The whole measured gradient, nan on kinks; None for a large input."""
        if not self.elements.complete:
            return None
        return np.where(self.elements.kink, np.nan, self.elements.numeric).reshape(self.x.shape)

    @cached_property
    def jacobian(self) -> np.ndarray | None:
        """J (outputs, elements) by central differences; None where it would be large."""
        if not self.elements.complete or self.x.size * self.u.size > 1 << 18:
            return None
        columns = []
        for unit in np.eye(self.x.size) * step_sizes(self.x).reshape(-1):
            ends = [
                self.problem.value(
                    [a + h * unit.reshape(a.shape) if i == self.failure.which else a
                     for i, a in enumerate(self.problem.arrays)]
                )
                for h in (1e-4, -1e-4)
            ]  # fmt: skip
            columns.append(change(*ends).reshape(-1) / (2e-4 * unit.max()))
        return np.stack(columns, axis=1)

    def rule(self, u: np.ndarray) -> np.ndarray:
        g = self.problem.gradients(u)[self.failure.which]
        return np.zeros(self.x.shape) if g is None else np.asarray(g)

    def measured_for(self, which: int) -> np.ndarray | None:
        """The whole measured gradient of another input."""
        if which not in self.others:
            failure = Failure("disagree", which, self.u, self.problem.gradients(self.u)[which])
            elements = measure(self.problem, failure, self.tolerance)
            if not elements.complete:
                return None
            self.others[which] = elements.numeric.reshape(self.problem.arrays[which].shape)
        return self.others[which]


def same(p: np.ndarray, q: np.ndarray, exact: float = CLOSE) -> bool:
    """Equal within the accuracy of a measurement, and not just both zero; nan (a kink) matches all."""
    if p.shape != q.shape:
        return False
    known = np.isfinite(p) & np.isfinite(q)
    if not known.any():
        return False
    top = np.abs(q[known]).max()
    return bool(top > 0 and np.abs(p[known] - q[known]).max() <= exact * top)


def diagnose(problem: Problem, failure: Failure, elements: Elements, tolerance: Tolerance) -> Cause:
    """The first of the usual mistakes whose experiment succeeds."""
    evidence = Evidence(problem, failure, elements, tolerance)
    if failure.verdict == "shape":
        return _wrong_form(evidence)
    if failure.verdict == "nonfinite":
        bad = int(np.flatnonzero(~np.isfinite(evidence.a))[0])
        return Cause("nonfinite", f"it is {evidence.a.reshape(-1)[bad]} where the function is finite")
    if not elements.wrong.any():
        return _no_wrong_element(elements)
    for experiment in EXPERIMENTS:
        cause = experiment(evidence)
        if cause is not None:
            return cause
    return Cause("unknown", _region(evidence) or "none of the usual mistakes explains it")


def _no_wrong_element(elements: Elements) -> Cause:
    if elements.kink.any():
        return Cause("kink", "the point sits on a kink (left and right derivative differ): move the inputs off it")
    return Cause(
        "unsettled",
        "the numeric derivative does not settle as the step shrinks: the function is discontinuous here, or "
        "its values carry noise (a float32 cast, a cancellation); move the inputs, or pass atol=",
    )


def _wrong_form(e: Evidence) -> Cause:
    """The gradient has not its input's shape and dtype."""
    if not isinstance(e.failure.gradient, np.ndarray | np.generic):
        return Cause("shape", f"it is a {type(e.failure.gradient).__name__}, not an array")
    form = f"it has shape {e.a.shape}, the input {e.x.shape}"
    if e.a.shape == e.x.shape:
        return Cause("dtype", f"it is {e.a.dtype}, the input {e.x.dtype}: the rule changed the dtype")
    if e.n is not None:
        if e.a.size == e.n.size and same(e.a.reshape(e.n.shape), e.n):
            return Cause("shape", f"{form}: the numbers are right, reshape them")
        for axes in _subsets(e.a.ndim):
            total = e.a.sum(axes)
            if total.size == e.n.size and same(total.reshape(e.n.shape), e.n):
                where = " and ".join(map(str, axes))
                return Cause("not-summed", f"{form}: sum over axis {where}, which the input was broadcast along")
        for axes in itertools.permutations(range(e.n.ndim)):
            if same(e.a, e.n.transpose(axes)):
                return Cause("transposed", f"{form}: its axes are permuted by {axes}")
    return Cause("shape", form)


def _subsets(ndim: int) -> Iterator[tuple[int, ...]]:
    for r in range(1, ndim + 1):
        yield from itertools.combinations(range(ndim), r)


# -- experiments, the most telling first -------------------------------------------------------------------
def _random_rule(e: Evidence) -> Cause | None:
    if not np.array_equal(e.rule(e.u), e.rule(e.u), equal_nan=True):
        text = "two runs of backward differ: it draws numbers of its own, where those of forward are due"
        return Cause("random-backward", text)
    return None


def _zero(e: Evidence) -> Cause | None:
    if e.failure.gradient is None:
        return Cause("zero", "backward returns None for an input that does influence the output")
    return None if e.claimed.any() else Cause("zero", "backward returns zeros")


def _cotangent(e: Evidence) -> Cause | None:
    """A right rule is linear in the gradient that comes in."""
    u, other = e.u, random_cotangent(e.u.shape, generator(0, "gradcheck", "other"))
    at_u, at_other = e.rule(u), e.rule(other)
    if same(e.rule(2 * u), at_u) and same(at_other, at_u):
        text = "the incoming gradient g is ignored: another g gives the same result"
        return Cause("ignores-cotangent", text)
    if not same(e.rule(2 * u), 2 * at_u) or not same(e.rule(u + other), at_u + at_other):
        text = "backward is not linear in the incoming gradient g: twice g does not give twice as much"
        return Cause("nonlinear", text)
    return None


def _factor(e: Evidence) -> Cause | None:
    a, n = e.claimed, e.measured
    c = _ratio(a, n)
    if not same(a, c * n):
        return None
    known = np.isfinite(n)
    nice = Fraction(c).limit_denominator(64)
    rational = abs(c - nice) <= 1e-6 * abs(c)
    if not rational and np.count_nonzero(np.abs(n[known]) > 1e-3 * np.abs(n[known]).max()) < 3:
        return None  # two numbers are easily in some ratio
    if rational and nice == -1:
        return Cause("sign", "the sign is wrong: it is minus what it should be")
    shown = str(nice) if rational else f"{c:.6g}"
    return Cause("factor", f"a constant factor: it is {shown} times what it should be{_sizes(e, c)}")


def _sizes(e: Evidence, c: float) -> str:
    """Is the factor the size of an axis, or one over it?"""
    sizes = {f"axis {i} of the input": s for i, s in enumerate(e.x.shape)}
    sizes |= {"the input": e.x.size, "the output": e.u.size}
    for name, size in sizes.items():
        if size > 2 and (np.isclose(c, size) or np.isclose(c, 1 / size)):
            missing = "a division is missing" if c > 1 else "a sum became a mean"
            return f" ({size} is the size of {name}: perhaps {missing})"
    return ""


def _swapped_inputs(e: Evidence) -> Cause | None:
    mine = e.failure.which
    for j, array in enumerate(e.problem.arrays):
        if j == mine or array.shape != e.x.shape or e.n is None:
            continue
        theirs = e.measured_for(j)
        if theirs is not None and same(e.a, theirs):
            text = f"it is the gradient of {e.problem.names[j]}: are the two swapped?"
            return Cause("swapped-inputs", text)
    return None


def _transposed(e: Evidence) -> Cause | None:
    if e.n is None:
        return None
    for axes in itertools.permutations(range(e.n.ndim)) if e.n.ndim <= 4 else ():
        if same(e.a, e.n.transpose(axes)):
            return Cause("transposed", f"it is transposed: its axes are permuted by {axes}")
    square = e.jacobian is not None and e.u.size == e.x.size
    if square and same(e.a.reshape(-1), e.jacobian @ e.u.reshape(-1)):  # type: ignore[operator]
        return Cause(
            "transposed",
            "it applies the operation to g again (J g) where its transpose is due (Jᵀ g): undo the "
            "operation, in the opposite order or direction",
        )
    return None


def _moved(e: Evidence) -> Cause | None:
    """The right numbers, in the wrong places along an axis."""
    if e.n is None:
        return None
    for axis in range(e.n.ndim):
        if same(e.a, np.flip(e.n, axis)):
            return Cause("permuted", f"it is reversed along axis {axis}")
        for k, shifted in _shifts(e.n, axis):
            if same(e.a, shifted):
                text = f"it is shifted by {k} along axis {axis}: an index is off, or parts are swapped"
                return Cause("shifted", text)
    if not np.isnan(e.n).any() and same(np.sort(e.a, None), np.sort(e.n, None)):
        return Cause("permuted", "its numbers are right but stand in the wrong places")
    return None


def _shifts(n: np.ndarray, axis: int) -> Iterator[tuple[int, np.ndarray]]:
    """n rolled by k, and n shifted by k up to the half of it; whatever enters then (nan) is not compared."""
    size = n.shape[axis]
    for k in sorted(range(1 - size, size), key=abs):
        if k:
            rolled = np.roll(n, k, axis)
            yield k, rolled
            if abs(k) <= size // 2:
                entering = np.arange(size)[:k] if k > 0 else np.arange(size)[k:]
                shifted = rolled.copy()
                shifted[(slice(None),) * axis + (entering,)] = np.nan
                yield k, shifted


def _one_slice(e: Evidence) -> Cause | None:
    """Only one slice of the output reaches the input, where all should be summed."""
    if e.jacobian is None:
        return None
    for axis in range(e.u.ndim):
        for at in (0, -1):
            masked = np.zeros_like(e.u)
            index = tuple(at if i == axis else slice(None) for i in range(e.u.ndim))
            masked[index] = e.u[index]
            if e.u.shape[axis] > 1 and same(e.a.reshape(-1), e.jacobian.T @ masked.reshape(-1)):
                text = f"only slice {at} of the output's axis {axis} counts: sum over that axis"
                return Cause("not-summed", text)
    return None


def _repeated_index(e: Evidence) -> Cause | None:
    """Only elements that were chosen several times are wrong."""
    if e.jacobian is None or not isinstance(e.problem, Call) or not _has_indices(e.problem):
        return None
    uses = (np.abs(e.jacobian) > 1e-9).sum(0)
    if (uses[e.elements.wrong] > 1).all():
        text = "an index occurs several times: add its gradients up, do not overwrite (np.add.at)"
        return Cause("repeated-index", text)
    return None


def _has_indices(call: Call) -> bool:
    def indices(v: Any) -> bool:
        if isinstance(v, tuple | list):
            return any(indices(item) for item in v)
        return isinstance(v, np.ndarray) and v.dtype.kind in "iu"

    return any(indices(v) for v in (*call.inputs, *call.constants.values()))


def _wrong_axis(e: Evidence) -> Cause | None:
    """The rule would be right if the operation worked along another axis."""
    if not isinstance(e.problem, Call):
        return None
    for name in ("dim", "dims", "axis", "axes"):
        now = e.problem.constants.get(name)
        for other in _other_axes(now, e.x.ndim):
            try:
                alternative = e.problem.with_constants(**{name: other})
                right = check(alternative, 0, e.tolerance) is None
            except (ValueError, IndexError, TypeError):  # the operation cannot work along that axis
                continue
            if right:
                text = f"with {name}={other} the rule would be right: it works along a wrong axis"
                return Cause("wrong-axis", text)
    return None


def _other_axes(now: Any, ndim: int) -> Iterator[Any]:
    if isinstance(now, int | np.integer):
        yield from (d for d in range(ndim) if d != now % ndim)
    elif isinstance(now, tuple) and 0 < len(now) < ndim and all(isinstance(d, int) for d in now):
        yield from (d for d in itertools.combinations(range(ndim), len(now)) if set(d) != {i % ndim for i in now})


def _masked(e: Evidence) -> Cause | None:
    """Wrong only where the input has no influence, or only where nothing was claimed, or only in sign."""
    a, n, wrong = e.elements.analytic, e.elements.numeric, e.elements.wrong
    small = CLOSE * np.nanmax(np.abs(n), initial=0.0)
    if not wrong.all() and np.all(np.abs(n[wrong]) <= small):
        text = "elements without influence on the output get a gradient: a mask or a condition is forgotten"
        return Cause("leaks", text)
    if not wrong.all() and not a[wrong].any():
        return Cause("misses-elements", _region(e) or "some elements that count get no gradient")
    if same(np.abs(e.claimed), np.abs(e.measured)):
        return Cause("sign", "the sign is wrong at some elements")
    return None


def _missing_term(e: Evidence) -> Cause | None:
    """The difference is the incoming gradient itself."""
    if e.n is None or e.u.shape != e.n.shape:
        return None
    if same(e.n - e.a, e.u):
        return Cause("missing-term", "g itself is missing as a term (a residual path, a product rule)")
    if same(e.a - e.n, e.u):
        return Cause("missing-term", "g itself is one term too many")
    return None


def _elementwise_factor(e: Evidence) -> Cause | None:
    if not isinstance(e.problem, Call) or e.n is None:
        return None
    known = {f"input {i}": v for i, v in enumerate(e.problem.inputs) if v is not None and v.dtype.kind == "f"}
    known["the output"] = e.problem.value(e.problem.arrays)
    for name, w in known.items():
        try:
            w = np.broadcast_to(w, e.n.shape)
        except ValueError:
            continue
        for factor, label in ((w, name), (w * w, f"{name} squared")):
            for p, q, verb in ((e.n, e.a * factor, "multiplied"), (e.a, e.n * factor, "divided")):
                c = _ratio(p, q)
                if same(p, c * q):
                    constant = "" if np.isclose(c, 1, rtol=1e-6) else " and a constant"
                    return Cause("elementwise-factor", f"it has to be {verb} by {label}{constant}")
    return None


def _ratio(p: np.ndarray, q: np.ndarray) -> float:
    """The c for which c q comes closest to p."""
    known = np.isfinite(p) & np.isfinite(q)
    norm = float(np.vdot(q[known], q[known]))
    return float(np.vdot(q[known], p[known])) / norm if norm else 0.0


def _missing_sum(e: Evidence) -> Cause | None:
    """Along one axis the difference is constant, or a constant times the output, or linear in the input."""
    if e.n is None or np.isnan(e.n).any():
        return None
    ones, out = np.ones_like(e.n), e.problem.value(e.problem.arrays)
    terms: dict[str, list[np.ndarray]] = {"the same everywhere": [ones]}
    if out.shape == e.n.shape:
        terms["a multiple of the output"] = [out]
    terms["a straight line in the input"] = [ones, e.x]
    for (text, basis), axis in itertools.product(terms.items(), range(e.n.ndim)):
        if e.n.shape[axis] >= len(basis) + 2 and _spanned(e.a - e.n, basis, axis):
            sentence = f"along axis {axis} the difference is {text}: a sum or mean over it is missing"
            return Cause("missing-sum", sentence)
    return None


def _spanned(difference: np.ndarray, basis: list[np.ndarray], axis: int) -> bool:
    """Is each line of ``difference`` along ``axis`` a combination of those of ``basis``?"""
    size = difference.shape[axis]
    rows, *lines = (np.moveaxis(b, axis, -1).reshape(-1, size) for b in (difference, *basis))
    rest = []
    for i, row in enumerate(rows):
        matrix = np.stack([line[i] for line in lines], axis=1)
        rest.append(row - matrix @ np.linalg.lstsq(matrix, row, rcond=None)[0])
    return float(np.abs(rest).max()) <= CLOSE * float(np.abs(difference).max())


def _region(e: Evidence) -> str:
    """Where the wrong elements are, if they fill some places of an axis only."""
    if not e.elements.complete:
        return ""
    wrong = e.elements.wrong.reshape(e.x.shape)
    for axis, size in enumerate(e.x.shape):
        places = np.flatnonzero(wrong.any(tuple(i for i in range(wrong.ndim) if i != axis)))
        if len(places) < size:
            shown = ", ".join(map(str, places[:8])) + (", ..." if len(places) > 8 else "")
            return f"it is wrong only at {shown} of axis {axis} (size {size})"
    return ""


EXPERIMENTS: tuple[Callable[[Evidence], Cause | None], ...] = (
    _random_rule,
    _zero,
    _cotangent,
    _factor,
    _swapped_inputs,
    _transposed,
    _moved,
    _one_slice,
    _repeated_index,
    _masked,
    _missing_term,
    _wrong_axis,
    _elementwise_factor,
    _missing_sum,
)
