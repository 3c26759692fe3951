"""Arguments of AdamW and of the norm: the weights of one block, 12 C squared."""

from __future__ import annotations

import numpy as np

from ..examples import Draw, Example

_CONSTANTS = (1e-3, 0.9, 0.999, 1e-8, 0.01, 3)


def _state(d: Draw, *shape: int) -> tuple:
    """param, grad, exp_avg, exp_avg_sq, which an optimizer owns: contiguous and writable."""
    param, grad, m, v = (np.asarray(d.rng.standard_normal(shape, np.float32)) for _ in range(4))
    return param, grad, m, np.square(v, out=v), *_CONSTANTS


EXAMPLES = {
    "adamw_step": Example(
        lambda d: _state(d, *d.shape()), lambda d, s: _state(d, 12 * s.width, s.width), in_place=True
    ),
    "square_norm": Example(lambda d: (d.array(*d.shape()),), lambda d, s: (d.array(12 * s.width, s.width),)),
}
