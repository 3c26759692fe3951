"""y_i = x W_i.T + b_i + s_i (x A_i.T) B_i.T for projections i that share x, and the gradients: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..lora.reference import check_backward, check_forward, lora_linear_backward, lora_linear_forward

Arrays = Sequence[np.ndarray]


def lora_stacked_forward(
    x: np.ndarray,
    weights: Arrays,
    biases: Sequence[np.ndarray | None],
    lora_as: Arrays,
    lora_bs: Arrays,
    scalings: Sequence[float],
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """(ys, xas): for every projection i the y_i (..., N_i) and xa_i (..., r_i) of ``lora_linear_forward``.

    x (..., K), weights (N_i, K), biases (N_i,) or None, lora_as (r_i, K), lora_bs (N_i, r_i); sizes and ranks may
    differ. Raises ValueError for shapes, or lengths of the sequences, that do not fit.

    >>> one = np.ones((1, 1))
    >>> ys, xas = lora_stacked_forward(one, [one, 2 * one], [None, None], [one, 3 * one], [one, one], [1.0, 0.5])
    >>> [y.item() for y in ys], [xa.item() for xa in xas]
    ([2.0, 3.5], [1.0, 3.0])
    """
    check_stack(x, weights, biases, lora_as, lora_bs, scalings)
    projections = zip(weights, biases, lora_as, lora_bs, scalings, strict=True)
    ys, xas = zip(*(lora_linear_forward(x, *projection) for projection in projections), strict=True)
    return ys, xas


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
    """(dx (..., K), das, dbs) from grads (..., N_i); None where ``needs`` is False. Weights and biases are frozen.

    dx is the sum of what comes back from every projection.

    >>> one = np.ones((1, 1))
    >>> dx, das, dbs = lora_stacked_backward([one], one, [3 * one], [2 * one], [3 * one], [one], [0.5])
    >>> dx.item(), das[0].item(), dbs[0].item()
    (3.5, 0.5, 1.5)
    """
    check_stack_backward(grads, x, xas, weights, lora_as, lora_bs, scalings)
    of_each = (needs[0], False, False, needs[1], needs[2])
    each = [
        lora_linear_backward(grad, x, xa, *projection, of_each)
        for grad, xa, *projection in zip(grads, xas, weights, lora_as, lora_bs, scalings, strict=True)
    ]
    dxs, _, _, das, dbs = zip(*each, strict=True)
    return sum(dxs[1:], start=dxs[0]) if needs[0] else None, das if needs[1] else None, dbs if needs[2] else None


def check_stack(
    x: np.ndarray,
    weights: Arrays,
    biases: Sequence[np.ndarray | None],
    lora_as: Arrays,
    lora_bs: Arrays,
    scalings: Sequence[float],
) -> None:
    """Raise ValueError unless there is at least one projection, and every one fits x."""
    sequences = {"weights": weights, "biases": biases, "lora_as": lora_as, "lora_bs": lora_bs, "scalings": scalings}
    lengths = {name: len(sequence) for name, sequence in sequences.items()}
    if not weights or len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ValueError(f"lora_stacked: expected as many of each and at least one, got {counts}")
    for weight, bias, lora_a, lora_b in zip(weights, biases, lora_as, lora_bs, strict=True):
        check_forward(x, weight, bias, lora_a, lora_b)


def check_stack_backward(
    grads: Arrays, x: np.ndarray, xas: Arrays, weights: Arrays, lora_as: Arrays, lora_bs: Arrays,
    scalings: Sequence[float],
) -> None:  # fmt: skip
    """Raise ValueError unless grads (..., N_i) and xas (..., r_i) fit the arguments of the forward pass."""
    check_stack(x, weights, [None] * len(weights), lora_as, lora_bs, scalings)
    if not len(grads) == len(xas) == len(weights):
        raise ValueError(f"lora_stacked: {len(weights)} weights, but {len(grads)} grads and {len(xas)} xas")
    for grad, xa, weight, lora_a, lora_b in zip(grads, xas, weights, lora_as, lora_bs, strict=True):
        check_backward(grad, x, xa, weight, lora_a, lora_b)
