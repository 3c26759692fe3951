"""Hypothesis strategies for arrays and for the arguments of every operation, shared by students and tests.

    from hypothesis import given
    from minitorch_peft.testing import cases

    @given(cases("softmax"))
    def test_softmax(case):
        case.check_gradients()

A failing :class:`Case` prints as a line that can be pasted into a REPL (after ``import numpy as np, minitorch_peft
as mp``, ``import minitorch_peft.functional as F`` and ``from minitorch_peft.testing import lay_out``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minitorch_peft import functional as F
from minitorch_peft.autograd.gradcheck import gradcheck
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.table import BY_NAME, REAL, At, Interval, Operation, ties

MARGIN = 1e-3
"""How far an example stays from a kink: less than the steps of gradcheck, which shortens them where it has to."""

Draw = Callable[[st.SearchStrategy], Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


# -- layouts: the same elements, elsewhere in memory ---------------------------------------------------------
def _strided(x: np.ndarray) -> np.ndarray:
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": np.ascontiguousarray,
    "transposed": np.asfortranarray,
    "reversed": lambda x: np.flip(np.flip(x).copy()),
    "strided": _strided,
}


def lay_out(array: np.ndarray, layout: str) -> np.ndarray:
    """``array`` in another memory layout: "plain", "transposed", "reversed" (negative strides) or "strided".

    >>> lay_out(np.array([1.0, 2.0]), "reversed").strides
    (-8,)
    """
    return LAYOUTS[layout](array) if array.ndim else array


def layouts() -> st.SearchStrategy[str]:
    """Names for :func:`lay_out`, the plain one first."""
    return st.sampled_from(list(LAYOUTS))


# -- shapes, numbers, arrays, indices ------------------------------------------------------------------------
def shapes(
    min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 3
) -> st.SearchStrategy[tuple[int, ...]]:
    """Small shapes, among them 0-d, empty ones and those of one element."""
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side)


def numbers(interval: Interval = REAL, kinks: tuple[float, ...] = ()) -> st.SearchStrategy[float]:
    """Floats in an interval, off the points ``kinks``."""
    floats = st.floats(*interval, allow_subnormal=False)
    return floats.filter(lambda v: all(abs(v - k) > MARGIN for k in kinks)) if kinks else floats


def arrays(
    shape: Any, interval: Interval = REAL, kinks: tuple[float, ...] = (), unique: bool = False
) -> st.SearchStrategy[np.ndarray]:
    """float64 arrays of a shape (or of shapes that a strategy draws)."""
    return hnp.arrays(np.float64, shape, elements=numbers(interval, kinks), unique=unique)


def integers(shape: Any, low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    """int64 arrays of numbers in [low, high); there must be one."""
    return hnp.arrays(np.int64, shape, elements=st.integers(low, high - 1))


def broadcastable_shapes(count: int = 2, min_side: int = 0) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
    """Shapes that broadcast with one another."""
    drawn = hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, max_side=3, min_side=min_side)
    return drawn.map(lambda b: b.input_shapes)


def axes(ndim: int) -> st.SearchStrategy[int]:
    """An axis, counted from the front or from the back (0 and -1 where there is none)."""
    return st.integers(-max(ndim, 1), max(ndim, 1) - 1)


@st.composite
def several_axes(draw: Draw, ndim: int, min_size: int = 1) -> tuple[int, ...]:
    """Different axes, each counted from the front or from the back."""
    chosen = draw(st.lists(st.integers(0, ndim - 1), unique=True, min_size=min_size)) if ndim else []
    return tuple(d - ndim * draw(st.booleans()) for d in chosen)


@st.composite
def indices(draw: Draw, shape: tuple[int, ...]) -> Any:
    """What may stand in x[...] for an x of ``shape``: numbers, slices, None, ..., masks, arrays with repetitions."""
    kind = draw(st.sampled_from(["basic", "arrays", "mask", "mixed"]))
    if kind == "mask":
        return draw(hnp.arrays(np.bool_, shape[: draw(st.integers(0, len(shape)))]))
    if kind == "basic" or 0 in shape or not shape:
        return draw(hnp.basic_indices(shape, allow_newaxis=True))
    if kind == "arrays":
        return draw(hnp.integer_array_indices(shape, result_shape=shapes(max_dims=2)))
    common = draw(shapes(min_dims=1, max_dims=2))
    items = []
    for n in shape[: draw(st.integers(1, len(shape)))]:
        full, number = st.just(slice(None)), st.integers(-n, n - 1)
        items.append(draw(st.one_of(full, number, st.slices(n), integers(common, -n, n))))
    where = draw(st.integers(0, len(items)))
    return (*items[:where], draw(st.sampled_from([None, ...])), *items[where:])


# -- cases: one call of an operation -------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """The arguments of one call. Float arrays among ``args`` are inputs, to be differentiated; the rest, and
    all of ``kwargs``, are constants. Each input is laid out in memory as ``layouts`` says."""

    operation: Operation
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    layouts: tuple[str, ...] = ()

    @property
    def inputs(self) -> list[np.ndarray]:
        flat = [y for x in self.args for y in (x if isinstance(x, list) else [x])]
        return [x for x in flat if _is_input(x)]

    def tensors(self, dtype: Any = np.float64) -> list[Tensor]:
        """The inputs as leaves."""
        laid = self.layouts or ("plain",) * len(self.inputs)
        pairs = zip(self.inputs, laid, strict=True)
        return [Tensor(lay_out(x.astype(dtype), layout), requires_grad=True) for x, layout in pairs]

    def call(self, function: Callable[..., Any], inputs: Any) -> Any:
        """``function`` of these arguments, with ``inputs`` in place of the inputs."""
        rest: Iterator[Any] = iter(inputs)
        args = [
            [next(rest) for _ in x] if isinstance(x, list) else next(rest) if _is_input(x) else x for x in self.args
        ]
        return function(*args, **self.kwargs)

    def output(self, *tensors: Tensor) -> Tensor:
        """What the operation gives, as one tensor: the parts of a tuple that have gradients, one after the other."""
        result = self.call(self.operation.function, tensors)
        if isinstance(result, Tensor):
            return result
        return F.cat([F.reshape(t, -1) for t in result if t.is_floating_point()])

    def check_gradients(self) -> None:
        """Hold the operation's gradients against differences; raises GradcheckError."""
        gradcheck(self.output, self.tensors())

    def __repr__(self) -> str:
        laid = iter(self.layouts or ("plain",) * len(self.inputs))
        shown = [
            f"[{', '.join(_show_input(y, next(laid)) for y in x)}]"
            if isinstance(x, list)
            else _show_input(x, next(laid))
            if _is_input(x)
            else _show(x)
            for x in self.args
        ]
        shown += [f"{name}={_show(value)}" for name, value in self.kwargs.items()]
        return f"F.{self.operation.name}({', '.join(shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # how hypothesis prints a failing example


