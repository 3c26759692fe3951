"""AdamW with 8-bit moments (Dettmers et al. 2022, arXiv 2110.02861, sec. 2): turned back, updated, quantized again."""

from __future__ import annotations

import numpy as np

from ..eight_bit.codes import boundaries, create_dynamic_map
from ..eight_bit.reference import dequantize_blockwise, scaled_blocks
from ..optimizer.reference import adamw_step

BLOCKSIZE = 256


def adamw_8bit_step(
    param: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_absmax: np.ndarray,
    exp_avg_sq: np.ndarray,
    exp_avg_sq_absmax: np.ndarray,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """Update in place: param (n elements of any shape), and both moments, as codes and absmax.

    ``exp_avg`` and ``exp_avg_sq`` are uint8 of param's shape, in blocks of 256 elements in row-major order, their
    absmax float32 (ceil(n / 256),). exp_avg has the signed dynamic map, exp_avg_sq, which is never negative, the
    unsigned one with half a bit more. In between, ``adamw_step`` with what the codes stand for. A block in which
    something is not finite has an absmax that is not, so it is seen: at the next step its elements are NaN, where only
    a square has overflowed all but that one, which follows a step later.

    Raises ValueError for shapes that do not fit or a step below 1, TypeError for other dtypes.

    >>> p, m, v = np.array([1.0]), np.zeros(1, np.uint8), np.zeros(1, np.uint8)
    >>> scales = np.zeros(1, np.float32), np.zeros(1, np.float32)
    >>> adamw_8bit_step(p, np.array([2.0]), m, scales[0], v, scales[1], 0.1, 0.9, 0.999, 0.0, 0.0, 1)
    >>> p.round(6).tolist(), m.tolist(), scales[0].round(6).tolist()
    ([0.9], [255], [0.20000000298023224])
    """
    check_moments(param, grad, exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax)
    kept = ((exp_avg, exp_avg_absmax, True), (exp_avg_sq, exp_avg_sq_absmax, False))
    m, v = (
        dequantize_blockwise(codes.reshape(-1), absmax, create_dynamic_map(signed), param.shape).astype(param.dtype)
        for codes, absmax, signed in kept
    )
    adamw_step(param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step)
    for moment, (codes, absmax, signed) in zip((m, v), kept, strict=True):
        scaled, absmax[:] = scaled_blocks(moment.astype(np.float32).reshape(-1), BLOCKSIZE)
        edges = boundaries(create_dynamic_map(signed))
        codes[...] = np.searchsorted(edges, scaled).astype(np.uint8).reshape(codes.shape)


def check_moments(
    param: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_absmax: np.ndarray,
    exp_avg_sq: np.ndarray,
    exp_avg_sq_absmax: np.ndarray,
) -> None:
    """Raise unless both moments fit the parameter: ValueError for a shape, TypeError for a dtype."""
    blocks = (-(-param.size // BLOCKSIZE),)
    for name, array, shape, dtype in (
        ("grad", grad, param.shape, param.dtype),
        ("exp_avg", exp_avg, param.shape, np.uint8),
        ("exp_avg_absmax", exp_avg_absmax, blocks, np.float32),
        ("exp_avg_sq", exp_avg_sq, param.shape, np.uint8),
        ("exp_avg_sq_absmax", exp_avg_sq_absmax, blocks, np.float32),
    ):
        if array.dtype != dtype:
            raise TypeError(f"adamw_8bit_step: {name} must be {np.dtype(dtype)}, got {array.dtype}")
        if array.shape != shape:
            raise ValueError(f"adamw_8bit_step: {name} must have shape {shape}, got {array.shape}")
