"""Cross-entropy with label smoothing (Szegedy et al. 2015, arXiv 1512.00567, section 7): the definition."""

from __future__ import annotations

import numpy as np

from ..checks import same_dtype, same_shape, whole_numbers


def cross_entropy_forward(
    logits: np.ndarray, target: np.ndarray, ignore_index: int, label_smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each row and its log-sum-exp, from logits (R, V) and class ids target (R,); both results (R,).

    loss = lse - (1 - s) logits[target] - s mean(logits), with s = label_smoothing; 0 where target is ignore_index.
    Raises ValueError when R differs, TypeError for targets that are not integers, IndexError for a target that is
    neither a class nor ignore_index.

    >>> loss, lse = cross_entropy_forward(np.zeros((2, 4)), np.array([1, -100]), -100, 0.0)
    >>> loss.round(4).tolist(), lse.round(4).tolist()
    ([1.3863, 0.0], [1.3863, 1.3863])
    """
    check_arguments(logits, target, ignore_index)
    # BEGIN SOLUTION(task="1.5a")
    top = logits.max(-1)
    lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    kept = target != ignore_index
    s = logits.dtype.type(label_smoothing)
    chosen = logits[np.arange(len(target)), np.where(kept, target, 0)]
    loss = lse - (1 - s) * chosen
    if label_smoothing:
        loss = loss - s * logits.mean(-1)
    return np.where(kept, loss, 0).astype(logits.dtype), lse
    # END SOLUTION


def cross_entropy_backward(
    grad: np.ndarray,
    logits: np.ndarray,
    target: np.ndarray,
    lse: np.ndarray,
    ignore_index: int,
    label_smoothing: float,
) -> np.ndarray:
    """dlogits (R, V) from the gradient of each row's loss, grad (R,).

    d loss / d logits_j = softmax_j - (1 - s) [j = target] - s / V; softmax is rebuilt from lse, not kept.

    >>> logits = np.zeros((1, 2))
    >>> cross_entropy_backward(np.ones(1), logits, np.array([0]), np.log(np.full(1, 2.0)), -100, 0.0).round(6).tolist()
    [[-0.5, 0.5]]
    """
    check_arguments(logits, target, ignore_index, {"grad": grad, "lse": lse})
    # BEGIN SOLUTION(task="1.5b")
    kept = target != ignore_index
    s = logits.dtype.type(label_smoothing)
    dlogits = np.exp(logits - lse[:, None]) - s / logits.shape[-1]
    dlogits[np.arange(len(target)), np.where(kept, target, 0)] -= 1 - s
    return np.where(kept[:, None], dlogits * grad[:, None], 0).astype(logits.dtype)
    # END SOLUTION


def check_arguments(
    logits: np.ndarray, target: np.ndarray, ignore_index: int, rows: dict[str, np.ndarray] | None = None
) -> None:
    """Raise unless target (R,) holds a class of logits (R, V), or ignore_index, for each row; ``rows`` are (R,) too."""
    same_dtype("cross_entropy", logits.dtype, **(rows or {}))
    for name, array in (rows or {}).items():
        same_shape("cross_entropy", name, array, logits.shape[:1])
    same_shape("cross_entropy", "target", target, logits.shape[:1])
    whole_numbers("cross_entropy", "target", target)
    wrong = (target != ignore_index) & ((target < 0) | (target >= logits.shape[-1]))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise IndexError(
            f"cross_entropy: target[{row}] is {target[row]}; expected a class in [0, {logits.shape[-1]}) "
            f"or ignore_index ({ignore_index})"
        )
