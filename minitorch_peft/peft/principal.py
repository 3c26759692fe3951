"""The principal part of a weight, as a product of two factors of rank r."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitorch_peft.models import GPT
from minitorch_peft.peft.config import LowRankConfig
from minitorch_peft.peft.inject import base_module

SHARED = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
"""The settings that a layer's rank and scaling follow from."""
STARTS = ("start_A", "start_B")
"""Under which names, beside ``lora_A`` and ``lora_B``, a PiSSA has where these started."""


def principal(weight: np.ndarray, r: int, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """A (r, in) and B (out, r) with scaling · B A the best approximation of rank r of ``weight`` (out, in).

    From W = U S Vᵀ, singular values in falling order: A = √(S_r / scaling) V_rᵀ, B = U_r √(S_r / scaling) (PiSSA,
    eqs. 2 and 3; the scaling as ``peft`` has it). Each column of U has its largest entry positive, since signs are
    free. In the weight's dtype, computed in float64. ValueError where the weight's rank is below r.

    Only r vectors are due, so they are the eigenvectors of the smaller of W Wᵀ and Wᵀ W: a few times faster than the
    whole decomposition. What that loses of the small singular values is nothing to the large ones.

    >>> A, B = principal(np.diag([1.0, 8.0]), 1, 2.0)
    >>> A.tolist(), B.tolist()
    ([[0.0, 2.0]], [[0.0], [2.0]])
    """
    from scipy.linalg import eigh  # here, because importing the package must not load scipy

    wide = weight.shape[0] < weight.shape[1]
    W = weight.astype(np.float64)
    tall = W.T if wide else W
    short = tall.shape[1]
    V = eigh(tall.T @ tall, subset_by_index=(short - r, short - 1))[1][:, ::-1]
    U = tall @ V
    S = np.linalg.norm(U, axis=0)
    rounding = S[0] * max(weight.shape) * np.finfo(weight.dtype).eps
    rank = np.count_nonzero(rounding < S)
    if rank < r:
        raise ValueError(f"a weight of rank {rank} has no {r} principal directions: choose a smaller r or leave it out")
    left, right = (V, U / S) if wide else (U / S, V)
    root = np.sign(left[np.abs(left).argmax(0), np.arange(r)]) * np.sqrt(S / scaling)
    A, B = (right * root).T, left * root
    return A.astype(weight.dtype), B.astype(weight.dtype)


def halved(
    model: GPT, settings: dict[str, Any], arrays: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A LoRA [B, -B₀] [A; A₀] as the PiSSA that it was written from; as it is where B₀A₀ is not of this base.

    The latter is what a base is that has since been put into four bits, say: there the LoRA of twice the rank is exact.
    """
    config = LowRankConfig(**{k: settings[k] for k in SHARED})
    alpha = math.sqrt(2) if config.use_rslora else 2
    found: dict[str, np.ndarray] = {}
    for path in (name.removesuffix(".lora_A") for name in arrays if name.endswith(".lora_A")):
        (A, A0), (B, B0) = np.split(arrays[f"{path}.lora_A"], 2), np.split(arrays[f"{path}.lora_B"], 2, axis=1)
        own = principal(base_module(model, path).dense_weight(), len(A), config.scaling(path))
        part = own[1] @ own[0]
        if np.linalg.norm(part + B0 @ A0) > 1e-4 * np.linalg.norm(part):
            return settings, arrays
        found |= {f"{path}.lora_A": A, f"{path}.lora_B": B, f"{path}.start_A": A0, f"{path}.start_B": -B0}
    return settings | {
        "r": config.r // 2, "rank_pattern": {k: r // 2 for k, r in config.rank_pattern.items()},
        "lora_alpha": tidy(config.lora_alpha / alpha),
        "alpha_pattern": {k: tidy(a / alpha) for k, a in config.alpha_pattern.items()},
        "init_lora_weights": "pissa",
    }, found  # fmt: skip


def starts(model: GPT, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Where the PiSSA of these settings, with these ``lora_A`` among its arrays, starts on this base."""
    config, found = LowRankConfig(**{k: settings[k] for k in SHARED}), dict[str, np.ndarray]()
    for path in (name.removesuffix(".lora_A") for name in arrays if name.endswith(".lora_A")):
        parts = principal(base_module(model, path).dense_weight(), config.rank(path), config.scaling(path))
        found |= {f"{path}.{name}": part for name, part in zip(STARTS, parts, strict=True)}
    return found


def tidy(x: float) -> float:
    """A whole number as one: 8, not 8.000000000000002."""
    return round(x) if math.isclose(x, round(x), rel_tol=1e-12) else x
