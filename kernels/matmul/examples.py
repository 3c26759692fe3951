"""Arguments of the batched product: Q K.T of every head."""

from __future__ import annotations

from ..examples import Draw, Example, Shape


def _drawn(d: Draw) -> tuple:
    batch = d.pick(((), ()), ((3,), (3,)), ((2, 3), (3,)), ((2, 1), (1, 4)), ((), (2,)), ((0,), (0,)))
    m, k, n = d.size(), d.size(), d.size()
    a = d.array(*batch[0], m, k)
    return a, d.pick(d.array(*batch[1], k, n), d.array(*batch[1], n, k).swapaxes(-1, -2))


def _typical(d: Draw, s: Shape) -> tuple:
    heads = (s.batch, s.heads, s.tokens, s.width // s.heads)
    return d.array(*heads), d.array(*heads).swapaxes(-1, -2)


EXAMPLES = {"matmul": Example(_drawn, _typical, lambda a, b: 2 * a.size * b.shape[-1])}
