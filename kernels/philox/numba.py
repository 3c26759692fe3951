"""Philox4x32-10: the compiled loop over the numbers, each thread with a stretch of its own."""

from __future__ import annotations

import math

import numpy as np

from ..counter import fill_uniform, halves
from ..jit import INT, OUT1, inner, kernel, parts, span
from ..threads import each_part
from .reference import counter_start


@inner
def _part(t, parts, key_0, key_1, offset, out):
    first, last = span(t, parts, out.size)
    fill_uniform(np.uint64(offset) + np.uint64(first), key_0, key_1, out[first:last])


@kernel(INT, INT, INT, OUT1)
def _fill(parts, key_0, key_1, offset, out):
    each_part(parts, _part, (key_0, key_1, offset, out))


def philox_uniform(seed: int, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """See the reference."""
    seed, offset = counter_start("philox_uniform", seed, offset)
    out = np.empty(math.prod(shape), np.float32)
    _fill(parts(out.size), *halves(seed), offset - (offset >> 63 << 64), out)  # the bits of a signed integer
    return out.reshape(shape)
