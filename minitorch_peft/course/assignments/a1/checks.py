"""What must hold of A1's solutions. Expected gradients come from complex steps: no rule is written down here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.special
from hypothesis import strategies as st

from minitorch_peft.course.checks import Code, Variant, check
from minitorch_peft.course.expect import along, close, require, vjp
from minitorch_peft.testing import arrays, shapes

Array = np.ndarray
Draw = Callable[[st.SearchStrategy], Any]


def subsets(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Some of ``count`` axes, at least one (none where there is none)."""
    if not count:
        return st.just(())
    return st.sets(st.integers(0, count - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


def row_shapes(max_side: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Rows of at least two elements, with up to two axes in front."""
    return st.tuples(shapes(0, 2, 1, max_side), st.integers(2, max_side)).map(lambda s: (*s[0], s[1]))


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(st.none(), strategy)


# -- 1.1 Expand, sum and mean ------------------------------------------------------------------------------------------
@st.composite
def expanded(draw: Draw, max_side: int) -> tuple[tuple[int, ...], Array]:
    """A shape, and a gradient of what it was expanded to."""
    large = draw(shapes(0, 3, 1, max_side))
    small = tuple(n if draw(st.booleans()) else 1 for n in large)[draw(st.integers(0, len(large))) :]
    return small, draw(arrays(large))


@check("1.1", "an expanded element gets what all of its copies get", given=lambda v: {"case": expanded(v.max_side)})
def expanded_elements(code: Code, case: tuple[tuple[int, ...], Array]) -> None:
    shape, g = case
    expected = vjp(lambda x: np.broadcast_to(x, g.shape), np.zeros(shape), g)
    close(code("ops.shape:sum_to_shape", g, shape), expected, f"sum_to_shape(g of shape {g.shape}, {shape})")


@st.composite
def reduced(draw: Draw, max_side: int) -> dict[str, Any]:
    """An array, axes to reduce, and a gradient of the result."""
    x = draw(arrays(shapes(0, 3, 1, max_side)))
    dims, keepdim = draw(subsets(x.ndim)), draw(st.booleans())
    return {"x": x, "dims": dims, "keepdim": keepdim, "g": draw(arrays(x.sum(axis=dims, keepdims=keepdim).shape))}


@check("1.1", "the gradient of a sum", given=lambda v: {"case": reduced(v.max_side)})
def sums(code: Code, case: dict[str, Any]) -> None:
    _reduction(code, "reduction.Sum", np.sum, **case)


@check("1.1", "the gradient of a mean", given=lambda v: {"case": reduced(v.max_side)})
def means(code: Code, case: dict[str, Any]) -> None:
    _reduction(code, "reduction.Mean", np.mean, **case)


def _reduction(code: Code, name: str, f: Callable, x: Array, dims: tuple[int, ...], keepdim: bool, g: Array) -> None:
    (dx,) = code("probes:gradients", name, [x], g, [True], {"dims": dims, "keepdim": keepdim})
    expected = vjp(lambda x: f(x, axis=dims, keepdims=keepdim), x, g)
    close(dx, expected, f"{name}.backward for x of shape {x.shape}, dims={dims}, keepdim={keepdim}")


@check("1.1", "float32 stays float32")
def expand_float32(code: Code) -> None:
    g = np.arange(6, dtype=np.float32).reshape(2, 3)
    close(code("ops.shape:sum_to_shape", g, (3,)), np.array([3, 5, 7], np.float32), "sum_to_shape(g, (3,))", 1e-6)
    constants = {"dims": (0,), "keepdim": False}
    for name, share in (("Sum", 1.0), ("Mean", 0.5)):
        (dx,) = code("probes:gradients", f"reduction.{name}", [g], g[0], [True], constants)
        close(dx, np.stack([g[0], g[0]]) * np.float32(share), f"{name}.backward", 1e-6)


# -- 1.2 The matrix product --------------------------------------------------------------------------------------------
@st.composite
def factors(draw: Draw, max_side: int) -> tuple[Array, Array, Array]:
    batch, (m, k, n) = draw(shapes(0, 2, 1, 3)), draw(st.tuples(*[st.integers(1, max_side)] * 3))
    return draw(arrays((*batch, m, k))), draw(arrays((*batch, k, n))), draw(arrays((*batch, m, n)))


@check("1.2", "both gradients, with any batch axes", given=lambda v: {"case": factors(v.max_side)})
def products(code: Code, case: tuple[Array, Array, Array]) -> None:
    a, b, g = case
    got = _two(code("probes:gradients", "matmul.MatMul", [a, b], g, [True, True], {}))
    close(got[0], vjp(lambda a: a @ b, a, g), f"the gradient of A {a.shape}, B {b.shape}")
    close(got[1], vjp(lambda b: a @ b, b, g), f"the gradient of B {b.shape}, A {a.shape}")


@check(
    "1.2",
    "nothing is computed for a frozen input",
    given=lambda v: {"case": factors(v.max_side), "first": st.booleans()},
)
def frozen_factor(code: Code, case: tuple[Array, Array, Array], first: bool) -> None:
    a, b, g = case
    got = _two(code("probes:gradients", "matmul.MatMul", [a, b], g, [first, not first], {}))
    trained, frozen = (got[0], got[1]) if first else (got[1], got[0])
    require(frozen is None, "an input that needs no gradient gets one: a product for nothing; expected None")
    expected = vjp(lambda a: a @ b, a, g) if first else vjp(lambda b: a @ b, b, g)
    close(trained, expected, f"the gradient of {'A, with B' if first else 'B, with A'} frozen")


@check("1.2", "float32 stays float32")
def products_float32(code: Code) -> None:
    a, b = np.array([[1, 2]], np.float32), np.array([[3], [4]], np.float32)
    got = _two(code("probes:gradients", "matmul.MatMul", [a, b], np.array([[10]], np.float32), [True, True], {}))
    close(got[0], np.array([[30, 40]], np.float32), "the gradient of A", 1e-6)
    close(got[1], np.array([[10], [20]], np.float32), "the gradient of B", 1e-6)


def _two(got: list[Any]) -> list[Any]:
    require(len(got) == 2, f"backward returned {len(got)} value(s); expected one for each of the two inputs")
    return got


# -- 1.3 Softmax -------------------------------------------------------------------------------------------------------
SOFTMAX = "kernels.softmax.reference:softmax_forward"
ROWS = "a sum, maximum or mean over other axes than the last, or without keepdims"


@check(
    "1.3",
    "rows of probabilities, also for large numbers",
    given=lambda v: {"x": arrays(row_shapes(v.max_side)), "shift": st.sampled_from([0.0, 1e3, -1e3, 1e5])},
)
def probabilities(code: Code, x: Array, shift: float) -> None:
    x = x + shift
    close(code(SOFTMAX, x), scipy.special.softmax(x, -1), "softmax_forward(x)")


def _ratios(x: Array) -> Array:
    """Softmax of moderate numbers."""
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@st.composite
def rows_and_gradient(draw: Draw, max_side: int) -> tuple[Array, Array]:
    shape = draw(row_shapes(max_side))
    return draw(arrays(shape)), draw(arrays(shape))


@check("1.3", "the gradient, from the output alone", given=lambda v: {"case": rows_and_gradient(v.max_side)})
def softmax_gradient(code: Code, case: tuple[Array, Array]) -> None:
    x, g = case
    dx = code("kernels.softmax.reference:softmax_backward", g, _ratios(x))
    close(dx, vjp(_ratios, x, g), f"softmax_backward(grad, y) for y of shape {x.shape}")


LARGE = (500, 120)


@check("1.3", "a large example, in one pass")
def large_softmax_gradient(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    x, g = rng.standard_normal(LARGE), rng.standard_normal(LARGE)
    close(code(SOFTMAX, x), scipy.special.softmax(x, -1), f"softmax_forward(x) for x of shape {LARGE}")
    dx = code("kernels.softmax.reference:softmax_backward", g, _ratios(x))
    along(dx, _ratios, x, g, f"softmax_backward(grad, y) for y of shape {LARGE}", variant.seed)


@check("1.3", "float32 stays float32")
def softmax_float32(code: Code) -> None:
    y = code(SOFTMAX, np.array([[2, 2, 2, 2], [1e4, 0, 0, 0]], np.float32))
    close(y, np.array([[0.25] * 4, [1, 0, 0, 0]], np.float32), "softmax_forward(x)", 1e-6)
    dx = code("kernels.softmax.reference:softmax_backward", np.array([1, 0], np.float32), np.full(2, 0.5, np.float32))
    close(dx, np.array([0.25, -0.25], np.float32), "softmax_backward(grad, y)", 1e-6)


# -- 1.4 Layer norm and RMS norm ---------------------------------------------------------------------------------------
NORM = "kernels.norm.reference"


@dataclass
class Norm:
    """Arguments of a norm, and a gradient of its output."""

    x: Array
    weight: Array | None
    bias: Array | None
    eps: float
    g: Array
    needs: tuple[bool, ...]

    def layer(self, x: Array, weight: Array | None, bias: Array | None) -> Array:
        return self.affine((x - x.mean(-1, keepdims=True)) / self.deviation(x)[..., None], weight, bias)

    def rms(self, x: Array, weight: Array | None) -> Array:
        return self.affine(x / self.root(x)[..., None], weight, None)

    def deviation(self, x: Array) -> Array:
        spread = x - x.mean(-1, keepdims=True)
        return np.sqrt(np.einsum("...c,...c->...", spread, spread) / x.shape[-1] + self.eps)

    def root(self, x: Array) -> Array:
        return np.sqrt(np.einsum("...c,...c->...", x, x) / x.shape[-1] + self.eps)

    def affine(self, h: Array, weight: Array | None, bias: Array | None) -> Array:
        return h * (1 if weight is None else weight) + (0 if bias is None else bias)

    def __repr__(self) -> str:
        return f"x={self.x!r}, weight={self.weight!r}, bias={self.bias!r}, eps={self.eps}, grad={self.g!r}"


@st.composite
def norms(draw: Draw, max_side: int) -> Norm:
    shape = draw(row_shapes(max_side))
    weight, bias = (draw(maybe(arrays(shape[-1:]))) for _ in range(2))
    eps, needs = draw(st.sampled_from([1e-5, 0.1])), draw(st.tuples(*[st.booleans()] * 3))
    return Norm(draw(arrays(shape)), weight, bias, eps, draw(arrays(shape)), needs)


@check("1.4", "normalized rows and their statistics", given=lambda v: {"n": norms(v.max_side)})
def norm_values(code: Code, n: Norm) -> None:
    y, mean, rstd = _parts(code(f"{NORM}:layer_norm_forward", n.x, n.weight, n.bias, n.eps), 3)
    close(mean, n.x.mean(-1), "the mean that layer_norm_forward returns")
    close(rstd, 1 / n.deviation(n.x), "rstd of layer_norm_forward")
    close(y, n.layer(n.x, n.weight, n.bias), "y of layer_norm_forward")
    y, rstd = _parts(code(f"{NORM}:rms_norm_forward", n.x, n.weight, n.eps), 2)
    close(rstd, 1 / n.root(n.x), "rstd of rms_norm_forward")
    close(y, n.rms(n.x, n.weight), "y of rms_norm_forward")


@check("1.4", "a large mean costs no digits")
def norm_of_large_mean(code: Code) -> None:
    y, _, _ = _parts(code(f"{NORM}:layer_norm_forward", np.array([[1e9 - 1, 1e9 + 1]]), None, None, 0.0), 3)
    because = "the mean of squares minus the square of the mean: two large numbers whose difference has lost its digits"
    close(y, np.array([[-1.0, 1.0]]), "layer_norm_forward([[1e9 - 1, 1e9 + 1]])", 1e-6, because=because)


@check("1.4", "the gradients of layer norm", given=lambda v: {"n": norms(v.max_side)})
def layer_norm_gradients(code: Code, n: Norm) -> None:
    ones, zeros = np.ones(n.x.shape[-1:]), np.zeros(n.x.shape[-1:])
    w = ones if n.weight is None else n.weight
    expected = [
        vjp(lambda x: n.layer(x, n.weight, None), n.x, n.g),
        vjp(lambda w: n.layer(n.x.astype(complex), w, None), w, n.g),
        vjp(lambda b: n.layer(n.x.astype(complex), w, b), zeros, n.g),
    ]
    target, mean, rstd = f"{NORM}:layer_norm_backward", n.x.mean(-1), 1 / n.deviation(n.x)
    _all(_parts(code(target, n.g, n.x, n.weight, mean, rstd, (True, True, True)), 3), expected, "layer_norm_backward")
    got = _parts(code(target, n.g, n.x, n.weight, mean, rstd, n.needs), 3)
    _all(got, [e if need else None for e, need in zip(expected, n.needs, strict=True)], "layer_norm_backward")


@check("1.4", "the gradients of RMS norm", given=lambda v: {"n": norms(v.max_side)})
def rms_norm_gradients(code: Code, n: Norm) -> None:
    w = np.ones(n.x.shape[-1:]) if n.weight is None else n.weight
    expected = [
        vjp(lambda x: n.rms(x, n.weight), n.x, n.g),
        vjp(lambda w: n.rms(n.x.astype(complex), w), w, n.g),
    ]
    target, rstd = f"{NORM}:rms_norm_backward", 1 / n.root(n.x)
    _all(_parts(code(target, n.g, n.x, n.weight, rstd, (True, True)), 2), expected, "rms_norm_backward")
    got = _parts(code(target, n.g, n.x, n.weight, rstd, n.needs[:2]), 2)
    _all(got, [e if need else None for e, need in zip(expected, n.needs[:2], strict=True)], "rms_norm_backward")


@check("1.4", "a large example, in one pass")
def large_norm_gradients(code: Code, variant: Variant) -> None:
    rng, seed = np.random.default_rng(variant.seed), variant.seed
    x, g, w, b = (rng.standard_normal(shape) for shape in (LARGE, LARGE, LARGE[1:], LARGE[1:]))
    n, z = Norm(x, w, b, 1e-5, g, ()), x.astype(complex)
    mean, root = x.mean(-1), 1 / n.root(x)
    layer = _parts(code(f"{NORM}:layer_norm_backward", g, x, w, mean, 1 / n.deviation(x), (True, True, True)), 3)
    what = f"layer_norm_backward for x of shape {LARGE}: the gradient of"
    along(layer[0], lambda x: n.layer(x, w, b), x, g, f"{what} x", seed)
    along(layer[1], lambda w: n.layer(z, w, b), w, g, f"{what} weight", seed)
    along(layer[2], lambda b: n.layer(z, w, b), b, g, f"{what} bias", seed)
    rms = _parts(code(f"{NORM}:rms_norm_backward", g, x, w, root, (True, True)), 2)
    what = f"rms_norm_backward for x of shape {LARGE}: the gradient of"
    along(rms[0], lambda x: n.rms(x, w), x, g, f"{what} x", seed)
    along(rms[1], lambda w: n.rms(z, w), w, g, f"{what} weight", seed)


@check("1.4", "float32 stays float32")
def norm_float32(code: Code) -> None:
    x, w = np.array([[1, 3], [0, 4]], np.float32), np.array([1, 2], np.float32)
    layer = _parts(code(f"{NORM}:layer_norm_forward", x, w, w, 1e-5), 3)
    rms = _parts(code(f"{NORM}:rms_norm_forward", x, w, 1e-5), 2)
    back = _parts(code(f"{NORM}:layer_norm_backward", x, x, w, layer[1], layer[2]), 3)
    back += _parts(code(f"{NORM}:rms_norm_backward", x, x, w, rms[1]), 2)
    for array in (*layer, *rms, *back):
        require(_dtype(array) == np.float32, f"a result for float32 has dtype {_dtype(array)}", "a float64 constant")


def _parts(got: Any, count: int) -> list[Any]:
    require(isinstance(got, list) and len(got) == count, f"expected {count} results, got {got!r:.200}")
    return got


def _all(got: list[Any], expected: list[Any], name: str) -> None:
    for value, want, what in zip(got, expected, ("x", "weight", "bias"), strict=False):
        if want is None:
            require(value is None, f"{name}: {what} needs no gradient; expected None, got an array")
        else:
            close(value, want, f"{name}: the gradient of {what}")


def _dtype(value: Any) -> Any:
    return value.dtype if isinstance(value, np.ndarray | np.generic) else type(value).__name__


# -- 1.5 Cross-entropy -------------------------------------------------------------------------------------------------
ENTROPY = "kernels.cross_entropy.reference"


@dataclass
class Rows:
    """Logits with their targets."""

    logits: Array
    target: Array
    ignore_index: int
    smoothing: float
    g: Array

    def wanted(self) -> Array:
        """The target distribution of each row; zeros where the row is ignored."""
        rows, classes = self.logits.shape
        q = np.full((rows, classes), self.smoothing / classes)
        for row, label in enumerate(self.target):
            if label == self.ignore_index:
                q[row] = 0
            else:
                q[row, label] += 1 - self.smoothing
        return q

    def loss(self, logits: Array) -> Array:
        """For moderate logits."""
        return -(self.wanted() * np.log(_ratios(logits))).sum(-1)

    @property
    def constants(self) -> tuple[int, float]:
        return self.ignore_index, self.smoothing


@st.composite
def labelled(draw: Draw, max_side: int) -> Rows:
    count, classes = draw(st.integers(1, max_side)), draw(st.integers(2, max_side + 1))
    ignore_index = draw(st.sampled_from([-100, 0, -1]))
    label = st.one_of(st.integers(0, classes - 1), st.just(ignore_index))
    target = np.array(draw(st.lists(label, min_size=count, max_size=count)), np.int64)
    smoothing = draw(st.sampled_from([0.0, 0.1, 1.0]))
    return Rows(draw(arrays((count, classes))), target, ignore_index, smoothing, draw(arrays(count)))


@check("1.5", "each row's loss and log-sum-exp", given=lambda v: {"r": labelled(v.max_side)})
def losses(code: Code, r: Rows) -> None:
    loss, lse = _parts(code(f"{ENTROPY}:cross_entropy_forward", r.logits, r.target, *r.constants), 2)
    close(lse, scipy.special.logsumexp(r.logits, axis=-1), "the log-sum-exp that cross_entropy_forward returns")
    close(loss, r.loss(r.logits), "the loss of cross_entropy_forward")


def _lse(r: Rows) -> Array:
    return scipy.special.logsumexp(r.logits, axis=-1)


@check("1.5", "the gradient of the logits", given=lambda v: {"r": labelled(v.max_side)})
def loss_gradient(code: Code, r: Rows) -> None:
    dx = code(f"{ENTROPY}:cross_entropy_backward", r.g, r.logits, r.target, _lse(r), *r.constants)
    close(dx, vjp(r.loss, r.logits, r.g), "cross_entropy_backward")


@check(
    "1.5",
    "large logits",
    given=lambda v: {"r": labelled(v.max_side), "scale": st.sampled_from([300.0, -1e5])},
    examples=20,
)
def large_logits(code: Code, r: Rows, scale: float) -> None:
    x = r.logits * scale
    loss, lse = _parts(code(f"{ENTROPY}:cross_entropy_forward", x, r.target, *r.constants), 2)
    close(lse, scipy.special.logsumexp(x, axis=-1), "the log-sum-exp of large logits")
    close(loss, -(r.wanted() * scipy.special.log_softmax(x, -1)).sum(-1), "the loss of large logits")
    dx = code(f"{ENTROPY}:cross_entropy_backward", r.g, r.logits + 1e4, r.target, _lse(r) + 1e4, *r.constants)
    close(dx, vjp(r.loss, r.logits, r.g), "cross_entropy_backward where all logits are large", 1e-6)


@check("1.5", "a large example, in one pass")
def large_loss_gradient(code: Code, variant: Variant) -> None:
    rng, (rows, classes) = np.random.default_rng(variant.seed), LARGE
    target = np.where(rng.random(rows) < 0.1, -100, rng.integers(0, classes, rows))
    r = Rows(rng.standard_normal(LARGE), target, -100, 0.1, rng.standard_normal(rows))
    dx = code(f"{ENTROPY}:cross_entropy_backward", r.g, r.logits, r.target, _lse(r), *r.constants)
    along(dx, r.loss, r.logits, r.g, f"cross_entropy_backward for logits of shape {LARGE}", variant.seed)


@check("1.5", "float32 stays float32")
def losses_float32(code: Code) -> None:
    x, target = np.zeros((2, 4), np.float32), np.array([1, -100])
    loss, lse = _parts(code(f"{ENTROPY}:cross_entropy_forward", x, target, -100, 0.1), 2)
    close(loss, np.array([np.log(4), 0], np.float32), "the loss", 1e-6)
    close(lse, np.full(2, np.log(4), np.float32), "the log-sum-exp", 1e-6)
    dx = code(f"{ENTROPY}:cross_entropy_backward", np.ones(2, np.float32), x, target, lse, -100, 0.0)
    close(dx, np.array([[0.25, -0.75, 0.25, 0.25], [0] * 4], np.float32), "cross_entropy_backward", 1e-6)


# -- 1.6 Embedding -----------------------------------------------------------------------------------------------------
EMBEDDING = "kernels.embedding.reference:embedding_backward"


@st.composite
def uses(draw: Draw, max_side: int) -> tuple[Array, Array, int]:
    size, shape, width = draw(st.integers(1, max_side + 1)), draw(shapes(1, 2, 1, max_side)), draw(st.integers(1, 3))
    count = int(np.prod(shape))
    ids = np.array(draw(st.lists(st.integers(0, size - 1), min_size=count, max_size=count)))
    dtype = draw(st.sampled_from([np.int64, np.int32, np.uint8]))
    return draw(arrays((*shape, width))), ids.astype(dtype).reshape(shape), size


@check("1.6", "each row gets the sum of its uses", given=lambda v: {"case": uses(v.max_side)})
def used_rows(code: Code, case: tuple[Array, Array, int]) -> None:
    g, ids, size = case
    expected = vjp(lambda w: w[ids], np.zeros((size, g.shape[-1])), g)
    repeated = len(set(ids.reshape(-1).tolist())) < ids.size
    because = "an id that occurs more than once: its row must get the sum of all its uses" if repeated else None
    what = f"embedding_backward(grad, ids of shape {ids.shape}, {size})"
    close(code(EMBEDDING, g, ids, size), expected, what, because=because)


@check("1.6", "a row that is used a thousand times")
def used_often(code: Code) -> None:
    ids = np.array([3] * 1000 + [1])
    expected = np.zeros((5, 2))
    expected[3], expected[1] = (1000, 2000), (1, 2)
    g = np.tile([1.0, 2.0], (1001, 1))
    close(code(EMBEDDING, g, ids, 5), expected, "embedding_backward")


@check("1.6", "float32 stays float32")
def used_rows_float32(code: Code) -> None:
    got = code(EMBEDDING, np.array([[1], [2], [4]], np.float32), np.array([1, 0, 1]), 3)
    close(got, np.array([[2], [5], [0]], np.float32), "embedding_backward", 1e-6)


# -- 1.7 The backward engine -------------------------------------------------------------------------------------------
@dataclass
class Graph:
    """Leaves, and steps that make tensors of earlier ones."""

    leaves: list[Array]
    trainable: list[bool]
    steps: list[list[Any]]
    g: Array = field(default_factory=lambda: np.zeros(0))

    def reached(self) -> list[bool]:
        """Which tensors depend on a leaf that is trained."""
        known = list(self.trainable)
        for _, *operands in self.steps:
            known.append(any(known[i] for i in operands))
        return known

    def ancestors(self, root: int) -> set[int]:
        """The tensors that require a gradient and that ``root`` was computed from, with itself."""
        known, found, waiting, first = self.reached(), set(), [root], len(self.leaves)
        while waiting:
            at = waiting.pop()
            if known[at] and at not in found:
                found.add(at)
                waiting += self.steps[at - first][1:] if at >= first else []
        return found

    def value(self, leaves: Sequence[Array], root: int) -> Array:
        known = list(leaves)
        for name, *operands in self.steps:
            known.append(STEPS[name](*(known[i] for i in operands)))
        return known[root]

    def gradient(self, leaf: int, root: int, g: Array) -> Array:
        def f(x: Array) -> Array:
            return self.value([x if i == leaf else a for i, a in enumerate(self.leaves)], root)

        return vjp(f, self.leaves[leaf], g)

    def __repr__(self) -> str:
        lines = [
            f"t{i} = {'leaf' if t else 'frozen leaf'} {a}"
            for i, (a, t) in enumerate(zip(self.leaves, self.trainable, strict=True))
        ]
        first = len(lines)
        lines += [f"t{first + i} = {s[0]}({', '.join(f't{j}' for j in s[1:])})" for i, s in enumerate(self.steps)]
        return "; ".join(lines) + f"; backward(gradient={self.g})"


STEPS: dict[str, Callable] = {
    "add": lambda a, b: a + b, "mean": lambda a, b: (a + b) / 2, "mul": lambda a, b: a * b, "sin": np.sin,
    "same": lambda a: a + 0, "first": lambda a, b: a + 0 * b,
}  # fmt: skip


@st.composite
def graphs(draw: Draw, max_side: int) -> Graph:
    shape = draw(st.sampled_from([(2,), (1,), (), (2, max_side)]))
    count = draw(st.integers(1, 3))
    leaves = [draw(arrays(shape, (-1.0, 1.0))) for _ in range(count)]
    trainable = [True, *(draw(st.booleans()) for _ in range(count - 1))]
    steps: list[list[Any]] = []
    for _ in range(draw(st.integers(1, 3 * max_side))):
        name = draw(st.sampled_from(["mean", "mul", "sin", "same", "first", "add"]))
        highest = len(leaves) + len(steps) - 1
        operand = st.one_of(st.integers(max(0, highest - 1), highest), st.integers(0, highest))
        steps.append([name, *(draw(operand) for _ in range(1 if name in ("sin", "same") else 2))])
    return Graph(leaves, trainable, steps, draw(arrays(shape)))


def _root(graph: Graph) -> int:
    """The last tensor that requires a gradient."""
    return max(i for i, known in enumerate(graph.reached()) if known)


def _leaf_gradients(got: list[Any], graph: Graph, root: int, what: str) -> None:
    for leaf, have in enumerate(got):
        if leaf not in graph.ancestors(root):
            require(have is None, f"{what}: leaf t{leaf} got a gradient, though it is frozen or not used")
            continue
        expected = graph.gradient(leaf, root, graph.g)
        if have is not None or expected.any():
            require(have is not None, f"{what}: leaf t{leaf} got no gradient; expected {expected}")
            close(have, expected, f"{what}: the gradient of t{leaf}")


@check("1.7", "the derivative of any graph, each rule run once", given=lambda v: {"graph": graphs(v.max_side)})
def graph_gradients(code: Code, graph: Graph) -> None:
    root = _root(graph)
    got = code("probes:backward", graph.leaves, graph.trainable, graph.steps, [[root, graph.g]])
    _leaf_gradients(got["after"], graph, root, "one backward")
    require(got["inner"] == 0, "a tensor that is no leaf has a .grad: only leaves keep one")
    require(
        len(set(got["runs"])) == len(got["runs"]),
        "a backward rule ran twice: with the gradient of one use at a time, not with the sum of all",
    )


@check("1.7", "a chain of 3000 operations")
def long_chain(code: Code) -> None:
    g = np.array([1.0, 10.0])
    close(code("probes:chain", np.array([1.0, 2.0]), 3000, g), 3001 * g, "the gradient of 3000 times y = y + x")


@check("1.7", "inputs come before what was computed from them", given=lambda v: {"graph": graphs(v.max_side)})
def graph_order(code: Code, graph: Graph) -> None:
    root, first = _root(graph), len(graph.leaves)
    order = code("probes:order", graph.leaves, graph.trainable, graph.steps, root)
    expected = graph.ancestors(root)
    require(len(set(order)) == len(order), f"topological_order has a tensor twice: {order}")
    require(
        set(order) == expected,
        f"topological_order has the tensors {sorted(order)}; those that require a gradient are {sorted(expected)}",
    )
    place = {tensor: i for i, tensor in enumerate(order)}
    for tensor in order:
        for operand in graph.steps[tensor - first][1:] if tensor >= first else []:
            early = operand not in place or place[operand] < place[tensor]
            require(early, f"topological_order {order}: t{tensor} comes before t{operand}, which it was computed from")


@check("1.7", "an array that a rule returned twice is not changed")
def shared_arrays(code: Code) -> None:
    x, g = np.array([0.5, 1.0]), np.array([1.0, 10.0])
    for one in ([1, 2], [2, 1]):
        for two in ([3, 4], [4, 3]):
            graph = Graph([x], [True], [["sin", 0], ["same", 0], ["same", 1], ["add", *one], ["add", *two]], g)
            got = code("probes:backward", graph.leaves, graph.trainable, graph.steps, [[5, g]])
            because = "add gives the same array to both inputs: a sum must be a new array, not made in place"
            close(got["after"][0], graph.gradient(0, 5, g), f"{graph!r}: the gradient of t0", because=because)


@check("1.7", "gradients of several calls add up", given=lambda v: {"x": arrays((2,)), "g": arrays((2,))}, examples=10)
def several_calls(code: Code, x: Array, g: Array) -> None:
    first = Graph([x], [True], [["sin", 0], ["mul", 1, 0]])
    second = Graph([x], [True], [["sin", 0], ["mul", 1, 0], ["mul", 0, 0], ["add", 3, 0]])
    got = code("probes:backward", second.leaves, second.trainable, second.steps, [[2, g], [4, 2 * g]])
    expected = first.gradient(0, 2, g)
    close(got["before"][0], expected, "the leaf's gradient after the first call")
    close(got["after"][0], expected + second.gradient(0, 4, 2 * g), "the leaf's gradient after the second call")
    one = code("probes:backward", [x[:1]], [True], [["sin", 0], ["mul", 1, 0]], [[2, None]])
    close(
        one["after"][0], Graph([x[:1]], [True], first.steps).gradient(0, 2, np.ones(1)), "backward() without gradient="
    )


@check("1.7", "a second pass through a freed part is refused")
def freed_graph(code: Code) -> None:
    x, z = np.array([0.5, 1.0]), np.array([2.0, 3.0])
    ones = np.ones(2)
    steps: list[list[Any]] = [["mul", 0, 0], ["same", 2], ["add", 1, 2], ["add", 2, 1]]
    for again in (3, 4, 5):
        got = code("probes:backward", [x, z], [True, True], steps, [[3, ones], [again, ones]], refused=True)
        require(
            got["error"] == "RuntimeError",
            "a second backward through a part of the graph that the first one used did not raise RuntimeError",
            "release() was not called, or _check_alive was not",
        )
        for i, (before, after) in enumerate(zip(got["before"], got["after"], strict=True)):
            same = (before is None) == (after is None) and (before is None or np.array_equal(before, after))
            require(
                same, f"the refused second backward changed the gradient of leaf {i}: check before anything is done"
            )


# -- 1.8 The gradient checker ------------------------------------------------------------------------------------------
Right = Callable[..., list[Any]]


@dataclass(frozen=True)
class Rule:
    """A function of some arrays. ``right``: its gradients, where complex steps cannot give them.

    ``wrong``: name to the input that is wrong, and what is claimed for u, the right gradients and the inputs.
    """

    name: str
    f: Callable[..., Array]
    draw: Callable[[np.random.Generator], list[Array]]
    wrong: dict[str, tuple[int, Callable[[Array, list[Any], list[Array]], list[Any]]]] = field(default_factory=dict)
    right: Callable[..., list[Any]] | None = None

    def gradients(self, u: Array, inputs: list[Array]) -> list[Any]:
        if self.right is not None:
            return self.right(u, *inputs)
        return [
            vjp(lambda x, i=i: self.f(*(x if i == j else a for j, a in enumerate(inputs))), inputs[i], u)  # type: ignore[misc]
            for i in range(len(inputs))
        ]


class Asked:
    """Answers a checker's questions, and notes the first that makes no sense."""

    def __init__(self, rule: Rule, inputs: list[Array], claim: Callable[[Array, list[Any], list[Array]], list[Any]]):
        self.rule, self.inputs, self.claim = rule, inputs, claim
        self.shape = self._f(inputs).shape
        self.complaint: str | None = None

    def _f(self, inputs: list[Array]) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(self.rule.f(*inputs), np.float64)

    def value(self, inputs: Any) -> Array:
        given, due = _forms(inputs), _forms(self.inputs)
        if given != due:
            self.complaint = self.complaint or f"the function was asked for its value at {given}; its inputs are {due}"
            return np.zeros(self.shape)
        return self._f([np.asarray(x) for x in inputs])

    def gradients(self, u: Any) -> list[Any]:
        if np.shape(u) != self.shape:
            self.complaint = self.complaint or f"the cotangent has shape {np.shape(u)}; the output has {self.shape}"
            u = np.ones(self.shape)
        u = np.asarray(u, np.float64)
        with np.errstate(all="ignore"):
            return self.claim(u, self.rule.gradients(u, self.inputs), self.inputs)


def _forms(inputs: Any) -> str:
    if not isinstance(inputs, list):
        return type(inputs).__name__
    return ", ".join(f"{_dtype(x)} {np.shape(x)}" for x in inputs)


def _verdict(code: Code, rule: Rule, claim: Callable, seed: int) -> Any:
    inputs = rule.draw(np.random.default_rng([seed, len(rule.name)]))
    asked = Asked(rule, inputs, claim)
    said = code("probes:verdict", inputs, asked.value, asked.gradients, seed)
    require(asked.complaint is None, f"{rule.name}: {asked.complaint}")
    return said


def drawn(*sizes: tuple[int, ...]) -> Callable[[np.random.Generator], list[Array]]:
    return lambda rng: [np.asarray(rng.standard_normal(size)) for size in sizes]


def fixed(*values: Any) -> Callable[[np.random.Generator], list[Array]]:
    return lambda rng: [np.array(v, np.float64) for v in values]


def one(change: Callable[[Array, Any, Array], Any]) -> tuple[int, Callable]:
    """A wrong rule of one input, from u, the right gradient and x."""
    return 0, lambda u, right, inputs: [change(u, right[0], inputs[0])]


def _last_one_wins(u: Array, right: Array, w: Array) -> Array:
    dw = np.zeros_like(w)
    for row, i in zip(u, IDS, strict=True):
        dw[i] = row
    return dw


def _spoiled(g: Array, factor: float) -> Array:
    """One element of many is off."""
    out = g.copy()
    out[17, 23] *= factor
    return out


def _normalized(x: Array, eps: float = 1e-3) -> Array:
    return Norm(x, None, None, eps, x, ()).layer(x, None, None)


IDS = np.array([1, 1, 0, 2, 1])
LABELS = np.array([0, 2, 1])
LOWER = np.tri(3, dtype=bool)
HUGE = np.array([[1e-8, 1e8, -3e4], [1.0, -1e-3, 1e3]])

RULES = [
    Rule("a square", lambda x: x * x, drawn((3, 4)), {
        "forgets the factor 2": one(lambda u, r, x: r / 2),
        "has the wrong sign": one(lambda u, r, x: -r),
        "returns zeros": one(lambda u, r, x: np.zeros_like(x)),
        "returns None": one(lambda u, r, x: None),
        "passes the incoming gradient on": one(lambda u, r, x: u),
        "ignores the incoming gradient": one(lambda u, r, x: r / u),
        "squares the incoming gradient": one(lambda u, r, x: r * u),
        "takes the size of the incoming gradient": one(lambda u, r, x: np.abs(u) * r / u),
        "clips the incoming gradient to 1": one(lambda u, r, x: r / u * np.clip(u, -1, 1)),
        "fills the first row only": one(lambda u, r, x: r * (np.arange(3) == 0)[:, None]),
        "adds the incoming gradient": one(lambda u, r, x: r + u),
        "has a nan": one(lambda u, r, x: np.where(x == x.max(), np.nan, r)),
        "returns float32": one(lambda u, r, x: r.astype(np.float32)),
        "is off by 0.01 %": one(lambda u, r, x: r * (1 + 1e-4)),
    }),
    Rule("a thousand squares", lambda x: x * x, drawn((30, 40)), {
        "is off by half at one element": one(lambda u, r, x: _spoiled(r, 1.5)),
        "is zero at one element": one(lambda u, r, x: _spoiled(r, 0.0)),
        "has the wrong sign at one element": one(lambda u, r, x: _spoiled(r, -1.0)),
    }, right=lambda u, x: [2 * u * x]),
    Rule("a tiny square", lambda x: 1e-9 * x * x, drawn((4,)), {"forgets the factor 2": one(lambda u, r, x: r / 2)}),
    Rule("a huge square", lambda x: 1e9 * x * x, drawn((4,)), {"is off by 0.1 %": one(lambda u, r, x: r * 1.001)}),
    Rule("a softmax", _ratios, drawn((3, 5)), {
        "returns zeros": one(lambda u, r, x: np.zeros_like(x)),
        "has the wrong sign": one(lambda u, r, x: -r),
        "keeps the diagonal of the Jacobian": one(lambda u, r, x: u * _ratios(x) * (1 - _ratios(x))),
        "multiplies by the output": one(lambda u, r, x: u * _ratios(x)),
        "forgets to multiply by the output": one(lambda u, r, x: r / _ratios(x)),
        "works along the other axis": one(lambda u, r, x: vjp(lambda z: _ratios(z.T).T, x, u)),
        "reverses its rows": one(lambda u, r, x: r[:, ::-1]),
    }),
    Rule("a layer norm", _normalized, drawn((3, 6)), {
        "returns zeros": one(lambda u, r, x: np.zeros_like(x)),
        "forgets that the statistics depend on x": one(lambda u, r, x: u / x.std(-1, keepdims=True)),
        "forgets eps": one(lambda u, r, x: vjp(lambda z: _normalized(z, 0.0), x, u)),
    }),
    Rule("a matrix product", lambda a, b: a @ b, drawn((4, 4), (4, 4)), {
        "swaps its gradients": (0, lambda u, r, x: r[::-1]),
        "transposes the first": (0, lambda u, r, x: [r[0].T, r[1]]),
        "forgets the transposes": (0, lambda u, r, x: [u @ x[1], x[0] @ u]),
        "has the wrong sign at the second": (1, lambda u, r, x: [r[0], -r[1]]),
        "returns None for the second": (1, lambda u, r, x: [r[0], None]),
    }),
    Rule("a tall product", lambda a, b: a @ b, drawn((4, 2), (2, 3)), {
        "returns a transposed second": (1, lambda u, r, x: [r[0], r[1].T]),
    }),
    Rule("two scales", lambda a, b: 1e3 * a + 1e-3 * b, drawn((3,), (3,)), {
        "is off by 5 % at the small one": (1, lambda u, r, x: [r[0], r[1] * 1.05]),
    }),
    Rule("a mean", lambda x: x.mean(0), drawn((4, 3)), {
        "does not divide": one(lambda u, r, x: 4 * r),
        "divides by all": one(lambda u, r, x: r / 3),
        "spreads ones": one(lambda u, r, x: r / u),
        "returns one row": one(lambda u, r, x: r[0]),
    }),
    Rule("a sum of columns", lambda x: x.sum(0), drawn((4, 4)), {
        "spreads along the other axis": one(lambda u, r, x: r.T),
        "spreads ones": one(lambda u, r, x: np.ones_like(x)),
    }),
    Rule("a running sum", np.cumsum, drawn((6,)), {"runs forward again": one(lambda u, r, x: np.cumsum(u))}),
    Rule("a transpose", lambda x: x.T, drawn((4, 4)), {"is left out": one(lambda u, r, x: u)}),
    Rule("two halves", lambda a, b: np.concatenate([a, b]), drawn((3,), (3,)), {
        "swaps the halves": (0, lambda u, r, x: r[::-1]),
    }),
    Rule("a roll", lambda x: np.roll(x, 1), drawn((5,)), {"rolls forward again": one(lambda u, r, x: np.roll(u, 1))}),
    Rule("rows of a table", lambda w: w[IDS], drawn((4, 2)), {
        "overwrites where an id repeats": one(_last_one_wins),
    }),
    Rule("a cross-entropy", lambda x: -np.log(_ratios(x))[np.arange(3), LABELS].mean(), drawn((3, 4)), {
        "forgets the target": one(lambda u, r, x: u * _ratios(x) / 3),
        "forgets the mean": one(lambda u, r, x: 3 * r),
    }),
    Rule("tanh", np.tanh, drawn((3, 2)), {
        "forgets the square": one(lambda u, r, x: u * (1 - np.tanh(x))),
        "is off by 0.01 %": one(lambda u, r, x: r * (1 - 1e-4)),
    }),
]  # fmt: skip

ODD = [
    Rule("the logarithm of small and large numbers", np.log, fixed([1e-5, 1.0, 1e4])),
    Rule("a fast sine", lambda x: np.sin(300 * x), fixed([0.1, 1.0, 2.0])),
    Rule("squares of very small and very large numbers", lambda x: x * x, fixed(HUGE)),
    Rule("exp of large numbers", np.exp, fixed([300.0, -300.0, 5.0])),
    Rule("a fifth power", lambda x: x**5, drawn((4,))),
    Rule("relu near its kink", lambda x: np.maximum(x, 0), fixed([1e-4, -1e-5, 3e-6, 1.0]),
         right=lambda u, x: [u * (x > 0)]),
    Rule("a cancellation", lambda x: (3 * x + 1e8) - 1e8, drawn((4,)), right=lambda u, x: [3 * u]),
    Rule("a sum of probabilities", lambda x: _ratios(x).sum(-1), drawn((3, 4))),
    Rule("a saturated softmax", _ratios, fixed([[300.0, -40.0, 80.0]])),
    Rule("a product with zeros", np.prod, fixed([2.0, 0.0, 0.0])),
    Rule("scores behind a mask", lambda x: np.where(LOWER, x * x, -np.inf), drawn((3, 3)),
         right=lambda u, x: [np.where(LOWER, 2 * u * x, 0)]),
    Rule("exp of a mask", np.exp, fixed([-np.inf, 1.0, -2.0]), right=lambda u, x: [u * np.exp(x)]),
    Rule("an input without influence", lambda a, b: a * a, drawn((3,), (3,)), right=lambda u, a, b: [2 * u * a, None]),
    Rule("inputs of very different sizes", lambda a, b: a * b, lambda rng: [np.full(3, 1e-6), np.full(3, 1e6)]),
    Rule("no elements", lambda x: x * x, drawn((0, 3))),
    Rule("one number", lambda x: np.sin(x) * x, drawn(())),
]  # fmt: skip


@check("1.8", "cotangents have random signs and sizes in [1/2, 1]")
def cotangent_sizes(code: Code, variant: Variant) -> None:
    seed = variant.seed % 1000
    for shape in ((), (40,), (2, 3, variant.max_side)):
        draws = code("probes:cotangents", shape, seed, 24)
        for u in draws:
            close(u * 0, np.zeros(shape), f"0 * random_cotangent({shape}, rng)")
        sizes, signs = np.abs(draws), np.sign(draws)
        because = "an element near 0 hides a wrong gradient; one much larger than the others drowns them"
        require(
            bool(((sizes >= 0.5) & (sizes <= 1)).all()),
            f"a cotangent has sizes {sizes.min()} to {sizes.max()}",
            because,
        )
        require(
            bool((signs.min(0) < 0).all() and (signs.max(0) > 0).all()), "an element has the same sign in each draw"
        )
        require(sizes.std() > 0.02, "all sizes of the cotangents are equal")
        again = code("probes:cotangents", shape, seed, 24)
        same = np.array_equal(again, draws)
        require(same, "with the same generator the numbers differ", "all numbers must be drawn from rng")
    many = np.stack(code("probes:cotangents", (40,), seed, 24))
    mixed = bool((np.sign(many).min(1) < 0).all() and (np.sign(many).max(1) > 0).all())
    require(mixed, "all elements of one cotangent have the same sign", "each element needs a sign of its own")


@st.composite
def quadratic(draw: Draw, max_side: int) -> dict[str, Any]:
    shape = draw(shapes(0, 2, 1, max_side))
    a, b, u, da, db, ga, gb = (draw(arrays(shape)) for _ in range(7))
    moves = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    claims = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    return {
        "arrays": [a, b], "u": u, "directions": [d if m else None for d, m in zip((da, db), moves, strict=True)],
        "gradients": [g if c else None for g, c in zip((ga, gb), claims, strict=True)],
        "h": draw(st.sampled_from([2.0**-3, 2.0**-7])),
    }  # fmt: skip


QUADRATIC = Rule("a quadratic", lambda a, b: a * a + 3 * b - a * b, drawn())


@check("1.8", "the central difference of a quadratic is exact", given=lambda v: {"case": quadratic(v.max_side)})
def central_difference(code: Code, case: dict[str, Any]) -> None:
    asked = Asked(QUADRATIC, case["arrays"], lambda u, right, inputs: right)
    u, directions = case["u"], case["directions"]
    got = code("probes:measured", case["arrays"], asked.value, u, case["gradients"], directions, case["h"])
    require(asked.complaint is None, f"_difference: {asked.complaint}")
    right = QUADRATIC.gradients(u, case["arrays"])
    moved = [(r, c, d) for r, c, d in zip(right, case["gradients"], directions, strict=True) if d is not None]
    close(got[0], float(sum(np.vdot(r, d) for r, _, d in moved)), "the first of _difference: D(h)", 1e-8, 1e-8)
    claimed = float(sum(np.vdot(c, d) for _, c, d in moved if c is not None))
    close(got[1], claimed, "the second of _difference: what is claimed of D(h)", 1e-8, 1e-8)
    size = float(np.linalg.norm(u * asked.value(case["arrays"])))
    step = case["h"] * sum(float(np.abs(d).sum()) for d in directions if d is not None)
    near = abs(got[2] - size) <= 10 * step * (1 + float(np.linalg.norm(u))) + 1e-9 * (1 + size)
    require(near, f"the third of _difference is {got[2]:.6g}; the norm of u f is about {size:.6g}")


@check(
    "1.8",
    "the extrapolation is exact to the fourth order",
    given=lambda v: {"measured": st.floats(-10, 10), "claimed": st.floats(-10, 10), "error": st.floats(-10, 10)},
)
def extrapolation(code: Code, measured: float, claimed: float, error: float) -> None:
    near, far = [measured + error, claimed, 1.0], [measured + 4 * error, claimed, 1.0]
    got = code("probes:extrapolated", near, far, 1.0, 1.0, 1e-3, 1e-7, 0.0)
    because = "D(h) = slope + c h^2 and D(2h) = slope + 4 c h^2: which combination of the two has no c?"
    close(got["residual"], measured - claimed, "the residual (measured minus claimed)", 1e-9, 1e-9, because)
    close(got["analytic"], claimed, "what is claimed", 1e-9, 1e-9)


@check("1.8", "the tolerance is the one in compare's docstring")
def tolerances(code: Code) -> None:
    cases = [
        ("the size of the gradients", [2.0, 2.0, 0.0], 3.0, 0.0, 1e-3, 1e-7, 0.0, 3e-7),
        ("the size of what was measured", [-5.0, -5.0, 0.0], 3.0, 0.0, 1e-3, 1e-7, 0.0, 5e-7),
        ("atol", [1.0, 1.0, 0.0], 1.0, 0.0, 1e-3, 0.0, 2e-4, 2e-4),
        ("rounding", [1.0, 1.0, 2.0], 1.0, 3.0, 1e-3, 0.0, 0.0, 7.105427357601002e-11),
        ("rounding at a smaller step", [1.0, 1.0, 2.0], 1.0, 3.0, 1e-5, 0.0, 0.0, 7.105427357601002e-09),
    ]
    for what, pair, size, reach, step, rtol, atol, expected in cases:
        got = code("probes:extrapolated", pair, pair, size, reach, step, rtol, atol)
        because = "the sum of three terms in the docstring of compare: each with the right factors?"
        close(got["tolerance"], expected, f"the tolerance from {what}", 1e-6, 1e-20, because)


@check("1.8", "every wrong rule is rejected, and the right input blamed")
def wrong_rules(code: Code, variant: Variant) -> None:
    for repeat in range(1 if variant.name == "public" else 3):
        for rule in RULES:
            for name, (which, claim) in rule.wrong.items():
                said = _verdict(code, rule, claim, variant.seed % 1000 + repeat)
                require(said is not None, f"a wrong rule passes: the gradient of {rule.name} that {name}")
                require(said[1] == which, f"input {said[1]} is blamed, not {which}: {rule.name} that {name}")


@check("1.8", "every right rule is accepted")
def right_rules(code: Code, variant: Variant) -> None:
    for repeat in range(2 if variant.name == "public" else 5):
        for rule in [*RULES, *ODD]:
            said = _verdict(code, rule, lambda u, right, inputs: right, variant.seed % 1000 + repeat)
            require(said is None, f"a right rule is rejected ({said and said[0]}): {rule.name}")
