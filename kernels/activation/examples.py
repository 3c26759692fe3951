"""Arguments of the activations: the 4 C values in the middle of an MLP."""

from __future__ import annotations

from ..examples import Draw, Example, Shape


def _values(count: int) -> Example:
    def drawn(d: Draw) -> tuple:
        shape = d.shape()
        return tuple(d.array(*shape, spread=3) for _ in range(count))

    def typical(d: Draw, s: Shape) -> tuple:
        return tuple(d.array(s.batch, s.tokens, 4 * s.width) for _ in range(count))

    return Example(drawn, typical)


EXAMPLES = {
    "gelu_forward": _values(1),
    "gelu_backward": _values(2),
    "gelu_tanh_forward": _values(1),
    "gelu_tanh_backward": _values(2),
    "silu_forward": _values(1),
    "silu_backward": _values(2),
    "swiglu_forward": _values(2),
    "swiglu_backward": _values(3),
}
