"""Numeric derivatives with an error model: do a backward rule and the function itself agree?

For a function f, a cotangent u (the shape of f's output) and a direction v (the shape of its input) a right
rule gives <backward(u), v> = d/dh <u, f(x + h v)> at h = 0. The right side is measured with central
differences D(h) = <u, f(x + h v) - f(x - h v)> / 2h at two steps, combined so that their leading errors
cancel (Richardson):

    R = (4 D(h) - D(2h)) / 3 = derivative - h⁴ φ⁽⁵⁾/30 + ...        φ(h) = <u, f(x + h v)>

Two errors remain. *Truncation* falls with the step: D(h) and D(2h) differ by h² φ'''/2, and where derivatives
grow evenly with their order, R's relative error is about the square of D(h)'s. *Rounding* rises as the step
falls: each value of f carries a few ε = 2.2e-16, so R carries about ε |f| / h. With steps of 1e-3 of an
element's own size the first is some 1e-13 for a function of moderate curvature, the second some 1e-12; ``rtol
= 1e-7`` leaves five digits of slack and still tells a forgotten ``eps = 1e-5`` of a layer norm. Where a kink
or the edge of a domain lies within the step, the two differences disagree; then the step is divided by eight
until they agree, down to 3e-8. A rule is called wrong only if its residual stays the same at several steps:
what belongs to the difference, not to the rule, changes.

Elements of u and v have random signs and sizes in [1/2, 1]: no element is left out, nothing cancels by
symmetry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np

from minitorch_peft.autograd.random import generator

EPSILON = float(np.finfo(np.float64).eps)
ROUNDINGS = 64.0  # how many ε of its size a value of f, or what it was computed from, may be off
MASK = 1e6
FINER, COARSER, SHRINK = 6, 4, 8.0
CONSISTENT = 3  # a rule is wrong when this many steps in a row give the same residual

Verdict = Literal["agree", "disagree", "unsettled", "nonfinite", "shape"]


class Problem(Protocol):
    """A function of some float64 arrays, and the gradient that is claimed for it."""

    names: list[str]
    arrays: list[np.ndarray]  # where it is checked

    def value(self, arrays: Sequence[np.ndarray]) -> np.ndarray: ...

    def gradients(self, u: np.ndarray) -> list[Any]: ...


@dataclass(frozen=True)
class Tolerance:
    """``eps``: the first step, relative to an element's size; ``rtol`` and ``atol``: see :func:`compare`."""

    eps: float = 1e-3
    rtol: float = 1e-7
    atol: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A derivative along one direction, claimed and measured."""

    verdict: Verdict
    analytic: float
    residual: float  # numeric - analytic
    tolerance: float


@dataclass(frozen=True)
class Failure:
    """Which input's gradient failed, and with which cotangent."""

    verdict: Verdict
    which: int
    u: np.ndarray
    gradient: Any  # as the rule returned it


def check(problem: Problem, seed: int, tolerance: Tolerance) -> Failure | None:
    """Every input alone along one random direction, then all together with another, larger cotangent."""
    shape = problem.value(problem.arrays).shape
    rng = generator(seed, "gradcheck")
    directions = [random_direction(x, rng) for x in problem.arrays]
    u = random_cotangent(shape, rng)
    gradients = problem.gradients(u)
    for i in range(len(gradients)):
        failure = _check_input(problem, u, gradients, i, directions, tolerance)
        if failure is not None:
            return failure
    u = 3 * random_cotangent(shape, rng)
    gradients = problem.gradients(u)
    directions = [random_direction(x, rng) for x in problem.arrays]
    if all(_usable(g, x) for g, x in zip(gradients, problem.arrays, strict=True)):
        estimate = compare(problem, u, gradients, directions, tolerance)  # type: ignore[arg-type]
        if estimate.verdict == "agree":
            return None
    alone = (_check_input(problem, u, gradients, i, directions, tolerance) for i in range(len(gradients)))
    return next((failure for failure in alone if failure is not None), None)


