"""OPERATIONS: every operation with its NumPy reference, its peer, where it is defined and where differentiable.

Tests, documentation and benchmarks iterate this table; ``minitorch_peft.testing`` draws arguments from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from minitorch_peft import functional as F
from minitorch_peft.autograd.random import counter_seed
from minitorch_peft.kernels.activation import reference as activation
from minitorch_peft.kernels.attention import reference as attention
from minitorch_peft.kernels.cross_entropy import reference as cross_entropy
from minitorch_peft.kernels.norm import reference as norm
from minitorch_peft.kernels.philox import reference as philox
from minitorch_peft.kernels.rotary import reference as rotary

Interval = tuple[float, float]
REAL: Interval = (-3.0, 3.0)
POSITIVE: Interval = (0.2, 3.0)
UNIT: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class Operation:
    """One row. ``reference`` takes the same arguments as ``function``, arrays for tensors.

    arguments: which strategy of ``minitorch_peft.testing`` draws the arguments (its shapes, dims, indices).
    torch: the peer, a dotted path ("torch.exp"), or None.
    domain: the interval that inputs are drawn from, or one for each input (the last for all that follow).
    options: keyword arguments, each with the values to draw from.
    kinks: from the arguments, distances to the points where the operation is not differentiable: each must be
        above a margin for gradients to be compared. None where it is differentiable everywhere.
    differentiable: False where the result is integers or bools.
    """

    name: str
    reference: Callable[..., Any]
    arguments: str
    torch: str | None
    domain: Interval | tuple[Interval, ...] = REAL
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    kinks: Callable[..., Any] | None = None
    differentiable: bool = True

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(F, self.name)

    def interval(self, index: int) -> Interval:
        """Where input number ``index`` is drawn from."""
        if isinstance(self.domain[0], tuple):
            return self.domain[min(index, len(self.domain) - 1)]  # type: ignore[return-value]
        return self.domain  # type: ignore[return-value]


# -- kinks: how far the arguments are from where a derivative jumps, or ends ----------------------------------
@dataclass(frozen=True)
class At:
    """Kinks of an elementwise function of its first input, at fixed points."""

    points: tuple[float, ...]

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        return np.subtract.outer(x, self.points)


def crossing(a: np.ndarray, b: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
    """Two operands change order."""
    return np.subtract(a, b)


def ties(x: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
    """Two elements change order."""
    return np.diff(np.sort(x, axis=None))


def no_spread(x: np.ndarray, dim: Any = None, correction: float = 1, keepdim: bool = False) -> np.ndarray:
    """All elements are equal: the root of the variance has a corner there (and none is left of one element)."""
    return np.std(x, axis=dim, ddof=0)


def no_length(x: np.ndarray, p: float = 2, dim: Any = None, keepdim: bool = False) -> np.ndarray:
    """All elements are 0: the length has a corner there."""
    return _norm(x, p, dim)


WHOLE = At((-3, -2, -1, 0, 1, 2, 3))
HALVES = At((-2.5, -1.5, -0.5, 0.5, 1.5, 2.5))


# -- references that do not fit into a line ------------------------------------------------------------------
def _over(function: Callable[..., Any]) -> Callable[..., Any]:
    """A NumPy reduction with torch's names for its arguments."""
    return lambda x, dim=None, keepdim=False: function(x, axis=dim if np.ndim(x) else None, keepdims=keepdim)


