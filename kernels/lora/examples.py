"""Arguments of the fused LoRA kernels: a linear layer's, and two factors; the base is frozen."""

from __future__ import annotations

import numpy as np

from ..examples import Draw, Example, Shape
from ..linear import examples as linear


def _drawn(d: Draw) -> tuple:
    x, w, b = linear.drawn(d)
    r = d.size(4)
    return x, w, b, d.array(r, w.shape[1]), d.array(len(w), r), 0.5


def _drawn_backward(d: Draw) -> tuple:
    x, w, _, a, b, s = _drawn(d)
    xa = d.laid_out((x @ a.T).astype(np.float32))
    return d.array(*x.shape[:-1], len(w)), x, xa, w, a, b, s, d.flags(5)


def _typical(d: Draw, s: Shape) -> tuple:
    x, w, b = linear.typical(d, s)
    return x, w, b, d.array(s.rank, s.width, spread=s.width**-0.5), d.array(len(w), s.rank), 0.5


def _typical_backward(d: Draw, s: Shape) -> tuple:
    x, w, _, a, b, scaling = _typical(d, s)
    return d.array(*x.shape[:-1], len(w)), x, x @ a.T, w, a, b, scaling, (True, False, False, True, True)


def _flops(x: np.ndarray, w: np.ndarray, bias: object, a: np.ndarray, *rest: object) -> int:
    rows = x.size // x.shape[-1]
    return 2 * rows * (w.size + len(a) * sum(w.shape))


def _flops_backward(grad: np.ndarray, x: np.ndarray, xa: np.ndarray, w: np.ndarray, *rest: object) -> int:
    rows = x.size // x.shape[-1]
    return 2 * rows * (w.size + 2 * xa.shape[-1] * sum(w.shape))


EXAMPLES = {
    "lora_linear_forward": Example(_drawn, _typical, _flops),
    "lora_linear_backward": Example(_drawn_backward, _typical_backward, _flops_backward),
}
