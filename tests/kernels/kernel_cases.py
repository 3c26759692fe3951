"""Drawn arguments for every kernel, and what it means that a fast kernel agrees with its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from minitorch_peft.kernels import get, use_backend

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")
LAYOUTS = ("plain", "transposed", "every second", "reversed", "read-only")


def laid_out(x: np.ndarray, layout: str) -> np.ndarray:
    """The same values in another memory layout."""
    if layout == "read-only":
        x = x.copy()
        x.flags.writeable = False
    elif x.ndim and layout == "transposed":
        return np.ascontiguousarray(x.T).T
    elif x.ndim and layout == "every second":
        wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), 7, x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    elif x.ndim and layout == "reversed":
        return np.ascontiguousarray(x[::-1])[::-1]
    return x


class Drawn:
    """Sizes, arrays and flags of one example, drawn from Hypothesis; the values come from a drawn seed."""

    def __init__(self, draw: Callable, layouts: tuple[str, ...] = LAYOUTS):
        self.draw, self.layouts = draw, layouts
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def size(self, most: int = 9, least: int = 0) -> int:
        return self.draw(st.integers(least, most))

    def shape(self, most_axes: int = 3) -> tuple[int, ...]:
        return tuple(self.draw(st.lists(st.integers(0, 7), max_size=most_axes)))

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def flags(self, count: int) -> tuple[bool, ...]:
        return tuple(self.draw(st.lists(st.booleans(), min_size=count, max_size=count)))

    def array(self, *shape: int, spread: float = 1.0) -> np.ndarray:
        x = np.asarray(spread * self.rng.standard_normal(shape), FLOAT32)
        return laid_out(x, self.pick(*self.layouts))

    def ids(self, below: int, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.integers(0, below, shape)


def double(x: Any) -> Any:
    return x.astype(FLOAT64) if isinstance(x, np.ndarray) and x.dtype == FLOAT32 else x


def reference(name: str, *args: Any) -> Any:
    """The float64 reference's result, rounded to float32: what a forward kernel would hand to its backward."""
    result = get(name, FLOAT64)(*map(double, args))
    if isinstance(result, tuple):
        return tuple(r.astype(FLOAT32) for r in result)
    return result.astype(FLOAT32)


def run(name: str, *args: Any, backend: str = "numba") -> tuple:
    with use_backend(backend):
        result = get(name, FLOAT32)(*args)
    return result if isinstance(result, tuple) else (result,)


def assert_agrees(name: str, *args: Any, tolerance: float = 2e-5) -> None:
    """The float32 Numba kernel gives what the float64 reference gives: values, shapes, dtypes, absent results."""
    fast, exact = run(name, *args), get(name, FLOAT64)(*map(double, args))
    exact = exact if isinstance(exact, tuple) else (exact,)
    assert len(fast) == len(exact)
    for i, (ours, theirs) in enumerate(zip(fast, exact, strict=True)):
        if theirs is None:
            assert ours is None, f"{name}: result {i} was not asked for"
            continue
        theirs = np.asarray(theirs)
        assert np.shape(ours) == theirs.shape, f"{name}: result {i}"
        if isinstance(ours, np.ndarray):
            assert ours.dtype == FLOAT32
        finite = np.abs(theirs[np.isfinite(theirs)])
        atol = tolerance * max(1.0, finite.max(initial=0))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=f"{name}: result {i}")


def _linear(d: Drawn) -> tuple:
    k, n, lead = d.size(), d.size(), d.shape()
    return d.array(*lead, k), d.array(n, k), d.pick(None, d.array(n))


def _linear_backward(d: Drawn) -> tuple:
    x, w, _ = _linear(d)
    return d.array(*x.shape[:-1], len(w)), x, w, d.flags(3)


def _lora(d: Drawn) -> tuple:
    x, w, b = _linear(d)
    r = d.size(4)
    return x, w, b, d.array(r, w.shape[1]), d.array(len(w), r), 0.5


def _lora_backward(d: Drawn) -> tuple:
    x, w, _, a, b, s = _lora(d)
    xa = laid_out((x @ a.T).astype(FLOAT32), d.pick(*d.layouts))
    return d.array(*x.shape[:-1], len(w)), x, xa, w, a, b, s, d.flags(5)


