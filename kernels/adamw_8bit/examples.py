"""Arguments of AdamW with 8-bit moments: the weights of one block, 12 C squared, after some steps."""

from __future__ import annotations

import numpy as np

from ..eight_bit.codes import create_dynamic_map
from ..eight_bit.reference import quantize_blockwise
from ..examples import Draw, Example

_CONSTANTS = (1e-3, 0.9, 0.999, 1e-8, 0.01, 3)


def _state(d: Draw, *shape: int) -> tuple:
    """param, grad and both moments, which an optimizer owns: contiguous and writable."""
    param, grad, m, v = (np.asarray(d.rng.standard_normal(shape, np.float32)) for _ in range(4))
    m_codes, m_absmax = quantize_blockwise(m, create_dynamic_map())
    v_codes, v_absmax = quantize_blockwise(v * v, create_dynamic_map(signed=False))
    return param, grad, m_codes.reshape(shape), m_absmax, v_codes.reshape(shape), v_absmax, *_CONSTANTS


EXAMPLES = {
    "adamw_8bit_step": Example(
        lambda d: _state(d, *d.pick(d.shape(), (d.size(900),))),
        lambda d, s: _state(d, 12 * s.width, s.width),
        exact=True,
        in_place=True,
    ),
}
