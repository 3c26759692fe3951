"""Arguments of the linear kernels: a GPT's widest layer, from C to 4 C."""

from __future__ import annotations

from ..examples import Draw, Example, Shape


def drawn(d: Draw) -> tuple:
    k, n, lead = d.size(), d.size(), d.shape()
    return d.array(*lead, k), d.array(n, k), d.pick(None, d.array(n))


def _drawn_backward(d: Draw) -> tuple:
    x, w, _ = drawn(d)
    return d.array(*x.shape[:-1], len(w)), x, w, d.flags(3)


def typical(d: Draw, s: Shape) -> tuple:
    c = s.width
    return d.array(s.batch, s.tokens, c), d.array(4 * c, c, spread=c**-0.5), d.array(4 * c)


def _typical_backward(d: Draw, s: Shape) -> tuple:
    x, w, _ = typical(d, s)
    return d.array(*x.shape[:-1], len(w)), x, w


EXAMPLES = {
    "linear_forward": Example(drawn, typical, lambda x, w, b: 2 * x.size * len(w)),
    "linear_backward": Example(_drawn_backward, _typical_backward, lambda grad, x, w: 4 * x.size * len(w)),
}
