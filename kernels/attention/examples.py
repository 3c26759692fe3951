"""Arguments of attention: one layer's heads, causal; drawn ones have more keys than queries, groups, masks."""

from __future__ import annotations

import numpy as np

from ..examples import Draw, Example, Shape, reference


def _drawn(d: Draw) -> tuple:
    b, shared, group, size = d.size(2), d.size(2, 1), d.size(3, 1), d.size(8)
    t, s = d.pick((5, 5), (1, 7), (4, 9), (9, 4), (70, 70), (65, 130), (0, 3), (3, 0), (1, 1))
    q, k, v = d.array(b, shared * group, t, size), d.array(b, shared, s, size), d.array(b, shared, s, size)
    q, k, v = (d.pick(x, np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)) for x in (q, k, v))
    shape = d.pick((b, shared * group, t, s), (b, 1, 1, s), (t, s), (1, 1, t, 1), (s,))
    mask = d.pick(None, d.rng.random(shape) < 0.6, d.array(*shape))
    return q, k, v, mask, d.pick(True, False), 0.3


def _drawn_backward(d: Draw) -> tuple:
    return *_backward(d, *_drawn(d)), d.flags(3)


def _typical(d: Draw, s: Shape) -> tuple:
    size = s.width // s.heads
    q, k, v = (d.array(s.batch, s.heads, s.tokens, size) for _ in range(3))
    return q, k, v, None, True, size**-0.5


def _backward(d: Draw, q: np.ndarray, k: np.ndarray, v: np.ndarray, *rest: object) -> tuple:
    out, lse = reference("attention_forward", q, k, v, *rest)
    return d.array(*q.shape), q, k, v, d.laid_out(out), lse, *rest


def _flops(q: np.ndarray, k: np.ndarray, *rest: object) -> int:
    """Q K.T and P V, of which causality leaves half."""
    return 2 * q.size * k.shape[2]


EXAMPLES = {
    "attention_forward": Example(_drawn, _typical, _flops),
    "attention_backward": Example(
        _drawn_backward, lambda d, s: _backward(d, *_typical(d, s)), lambda grad, *args: 5 * _flops(*args) // 2
    ),
}
