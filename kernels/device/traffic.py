"""Traffic and work of this package's Triton kernels, launch by launch, counted in their sources.

m rows, n outputs, k inputs, rank r; activations, dense weights and adapters in bfloat16, parts of sums in float32. What
``peers`` launch for the same stands in the file of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from .roofline import Launch

HALF, SINGLE = 2, 4  # bytes of bfloat16 and float32
STORED = 1 / 2 + 1 / 64 + SINGLE / (64 * 256)
"""Bytes of a weight in NF4, with its share of 8-bit block maxima and of their float32 maxima (QLoRA, equation 6)."""
DECODE = 7
"""Instructions that decoding a weight may cost (the gate's limit for the table of byte -> pair)."""
ROWS, COLUMNS = 128, 256
"""A program's tile on an H100: a weight is decoded once for every so many rows, x A.T computed for so many columns."""
STRIP, LEAST = 128, 256  # lora/triton_backward.py: columns of a program, rows of a part of a sum
PROGRAMS = 264  # tiles/host.py: sums are cut into parts until there are so many programs

Counted = Callable[[int, int, int, int], list[Launch]]


def product(m: int, n: int, k: int, r: int = 0) -> Launch:
    """(m, k) by (k, n); with a rank, the product of (m, r) by (r, n) is added in the same launch."""
    elements = m * k + n * k + m * n + r * (m + n)
    return Launch(HALF * elements, 2 * m * n * (k + r))


def skinny(m: int, k: int, r: int) -> Launch:
    """A pass over (m, k) that makes (m, r) of it with an adapter (r, k), or (r, k) with an (m, r)."""
    return Launch(HALF * (m * k + r * (m + k)), 2 * m * k * r)


def product_4bit(m: int, n: int, k: int, r: int = 0) -> Launch:
    """``product`` with the weight in NF4, decoded on its way to the tensor cores."""
    dense = product(m, n, k, r)
    return Launch(dense.nbytes - (HALF - STORED) * n * k, dense.flops, DECODE * ceil(m / ROWS) * n * k)


def in_loop(m: int, n: int, k: int, r: int) -> list[Launch]:
    """x is read once; x A.T is computed again for every column of tiles."""
    dense = product(m, n, k, r)
    again = 2 * m * k * r * ceil(n / COLUMNS)
    return [Launch(dense.nbytes + HALF * r * k, dense.flops + again)]


def gradients(m: int, n: int, k: int, r: int) -> list[Launch]:
    """One pass over g gives s g B and dB, one over x gives dA; each leaves parts, which launches of their own add."""
    strips = ceil(n / STRIP)
    over_g, over_x = _parts(strips, m), _parts(ceil(k / 64) * ceil(r / 64), m)
    low, da = skinny(m, n, r), skinny(m, k, r)
    dxa, db, da_parts = SINGLE * strips * m * r, SINGLE * over_g * n * r, SINGLE * over_x * k * r
    return [
        Launch(low.nbytes + dxa + db, 2 * low.flops),
        Launch(dxa + HALF * m * r),
        Launch(db + HALF * n * r),
        Launch(da.nbytes + da_parts, da.flops),
        Launch(da_parts + HALF * k * r),
    ]


def _parts(programs: int, length: int) -> int:
    return max(1, min(ceil(PROGRAMS / programs), length // LEAST))


OURS: dict[str, Counted] = {
    "dequantize_4bit": lambda m, n, k, r: [Launch((STORED + HALF) * n * k, 0, DECODE * n * k)],
    "linear_4bit_forward": lambda m, n, k, r: [product_4bit(m, n, k)],
    "linear_4bit_backward": lambda m, n, k, r: [product_4bit(m, k, n)],
    "lora_linear_forward": lambda m, n, k, r: [skinny(m, k, r), product(m, n, k, r)],
    "lora_linear_forward in one loop": in_loop,
    "lora_linear_backward": lambda m, n, k, r: [*gradients(m, n, k, r), product(m, k, n, r)],
    "lora_linear_4bit_forward": lambda m, n, k, r: [skinny(m, k, r), product_4bit(m, n, k, r)],
    "lora_linear_4bit_backward": lambda m, n, k, r: [*gradients(m, n, k, r), product_4bit(m, k, n, r)],
}
"""Kernel -> its launches."""
