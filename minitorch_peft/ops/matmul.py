"""Matrix products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.ops.promotion import as_tensor, result_dtype, to
from minitorch_peft.ops.shape import broadcast_shapes, expand, reshape


class MatMul(Function):
    """Y (..., M, N) = A (..., M, K) B (..., K, N), equal batch axes; dA = G Bᵀ, dB = Aᵀ G."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None)
        return dispatch.get("matmul", a.dtype)(a, b)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        # BEGIN SOLUTION(task="1.2")
        (a, b), product = ctx.saved, dispatch.get("matmul", g.dtype)
        da = None if b is None else product(g, b.swapaxes(-1, -2))
        return da, None if a is None else product(a.swapaxes(-1, -2), g)
        # END SOLUTION


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The product over the last two axes, (..., M, K) and (..., K, N), the others broadcast.

    A vector is a row on the left and a column on the right. ValueError where the inner sizes differ.

    >>> import minitorch_peft as mp
    >>> matmul(mp.tensor([[1.0, 2.0]]), mp.tensor([[3.0], [4.0]])).tolist()
    [[11.0]]
    """
    a, b = as_tensor(input, "matmul"), as_tensor(other, "matmul")
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: both operands need at least 1 axis, got {a.shape} and {b.shape}; use mul")
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"matmul: the inner sizes of {a.shape} and {b.shape} differ")
    dtype = result_dtype(a, b)
    a, b = to(a, dtype), to(b, dtype)
    row, column = a.ndim == 1, b.ndim == 1
    a = reshape(a, 1, a.shape[0]) if row else a
    b = reshape(b, b.shape[0], 1) if column else b
    y = _batched(a, b)
    if row or column:
        y = reshape(y, (*y.shape[:-2], *(() if row else y.shape[-2:-1]), *(() if column else y.shape[-1:])))
    return y


def _batched(a: Tensor, b: Tensor) -> Tensor:
    """The product of stacks of matrices; one matrix on the right makes it one product of two matrices."""
    if b.ndim == 2 and a.ndim > 2:
        y = MatMul.apply(reshape(a, (math.prod(a.shape[:-1]), a.shape[-1])), b)
        return reshape(y, (*a.shape[:-1], b.shape[-1]))
    if a.shape[:-2] != b.shape[:-2]:
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = expand(a, (*batch, *a.shape[-2:])), expand(b, (*batch, *b.shape[-2:]))
    return MatMul.apply(a, b)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """(B, M, K) times (B, K, N): (B, M, N), nothing broadcast. ValueError for other shapes.

    >>> import minitorch_peft as mp
    >>> bmm(mp.tensor([[[2.0]]]), mp.tensor([[[3.0]]])).tolist()
    [[[6.0]]]
    """
    a, b = as_tensor(input, "bmm"), as_tensor(mat2, "bmm")
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0]:
        raise ValueError(f"bmm: expected (B, M, K) and (B, K, N), got {a.shape} and {b.shape}")
    return matmul(a, b)


class Linear(Function):
    """Y = X Wᵀ + b, X (..., I), W (O, I), b (O) or None; dX = G W, dW = Gᵀ X, db = Σ G over all rows.

    X is kept only where W is trained.
    """

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, w)
        return dispatch.get("linear_forward", x.dtype)(x, w, b)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, w = ctx.saved
        # BEGIN SOLUTION(task="2.7c")
        if x is not None:
            return dispatch.get("linear_backward", g.dtype)(g, x, w, ctx.needs_input_grad)
        rows = g.reshape(math.prod(g.shape[:-1]), len(w))
        dx = dispatch.get("matmul", g.dtype)(rows, w) if ctx.needs_input_grad[0] else None
        return (
            None if dx is None else dx.reshape(*g.shape[:-1], w.shape[1]),
            None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )
        # END SOLUTION


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input (..., I) times weight (O, I) transposed, plus bias (O): (..., O). ValueError for other shapes.

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
    dtype = result_dtype(x, w) if b is None else result_dtype(x, w, b)
    return Linear.apply(to(x, dtype), to(w, dtype), None if b is None else to(b, dtype))
