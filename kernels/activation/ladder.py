"""GELU from naive to fast: what keeps a loop over floats from running as fast as memory delivers them.

Times are for (8, 256, 1536) float32 (3.1 million elements), AVX-512, one thread up to the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np

from ..jit import FAST
from ..ladder import Rung
from ..math32 import sigmoid32
from .numba import gelu_tanh_forward

f32 = np.float32
_SCALE, _TWICE_SCALE, _CUBIC = f32(math.sqrt(2 / math.pi)), f32(2 * math.sqrt(2 / math.pi)), f32(0.044715)
_HALF, _ONE = f32(0.5), f32(1)


def _tanh(x, y):
    for i in range(x.size):
        v = x[i]
        y[i] = _HALF * v * (_ONE + math.tanh(_SCALE * (v + _CUBIC * v * v * v)))


def _exponential(x, y):
    for i in range(x.size):
        v = x[i]
        y[i] = v / (_ONE + math.exp(-_TWICE_SCALE * (v + _CUBIC * v * v * v)))


def _polynomial(x, y):
    for i in range(x.size):
        v = x[i]
        y[i] = v * sigmoid32(_TWICE_SCALE * (v + _CUBIC * v * v * v))


def _version(compiled: Callable) -> Callable[[np.ndarray], np.ndarray]:
    def gelu(x: np.ndarray) -> np.ndarray:
        y = np.empty(x.shape, np.float32)
        compiled(np.ascontiguousarray(x).reshape(-1), y.reshape(-1))
        return y

    return gelu


_fast = numba.njit(error_model="numpy", fastmath=FAST)

LADDER = {
    "gelu_tanh_forward": (
        Rung(
            "tanh",
            _version(numba.njit(_tanh)),
            "One compiled loop: 8 bytes of memory an element, where NumPy's nine operators move 88. And yet it is "
            "slower than NumPy (53 ms to 7): it calls libm's tanh, 17 ns for one number at a time, while NumPy's tanh "
            "works on 16. A compiler cannot look into a library's function, so a loop that calls one stays scalar.",
        ),
        Rung(
            "exponential",
            _version(numba.njit(_exponential)),
            "(1 + tanh u) / 2 is the sigmoid 1 / (1 + exp(-2 u)). libm's exp needs a quarter of tanh's time: 3.6 ns "
            "an element. Still a call for every element.",
        ),
        Rung(
            "unchecked",
            _version(_fast(_exponential)),
            "The same source under other promises. Python raises an error where something is divided by zero, so each "
            "division is a branch; error_model='numpy' gives infinity instead. fastmath lets sums be reordered and "
            "multiplications be fused with additions (but NaN is still kept). 1.4 times as fast, and the branch is "
            "out of the way of the next step.",
        ),
        Rung(
            "polynomial",
            _version(_fast(_polynomial)),
            "exp(x) = 2**k exp(r) with |r| < 0.35: a polynomial of degree 7 for exp(r), and k goes into the bits of "
            "the exponent (kernels/math32.py). Some twenty additions and multiplications, no call, no branch: the "
            "compiler turns the loop into AVX-512 code of 16 elements at a time. 0.45 ns an element, 18 GB/s: six "
            "times as fast, and now near what one core reads and writes.",
        ),
        Rung(
            "numba",
            gelu_tanh_forward,
            "The elements are cut into a part for each thread, which runs the loop above on its part. (The loop "
            "stands in a function of its own: written inside prange, with computed bounds, it is not vectorised.) "
            "Twice as fast on two cores, until memory is the bound: 8 bytes an element are what no version can avoid.",
        ),
    )
}