def _matmul(d: Drawn) -> tuple:
    batch = d.pick(((), ()), ((3,), (3,)), ((2, 3), (3,)), ((2, 1), (1, 4)), ((), (2,)), ((0,), (0,)))
    m, k, n = d.size(), d.size(), d.size()
    a = d.array(*batch[0], m, k)
    return a, d.pick(d.array(*batch[1], k, n), d.array(*batch[1], n, k).swapaxes(-1, -2))


def _norm(d: Drawn) -> tuple:
    c = d.size(least=1)
    return d.array(*d.shape(), c), d.pick(None, d.array(c))


def _layer_norm(d: Drawn) -> tuple:
    x, w = _norm(d)
    return x, w, d.pick(None, d.array(x.shape[-1])), 1e-5


def _layer_norm_backward(d: Drawn) -> tuple:
    x, w, b, _ = _layer_norm(d)
    _, mean, rstd = reference("layer_norm_forward", x, w, b, 1e-2)
    return d.array(*x.shape), x, w, mean, rstd, d.flags(3)


def _rms_norm_backward(d: Drawn) -> tuple:
    x, w = _norm(d)
    return d.array(*x.shape), x, w, reference("rms_norm_forward", x, w, 1e-2)[1], d.flags(2)


def _values(count: int) -> Callable[[Drawn], tuple]:
    def case(d: Drawn) -> tuple:
        shape = d.shape()
        return tuple(d.array(*shape, spread=3) for _ in range(count))

    return case


def _softmax(d: Drawn) -> tuple:
    return (d.array(*d.shape(), d.size(40), spread=3),)


def _softmax_backward(d: Drawn) -> tuple:
    (x,) = _softmax(d)
    return d.array(*x.shape), reference("softmax_forward", x)


def attention(d: Drawn) -> tuple:
    b, shared, group, size = d.size(2), d.size(2, 1), d.size(3, 1), d.size(8)
    t, s = d.pick((5, 5), (1, 7), (4, 9), (9, 4), (70, 70), (65, 130), (0, 3), (3, 0), (1, 1))
    q, k, v = d.array(b, shared * group, t, size), d.array(b, shared, s, size), d.array(b, shared, s, size)
    q, k, v = (d.pick(x, np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)) for x in (q, k, v))
    shape = d.pick((b, shared * group, t, s), (b, 1, 1, s), (t, s), (1, 1, t, 1), (s,))
    mask = d.pick(None, d.rng.random(shape) < 0.6, d.array(*shape))
    return q, k, v, mask, d.pick(True, False), 0.3


def _attention_backward(d: Drawn) -> tuple:
    q, k, v, mask, causal, scale = attention(d)
    out, lse = reference("attention_forward", q, k, v, mask, causal, scale)
    return d.array(*q.shape), q, k, v, laid_out(out, d.pick(*d.layouts)), lse, mask, causal, scale, d.flags(3)


def _cross_entropy(d: Drawn) -> tuple:
    rows, classes = d.size(7), d.size(40, 1)
    target = d.ids(classes, (rows,))
    target[d.rng.random(rows) < 0.3] = -100
    return d.array(rows, classes, spread=3), target, -100, d.pick(0.0, 0.1)


def _cross_entropy_backward(d: Drawn) -> tuple:
    logits, target, ignore, smoothing = _cross_entropy(d)
    lse = reference("cross_entropy_forward", logits, target, ignore, smoothing)[1]
    return d.array(len(target)), logits, target, lse, ignore, smoothing


def _embedding(d: Drawn) -> tuple:
    rows = d.size(6, 1)
    return d.array(rows, d.size()), d.ids(rows, d.shape())


def _embedding_backward(d: Drawn) -> tuple:
    weight, ids = _embedding(d)
    return d.array(*ids.shape, weight.shape[1]), ids, len(weight) + d.size(3)