def _moment(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, dim=None, correction=1, keepdim=False: function(x, axis=dim, ddof=correction, keepdims=keepdim)


def _logsumexp(x: np.ndarray, dim: Any, keepdim: bool = False) -> np.ndarray:
    return np.log(np.sum(np.exp(x), axis=dim, keepdims=keepdim))


def _norm(x: np.ndarray, p: float = 2, dim: Any = None, keepdim: bool = False) -> np.ndarray:
    return np.sqrt(np.sum(x * x, axis=dim if x.ndim else None, keepdims=keepdim))


def _softmax(x: np.ndarray, dim: int) -> np.ndarray:
    return np.exp(x) / np.sum(np.exp(x), axis=dim, keepdims=True)


def _extreme(find: Any, x: np.ndarray, dim: int, keepdim: bool = False) -> tuple[np.ndarray, np.ndarray]:
    index = np.asarray(find(x, axis=dim if x.ndim else None, keepdims=True))
    values = np.take_along_axis(x, index, dim) if x.ndim else x
    return (values, index) if keepdim or not x.ndim else (values.squeeze(dim), index.squeeze(dim))


def _sort(x: np.ndarray, dim: int = -1, descending: bool = False) -> tuple[np.ndarray, np.ndarray]:
    index = np.argsort(-x if descending else x, axis=dim, kind="stable")
    return np.take_along_axis(x, index, dim), index


def _topk(x: np.ndarray, k: int, dim: int = -1, largest: bool = True) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.moveaxis(np.moveaxis(a, dim, 0)[:k], 0, dim) for a in _sort(x, dim, largest))  # type: ignore


def _split(x: np.ndarray, size: int, dim: int = 0) -> list[np.ndarray]:
    return np.split(x, range(size, x.shape[dim], size), axis=dim)


def _unflatten(x: np.ndarray, dim: int, sizes: Any) -> np.ndarray:
    dim %= x.ndim
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def _flatten(x: np.ndarray, start_dim: int = 0, end_dim: int = -1) -> np.ndarray:
    start, end = start_dim % max(x.ndim, 1), end_dim % max(x.ndim, 1)
    return x.reshape(*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :])


def _pad(x: np.ndarray, pad: Any, value: float = 0.0) -> np.ndarray:
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    return np.pad(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs, constant_values=value) if x.ndim else x


def _index_add(x: np.ndarray, dim: int, index: Any, source: np.ndarray, alpha: float = 1) -> np.ndarray:
    y = np.moveaxis(x, dim, 0).copy()
    np.add.at(y, index, alpha * np.moveaxis(source, dim, 0))
    return np.moveaxis(y, 0, dim)


def _scatter_add(x: np.ndarray, dim: int, index: np.ndarray, src: np.ndarray) -> np.ndarray:
    y = x.copy()
    for place in np.ndindex(index.shape):
        y[(*place[: dim % x.ndim], index[place], *place[dim % x.ndim + 1 :])] += src[place]
    return y


def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    return x @ weight.T + (0 if bias is None else bias)


