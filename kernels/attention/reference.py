"""softmax(scale Q K.T + mask) V (Vaswani et al. 2017, arXiv 1706.03762, equation 1), and its gradient."""

from __future__ import annotations

import numpy as np

from ..checks import same_dtype, same_shape


def attention_forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, causal: bool, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """out (B, H, T, D) and lse (B, H, T), the log-sum-exp of each query's scores.

    q (B, H, T, D); k, v (B, Hkv, S, D) where H is a multiple of Hkv (query head h reads key head h Hkv // H).
    mask: None, or broadcastable to (B, H, T, S): bool (True: attend) or float (added to the scores).
    causal: query i sees keys up to i + S - T, so the last query sees the last key. A query that sees no key gives zeros
    (lse is -inf). Raises ValueError for shapes that do not fit.

    >>> q = np.zeros((1, 1, 2, 1)); v = np.array([1.0, 3.0]).reshape(1, 1, 2, 1)
    >>> out, lse = attention_forward(q, q, v, None, True, 1.0)
    >>> out.ravel().tolist(), lse.round(4).tolist()
    ([1.0, 2.0], [[[0.0, 0.6931]]])
    """
    # BEGIN SOLUTION(task="2.1b")
    scores = _scores(q, k, v, mask, causal, scale)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.where(total == 0, -np.inf, top + np.log(total))
    probabilities = e / np.where(total == 0, 1, total)
    return (probabilities @ _repeat(v, q)).astype(q.dtype), lse[..., 0].astype(q.dtype)
    # END SOLUTION


def attention_backward(
    grad: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    mask: np.ndarray | None,
    causal: bool,
    scale: float,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Gradients (dq, dk, dv) from grad (B, H, T, D); None where ``needs`` is False.

    With P = exp(scores - lse) rebuilt: dV = P.T g, dP = g V.T, dS = P (dP - sum_j P dP), dQ = scale dS K,
    dK = scale dS.T Q; and sum_j P_ij dP_ij = g_i . out_i. Query heads that share a key head add up.

    >>> q = np.zeros((1, 1, 2, 1)); v = np.array([1.0, 3.0]).reshape(1, 1, 2, 1)
    >>> out, lse = attention_forward(q, q, v, None, True, 1.0)
    >>> attention_backward(np.ones_like(q), q, q, v, out, lse, None, True, 1.0)[2].ravel().tolist()
    [1.5, 0.5]
    """
    check_backward(grad, q, k, v, out, lse)
    # BEGIN SOLUTION(task="2.2a")
    scores = _scores(q, k, v, mask, causal, scale)
    p = np.exp(scores - np.where(np.isneginf(lse), 0, lse)[..., None])
    ds = p * (grad @ _repeat(v, q).swapaxes(-1, -2) - (grad * out).sum(-1, keepdims=True))
    ds *= q.dtype.type(scale)
    return (
        ds @ _repeat(k, q) if needs[0] else None,
        _sum_groups(ds.swapaxes(-1, -2) @ q, k) if needs[1] else None,
        _sum_groups(p.swapaxes(-1, -2) @ grad, v) if needs[2] else None,
    )
    # END SOLUTION


def _scores(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, causal: bool, scale: float
) -> np.ndarray:
    """scale Q K.T + mask (B, H, T, S), -inf where a query must not look."""
    check_shapes(q, k, v)
    # BEGIN SOLUTION(task="2.1a")
    scores = q.dtype.type(scale) * (q @ _repeat(k, q).swapaxes(-1, -2))
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if causal:
        t, s = scores.shape[-2:]
        scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
    return scores
    # END SOLUTION


def _repeat(kv: np.ndarray, q: np.ndarray) -> np.ndarray:
    """(B, Hkv, S, D) -> (B, H, S, D): each key head for all query heads of its group."""
    return np.repeat(kv, q.shape[1] // max(kv.shape[1], 1), axis=1)


def _sum_groups(gradient: np.ndarray, kv: np.ndarray) -> np.ndarray:
    """(B, H, S, D) -> (B, Hkv, S, D): the transpose of ``_repeat``."""
    # BEGIN SOLUTION(task="2.2b")
    b, heads, s, d = kv.shape
    return gradient.reshape(b, heads, gradient.shape[1] // max(heads, 1), s, d).sum(2)
    # END SOLUTION


def check_shapes(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
    """Raise ValueError unless q (B, H, T, D) and k, v (B, Hkv, S, D) fit together; TypeError for two dtypes."""
    same_dtype("attention", q.dtype, k=k, v=v)
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3])
    if not fits or q.shape[1] % max(k.shape[1], 1):
        raise ValueError(
            f"attention: expected q (B, H, T, D) and k, v (B, Hkv, S, D) with H a multiple of Hkv, "
            f"got q {q.shape}, k {k.shape}, v {v.shape}"
        )


def check_backward(
    grad: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray, lse: np.ndarray
) -> None:
    """Raise ValueError unless grad and out (B, H, T, D) and lse (B, H, T) fit the arguments of the forward pass."""
    check_shapes(q, k, v)
    same_dtype("attention", q.dtype, grad=grad, out=out, lse=lse)
    same_shape("attention", "grad", grad, q.shape)
    same_shape("attention", "out", out, q.shape)
    same_shape("attention", "lse", lse, q.shape[:3])