def _rotary(d: Drawn) -> tuple:
    b, h, t, half = d.size(3), d.size(3), d.size(5), d.size(5)
    shape = d.pick((t, half), (b, t, half), (1, t, half))
    return d.array(b, h, t, 2 * half), d.array(*shape), d.array(*shape)


CASES: dict[str, Callable[[Drawn], tuple]] = {
    "linear_forward": _linear,
    "linear_backward": _linear_backward,
    "lora_linear_forward": _lora,
    "lora_linear_backward": _lora_backward,
    "matmul": _matmul,
    "layer_norm_forward": _layer_norm,
    "layer_norm_backward": _layer_norm_backward,
    "rms_norm_forward": lambda d: (*_norm(d), 1e-5),
    "rms_norm_backward": _rms_norm_backward,
    "gelu_forward": _values(1),
    "gelu_backward": _values(2),
    "gelu_tanh_forward": _values(1),
    "gelu_tanh_backward": _values(2),
    "silu_forward": _values(1),
    "silu_backward": _values(2),
    "swiglu_forward": _values(2),
    "swiglu_backward": _values(3),
    "softmax_forward": _softmax,
    "softmax_backward": _softmax_backward,
    "attention_forward": attention,
    "attention_backward": _attention_backward,
    "cross_entropy_forward": _cross_entropy,
    "cross_entropy_backward": _cross_entropy_backward,
    "embedding_forward": _embedding,
    "embedding_backward": _embedding_backward,
    "rotary_forward": _rotary,
    "rotary_backward": _rotary,
    "square_norm": _values(1),
}
"""Every kernel but those that work in place."""

LARGE = {  # above the size at which the work is cut into parts, with remainders everywhere
    "linear_forward": lambda r: (r(301, 97), r(75, 97), r(75)),
    "linear_backward": lambda r: (r(301, 75), r(301, 97), r(75, 97)),
    "lora_linear_forward": lambda r: (r(301, 97), r(75, 97), r(75), r(5, 97), r(75, 5), 2.0),
    "lora_linear_backward": lambda r: (
        r(301, 75), r(301, 97), r(301, 5), r(75, 97), r(5, 97), r(75, 5), 2.0, (True,) * 5,
    ),
    "lora_linear_backward in several steps": lambda r: (
        r(901, 195), r(901, 197), r(901, 17), r(195, 197), r(17, 197), r(195, 17), 2.0, (True,) * 5,
    ),
    "matmul": lambda r: (r(37, 31, 40), r(37, 40, 33)),
    "matmul of one pair": lambda r: (r(301, 97), r(97, 75)),
    "layer_norm_forward": lambda r: (r(301, 131), r(131), r(131), 1e-5),
    "layer_norm_backward": lambda r: (r(301, 131), r(301, 131), r(131), r(301), np.abs(r(301))),
    "rms_norm_backward": lambda r: (r(301, 131), r(301, 131), r(131), np.abs(r(301))),
    "gelu_forward": lambda r: (r(40001),),
    "softmax_forward": lambda r: (r(301, 131),),
    "softmax_backward": lambda r: (r(301, 131), r(301, 131)),
    "cross_entropy_forward": lambda r: (r(301, 131), np.arange(301) % 131, -100, 0.1),
    "cross_entropy_backward": lambda r: (r(301), r(301, 131), np.arange(301) % 131, r(301), -100, 0.1),
    "embedding_forward": lambda r: (r(50, 129), np.arange(300) ** 2 % 50),
    "embedding_backward": lambda r: (r(300, 129), np.arange(300) ** 2 % 50, 51),
    "rotary_forward": lambda r: (r(3, 5, 67, 34), r(67, 17), r(67, 17)),
    "attention_forward": lambda r: (r(3, 6, 170, 10), r(3, 2, 190, 10), r(3, 2, 190, 10), None, True, 0.3),
    "attention_backward": lambda r: (
        r(3, 6, 170, 10), r(3, 6, 170, 10), r(3, 2, 190, 10), r(3, 2, 190, 10), r(3, 6, 170, 10),
        np.abs(r(3, 6, 170)) + 5, None, True, 0.3,
    ),
    "square_norm": lambda r: (r(40001),),
}  # fmt: skip
