"""Arguments of the counter-based generator: a seed, a place to start from, and a shape."""

from __future__ import annotations

from ..examples import Draw, Example, Shape


def _drawn(d: Draw) -> tuple:
    return d.pick(0, 5, 2**32 + 1, 2**64 - 1), d.pick(0, 7, 2**31 - 2, 2**32 - 2, 2**63 - 2, 2**64 - 2), d.shape()


def _typical(d: Draw, s: Shape) -> tuple:
    return 2**40 + 1, 0, (s.batch, s.tokens, s.width)


EXAMPLES = {"philox_uniform": Example(_drawn, _typical, exact=True)}
