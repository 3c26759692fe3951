"""What quantizing a block needs: x divided by its largest magnitude, and the nearest of 256 values."""

from __future__ import annotations

import numpy as np

from .jit import exact, inner


@inner
def largest(x):
    """The largest magnitude of x; infinity or NaN if x holds one. Without their sign, floats compare as integers do."""
    bits = x.view(np.int32)
    best = np.int32(0)
    for i in range(bits.size):
        best = max(best, bits[i] & np.int32(0x7FFFFFFF))
    return np.int32(best).view(np.float32)


@exact
def quotient(a, b):
    """a / b as it stands: a compiler that may take a * (1 / b) for it would get infinity where b is tiny."""
    return a / b


@inner
def scale_block(x, out):
    """out = x times 1 / absmax, its largest magnitude, which is returned (infinity or NaN if x holds one).

    A block of zeros stays zero; where absmax is so small that its reciprocal is infinite, x is divided instead.
    """
    absmax = largest(x)
    scale = quotient(np.float32(1), absmax)
    if scale < np.float32(np.inf):
        for i in range(x.size):
            out[i] = x[i] * scale
    else:
        divisor = absmax if absmax > np.float32(0) else np.float32(1)
        for i in range(x.size):
            out[i] = quotient(x[i], divisor)
    return absmax


@exact
def code_of(x, bits, edges, start, rounds):
    """How many of the boundaries are below x: those below all floats that share its upper half, and a few to count."""
    code = start[bits >> np.uint32(16)]
    for _ in range(rounds):
        code += np.uint8(x > edges[code])
    return code


@inner
def quantize_row(x, edges, start, rounds, codes):
    bits = x.view(np.uint32)
    for i in range(x.size):
        codes[i] = code_of(x[i], bits[i], edges, start, rounds)


@inner
def dequantize_row(codes, code, absmax, out):
    for i in range(codes.size):
        out[i] = code[codes[i]] * absmax
