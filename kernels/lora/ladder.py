"""The LoRA layer from naive to fast: which arrays are made, and how often they pass through memory.

Times are for x (2048, 384), W (384, 384), r = 8 (0.63 GFLOP, of which LoRA is 4 %), AVX-512, one thread up to the last
step. The linear layer without LoRA takes 6.45 ms there.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from .. import runtime
from ..gemm import at, gemm
from ..ladder import Rung
from ..layout import rows_of
from .numba import lora_linear_forward
from .reference import check_forward

_ROWS = 128


def formed(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, lora_a: np.ndarray, lora_b: np.ndarray, scaling: float
) -> tuple[np.ndarray, np.ndarray]:
    """With the weight W + s B A."""
    check_forward(x, weight, bias, lora_a, lora_b)
    y = x @ (weight + np.float32(scaling) * (lora_b @ lora_a)).T
    return y if bias is None else y + bias, x @ lora_a.T


def unfused(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, lora_a: np.ndarray, lora_b: np.ndarray, scaling: float
) -> tuple[np.ndarray, np.ndarray]:
    """One operation after the other, as they stand in the formula."""
    check_forward(x, weight, bias, lora_a, lora_b)
    y, xa = x @ weight.T, x @ lora_a.T
    y = y if bias is None else y + bias
    return y + np.float32(scaling) * (xa @ lora_b.T), xa


@numba.njit
def _accumulate(blas, x, weight, lora_a, lora_b, scaling, xa, y):
    (rows, k), (n, rank) = x.shape, lora_b.shape
    gemm(blas, False, True, rows, rank, k, 1.0, at(x, 0), k, at(lora_a, 0), k, 0.0, at(xa, 0), rank)
    gemm(blas, False, True, rows, n, rank, scaling, at(xa, 0), rank, at(lora_b, 0), rank, 1.0, at(y, 0), n)
    gemm(blas, False, True, rows, n, k, 1.0, at(x, 0), k, at(weight, 0), k, 1.0, at(y, 0), n)


@numba.njit
def _in_steps(blas, x, weight, lora_a, lora_b, scaling, xa, y):
    (rows, k), (n, rank) = x.shape, lora_b.shape
    for r in range(0, rows, _ROWS):
        some, low = min(_ROWS, rows - r), at(xa, r * rank)
        gemm(blas, False, True, some, rank, k, 1.0, at(x, r * k), k, at(lora_a, 0), k, 0.0, low, rank)
    gemm(blas, False, True, rows, n, rank, scaling, at(xa, 0), rank, at(lora_b, 0), rank, 1.0, at(y, 0), n)
    gemm(blas, False, True, rows, n, k, 1.0, at(x, 0), k, at(weight, 0), k, 1.0, at(y, 0), n)


def _version(products: Callable) -> Callable:
    def lora_linear(
        x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, lora_a: np.ndarray, lora_b: np.ndarray,
        scaling: float,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        check_forward(x, weight, bias, lora_a, lora_b)
        rows, matrices = rows_of(x), [np.ascontiguousarray(m) for m in (weight, lora_a, lora_b)]
        y, xa = np.empty((len(rows), len(weight)), np.float32), np.empty((len(rows), len(lora_a)), np.float32)
        y[...] = np.float32(0) if bias is None else bias
        products(runtime.start(), rows, *matrices, float(scaling), xa, y)
        return y.reshape(*x.shape[:-1], len(weight)), xa.reshape(*x.shape[:-1], len(lora_a))

    return lora_linear


LADDER = {
    "lora_linear_forward": (
        Rung(
            "formed",
            formed,
            "As the change of the weight is defined: B A is multiplied out and added to W, three arrays of W's size in "
            "every call. With thousands of rows that is little beside the product (7.3 ms). With one row, as in "
            "generation, it is all there is: (1, 1024) by (1024, 1024) takes 1 ms instead of 0.08. And its gradient "
            "would be that of all of W.",
        ),
        Rung(
            "unfused",
            unfused,
            "x A.T first, r columns wide: 2 r (K + N) operations a row instead of 2 r K N for the weight, and nothing "
            "of W's size. But v = xa B.T, s v, y + b and y + s v are arrays of y's size: seven passes over memory "
            "beside those of the linear layer. 7.5 ms: the time went from operations into passes.",
        ),
        Rung(
            "accumulated",
            _version(_accumulate),
            "BLAS multiplies by s and adds to what is there (alpha and beta of sgemm): bias, low-rank term and base "
            "product go into one y. Beside the linear layer's passes x is read once more, y written and read once "
            "more. 6.8 ms.",
        ),
        Rung(
            "steps",
            _version(_in_steps),
            "xa for 128 rows at a time. OpenBLAS copies the operands of a large product into another order, which "
            "pays where each number is used many times; here each is used r times. A small product it does where the "
            "numbers lie, at 100 instead of 50 GFLOP/s: 0.12 instead of 0.26 ms for xa, 6.5 ms in all, 2 % above the "
            "linear layer alone.",
        ),
        Rung(
            "numba",
            lora_linear_forward,
            "The same by all threads: each makes xa for its rows, then its block of y; bias and low-rank term of some "
            "rows are put there while these are in its cache. With few rows the threads share the columns. Per "
            "thread it costs a few per cent for handing out the work; two cores take half the time.",
        ),
    )
}
