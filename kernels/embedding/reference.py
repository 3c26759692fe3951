"""Rows of a table by id: the definition."""

from __future__ import annotations

import numpy as np

from ..checks import ids_within, same_shape


def embedding_forward(weight: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """weight[ids], with weight (V, C) and integer ids (...); returns (..., C).

    Raises IndexError for an id outside [0, V), TypeError for ids that are not integers.

    >>> embedding_forward(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1, 0, 1])).tolist()
    [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]
    """
    ids_within("embedding", ids, weight.shape[0])
    return weight[ids]


def embedding_backward(grad: np.ndarray, ids: np.ndarray, num_embeddings: int) -> np.ndarray:
    """dweight (V, C) from grad (..., C): each row of grad is added to its id's row, repeated ids add up.

    >>> embedding_backward(np.array([[1.0], [2.0], [4.0]]), np.array([1, 0, 1]), 3).tolist()
    [[2.0], [5.0], [0.0]]
    """
    ids_within("embedding", ids, num_embeddings)
    same_shape("embedding", "grad", grad, (*ids.shape, *grad.shape[-1:]))
    # BEGIN SOLUTION(task="1.6")
    dweight = np.zeros((num_embeddings, grad.shape[-1]), grad.dtype)
    np.add.at(dweight, ids.reshape(-1), grad.reshape(ids.size, grad.shape[-1]))
    return dweight
    # END SOLUTION
