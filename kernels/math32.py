"""Small float32 functions that the compiler can vectorise: no call into libm inside a loop."""

from __future__ import annotations

import numpy as np

from .jit import exact, inner

f32 = np.float32
_LOG2E = f32(1.4426950408889634)
_LN2_HIGH = f32(0.693359375)  # exact in 9 bits, so k * _LN2_HIGH is exact
_LN2_LOW = f32(-2.12194440e-4)
_ONE, _HALF, _ZERO = f32(1), f32(0.5), f32(0)
_MINUS_INF = f32(-np.inf)


@exact
def exp32(x):
    """e**x: x = k ln 2 + r with |r| <= ln 2 / 2; e**r from its Taylor polynomial; 2**k put into the exponent's bits.

    Below -87.3 (where 2**k would be denormal) the result is 0, above 88.3 it stays at the largest power; NaN stays NaN.
    """
    clipped = f32(88.3) if x > f32(88.3) else x
    clipped = f32(-87.3) if clipped < f32(-87.3) else clipped
    k = np.floor(clipped * _LOG2E + _HALF)
    r = clipped - k * _LN2_HIGH - k * _LN2_LOW
    p = f32(1 / 5040) * r + f32(1 / 720)
    p = p * r + f32(1 / 120)
    p = p * r + f32(1 / 24)
    p = p * r + f32(1 / 6)
    p = p * r + _HALF
    p = p * r + _ONE
    p = p * r + _ONE
    power = np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)
    return _ZERO if x < f32(-87.3) else p * power


@exact
def sigmoid32(x):
    return _ONE / (_ONE + exp32(-x))


@inner
def row_max(row):
    """The largest value; NaN if the row holds one that compares above (or any result then: exp(x - m) is NaN anyway).

    A maximum of floats is vectorised only if NaN may be ignored. The bits of a float, with the order of the negative
    ones turned round, compare like the float as integers do; those are vectorised without any such promise.
    """
    best = np.int32(-2147483648)
    bits = row.view(np.int32)
    for j in range(bits.size):
        key = bits[j] ^ ((bits[j] >> np.int32(31)) & np.int32(0x7FFFFFFF))
        best = max(best, key)
    return np.int32(best ^ ((best >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@inner
def exp_shifted(row, shift, out):
    """out[j] = exp(row[j] - shift), where out may be row; return the sum."""
    total = _ZERO
    for j in range(row.size):
        e = exp32(row[j] - shift)
        out[j] = e
        total += e
    return total


@inner
def scale(row, factor):
    for j in range(row.size):
        row[j] *= factor


@inner
def copy(row, out):
    for j in range(row.size):
        out[j] = row[j]


@inner
def add(total, row):
    for j in range(row.size):
        total[j] += row[j]


@inner
def dot(a, b):
    total = _ZERO
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@exact
def normal_cdf32(x):
    """Phi(x) = erfc(-x / sqrt 2) / 2, with the small tail's relative accuracy kept (4e-7).

    For z >= 0 and t = 1 / (1 + z / 2): erfc(z) = t exp(P(t) - z**2), where P is a polynomial of degree 8 that
    interpolates log(erfc(z) exp(z**2) / t) at Chebyshev nodes of z in [0, 10].
    """
    z = abs(x) * f32(0.7071067811865476)
    t = _ONE / (_ONE + _HALF * z)
    p = f32(0.08005644)
    p = p * t - f32(0.562048)
    p = p * t + f32(1.48908688)
    p = p * t - f32(1.79754856)
    p = p * t + f32(0.8628827)
    p = p * t - f32(0.24035934)
    p = p * t + f32(0.44026572)
    p = p * t + f32(0.99284965)
    p = p * t - f32(1.26518567)
    tail = _HALF * t * exp32(p - z * z)
    return tail if x < _ZERO else _ONE - tail