def _check_input(
    problem: Problem,
    u: np.ndarray,
    gradients: list[Any],
    i: int,
    directions: list[np.ndarray],
    tol: Tolerance,
) -> Failure | None:
    if not is_gradient(gradients[i], problem.arrays[i]):
        return Failure("shape", i, u, gradients[i])
    if not _usable(gradients[i], problem.arrays[i]):
        return Failure("nonfinite", i, u, gradients[i])
    one = [d if i == j else None for j, d in enumerate(directions)]
    verdict = compare(problem, u, gradients, one, tol).verdict
    return None if verdict == "agree" else Failure(verdict, i, u, gradients[i])


def is_gradient(g: Any, x: np.ndarray) -> bool:
    """Has ``g`` the form of a gradient of ``x``? None stands for zeros."""
    return g is None or (isinstance(g, np.ndarray | np.generic) and g.shape == x.shape and g.dtype == x.dtype)


def _usable(g: Any, x: np.ndarray) -> bool:
    return g is None or (is_gradient(g, x) and bool(np.isfinite(g).all()))


def compare(
    problem: Problem,
    u: np.ndarray,
    gradients: list[np.ndarray | None],
    directions: Sequence[np.ndarray | None],
    tol: Tolerance,
) -> Estimate:
    """Hold the gradients to the measured derivative along ``directions`` (None: that input stays).

    They agree if |numeric - analytic| <= rtol max(‖g v‖, |numeric|) + atol + rounding, where rounding is
    ROUNDINGS · ε (‖u f‖ + ‖g x‖ + ‖u‖ (max |x| + h)) / h: f may be a difference of numbers as large as x.
    So what changes the output by less than 1e-11 of it, or of the input, passes for zero.
    """
    triples = zip(gradients, problem.arrays, directions, strict=True)
    claims = [(g, x, d) for g, x, d in triples if g is not None and d is not None]
    size = _norm(*(g * d for g, _, d in claims))
    slopes, largest = _norm(*(g * x for g, x, _ in claims)), _largest(problem.arrays)
    failed: list[Estimate] = []
    bounds: list[float] = []
    last = Estimate("unsettled", np.nan, np.nan, np.nan)
    for level in (*range(FINER), *range(-1, -COARSER - 1, -1)):  # coarser steps are for noisy functions
        step = tol.eps / SHRINK**level
        near, far = (_difference(problem, u, gradients, directions, h) for h in (step, 2 * step))
        reach = slopes + _norm(u) * (largest + step)  # the inputs are stepped: they are not all 0
        estimate, bound = _extrapolated(near, far, size, reach, step, tol)
        bounds.append(bound)
        if estimate.verdict == "unsettled":
            continue
        last = estimate
        # a residual that was too large before is not excused by the larger rounding of a smaller step
        persists = bool(failed) and _same_residual([failed[-1], last])
        if last.verdict == "agree" and not persists:
            return last
        failed.append(last)
        if len(failed) >= CONSISTENT and _same_residual(failed[-CONSISTENT:]):
            break
    wrong = len(failed) > 1 and _same_residual(failed[-CONSISTENT:])
    verdict: Verdict = "agree" if _vanishes(bounds[: CONSISTENT + 2]) else "disagree" if wrong else "unsettled"
    return Estimate(verdict, last.analytic, last.residual, last.tolerance)


def _extrapolated(
    near: tuple[float, float, float],
    far: tuple[float, float, float],
    size: float,
    reach: float,
    step: float,
    tol: Tolerance,
) -> tuple[Estimate, float]:
    """R, from the differences with ``step`` and twice that, against the claim; and a bound of the residual."""
    # BEGIN SOLUTION(task="1.8c")
    numeric, analytic = (4 * near[0] - far[0]) / 3, (4 * near[1] - far[1]) / 3
    residual = numeric - analytic
    scale = max(size, abs(numeric))
    allowed = tol.rtol * scale + tol.atol + ROUNDINGS * EPSILON * (near[2] + reach) / step
    # END SOLUTION
    gap = abs(far[0] - near[0]) / 3  # the error of D(h)
    truncation = min(gap, 10 * gap * gap / scale) if scale else gap
    settled = bool(np.isfinite(numeric)) and truncation <= allowed
    verdict: Verdict = "unsettled" if not settled else "agree" if abs(residual) <= allowed + truncation else "disagree"
    return Estimate(verdict, analytic, residual, allowed), abs(residual) + gap