def _layer_norm(x: np.ndarray, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> np.ndarray:
    return norm.layer_norm_forward(*_flat_rows(x, shape, weight, bias), eps)[0].reshape(x.shape)


def _rms_norm(x: np.ndarray, shape: Any, weight: Any = None, eps: float = 1e-6) -> np.ndarray:
    return norm.rms_norm_forward(*_flat_rows(x, shape, weight), eps)[0].reshape(x.shape)


def _flat_rows(x: np.ndarray, shape: Any, *affine: Any) -> tuple[Any, ...]:
    rows = x.reshape(*x.shape[: x.ndim - len(shape)], math.prod(shape))
    return rows, *(None if a is None else a.reshape(-1) for a in affine)


def _gelu(x: np.ndarray, approximate: str = "none") -> np.ndarray:
    return activation.gelu_forward(x) if approximate == "none" else activation.gelu_tanh_forward(x)


def _attention(q: Any, k: Any, v: Any, attn_mask: Any = None, is_causal: bool = False, enable_gqa: bool = False) -> Any:
    return attention.attention_forward(q, k, v, attn_mask, is_causal, 1 / math.sqrt(q.shape[-1]))[0]


def _cross_entropy(
    x: Any, target: Any, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
) -> Any:
    x = np.moveaxis(x, min(1, x.ndim - 1), -1)
    rows = x.reshape(target.size, x.shape[-1])
    loss, _ = cross_entropy.cross_entropy_forward(rows, target.reshape(-1), ignore_index, label_smoothing)
    return _reduce(loss.reshape(target.shape), reduction, np.sum(target != ignore_index))


def _nll_loss(x: Any, target: Any, ignore_index: int = -100, reduction: str = "mean") -> Any:
    x, kept = np.moveaxis(x, min(1, x.ndim - 1), -1), target != ignore_index
    loss = -np.take_along_axis(x, np.where(kept, target, 0)[..., None], -1)[..., 0] * kept
    return _reduce(loss, reduction, np.sum(kept))


def _reduce(loss: np.ndarray, reduction: str, count: Any = None) -> Any:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return np.sum(loss)
    return np.sum(loss) / (len(loss) if reduction == "batchmean" else np.size(loss) if count is None else count)


def _kl_div(x: np.ndarray, t: np.ndarray, reduction: str = "mean", log_target: bool = False) -> Any:
    return _reduce(np.exp(t) * (t - x) if log_target else t * np.log(t) - t * x, reduction)


def _lstm_layer(x: Any, W: Any, U: Any, b: Any = 0.0, d: Any = 0.0, reverse: bool = False) -> np.ndarray:
    h, c, y = np.zeros((len(x), U.shape[1])), np.zeros((len(x), U.shape[1])), np.zeros((*x.shape[:2], U.shape[1]))
    for t in range(x.shape[1])[:: -1 if reverse else 1]:
        i, f, g, o = np.split(x[:, t] @ W.T + b + h @ U.T + d, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        y[:, t] = h = _sigmoid(o) * np.tanh(c)
    return y


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[float])(x)


def _cumsum(x: np.ndarray, dim: int) -> np.ndarray:
    return np.cumsum(x, axis=dim) if x.ndim else x


def _squeeze(x: np.ndarray, dim: Any = None) -> np.ndarray:
    sizes = range(x.ndim) if dim is None else [dim % x.ndim] if x.ndim else []
    return np.squeeze(x, tuple(d for d in sizes if x.shape[d] == 1))


def _gather(x: np.ndarray, dim: int, index: np.ndarray) -> np.ndarray:
    fits = tuple(slice(None if d == dim % x.ndim else n) for d, n in enumerate(index.shape))
    return np.take_along_axis(x[fits], index, dim)


def _getitem(x: np.ndarray, index: Any) -> np.ndarray:
    """NumPy's, but numbers are taken out first: beside arrays NumPy would count them as arrays."""
    items = list(index) if isinstance(index, tuple) else [index]
    axes = [_axes(item) for item in items]
    kept, axis = [], 0
    for place, item in enumerate(items):
        if isinstance(item, int):
            x = np.take(x, item, axis)
        else:
            kept.append(item)
            axis = x.ndim - sum(axes[place + 1 :]) if item is Ellipsis else axis + axes[place]
    return x[tuple(kept)]


def _axes(item: Any) -> int:
    """How many axes one index takes."""
    if item is None or item is Ellipsis:
        return 0
    return np.ndim(item) if np.asarray(item).dtype == bool else 1


def _dropout(x: np.ndarray, p: float, key: Any) -> np.ndarray:
    return philox.dropped(x, p, counter_seed(*key))


REDUCTION = {"reduction": ("mean", "sum", "none")}


# name, NumPy reference, strategy of its arguments, torch, domain and kinks
OPERATIONS: tuple[Operation, ...] = (
    # two operands
    Operation("add", np.add, "broadcast", "torch.add"),
    Operation("sub", np.subtract, "broadcast", "torch.sub"),
    Operation("mul", np.multiply, "broadcast", "torch.mul"),
    Operation("div", np.divide, "broadcast", "torch.div", domain=(REAL, POSITIVE)),
    Operation("pow", np.power, "broadcast", "torch.pow", domain=(POSITIVE, REAL)),
    Operation("maximum", np.maximum, "broadcast", "torch.maximum", kinks=crossing),
    Operation("minimum", np.minimum, "broadcast", "torch.minimum", kinks=crossing),
    Operation("swiglu", lambda a, b: a * _sigmoid(a) * b, "broadcast", None),
    Operation("where", np.where, "where", "torch.where"),
    Operation("masked_fill", lambda x, m, v: np.where(m, v, x), "masked_fill", "torch.masked_fill"),
    # elementwise
    Operation("neg", np.negative, "elementwise", "torch.neg"),
    Operation("abs", np.abs, "elementwise", "torch.abs", kinks=At((0,))),
    Operation("exp", np.exp, "elementwise", "torch.exp"),
    Operation("expm1", np.expm1, "elementwise", "torch.expm1"),
    Operation("log", np.log, "elementwise", "torch.log", POSITIVE),
    Operation("log1p", np.log1p, "elementwise", "torch.log1p", (-0.8, 3.0)),
    Operation("log2", np.log2, "elementwise", "torch.log2", POSITIVE),
    Operation("sqrt", np.sqrt, "elementwise", "torch.sqrt", POSITIVE),
    Operation("rsqrt", lambda x: 1 / np.sqrt(x), "elementwise", "torch.rsqrt", POSITIVE),
    Operation("square", np.square, "elementwise", "torch.square"),
    Operation("reciprocal", np.reciprocal, "elementwise", "torch.reciprocal", POSITIVE),
    Operation("sin", np.sin, "elementwise", "torch.sin"),
    Operation("cos", np.cos, "elementwise", "torch.cos"),
    Operation("erf", _erf, "elementwise", "torch.erf"),
    Operation("clamp", lambda x, min, max: np.clip(x, min, max), "elementwise", "torch.clamp",
              options={"min": (-1.0,), "max": (0.5, None)}, kinks=At((-1, 0.5))),
    Operation("sign", np.sign, "elementwise", "torch.sign", kinks=At((0,))),
    Operation("floor", np.floor, "elementwise", "torch.floor", kinks=WHOLE),
    Operation("ceil", np.ceil, "elementwise", "torch.ceil", kinks=WHOLE),
    Operation("round", np.rint, "elementwise", "torch.round", kinks=HALVES),
    Operation("clone", np.array, "elementwise", "torch.clone"),
    Operation("contiguous", np.array, "elementwise", "torch.Tensor.contiguous"),
    # activations
    Operation("tanh", np.tanh, "elementwise", "torch.tanh"),
    Operation("sigmoid", _sigmoid, "elementwise", "torch.sigmoid"),
    Operation("softplus", lambda x, beta: np.log1p(np.exp(beta * x)) / beta, "elementwise",
              "torch.nn.functional.softplus", options={"beta": (1.0, 2.5)}),
    Operation("logsigmoid", lambda x: np.log(_sigmoid(x)), "elementwise", "torch.nn.functional.logsigmoid"),
    Operation("relu", lambda x: np.maximum(x, 0), "elementwise", "torch.relu", kinks=At((0,))),
    Operation("leaky_relu", lambda x, negative_slope: np.maximum(x, negative_slope * x), "elementwise",
              "torch.nn.functional.leaky_relu", options={"negative_slope": (0.01, 0.5)}, kinks=At((0,))),
    Operation("elu", lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x)), "elementwise",
              "torch.nn.functional.elu", options={"alpha": (1.0, 0.5)}, kinks=At((0,))),
    Operation("silu", lambda x: x * _sigmoid(x), "elementwise", "torch.nn.functional.silu"),
    Operation("gelu", _gelu, "elementwise", "torch.nn.functional.gelu", options={"approximate": ("none", "tanh")}),
    Operation("softmax", _softmax, "axis", "torch.softmax"),
    Operation("log_softmax", lambda x, dim: np.log(_softmax(x, dim)), "axis", "torch.log_softmax"),
    Operation("dropout", _dropout, "dropout", None),
    # reductions
    Operation("sum", _over(np.sum), "reduction", "torch.sum"),
    Operation("mean", _over(np.mean), "reduction", "torch.mean"),
    Operation("var", _moment(np.var), "moment", "torch.var", options={"correction": (0, 1)}),
    Operation("std", _moment(np.std), "moment", "torch.std", options={"correction": (0, 1)}, kinks=no_spread),
    Operation("norm", _norm, "reduction", "torch.linalg.vector_norm", kinks=no_length),
    Operation("logsumexp", _logsumexp, "dims", "torch.logsumexp"),
    Operation("amax", _over(np.max), "reduction", "torch.amax", kinks=ties),
    Operation("amin", _over(np.min), "reduction", "torch.amin", kinks=ties),
    Operation("prod", _over(np.prod), "axis_keepdim", "torch.prod"),
    Operation("cumsum", _cumsum, "axis", "torch.cumsum"),
    Operation("argmax", _over(np.argmax), "axis_keepdim", "torch.argmax", kinks=ties, differentiable=False),
    Operation("argmin", _over(np.argmin), "axis_keepdim", "torch.argmin", kinks=ties, differentiable=False),
    # order
    Operation("max", partial(_extreme, np.argmax), "axis_keepdim", "torch.max", kinks=ties),
    Operation("min", partial(_extreme, np.argmin), "axis_keepdim", "torch.min", kinks=ties),
    Operation("sort", _sort, "axis", "torch.sort", options={"descending": (False, True)}, kinks=ties),
    Operation("argsort", lambda *a, **k: _sort(*a, **k)[1], "axis", "torch.argsort",
              options={"descending": (False, True)}, kinks=ties, differentiable=False),
    Operation("topk", _topk, "topk", "torch.topk", options={"largest": (True, False)}, kinks=ties),
    # shapes
    Operation("expand", np.broadcast_to, "expand", "torch.Tensor.expand"),
    Operation("broadcast_to", np.broadcast_to, "expand", "torch.broadcast_to"),
    Operation("broadcast_tensors", np.broadcast_arrays, "broadcast", "torch.broadcast_tensors"),
    Operation("reshape", np.reshape, "reshape", "torch.reshape"),
    Operation("flatten", _flatten, "flatten", "torch.flatten"),
    Operation("unflatten", _unflatten, "unflatten", "torch.unflatten"),
    Operation("squeeze", _squeeze, "squeeze", "torch.squeeze"),
    Operation("unsqueeze", np.expand_dims, "unsqueeze", "torch.unsqueeze"),
    Operation("permute", np.transpose, "permute", "torch.permute"),
    Operation("transpose", np.swapaxes, "two_dims", "torch.transpose"),
    Operation("movedim", np.moveaxis, "two_dims", "torch.movedim"),
    Operation("t", np.transpose, "vector_or_matrix", "torch.t"),
    Operation("cat", np.concatenate, "cat", "torch.cat"),
    Operation("stack", np.stack, "stack", "torch.stack"),
    Operation("split", _split, "split", "torch.split"),
    Operation("chunk", lambda x, n, dim: _split(x, -(-x.shape[dim] // n), dim), "split", "torch.chunk"),
    Operation("unbind", lambda x, dim: list(np.moveaxis(x, dim, 0)), "unbind", "torch.unbind"),
    Operation("pad", _pad, "pad", "torch.nn.functional.pad", options={"value": (0.0, -1.5)}),
    Operation("flip", np.flip, "flip", "torch.flip"),
    Operation("roll", np.roll, "roll", "torch.roll"),
    Operation("tile", np.tile, "tile", "torch.tile"),
    Operation("repeat_interleave", np.repeat, "repeat_interleave", "torch.repeat_interleave"),
    # indices
    Operation("getitem", _getitem, "getitem", "operator.getitem"),
    Operation("gather", _gather, "gather", "torch.gather"),
    Operation("take_along_dim", np.take_along_axis, "take_along_dim", "torch.take_along_dim"),
    Operation("index_select", lambda x, dim, i: np.take(x, i, dim), "index_select", "torch.index_select"),
    Operation("index_add", _index_add, "index_add", "torch.index_add", options={"alpha": (1, -2.0)}),
    Operation("scatter_add", _scatter_add, "scatter_add", "torch.scatter_add"),
    Operation("tril", np.tril, "triangle", "torch.tril"),
    Operation("triu", np.triu, "triangle", "torch.triu"),
    Operation("embedding", lambda ids, w: w[ids], "embedding", "torch.nn.functional.embedding"),
    Operation("one_hot", lambda ids, n: np.eye(n, dtype=int)[ids], "one_hot", "torch.nn.functional.one_hot",
              differentiable=False),
    # products
    Operation("matmul", np.matmul, "matmul", "torch.matmul"),
    Operation("bmm", np.matmul, "bmm", "torch.bmm"),
    Operation("linear", _linear, "linear", "torch.nn.functional.linear"),
    Operation("einsum", np.einsum, "einsum", "torch.einsum"),
    # layers and losses
    Operation("layer_norm", _layer_norm, "layer_norm", "torch.nn.functional.layer_norm", options={"eps": (1e-5, 0.1)}),
    Operation("rms_norm", _rms_norm, "rms_norm", "torch.nn.functional.rms_norm", options={"eps": (1e-5, 0.1)}),
    Operation("scaled_dot_product_attention", _attention, "attention",
              "torch.nn.functional.scaled_dot_product_attention"),
    Operation("apply_rotary", rotary.rotary_forward, "rotation", None),
    Operation("lstm_layer", _lstm_layer, "recurrence", None, options={"reverse": (False, True)}),
    Operation("cross_entropy", _cross_entropy, "classes", "torch.nn.functional.cross_entropy",
              options={**REDUCTION, "label_smoothing": (0.0, 0.1)}),
    Operation("nll_loss", _nll_loss, "classes", "torch.nn.functional.nll_loss", options=REDUCTION),
    Operation("kl_div", _kl_div, "pair", "torch.nn.functional.kl_div", (REAL, POSITIVE),
              options={"reduction": ("mean", "sum", "none", "batchmean"), "log_target": (False, True)}),
    Operation("mse_loss", lambda x, t, reduction: _reduce((x - t) ** 2, reduction), "pair",
              "torch.nn.functional.mse_loss", options=REDUCTION),
    Operation("l1_loss", lambda x, t, reduction: _reduce(np.abs(x - t), reduction), "pair",
              "torch.nn.functional.l1_loss", options=REDUCTION, kinks=crossing),
    Operation("binary_cross_entropy_with_logits",
              lambda x, t, reduction: _reduce(np.log1p(np.exp(x)) - x * t, reduction), "pair",
              "torch.nn.functional.binary_cross_entropy_with_logits", (REAL, UNIT), options=REDUCTION),
    # comparisons
    Operation("eq", np.equal, "comparison", "torch.eq", differentiable=False),
    Operation("ne", np.not_equal, "comparison", "torch.ne", differentiable=False),
    Operation("lt", np.less, "comparison", "torch.lt", differentiable=False),
    Operation("le", np.less_equal, "comparison", "torch.le", differentiable=False),
    Operation("gt", np.greater, "comparison", "torch.gt", differentiable=False),
    Operation("ge", np.greater_equal, "comparison", "torch.ge", differentiable=False),
    Operation("logical_and", np.logical_and, "comparison", "torch.logical_and", differentiable=False),
    Operation("logical_or", np.logical_or, "comparison", "torch.logical_or", differentiable=False),
    Operation("logical_not", np.logical_not, "special", "torch.logical_not", differentiable=False),
    Operation("isnan", np.isnan, "special", "torch.isnan", differentiable=False),
    Operation("isinf", np.isinf, "special", "torch.isinf", differentiable=False),
    Operation("isfinite", np.isfinite, "special", "torch.isfinite", differentiable=False),
    Operation("any", _over(np.any), "bools", "torch.any", differentiable=False),
    Operation("all", _over(np.all), "bools", "torch.all", differentiable=False),
)  # fmt: skip

BY_NAME: Mapping[str, Operation] = {operation.name: operation for operation in OPERATIONS}
