"""The bits of a result do not depend on where in memory the arrays lie.

A loop that writes to one array while it reads another is vectorised only if the two are seen not to overlap, which for
short rows depends on what the allocator did before. So what such a loop computes must not depend on whether it is.
"""

from __future__ import annotations

import numpy as np
import pytest
from minitorch_peft.kernels.activation import numba as activation
from minitorch_peft.kernels.cross_entropy import numba as cross_entropy
from minitorch_peft.kernels.norm import numba as norm
from minitorch_peft.kernels.optimizer import numba as optimizer
from minitorch_peft.kernels.rotary import numba as rotary
from minitorch_peft.kernels.softmax import numba as softmax

GAPS = (0, 1, 5, 16, 40, 200)
"""Floats between one array and the next."""


def placed(arrays: list[np.ndarray], gap: int) -> list[np.ndarray]:
    """Copies that lie in one piece of memory, one after the other."""
    memory, copies, start = np.zeros(sum(a.size + gap for a in arrays), np.float32), [], 0
    for a in arrays:
        copies.append(memory[start : start + a.size].reshape(a.shape))
        copies[-1][...] = a
        start += a.size + gap
    return copies


def assert_bits_stay(run, *arrays: np.ndarray) -> None:
    """``run(*arrays)`` leaves the same bits in all arrays, however far apart they lie, and in whatever order."""
    results = set()
    for gap in GAPS:
        for order in (slice(None), slice(None, None, -1)):
            copies = placed(list(arrays)[order], gap)[order]
            run(*copies)
            results.add(b"".join(a.tobytes() for a in copies))
    assert len(results) == 1


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


SIZES = [(1, 5), (1, 17), (3, 20), (2, 31), (9, 24), (3, 70)]
sizes = pytest.mark.parametrize(("rows", "size"), SIZES)


@sizes
@pytest.mark.parametrize("centre", [True, False])
def test_norms(rows, size, centre):
    x, g, w, b, y = (
        normal(rows, size),
        normal(rows, size + 1)[:, 1:],
        normal(size),
        normal(size + 1)[1:],
        normal(rows, size),
    )
    mean, rstd, dweight, dbias = normal(rows), np.abs(normal(rows)), normal(1, size), normal(1, size)

    def forward(x, w, b, y, mean, rstd):
        norm._forward(1, x, w, b, 1e-5, centre, y, mean, rstd)

    def backward(x, g, w, mean, rstd, dx, dweight, dbias):
        norm._backward(1, g, x, w, mean, rstd, centre, True, True, dx, dweight, dbias)

    assert_bits_stay(forward, x, w, b, y, mean, rstd)
    assert_bits_stay(backward, x, g, w, mean, rstd, y, dweight, dbias)


@sizes
def test_softmax(rows, size):
    x, g, y = normal(rows, size), normal(rows, size + 1)[:, 1:], normal(rows, size)
    assert_bits_stay(lambda x, y: softmax._forward(1, x, y), x, y)
    assert_bits_stay(lambda g, x, dx: softmax._backward(1, g, x, dx), g, x, y)


@sizes
def test_cross_entropy(rows, size):
    x, g, lse, y, target = normal(rows, size), normal(rows), normal(rows) + 3, normal(rows, size), np.arange(rows)
    assert_bits_stay(lambda x, loss, lse: cross_entropy._forward(1, x, target, -100, 0.1, loss, lse), x, g, lse)
    assert_bits_stay(lambda g, x, lse, y: cross_entropy._backward(1, g, x, target, lse, -100, 0.1, y), g, x, lse, y)


@sizes
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_activations(rows, size, name):
    x, g, y = normal(rows * size), normal(rows * size + 1)[1:], normal(rows * size)
    forward, backward = (getattr(activation, f"_{name}_{way}") for way in ("forward", "backward"))
    assert_bits_stay(lambda x, y: forward(1, x, y), x, y)
    assert_bits_stay(lambda g, x, y: backward(1, g, x, y), g, x, y)


@sizes
def test_swiglu(rows, size):
    x, u, g, y, z = (normal(rows * size + i)[i:] for i in range(5))
    assert_bits_stay(lambda x, u, y: activation._swiglu_forward(1, x, u, y), x, u, y)
    assert_bits_stay(lambda g, x, u, y, z: activation._swiglu_backward(1, g, x, u, y, z), g, x, u, y, z)


@sizes
def test_adamw(rows, size):
    p, g, m, v = normal(rows * size), normal(rows * size + 1)[1:], normal(rows * size), np.abs(normal(rows * size))
    constants = (0.9, 0.1, 0.99, 0.01, 1.1, 1e-8, 1e-2)
    assert_bits_stay(lambda p, g, m, v: optimizer._adamw(1, p, g, m, v, *constants), p, g, m, v)


@sizes
def test_rotary(rows, size):
    x, cos, sin, y = (
        normal(1, 1, rows, 2 * size),
        normal(1, rows, size),
        normal(2, rows, size)[:1],
        normal(1, rows, 1, 2 * size),
    )
    assert_bits_stay(lambda x, cos, sin, y: rotary._rotary(1, x, cos, sin, -1.0, y), x, cos, sin, y)
