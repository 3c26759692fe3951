"""Arguments of cross-entropy: a batch of tokens over the vocabulary."""

from __future__ import annotations

import numpy as np

from ..examples import Draw, Example, Shape, reference


def _drawn(d: Draw) -> tuple:
    rows, classes = d.size(7), d.size(40, 1)
    target = d.ids(classes, (rows,))
    target[d.rng.random(rows) < 0.3] = -100
    return d.array(rows, classes, spread=3), target, -100, d.pick(0.0, 0.1)


def _typical(d: Draw, s: Shape) -> tuple:
    rows = s.batch * s.tokens
    return d.array(rows, s.vocabulary, spread=3), d.ids(s.vocabulary, (rows,)), -100, 0.0


def _backward(d: Draw, logits: np.ndarray, target: np.ndarray, *rest: object) -> tuple:
    lse = reference("cross_entropy_forward", logits, target, *rest)[1]
    return d.array(len(target)), logits, target, lse, *rest


EXAMPLES = {
    "cross_entropy_forward": Example(_drawn, _typical),
    "cross_entropy_backward": Example(lambda d: _backward(d, *_drawn(d)), lambda d, s: _backward(d, *_typical(d, s))),
}
