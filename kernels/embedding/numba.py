"""Gather rows, and add them back: each thread owns the ids of one residue class, so no two write the same row."""

from __future__ import annotations

import numpy as np
from numba import prange

from ..checks import ids_within, same_shape
from ..jit import IDS, IN2, OUT2, inner, kernel, parts, span
from ..layout import rows_of
from ..math32 import add, copy


@inner
def _gather(weight, ids, out):
    for i in range(ids.size):
        copy(weight[ids[i]], out[i])


@kernel(IN2, IDS, OUT2)
def _forward(parts, weight, ids, out):
    for t in prange(parts):
        a, b = span(t, parts, ids.size)
        _gather(weight, ids[a:b], out[a:b])


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
    for t in prange(parts):
        _scatter(t, parts, grad, ids, dweight)


def embedding_forward(weight: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """See the reference."""
    ids_within("embedding", ids, weight.shape[0])
    out = np.empty((ids.size, weight.shape[1]), np.float32)
    flat = np.ascontiguousarray(ids, np.int64).reshape(-1)
    _forward(parts(out.size), np.ascontiguousarray(weight), flat, out)
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
