"""gradcheck on drawn functions, shapes and values: a right rule is never rejected, a wrong number never passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minitorch_peft as mp
import minitorch_peft.functional as F

from .functions import leaf

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
ROWS = hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)
MODERATE = st.floats(-10, 10)
POSITIVE = st.floats(1e-3, 1e3)

SMOOTH = {
    "exp": (F.exp, SHAPES, MODERATE),
    "log": (F.log, SHAPES, POSITIVE),
    "sqrt": (F.sqrt, SHAPES, POSITIVE),
    "tanh": (F.tanh, SHAPES, st.floats(-1e3, 1e3)),
    "sigmoid": (F.sigmoid, SHAPES, st.floats(-1e3, 1e3)),
    "gelu": (F.gelu, SHAPES, MODERATE),
    "silu": (F.silu, SHAPES, MODERATE),
    "sin": (F.sin, SHAPES, st.floats(-1e3, 1e3)),
    "square": (lambda x: x * x, SHAPES, st.floats(-1e6, 1e6)),
    "sum": (lambda x: F.sum(x, -1), ROWS, st.floats(-1e6, 1e6)),
    "prod": (lambda x: F.prod(x, -1), ROWS, MODERATE),
    "softmax": (lambda x: F.softmax(x, -1), ROWS, st.floats(-1e2, 1e2)),
    "log_softmax": (lambda x: F.log_softmax(x, -1), ROWS, st.floats(-1e2, 1e2)),
    "layer_norm": (lambda x: F.layer_norm(x, (x.shape[-1],)), ROWS, MODERATE),
    "rms_norm": (lambda x: F.rms_norm(x, (x.shape[-1],), eps=1e-5), ROWS, MODERATE),
    "cross_entropy": (lambda x: F.cross_entropy(F.reshape(x, -1, x.shape[-1]), targets(x)), ROWS, st.floats(-1e2, 1e2)),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x * 2.0, x, is_causal=True), ROWS, st.floats(-3, 3)),
    "transposed": (lambda x: F.transpose(x, 0, -1) * 3.0, ROWS, MODERATE),
}


def targets(x: mp.Tensor) -> np.ndarray:
    rows = x.data.size // x.shape[-1]
    return np.arange(rows) % x.shape[-1]


@pytest.mark.parametrize("name", SMOOTH)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_a_right_rule_is_never_rejected(name, data, seed):
    fn, shapes, elements = SMOOTH[name]
    x = data.draw(hnp.arrays(np.float64, shapes, elements=elements))
    assume(name != "attention" or x.ndim > 1)
    assert mp.gradcheck(fn, (leaf(x),), seed=seed)


@settings(max_examples=60, deadline=None)
@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
    seed=st.integers(0, 2**31),
    size=st.floats(1e-5, 1e3),
    data=st.data(),
)
def test_one_wrong_element_is_found_wherever_it_is(shape, seed, size, data):
    """``size`` is its error relative to the gradient's norm."""
    at = tuple(data.draw(st.integers(0, n - 1)) for n in shape)

    class Typo(mp.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return np.sin(x)

        @staticmethod
        def backward(ctx, g):
            dx = g * np.cos(ctx.saved[0])
            dx[at] += size * np.linalg.norm(dx)
            return dx

    x = leaf(np.random.default_rng(seed).uniform(-1, 1, shape))
    with pytest.raises(mp.GradcheckError) as caught:
        mp.gradcheck(Typo.apply, (x,), seed=seed)
    assert caught.value.operation == "Typo"
    assert caught.value.element == at


@settings(max_examples=40, deadline=None)
@given(factor=st.floats(-10, 10), seed=st.integers(0, 2**31), shape=SHAPES)
def test_a_constant_factor_is_told(factor, seed, shape):
    assume(abs(factor - 1) > 1e-3 and abs(factor) > 1e-3 and abs(factor + 1) > 1e-3)

    class Scaled(mp.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(np.exp(x))
            return np.exp(x)

        @staticmethod
        def backward(ctx, g):
            return factor * g * ctx.saved[0]

    x = leaf(np.random.default_rng(seed).uniform(-1, 1, shape))
    with pytest.raises(mp.GradcheckError) as caught:
        mp.gradcheck(Scaled.apply, (x,), seed=seed)
    error = caught.value
    assert error.analytic == pytest.approx(factor * error.numeric, rel=1e-5)
    if x.data.size > 3:  # two numbers are easily in some ratio
        assert error.cause == "factor"
