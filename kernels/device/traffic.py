"""Traffic and work of this package's Triton kernels, launch by launch, counted in their sources.

m rows, n outputs, k inputs, rank r; activations, dense weights and adapters in bfloat16, parts of sums in float32. What
``peers`` launch for the same stands in the file of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from ..lora.choice import in_loop_pays
from .roofline import H100, Launch

HALF, SINGLE = 2, 4  # bytes of bfloat16 and float32
STORED = 1 / 2 + 1 / 64 + SINGLE / (64 * 256)
"""Bytes of a weight in NF4, with its share of 8-bit block maxima and of their float32 maxima (QLoRA, equation 6)."""
DECODE = 7
"""Instructions that decoding a weight may cost (the gate's limit for the table of byte -> pair)."""
ROWS, COLUMNS = 256, 256
"""A program's tile on an H100: a weight is decoded once for so many rows, x A.T made once for so many columns."""
PROGRAMS = 264
"""tiles/host.py: a sum is cut into parts until there are so many programs ..."""
LEAST_ROWS, LEAST_COLUMNS = 256, 512
"""... each of which has at least so many terms, over rows or over columns of x."""
STRIP = 128
"""lora/triton_backward.py: columns of the gradient that a program walks down."""
FEW_ROWS = 16
"""linear_4bit/triton_decode.py: up to so many rows the sum over columns is cut into parts."""

Counted = Callable[[int, int, int, int], list[Launch]]


def product(m: int, n: int, k: int, r: int = 0) -> Launch:
    """(m, k) by (k, n); with a rank, the product of (m, r) by (r, n) is added in the same launch."""
    elements = m * k + n * k + m * n + r * (m + n)
    return Launch(HALF * elements, 2 * m * n * (k + r))


def skinny(m: int, k: int, r: int) -> Launch:
    """A pass over (m, k) that makes (m, r) of it with an adapter (r, k), or (r, k) with an (m, r)."""
    return Launch(HALF * (m * k + r * (m + k)), 2 * m * k * r)


def summed(launch: Launch, elements: float, parts: int) -> list[Launch]:
    """``launch`` with its result, so many elements, written as float32 parts, and the launch that adds them."""
    written = SINGLE * parts * elements
    return [launch._replace(nbytes=launch.nbytes + written - HALF * elements), Launch(written + HALF * elements)]


def parts_of(programs: int, length: int, least: int) -> int:
    """Into how many parts a sum over ``length`` is cut."""
    return max(1, min(ceil(PROGRAMS / programs), length // least))


def down(m: int, n: int, k: int, r: int) -> list[Launch]:
    """x A.T in a pass of its own."""
    parts = parts_of(ceil(m / 64) * ceil(r / 64), k, LEAST_COLUMNS)
    return summed(skinny(m, k, r), m * r, parts) if parts > 1 else [skinny(m, k, r)]


def in_loop(m: int, n: int, k: int, r: int) -> list[Launch]:
    """x is read once; x A.T is computed again for every column of tiles."""
    dense = product(m, n, k, r)
    again = 2 * m * k * r * ceil(n / COLUMNS)
    return [Launch(dense.nbytes + HALF * r * k, dense.flops + again)]


def own_pass(m: int, n: int, k: int, r: int) -> list[Launch]:
    """x A.T first, then the product, whose accumulator starts with its product with B.T."""
    return [*down(m, n, k, r), product(m, n, k, r)]


def forward(m: int, n: int, k: int, r: int) -> list[Launch]:
    """The one of the two that is launched on an H100."""
    loop = in_loop_pays(r, n, COLUMNS, H100.tensor / H100.bandwidth)
    return in_loop(m, n, k, r) if loop else own_pass(m, n, k, r)


def product_4bit(m: int, n: int, k: int, r: int = 0) -> Launch:
    """``product`` with the weight in NF4, decoded on its way to the tensor cores."""
    dense = product(m, n, k, r)
    return Launch(dense.nbytes - (HALF - STORED) * n * k, dense.flops, DECODE * ceil(m / ROWS) * n * k)


def forward_4bit(m: int, n: int, k: int, r: int) -> list[Launch]:
    """One product; of few rows, in parts of the sum over columns."""
    one, parts = product_4bit(m, n, k, r), parts_of(ceil(n / (8 if m == 1 else 64)), k, LEAST_COLUMNS)
    return summed(one, m * n, parts) if m <= FEW_ROWS and parts > 1 else [one]


def backward_4bit(m: int, n: int, k: int, r: int) -> list[Launch]:
    """One product, contracted over n: the weight is read as it is stored."""
    return [product_4bit(m, k, n, r)]


def gradients(m: int, n: int, k: int, r: int) -> list[Launch]:
    """One pass over g gives s g B and dB, one over x gives dA; each leaves parts, which launches of their own add."""
    strips = ceil(n / STRIP)
    low, db = skinny(m, n, r), Launch(HALF * n * r)
    first, *add_low = summed(Launch(low.nbytes + db.nbytes, 2 * low.flops), m * r, strips)
    first, *add_b = summed(first, n * r, parts_of(strips, m, LEAST_ROWS))
    da = summed(skinny(m, k, r), k * r, parts_of(ceil(k / 64) * ceil(r / 64), m, LEAST_ROWS))
    return [first, *add_low, *add_b, *da]


OURS: dict[str, Counted] = {
    "dequantize_4bit": lambda m, n, k, r: [Launch((STORED + HALF) * n * k, 0, DECODE * n * k)],
    "linear_4bit_forward": lambda m, n, k, r: forward_4bit(m, n, k, 0),
    "linear_4bit_backward": lambda m, n, k, r: backward_4bit(m, n, k, 0),
    "lora_linear_forward": forward,
    "lora_linear_forward in one loop": in_loop,
    "lora_linear_forward in two": own_pass,
    "lora_linear_backward": lambda m, n, k, r: [*gradients(m, n, k, r), product(m, k, n, r)],
    "lora_linear_4bit_forward": lambda m, n, k, r: [*down(m, n, k, r), *forward_4bit(m, n, k, r)],
    "lora_linear_4bit_backward": lambda m, n, k, r: [*gradients(m, n, k, r), *backward_4bit(m, n, k, r)],
}
"""Kernel -> its launches."""