def _is_input(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _show_input(x: np.ndarray, layout: str) -> str:
    text = _show(x) if layout == "plain" else f"lay_out({_show(x)}, {layout!r})"
    return f"mp.Tensor({text}, requires_grad=True)"


def _show(x: Any) -> str:
    if isinstance(x, tuple):
        return f"({', '.join(map(_show, x))}{',' if len(x) == 1 else ''})"
    if isinstance(x, np.ndarray):
        text = f"np.array({x.tolist()!r})" if x.size else f"np.zeros({x.shape}, {x.dtype.name!r})"
        return re.sub(r"\b(inf|nan)\b", r"np.\1", text)
    return repr(x)


@st.composite
def cases(draw: Draw, operation: Operation | str) -> Case:
    """Arguments for one call of a row of the operation table: where it is defined, and off its kinks."""
    row = BY_NAME[operation] if isinstance(operation, str) else operation
    args, kwargs = draw(ARGUMENTS[row.arguments](row))
    kwargs |= {name: draw(st.sampled_from(values)) for name, values in row.options.items()}
    case = Case(row, args, kwargs)
    if row.kinks is not None:
        assume(np.all(np.abs(row.kinks(*args, **kwargs)) > MARGIN))
    return Case(row, args, kwargs, tuple(draw(layouts()) for _ in case.inputs))


def _input(row: Operation, shape: Any, index: int = 0) -> st.SearchStrategy[np.ndarray]:
    """Input number ``index`` of an operation."""
    kinks = row.kinks.points if isinstance(row.kinks, At) and index == 0 else ()
    return arrays(shape, row.interval(index), kinks, unique=row.kinks is ties)


# -- arguments: one strategy for each kind of signature ------------------------------------------------------
@st.composite
def elementwise(draw: Draw, row: Operation) -> Arguments:
    return (draw(_input(row, shapes())),), {}


@st.composite
def broadcast(draw: Draw, row: Operation) -> Arguments:
    pair = draw(broadcastable_shapes())
    return tuple(draw(_input(row, shape, i)) for i, shape in enumerate(pair)), {}


@st.composite
def pair(draw: Draw, row: Operation) -> Arguments:
    shape = draw(shapes(min_dims=1, min_side=1))
    return (draw(_input(row, shape, 0)), draw(_input(row, shape, 1))), {}


@st.composite
def comparison(draw: Draw, row: Operation) -> Arguments:
    few = st.sampled_from([-1.0, 0.0, 1.0])
    return tuple(draw(hnp.arrays(np.float64, shape, elements=few)) for shape in draw(broadcastable_shapes())), {}


@st.composite
def special(draw: Draw, row: Operation) -> Arguments:
    few = st.sampled_from([0.0, 1.0, -2.0, math.nan, math.inf, -math.inf])
    return (draw(hnp.arrays(np.float64, shapes(), elements=few)),), {}


@st.composite
def where(draw: Draw, row: Operation) -> Arguments:
    first, *rest = draw(broadcastable_shapes(3))
    return (draw(hnp.arrays(np.bool_, first)), *(draw(_input(row, shape)) for shape in rest)), {}


@st.composite
def masked_fill(draw: Draw, row: Operation) -> Arguments:
    shape = draw(shapes())
    mask = [n if draw(st.booleans()) else 1 for n in shape][draw(st.integers(0, len(shape))) :]
    return (draw(_input(row, shape)), draw(hnp.arrays(np.bool_, tuple(mask))), draw(numbers())), {}


@st.composite
def dropout(draw: Draw, row: Operation) -> Arguments:
    p = draw(st.sampled_from([0.1, 0.5]))
    return (draw(_input(row, shapes())),), {"p": p, "key": (draw(st.integers(0, 9)), "site", 0)}


def _reduced(draw: Draw, ndim: int) -> dict[str, Any]:
    dim = draw(st.one_of(axes(ndim), several_axes(ndim)) if ndim else axes(0))
    return {"dim": dim, "keepdim": draw(st.booleans())}


@st.composite
def reduction(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_side=1)))
    return (x,), _reduced(draw, x.ndim) if draw(st.booleans()) else {}


