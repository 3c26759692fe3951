"""The contender of benchmarks.kernels that computes a fused kernel's result by several of our other kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.contest import Prepared, serve_cases
from benchmarks.kernels_cases import arguments, named
from benchmarks.kernels_ours import arrays_of, kernel

X_AND_WEIGHT, X_ONLY = (True, True, False), (True, False, False)


def lora_linear_forward(x: Any, w: Any, b: Any, a: Any, up: Any, s: float) -> tuple:
    linear = kernel("linear_forward")
    xa = linear(x, a, None)
    return linear(x, w, b) + np.float32(s) * linear(xa, up, None), xa


def low_rank_backward(grad: Any, x: Any, xa: Any, a: Any, up: Any, s: float) -> tuple:
    backward = kernel("linear_backward")
    dxa, dup, _ = backward(np.float32(s) * grad, xa, up, X_AND_WEIGHT)
    dx, da, _ = backward(dxa, x, a, X_AND_WEIGHT)
    return dx, da, dup


def lora_linear_backward(grad: Any, x: Any, xa: Any, w: Any, a: Any, up: Any, s: float, needs: Any = None) -> tuple:
    dx, da, dup = low_rank_backward(grad, x, xa, a, up, s)
    return kernel("linear_backward")(grad, x, w, X_ONLY)[0] + dx, da, dup


def lora_stacked_forward(x: Any, *projections: tuple) -> tuple:
    ys, xas = zip(*(lora_linear_forward(x, *p) for p in zip(*projections, strict=True)), strict=True)
    return ys, xas


def lora_stacked_backward(grads: Any, x: Any, xas: Any, *projections: tuple) -> tuple:
    each = [lora_linear_backward(g, x, xa, *p) for g, xa, *p in zip(grads, xas, *projections, strict=True)]
    return sum(dx for dx, _, _ in each), tuple(da for _, da, _ in each), tuple(dup for _, _, dup in each)


def lora_gathered_forward(x: Any, w: Any, b: Any, a: Any, up: Any, s: Any, adapter: Any) -> tuple:
    """The base for all rows, then each adapter for its own."""
    linear = kernel("linear_forward")
    y, xa = linear(x, w, b), np.zeros((*x.shape[:2], a.shape[1]), np.float32)
    for e in range(len(a)):
        mine = adapter == e
        xa[mine] = linear(x[mine], a[e], None)
        y[mine] += s[e] * linear(xa[mine], up[e], None)
    return y, xa


def lora_gathered_backward(grad: Any, x: Any, xa: Any, w: Any, a: Any, up: Any, s: Any, adapter: Any) -> tuple:
    dx = kernel("linear_backward")(grad, x, w, X_ONLY)[0]
    da, dup = np.zeros_like(a), np.zeros_like(up)
    for e in range(len(a)):
        mine = adapter == e
        dx_mine, da[e], dup[e] = low_rank_backward(grad[mine], x[mine], xa[mine], a[e], up[e], s[e])
        dx[mine] += dx_mine
    return dx, da, dup


def kept(x: Any, p: float, seed: int) -> np.ndarray:
    """The mask, scaled: what a framework stores for the backward pass."""
    return (kernel("philox_uniform")(seed, 0, x.shape) >= np.float32(p)) * np.float32(1 / (1 - p))


def lora_dropout_forward(x: Any, w: Any, b: Any, a: Any, up: Any, s: float, p: float, seed: int) -> tuple:
    linear = kernel("linear_forward")
    xa = linear(x * kept(x, p, seed), a, None)
    return linear(x, w, b) + np.float32(s) * linear(xa, up, None), xa


def lora_dropout_backward(
    grad: Any, x: Any, xa: Any, w: Any, a: Any, up: Any, s: float, p: float, seed: int, needs: Any
) -> tuple:
    mask = kept(x, p, seed)
    dx, da, dup = low_rank_backward(grad, x * mask, xa, a, up, s)
    return kernel("linear_backward")(grad, x, w, X_ONLY)[0] + dx * mask, da, dup


def linear_4bit_forward(x: Any, q: Any, b: Any) -> np.ndarray:
    return kernel("linear_forward")(x, kernel("dequantize_4bit")(q), b)


def linear_4bit_backward(grad: Any, q: Any) -> np.ndarray:
    return kernel("matmul")(grad, kernel("dequantize_4bit")(q))


def lora_linear_4bit_forward(x: Any, q: Any, *rest: Any) -> tuple:
    return lora_linear_forward(x, kernel("dequantize_4bit")(q), *rest)


def lora_linear_4bit_backward(grad: Any, x: Any, xa: Any, q: Any, a: Any, up: Any, s: float, needs: Any) -> tuple:
    return lora_linear_backward(grad, x, xa, kernel("dequantize_4bit")(q), a, up, s)


UNFUSED: tuple[Callable, ...] = (
    lora_linear_forward, lora_linear_backward, lora_stacked_forward, lora_stacked_backward, lora_gathered_forward,
    lora_gathered_backward, lora_dropout_forward, lora_dropout_backward, linear_4bit_forward, linear_4bit_backward,
    lora_linear_4bit_forward, lora_linear_4bit_backward,
)  # fmt: skip


def prepare(name: str) -> Prepared:
    case = named(name)
    (function,) = (f for f in UNFUSED if f.__name__ == case.kernel)
    step = partial(function, *arguments(case))
    return Prepared(step, lambda: arrays_of(step()))


if __name__ == "__main__":
    serve_cases(prepare)
