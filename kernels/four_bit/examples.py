"""Arguments of 4-bit quantization: the weight of a linear layer, (4 C, C)."""

from __future__ import annotations

from ..examples import Draw, Example
from .reference import quantize_4bit


def _drawn(d: Draw) -> tuple:
    """Any shape, whole and partial blocks, odd lengths; more than one nested block."""
    shape = d.pick(d.shape(), (d.size(300),), (d.size(90), 96))
    return d.array(*shape), d.pick(32, 64, 128), d.pick("nf4", "fp4", "int4"), d.pick(True, False)


EXAMPLES = {
    "quantize_4bit": Example(_drawn, lambda d, s: (d.array(4 * s.width, s.width), 64, "nf4", True), exact=True),
    "dequantize_4bit": Example(
        lambda d: (quantize_4bit(*_drawn(d)), d.pick("float32", "float16", "bfloat16")),
        lambda d, s: (quantize_4bit(d.array(4 * s.width, s.width), compress_statistics=True),),
        size="wide",
        exact=True,
    ),
}