@st.composite
def dims(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1, min_side=1)))
    return (x,), _reduced(draw, x.ndim)


@st.composite
def moment(draw: Draw, row: Operation) -> Arguments:
    (x,), kwargs = draw(dims(row))
    assume(np.sum(np.ones(x.shape), axis=kwargs["dim"]).flat[0] > 1)
    return (x,), kwargs


@st.composite
def bools(draw: Draw, row: Operation) -> Arguments:
    x = draw(hnp.arrays(np.bool_, shapes()))
    return (x,), _reduced(draw, x.ndim) if draw(st.booleans()) else {}


@st.composite
def axis(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1, min_side=1)))
    return (x,), {"dim": draw(axes(x.ndim))}


@st.composite
def axis_keepdim(draw: Draw, row: Operation) -> Arguments:
    args, kwargs = draw(axis(row))
    return args, {**kwargs, "keepdim": draw(st.booleans())}


@st.composite
def topk(draw: Draw, row: Operation) -> Arguments:
    (x,), kwargs = draw(axis(row))
    return (x, draw(st.integers(0, x.shape[kwargs["dim"]]))), kwargs


@st.composite
def expand(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(max_dims=2)))
    grown = tuple(draw(st.integers(0, 3)) if n == 1 else n for n in x.shape)
    return (x, (*draw(shapes(max_dims=2)), *grown)), {}


