"""Gather rows, and add them back: each thread owns the ids of one residue class, so no two write the same row."""

from __future__ import annotations

import numpy as np

from ..checks import ids_within, same_shape, whole_numbers
from ..gemm import at
from ..jit import IDS, IN2, OUT1, OUT2, inner, kernel, parts, span
from ..layout import rows_of
from ..math32 import add, copy
from ..pointers import row_at
from ..threads import each_part


@inner
def _gather(t, parts, weight, ids, out, outside):
    """Copy rows; say whether an id is none. (To look for the smallest and the largest first takes a tenth longer.)"""
    (first, last), size = span(t, parts, ids.size), out.shape[1]
    for i in range(first, last):
        if 0 <= ids[i] < len(weight):
            copy(row_at(at(weight, ids[i] * size), size), row_at(at(out, i * size), size))
        else:
            outside[0] = 1


@kernel(IN2, IDS, OUT2, OUT1)
def _forward(parts, weight, ids, out, outside):
    each_part(parts, _gather, (weight, ids, out, outside))


@inner
def _scatter(t, parts, grad, ids, dweight):
    """Add up the rows of the ids that leave remainder t: frequent ids are neighbours, so this shares them out."""
    for v in range(t, len(dweight), parts):
        dweight[v] = 0
    for i in range(ids.size):
        if ids[i] % parts == t:
            add(dweight[ids[i]], grad[i])


@kernel(IN2, IDS, OUT2)
def _backward(parts, grad, ids, dweight):
    each_part(parts, _scatter, (grad, ids, dweight))


def embedding_forward(weight: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """See the reference."""
    whole_numbers("embedding", "ids", ids)
    out, outside = np.empty((ids.size, weight.shape[1]), np.float32), np.zeros(1, np.float32)
    flat = np.ascontiguousarray(ids, np.int64).reshape(-1)
    _forward(parts(out.size), np.ascontiguousarray(weight), flat, out, outside)
    if outside[0]:
        ids_within("embedding", ids, weight.shape[0])  # raises
    return out.reshape(*ids.shape, weight.shape[1])


def embedding_backward(grad: np.ndarray, ids: np.ndarray, num_embeddings: int) -> np.ndarray:
    """See the reference."""
    ids_within("embedding", ids, num_embeddings)
    same_shape("embedding", "grad", grad, (*ids.shape, *grad.shape[-1:]))
    rows = rows_of(grad)
    dweight = np.empty((num_embeddings, rows.shape[1]), np.float32)
    flat = np.ascontiguousarray(ids, np.int64).reshape(-1)
    _backward(parts(rows.size + dweight.size), rows, flat, dweight)
    return dweight