def _vanishes(bounds: list[float]) -> bool:
    """Does the bound of the residual fall as fast as the step? Then it tends to 0, though there may be nothing to
    call it small by: f, its derivative and most inputs are 0, as for x y z at the origin."""
    return all(b <= 2 * a / SHRINK for a, b in pairwise(bounds))


def _same_residual(estimates: list[Estimate]) -> bool:
    residuals = [e.residual for e in estimates]
    return max(residuals) - min(residuals) <= 0.1 * min(map(abs, residuals))


def _difference(
    problem: Problem,
    u: np.ndarray,
    gradients: list[np.ndarray | None],
    directions: Sequence[np.ndarray | None],
    h: float,
) -> tuple[float, float, float]:
    """D(h), what the gradients say it is (for the steps as rounded), and ‖u f‖."""
    # BEGIN SOLUTION(task="1.8b")
    plus = [x if d is None else x + h * d for x, d in zip(problem.arrays, directions, strict=True)]
    minus = [x if d is None else x - h * d for x, d in zip(problem.arrays, directions, strict=True)]
    with np.errstate(all="ignore"):  # a step may leave the domain; then the next one is smaller
        high, low = problem.value(plus), problem.value(minus)
        rise = float(np.vdot(u, change(high, low)))
        claimed = sum(
            float(np.vdot(g, change(p, m)))
            for g, p, m, d in zip(gradients, plus, minus, directions, strict=True)
            if d is not None and g is not None
        )
        return rise / (2 * h), claimed / (2 * h), _norm(u * high)
    # END SOLUTION


def change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b, where equal infinities (a mask) differ by 0."""
    return np.where(a == b, 0.0, a - b)


def _norm(*arrays: np.ndarray) -> float:
    return float(np.sqrt(sum(float(np.sum(np.square(a[np.isfinite(a)]))) for a in map(np.asarray, arrays))))


def _largest(arrays: Sequence[np.ndarray]) -> float:
    """The largest absolute value, those of masks (-1e9, -inf) left out."""
    return max(float(np.abs(a).max(initial=0.0, where=np.abs(a) < MASK)) for a in arrays)


def step_sizes(x: np.ndarray) -> np.ndarray:
    """The size of each element: its absolute value, but at least the rms of all or 1 (1 if all are 0)."""
    finite = np.isfinite(x)
    rms = float(np.sqrt(np.mean(np.square(x[finite])))) if finite.any() else 0.0
    return np.where(finite, np.maximum(np.abs(x), min(rms, 1.0) or 1.0), 0.0)


def random_direction(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return random_cotangent(x.shape, rng) * step_sizes(x)


def random_cotangent(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random signs, sizes in [1/2, 1]."""
    # BEGIN SOLUTION(task="1.8a")
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.0, shape))
    # END SOLUTION


def sits_on_kink(problem: Problem, which: int, u: np.ndarray, element: int) -> bool:
    """Do the derivatives to the left and to the right of one element differ, however small the step?"""
    x = problem.arrays[which]
    unit = np.zeros(x.shape)
    unit.flat[element] = step_sizes(x).flat[element]

    def at(h: float) -> np.ndarray:
        return problem.value([x + h * unit if i == which else a for i, a in enumerate(problem.arrays)])

    def slopes(h: float) -> tuple[float, float]:
        return float(np.vdot(u, change(at(h), here))) / h, float(np.vdot(u, change(here, at(-h)))) / h

    here = at(0.0)
    (right, left), (finer_right, finer_left) = slopes(1e-5), slopes(1e-6)
    jump = abs(finer_right - finer_left)
    noise = ROUNDINGS * EPSILON * (_norm(u * here) + _norm(u) * _largest(problem.arrays)) / 1e-6
    settled = max(abs(right - finer_right), abs(left - finer_left)) <= 0.1 * jump
    return settled and jump > 0.01 * max(abs(finer_right), abs(finer_left)) + noise