@st.composite
def reshape(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes()))
    known = [(x.size,), x.shape[::-1], (1, *x.shape), (*x.shape, 1)]
    inferred = [(-1,), (-1, *x.shape[1:])] if x.size else []
    return (x, draw(st.sampled_from(known + inferred))), {}


@st.composite
def flatten(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes()))
    start, end = sorted(draw(st.lists(st.integers(0, max(x.ndim - 1, 0)), min_size=2, max_size=2)))
    return (x, start, end - x.ndim * draw(st.booleans())), {}


@st.composite
def unflatten(draw: Draw, row: Operation) -> Arguments:
    sizes = draw(shapes(min_dims=1, max_dims=2))
    shape = list(draw(shapes(min_dims=1, max_dims=2)))
    dim = draw(axes(len(shape)))
    shape[dim] = math.prod(sizes)
    return (draw(_input(row, tuple(shape))), dim, sizes), {}


@st.composite
def squeeze(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(max_side=2)))
    return (x,), {"dim": draw(axes(x.ndim))} if draw(st.booleans()) else {}


@st.composite
def unsqueeze(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes()))
    return (x, draw(axes(x.ndim + 1))), {}


@st.composite
def permute(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes()))
    order = draw(st.permutations(range(x.ndim)))
    return (x, tuple(d - x.ndim * draw(st.booleans()) for d in order)), {}


@st.composite
def two_dims(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1)))
    return (x, draw(axes(x.ndim)), draw(axes(x.ndim))), {}


@st.composite
def vector_or_matrix(draw: Draw, row: Operation) -> Arguments:
    return (draw(_input(row, shapes(max_dims=2))),), {}


@st.composite
def cat(draw: Draw, row: Operation) -> Arguments:
    shape = draw(shapes(min_dims=1))
    dim = draw(axes(len(shape)))
    parts = []
    for n in draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)):
        sizes = list(shape)
        sizes[dim] = n
        parts.append(draw(_input(row, tuple(sizes))))
    return (parts, dim), {}


@st.composite
def stack(draw: Draw, row: Operation) -> Arguments:
    shape = draw(shapes(max_dims=2))
    count = draw(st.integers(1, 3))
    return ([draw(_input(row, shape)) for _ in range(count)], draw(axes(len(shape) + 1))), {}


@st.composite
def split(draw: Draw, row: Operation) -> Arguments:
    (x,), kwargs = draw(axis(row))
    return (x, draw(st.integers(1, 4)), kwargs["dim"]), {}


@st.composite
def unbind(draw: Draw, row: Operation) -> Arguments:
    (x,), kwargs = draw(axis(row))
    return (x, kwargs["dim"]), {}


@st.composite
def pad(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes()))
    count = draw(st.integers(0, x.ndim))
    return (x, tuple(draw(st.integers(0, 2)) for _ in range(2 * count))), {}


@st.composite
def flip(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1)))
    return (x, draw(several_axes(x.ndim, min_size=0))), {}


@st.composite
def roll(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1)))
    over = draw(st.one_of(axes(x.ndim), several_axes(x.ndim)))
    one, many = isinstance(over, int), np.size(over)
    shifts = draw(st.lists(st.integers(-4, 4), min_size=many, max_size=many))
    return (x, shifts[0] if one else tuple(shifts), over), {}


