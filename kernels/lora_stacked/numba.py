"""LoRA layers that share x: their A stand on one another, and one pass over x serves all of them.

Forward: u = x [A_1; A_2; ...].T is one product with R = r_1 + r_2 + ... columns, so x is read once for the low-rank
terms, not once for each projection. Backward: some rows at a time, their d(u) under all projections goes side by side
into scratch; then dx = d(u) [A_1; A_2; ...] is written once, where the projections alone would write as many arrays
and add them, and x is read once for all dA. The products with the frozen weights are added to that dx in place.

For P projections, in passes over arrays of R rows beside those of P plain linear layers: the low-rank terms read x
once instead of P times in each direction, and P - 1 arrays dx, written, read and added, are not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .. import runtime
from ..layout import rows_of
from ..lowrank import summed
from ..products import product_parts
from .projections import backward, forward
from .reference import Arrays, check_stack, check_stack_backward


def _contiguous(arrays: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
    return [None if a is None else np.ascontiguousarray(a) for a in arrays]


def _addresses(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    """Where the arrays lie; 0 for None. The caller keeps the arrays."""
    return np.array([0 if a is None else a.ctypes.data for a in arrays], np.int64)


def _sizes(weights: Arrays, lora_as: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The projections' widths (P,), and where in the stack each one's ranks begin (P + 1,)."""
    starts = np.cumsum([0, *(len(a) for a in lora_as)])
    return np.array([len(w) for w in weights], np.int64), starts.astype(np.int64)


def lora_stacked_forward(
    x: np.ndarray,
    weights: Arrays,
    biases: Sequence[np.ndarray | None],
    lora_as: Arrays,
    lora_bs: Arrays,
    scalings: Sequence[float],
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """See the reference. The xas are views of one array."""
    check_stack(x, weights, biases, lora_as, lora_bs, scalings)
    rows, stack = rows_of(x), np.ascontiguousarray(np.concatenate(lora_as))
    sizes, starts = _sizes(weights, lora_as)
    columns = [_contiguous(arrays) for arrays in (weights, biases, lora_bs)]
    ys = [np.empty((len(rows), n), np.float32) for n in sizes]
    u = np.empty((len(rows), len(stack)), np.float32)
    parts = product_parts(len(rows), int(sizes.sum()), x.shape[-1])
    places = (sizes, starts, np.array(scalings, np.float32))
    forward(parts, runtime.start(), rows, stack, *map(_addresses, columns), *places, _addresses(ys), u)
    lead, pairs = x.shape[:-1], pairwise(starts)
    u = u.reshape(*lead, len(stack))
    ys = [y.reshape(*lead, n) for y, n in zip(ys, sizes, strict=True)]
    return tuple(ys), tuple(u[..., first:last] for first, last in pairs)


def lora_stacked_backward(
    grads: Arrays,
    x: np.ndarray,
    xas: Arrays,
    weights: Arrays,
    lora_as: Arrays,
    lora_bs: Arrays,
    scalings: Sequence[float],
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[np.ndarray | None, tuple[np.ndarray, ...] | None, tuple[np.ndarray, ...] | None]:
    """See the reference."""
    check_stack_backward(grads, x, xas, weights, lora_as, lora_bs, scalings)
    rows, stack = rows_of(x), np.ascontiguousarray(np.concatenate(lora_as))
    sizes, starts = _sizes(weights, lora_as)
    u = rows_of(np.concatenate(xas, axis=-1))
    columns = [_contiguous(arrays) for arrays in (grads, weights, lora_bs)]
    parts = product_parts(len(rows), int(sizes.sum()), x.shape[-1])
    ends = np.cumsum([b.size for b in lora_bs])
    shapes = (rows.shape, (parts, *stack.shape), (parts, ends[-1]))
    dx, da, db = (np.empty(s if need else (0,) * len(s), np.float32) for s, need in zip(shapes, needs, strict=True))
    places = (sizes, starts, np.array(scalings, np.float32))
    backward(parts, runtime.start(), rows, u, stack, *map(_addresses, columns), *places, *needs, dx, da, db)
    das = np.split(summed(da), starts[1:-1]) if needs[1] else None
    dbs = np.split(summed(db), ends[:-1]) if needs[2] else None
    return (
        dx.reshape(x.shape) if needs[0] else None,
        None if das is None else tuple(das),
        None if dbs is None else tuple(d.reshape(b.shape) for d, b in zip(dbs, lora_bs, strict=True)),
    )
