"""Gradient norms and clipping, with torch's names and semantics (``torch.nn.utils``)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from minitorch_peft import kernels
from minitorch_peft.autograd.tensor import Tensor


def get_total_norm(tensors: Iterable[np.ndarray], norm_type: float = 2.0, error_if_nonfinite: bool = False) -> float:
    """The p-norm of all elements of all ``tensors`` (arrays of any shape, such as gradients); 0.0 of none.

    >>> get_total_norm([np.array([3.0]), np.array([[4.0]])])
    5.0
    """
    if not norm_type > 0:
        raise ValueError(f"norm_type must be above 0 (inf is allowed), got {norm_type}")
    if math.isinf(norm_type):
        total = max((float(np.abs(g).max(initial=0.0)) for g in tensors), default=0.0)
    elif norm_type == 2:
        total = math.sqrt(sum(kernels.get("square_norm", g.dtype)(g) for g in tensors))
    else:
        total = sum(float((np.abs(g) ** norm_type).sum(dtype=np.float64)) for g in tensors) ** (1 / norm_type)
    if error_if_nonfinite and not math.isfinite(total):
        raise RuntimeError(
            f"the total norm of order {norm_type} is {total}: the gradients cannot be clipped. "
            "Set error_if_nonfinite=False to scale them all the same"
        )
    return total


def clip_grads_with_norm_(parameters: Iterable[Tensor] | Tensor, max_norm: float, total_norm: float) -> None:
    """Multiply the gradients by min(1, max_norm / (total_norm + 1e-6)), in place."""
    coefficient = max_norm / (total_norm + 1e-6)
    if coefficient >= 1:
        return
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if p.grad is not None:
            p.grad *= coefficient


def clip_grad_norm_(
    parameters: Iterable[Tensor] | Tensor,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale all gradients so that their common norm is at most ``max_norm``; the norm before is returned.

    Raises:
        RuntimeError: with ``error_if_nonfinite``, where the norm is nan or infinite; no gradient is changed.

    >>> import minitorch_peft as mp
    >>> p = mp.tensor([0.0, 0.0], requires_grad=True)
    >>> p.grad = np.array([3.0, 4.0], dtype=np.float32)
    >>> clip_grad_norm_([p], max_norm=1.0), p.grad.round(3).tolist()
    (5.0, [0.6000000238418579, 0.800000011920929])
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads = [p.grad for p in parameters if p.grad is not None]
    total = get_total_norm(grads, norm_type, error_if_nonfinite)
    clip_grads_with_norm_(parameters, max_norm, total)
    return total
