"""Small float32 functions that the compiler can vectorise: no call into libm inside a loop."""

from __future__ import annotations

import numpy as np

from .jit import exact, row_loop

f32 = np.float32
_LOG2E = f32(1.4426950408889634)
_LN2_HIGH = f32(0.693359375)  # exact in 9 bits, so k * _LN2_HIGH is exact
_LN2_LOW = f32(-2.12194440e-4)
_ONE, _HALF, _ZERO = f32(1), f32(0.5), f32(0)
_MINUS_INF = f32(-np.inf)


@exact
def exp32(x):
    """e**x: x = k ln 2 + r with |r| <= ln 2 / 2; e**r from a polynomial (4e-9); k is added to the exponent's bits.

    Below -87.3 (where 2**k would be denormal) the result is 0, above 88.3 it stays at the largest power; NaN stays NaN.
    """
    clipped = f32(88.3) if x > f32(88.3) else x
    clipped = f32(-87.3) if clipped < f32(-87.3) else clipped
    k = np.floor(clipped * _LOG2E + _HALF)
    r = clipped - k * _LN2_HIGH - k * _LN2_LOW
    p = f32(0.0013814221) * r + f32(0.0083688991)
    p = p * r + f32(0.041668404)
    p = p * r + f32(0.1666652)
    p = p * r + f32(0.49999994)
    p = p * r + _ONE
    p = p * r + _ONE
    power = np.int32(f32(p).view(np.int32) + (np.int32(k) << np.int32(23))).view(np.float32)
    return _ZERO if x < f32(-87.3) else power


@exact
def sigmoid32(x):
    return _ONE / (_ONE + exp32(-x))


@row_loop
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


@row_loop
def exp_shifted(row, shift, out):
    """out[j] = exp(row[j] - shift), where out may be row; return the sum.

    Two loops: one that both writes and adds up would have its sum vectorised or not as the arrays lie in memory.
    """
    for j in range(row.size):
        out[j] = exp32(row[j] - shift)
    total = _ZERO
    for j in range(out.size):
        total += out[j]
    return total


@row_loop
def scale(row, factor):
    for j in range(row.size):
        row[j] *= factor


@row_loop
def fill(row, value):
    """row[:] = value, which Numba does not vectorise."""
    for j in range(row.size):
        row[j] = value


@row_loop
def copy(row, out):
    for j in range(row.size):
        out[j] = row[j]


@row_loop
def add(total, row):
    for j in range(row.size):
        total[j] += row[j]


@row_loop
def dot(a, b):
    total = _ZERO
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@exact
def bell32(z):
    """exp(-z**2 / 2) for abs(z) <= 13.2 (so no result is denormal): 2**y with y = k + f; k goes to the exponent."""
    y = z * z * f32(-0.5 * 1.4426950408889634)
    k = np.floor(y + _HALF)
    f = y - k
    p = f32(0.0013264591) * f + f32(0.0096716192)
    p = p * f + f32(0.05550735)
    p = p * f + f32(0.24022241)
    p = p * f + f32(0.693147)
    p = p * f + _ONE
    return np.int32(f32(p).view(np.int32) + (np.int32(k) << np.int32(23))).view(np.float32)


@exact
def mills32(z):
    """(1 - Phi(z)) exp(z**2 / 2) for 0 <= z <= 13.2, where Phi is the normal distribution function.

    With t = 1 / (1 + 0.265 z) it is t P(t), P of degree 6, to 7e-7 of its value (Mills' ratio, but for a factor).
    """
    t = _ONE / (_ONE + f32(0.265) * z)
    p = f32(-0.06778702) * t + f32(0.19527298)
    p = p * t - f32(0.0663626)
    p = p * t + f32(0.14249296)
    p = p * t + f32(0.08294681)
    p = p * t + f32(0.10783672)
    p = p * t + f32(0.10559984)
    return p * t