@st.composite
def tile(draw: Draw, row: Operation) -> Arguments:
    return (draw(_input(row, shapes(max_dims=2))), draw(shapes(max_side=2))), {}


@st.composite
def repeat_interleave(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1)))
    return (x, draw(st.integers(0, 3)), draw(axes(x.ndim))), {}


@st.composite
def getitem(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes()))
    return (x, draw(indices(x.shape))), {}


@st.composite
def gather(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1, min_side=1)))
    dim = draw(axes(x.ndim))
    sizes = [draw(st.integers(0, n)) for n in x.shape]
    sizes[dim] = draw(st.integers(0, 4))
    return (x, dim, draw(integers(tuple(sizes), 0, x.shape[dim]))), {}


@st.composite
def take_along_dim(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1, min_side=1)))
    dim, sizes = draw(axes(x.ndim)), list(x.shape)
    sizes[dim] = draw(st.integers(0, 4))
    return (x, draw(integers(tuple(sizes), 0, x.shape[dim])), dim), {}


@st.composite
def index_select(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1, min_side=1)))
    dim = draw(axes(x.ndim))
    return (x, dim, draw(integers(st.integers(0, 4), 0, x.shape[dim]))), {}


@st.composite
def index_add(draw: Draw, row: Operation) -> Arguments:
    (x, dim, index), _ = draw(index_select(row))
    sizes = list(x.shape)
    sizes[dim] = len(index)
    return (x, dim, index, draw(_input(row, tuple(sizes)))), {}


@st.composite
def scatter_add(draw: Draw, row: Operation) -> Arguments:
    (x, dim, index), _ = draw(gather(row))
    return (x, dim, index, draw(_input(row, tuple(n + draw(st.integers(0, 1)) for n in index.shape)))), {}


@st.composite
def triangle(draw: Draw, row: Operation) -> Arguments:
    return (draw(_input(row, shapes(min_dims=2))), draw(st.integers(-3, 3))), {}


@st.composite
def embedding(draw: Draw, row: Operation) -> Arguments:
    table = draw(_input(row, shapes(min_dims=2, max_dims=2, min_side=1)))
    return (draw(integers(shapes(), 0, len(table))), table), {}


@st.composite
def one_hot(draw: Draw, row: Operation) -> Arguments:
    count = draw(st.integers(1, 4))
    return (draw(integers(shapes(), 0, count)), count), {}


@st.composite
def matmul(draw: Draw, row: Operation) -> Arguments:
    m, k, n = draw(st.tuples(*[st.integers(0, 3)] * 3))
    left, right = draw(broadcastable_shapes())
    first = (k,) if draw(st.booleans()) else (*left[-2:], m, k)
    second = (k,) if draw(st.booleans()) else (*right[-2:], k, n)
    return (draw(_input(row, first)), draw(_input(row, second))), {}


@st.composite
def bmm(draw: Draw, row: Operation) -> Arguments:
    b, m, k, n = draw(st.tuples(*[st.integers(0, 3)] * 4))
    return (draw(_input(row, (b, m, k))), draw(_input(row, (b, k, n)))), {}


@st.composite
def linear(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1)))
    out = draw(st.integers(0, 3))
    args = (x, draw(_input(row, (out, x.shape[-1]))))
    return (*args, draw(_input(row, out))) if draw(st.booleans()) else args, {}


EQUATIONS = (
    "i->", "ij->ji", "ij->i", "ii->i", "ii->", "iij->j", "i,j->ij", "ij,ij->", "ij,jk->ik", "ij,jk", "bij,bjk->bik",
    "bhtd,bhsd->bhts", "ijk,kl,li->j", "ij,kl->il",
)  # fmt: skip


@st.composite
def einsum(draw: Draw, row: Operation) -> Arguments:
    equation = draw(st.sampled_from(EQUATIONS))
    size = {c: draw(st.integers(1, 3)) for c in sorted(set(equation) - set(",->"))}
    terms = equation.split("->")[0].split(",")
    return (equation, *(draw(_input(row, tuple(size[c] for c in term))) for term in terms)), {}


