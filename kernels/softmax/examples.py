"""Arguments of softmax: scores of every token over the vocabulary."""

from __future__ import annotations

import numpy as np

from ..examples import Draw, Example, Shape, reference


def _drawn(d: Draw) -> tuple:
    return (d.array(*d.shape(), d.size(40), spread=3),)


def _typical(d: Draw, s: Shape) -> tuple:
    return (d.array(s.batch, s.tokens, s.vocabulary, spread=3),)


def _backward(d: Draw, x: np.ndarray) -> tuple:
    return d.array(*x.shape), reference("softmax_forward", x)


EXAMPLES = {
    "softmax_forward": Example(_drawn, _typical),
    "softmax_backward": Example(lambda d: _backward(d, *_drawn(d)), lambda d, s: _backward(d, *_typical(d, s))),
}
