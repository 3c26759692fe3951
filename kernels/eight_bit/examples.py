"""Arguments of 8-bit quantization: optimizer states of a model's largest matrix, (4 C, C)."""

from __future__ import annotations

from ..examples import Draw, Example, Shape
from .codes import create_dynamic_map
from .reference import quantize_blockwise


def _drawn(d: Draw) -> tuple:
    return d.array(*d.pick(d.shape(), (d.size(900),))), create_dynamic_map(d.pick(True, False)), d.pick(256, 64, 7)


def _typical(d: Draw, s: Shape) -> tuple:
    return d.array(4 * s.width, s.width), create_dynamic_map(), 256


def _quantized(x, code, blocksize) -> tuple:
    return *quantize_blockwise(x, code, blocksize), code, x.shape, blocksize


EXAMPLES = {
    "quantize_blockwise": Example(_drawn, _typical, exact=True),
    "dequantize_blockwise": Example(
        lambda d: _quantized(*_drawn(d)), lambda d, s: _quantized(*_typical(d, s)), exact=True
    ),
}
