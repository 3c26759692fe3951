"""AdamW with 8-bit moments in one pass: a block's moments exist as floats only while its thread has it in the cache."""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types

from ..blocks import dequantize_row, quantize_row, scale_block
from ..eight_bit.codes import create_dynamic_map
from ..eight_bit.numba import search
from ..gemm import at
from ..jit import IN1, INT, OUT1, OUT2, REAL, inner, kernel, parts, span
from ..pointers import bytes_at, row_at
from ..threads import each_part
from .reference import BLOCKSIZE, check_moments

f32 = np.float32
IN_BYTES, OUT_BYTES = types.Array(types.uint8, 1, "C", readonly=True), types.Array(types.uint8, 1, "C")
TABLES = (IN1, IN1, IN_BYTES, INT)

_strict = numba.njit(fastmath=False, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Not even a multiply-add is fused: codes follow from the last bit, and are to be those of the reference."""


@_strict
def update_row(p, g, m, v, keep, blend1, beta2, blend2, root, eps, rate):
    """``adamw_step`` of one block, in the order of operations of its reference."""
    for i in range(p.size):
        m[i] = m[i] + blend1 * (g[i] - m[i])
        v[i] = v[i] * beta2 + blend2 * g[i] * g[i]
        p[i] = p[i] * keep - rate * (m[i] / (math.sqrt(v[i]) / root + eps))


@inner
def quantize_moment(values, scratch, edges, start, rounds, codes):
    absmax = scale_block(values, scratch)
    quantize_row(scratch, edges, start, rounds, codes)
    return absmax


@inner
def step_part(t, parts, p, g, m, m_absmax, v, v_absmax, signed, unsigned, constants, scratch):
    """The blocks of one thread. ``signed`` and ``unsigned``: a code, its boundaries, and where to look for them."""
    (first, last), mine = span(t, parts, m_absmax.size), scratch[t]
    for block in range(first, last):
        start, size = block * BLOCKSIZE, min(BLOCKSIZE, p.size - block * BLOCKSIZE)
        m_codes, v_codes = bytes_at(m.ctypes.data + start, size), bytes_at(v.ctypes.data + start, size)
        m_row, v_row = row_at(at(mine, 0), size), row_at(at(mine, BLOCKSIZE), size)
        rest = row_at(at(mine, 2 * BLOCKSIZE), size)
        dequantize_row(m_codes, signed[0], m_absmax[block], m_row)
        dequantize_row(v_codes, unsigned[0], v_absmax[block], v_row)
        update_row(row_at(at(p, start), size), row_at(at(g, start), size), m_row, v_row, *constants)
        m_absmax[block] = quantize_moment(m_row, rest, *signed[1:], m_codes)
        v_absmax[block] = quantize_moment(v_row, rest, *unsigned[1:], v_codes)


@kernel(OUT1, IN1, OUT_BYTES, OUT1, OUT_BYTES, OUT1, *TABLES, *TABLES, *[REAL] * 7, OUT2)
def _step(parts, p, g, m, m_absmax, v, v_absmax, code1, edges1, start1, rounds1, code2, edges2, start2, rounds2,
          keep, blend1, beta2, blend2, root, eps, rate, scratch):  # fmt: skip
    signed, unsigned = (code1, edges1, start1, rounds1), (code2, edges2, start2, rounds2)
    constants = f32(keep), f32(blend1), f32(beta2), f32(blend2), f32(root), f32(eps), f32(rate)
    each_part(parts, step_part, (p, g, m, m_absmax, v, v_absmax, signed, unsigned, constants, scratch))


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
    """See the reference."""
    state = (param, exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax)
    check_moments(param, grad, *state[1:])
    if step < 1:
        raise ValueError(f"adamw_8bit_step: step counts from 1, got {step}")
    p, m, m_absmax, v, v_absmax = (np.ascontiguousarray(a).reshape(-1) for a in state)
    pieces = parts(p.size)
    _step(
        pieces, p, np.ascontiguousarray(grad).reshape(-1), m, m_absmax, v, v_absmax, *tables(True), *tables(False),
        1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, math.sqrt(1 - beta2**step), eps, lr / (1 - beta1**step),
        np.empty((pieces, 3 * BLOCKSIZE), np.float32),
    )  # fmt: skip
    for array, updated in zip(state, (p, m, m_absmax, v, v_absmax), strict=True):
        if not np.may_share_memory(array, updated):  # it was not contiguous: the update went into a copy
            array[...] = updated.reshape(array.shape)


def tables(signed: bool) -> tuple:
    code = create_dynamic_map(signed)
    return code, *search(code.tobytes())
