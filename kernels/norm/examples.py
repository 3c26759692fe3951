"""Arguments of the norms: a block's input."""

from __future__ import annotations

from collections.abc import Callable

from ..examples import Draw, Example, Shape, reference


def _drawn(d: Draw) -> tuple:
    c = d.size(least=1)
    return d.array(*d.shape(), c), d.pick(None, d.array(c))


def _drawn_layer(d: Draw) -> tuple:
    x, w = _drawn(d)
    return x, w, d.pick(None, d.array(x.shape[-1])), 1e-5


def _drawn_layer_backward(d: Draw) -> tuple:
    x, w, b, _ = _drawn_layer(d)
    return d.array(*x.shape), x, w, *reference("layer_norm_forward", x, w, b, 1e-2)[1:], d.flags(3)


def _drawn_rms_backward(d: Draw) -> tuple:
    x, w = _drawn(d)
    return d.array(*x.shape), x, w, *reference("rms_norm_forward", x, w, 1e-2)[1:], d.flags(2)


def _typical(parameters: int) -> Callable[[Draw, Shape], tuple]:
    def arguments(d: Draw, s: Shape) -> tuple:
        return d.array(s.batch, s.tokens, s.width), *(d.array(s.width) for _ in range(parameters)), 1e-5

    return arguments


def _typical_layer_backward(d: Draw, s: Shape) -> tuple:
    x, w, b, eps = _typical(2)(d, s)
    return d.array(*x.shape), x, w, *reference("layer_norm_forward", x, w, b, eps)[1:]


def _typical_rms_backward(d: Draw, s: Shape) -> tuple:
    x, w, eps = _typical(1)(d, s)
    return d.array(*x.shape), x, w, *reference("rms_norm_forward", x, w, eps)[1:]


EXAMPLES = {
    "layer_norm_forward": Example(_drawn_layer, _typical(2)),
    "layer_norm_backward": Example(_drawn_layer_backward, _typical_layer_backward),
    "rms_norm_forward": Example(lambda d: (*_drawn(d), 1e-5), _typical(1)),
    "rms_norm_backward": Example(_drawn_rms_backward, _typical_rms_backward),
}