def _normalized(draw: Draw, row: Operation, affine: int) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1, min_side=1)))
    last = x.shape[draw(st.integers(0, x.ndim - 1)) :]
    return (x, last, *(draw(st.one_of(st.none(), _input(row, last))) for _ in range(affine))), {}


@st.composite
def layer_norm(draw: Draw, row: Operation) -> Arguments:
    return _normalized(draw, row, affine=2)


@st.composite
def rms_norm(draw: Draw, row: Operation) -> Arguments:
    return _normalized(draw, row, affine=1)


@st.composite
def attention(draw: Draw, row: Operation) -> Arguments:
    batch, shared, groups, width = draw(st.tuples(*[st.integers(1, 2)] * 4))
    queries, keys = draw(st.tuples(*[st.integers(1, 4)] * 2))
    q = draw(_input(row, (batch, shared * groups, queries, width)))
    k, v = (draw(_input(row, (batch, shared, keys, width))) for _ in "kv")
    sizes = [n if draw(st.booleans()) else 1 for n in (batch, shared * groups, queries)]
    kind = draw(st.sampled_from(["none", "bool", "float"]))
    seen = draw(hnp.arrays(np.bool_, (*sizes, keys)))
    mask = {"none": None, "bool": seen, "float": np.where(seen, draw(numbers()), -math.inf)}[kind]
    return (q, k, v), {"attn_mask": mask, "is_causal": draw(st.booleans()), "enable_gqa": groups > 1}


@st.composite
def rotation(draw: Draw, row: Operation) -> Arguments:
    b, h, t, half = draw(st.tuples(*[st.integers(1, 3)] * 4))
    angle = draw(arrays((t, half) if draw(st.booleans()) else (b, t, half)))
    return (draw(_input(row, (b, h, t, 2 * half))),), {"cos": np.cos(angle), "sin": np.sin(angle)}


@st.composite
def recurrence(draw: Draw, row: Operation) -> Arguments:
    batch, steps = draw(st.integers(0, 2)), draw(st.integers(1, 4))
    size, hidden = draw(st.tuples(*[st.integers(1, 3)] * 2))
    sizes = [(batch, steps, size), (4 * hidden, size), (4 * hidden, hidden)]
    sizes += draw(st.sampled_from([[], [(4 * hidden,)] * 2]))
    return tuple(draw(_input(row, shape, i)) for i, shape in enumerate(sizes)), {}


@st.composite
def classes(draw: Draw, row: Operation) -> Arguments:
    x = draw(_input(row, shapes(min_dims=1, min_side=1)))
    at = min(1, x.ndim - 1)
    ignored = draw(st.sampled_from([-100, 0]))
    ids = st.one_of(st.integers(0, x.shape[at] - 1), st.just(ignored))
    target = draw(hnp.arrays(np.int64, x.shape[:at] + x.shape[at + 1 :], elements=ids))
    assume(np.any(target != ignored))
    return (x, target), {"ignore_index": ignored}


ARGUMENTS: dict[str, Callable[[Operation], st.SearchStrategy[Arguments]]] = {
    strategy.__name__: strategy
    for strategy in (
        attention, axis, axis_keepdim, bmm, bools, broadcast, cat, classes, comparison, dims, dropout, einsum,
        elementwise, embedding, expand, flatten, flip, gather, getitem, index_add, index_select, layer_norm, linear,
        masked_fill, matmul, moment, one_hot, pad, pair, permute, recurrence, reduction, repeat_interleave, reshape,
        rms_norm, roll, rotation, scatter_add, special, split, squeeze, stack, take_along_dim, tile, topk, triangle,
        two_dims, unbind, unflatten, unsqueeze, vector_or_matrix, where,
    )
}  # fmt: skip
"""Name in the operation table -> strategy."""
