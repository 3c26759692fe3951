"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import as_tensor, result_dtype, to
from minitorch_peft.ops.shape import broadcast_shapes, expand, reshape


class MatMul(Function):
    """Y (..., M, N) = A (..., M, K) B (..., K, N), equal batch axes; dA = G Bᵀ, dB = Aᵀ G."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None)
        return a @ b

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        a, b = ctx.saved
        return None if b is None else g @ b.swapaxes(-1, -2), None if a is None else a.swapaxes(-1, -2) @ g


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The matrix product of the last two axes, the others broadcast; a vector is a row on the left, a column on the
    right. ValueError where the inner sizes differ.

    >>> import minitorch_peft as mp
    >>> matmul(mp.tensor([[1.0, 2.0]]), mp.tensor([[3.0], [4.0]])).tolist()
    [[11.0]]
    """
    a, b = as_tensor(input, "matmul"), as_tensor(other, "matmul")
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: both operands need at least 1 axis, got shapes {a.shape} and {b.shape}; use mul")
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"matmul: the inner sizes of {a.shape} and {b.shape} differ")
    dtype = result_dtype(a, b)
    a, b = to(a, dtype), to(b, dtype)
    row, column = a.ndim == 1, b.ndim == 1
    if row:
        a = reshape(a, 1, -1)
    if column:
        b = reshape(b, -1, 1)
    y = _batched(a, b)
    if row or column:
        y = reshape(y, (*y.shape[:-2], *(() if row else y.shape[-2:-1]), *(() if column else y.shape[-1:])))
    return y


def _batched(a: Tensor, b: Tensor) -> Tensor:
    """The product of stacks of matrices; a single matrix on the right makes it one product of two matrices."""
    if b.ndim == 2 and a.ndim > 2:
        y = MatMul.apply(reshape(a, (int(np.prod(a.shape[:-1])), a.shape[-1])), b)
        return reshape(y, (*a.shape[:-1], b.shape[-1]))
    if a.shape[:-2] != b.shape[:-2]:
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = expand(a, *batch, *a.shape[-2:]), expand(b, *batch, *b.shape[-2:])
    return MatMul.apply(a, b)


class Linear(Function):
    """Y = X Wᵀ + b, X (..., I), W (O, I), b (O); dX = G W, dW = Gᵀ X, db = Σ G over all but the last axis."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, w: np.ndarray, *b: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, w if ctx.needs_input_grad[0] else None)
        y = x.reshape(-1, x.shape[-1]) @ w.T
        if b:
            y += b[0]
        return y.reshape(*x.shape[:-1], len(w))

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, w = ctx.saved
        rows = g.reshape(-1, g.shape[-1])
        dx = None if w is None else (rows @ w).reshape(*g.shape[:-1], w.shape[1])
        dw = None if x is None else rows.T @ x.reshape(-1, x.shape[-1])
        if len(ctx.needs_input_grad) == 2:
            return dx, dw
        return dx, dw, rows.sum(0) if ctx.needs_input_grad[2] else None


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input (..., I) times the transpose of weight (O, I), plus bias (O): (..., O). ValueError where sizes differ.

    >>> import minitorch_peft as mp
    >>> linear(mp.tensor([1.0, 2.0]), mp.tensor([[3.0, 4.0]]), mp.tensor([0.5])).tolist()
    [11.5]
    """
    x, w = as_tensor(input, "linear"), as_tensor(weight, "linear")
    b = None if bias is None else as_tensor(bias, "linear")
    if x.ndim == 0 or w.ndim != 2 or x.shape[-1] != w.shape[1] or (b is not None and b.shape != w.shape[:1]):
        raise ValueError(
            f"linear: expected input (..., I), weight (O, I) and bias (O), got {x.shape}, {w.shape} and "
            f"{None if b is None else b.shape}"
        )
    given = (x, w) if b is None else (x, w, b)
    dtype = result_dtype(*given)
    return Linear.apply(*(to(t, dtype) for t in given))
