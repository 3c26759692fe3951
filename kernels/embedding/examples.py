"""Arguments of the embedding: a batch of token ids."""

from __future__ import annotations

from ..examples import Draw, Example, Shape


def _drawn(d: Draw) -> tuple:
    rows = d.size(6, 1)
    return d.array(rows, d.size()), d.ids(rows, d.shape())


def _drawn_backward(d: Draw) -> tuple:
    weight, ids = _drawn(d)
    return d.array(*ids.shape, weight.shape[1]), ids, len(weight) + d.size(3)


def _typical(d: Draw, s: Shape) -> tuple:
    return d.array(s.vocabulary, s.width), d.ids(s.vocabulary, (s.batch, s.tokens))


def _typical_backward(d: Draw, s: Shape) -> tuple:
    weight, ids = _typical(d, s)
    return d.array(*ids.shape, s.width), ids, len(weight)


EXAMPLES = {
    "embedding_forward": Example(_drawn, _typical),
    "embedding_backward": Example(_drawn_backward, _typical_backward),
}
