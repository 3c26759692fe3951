"""What holds for every Numba kernel: same bits twice, NaN stays visible, extreme values, results where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import FLOAT32, LARGE, bits, run


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(FLOAT32)


@pytest.mark.parametrize("case", LARGE)
def test_same_bits_twice(case):
    name, args = case.split()[0], LARGE[case](normal)
    assert bits(run(name, *args)) == bits(run(name, *args))


def with_nan(x: np.ndarray, where: tuple) -> np.ndarray:
    x = x.copy()
    x[where] = np.nan
    return x


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_activations_pass_nan_on_where_it_is(name):
    x = with_nan(normal(40), (17,))
    for result in (*run(f"{name}_forward", x), *run(f"{name}_backward", np.ones_like(x), x)):
        assert np.flatnonzero(np.isnan(result)).tolist() == [17]


@pytest.mark.parametrize("nan", [np.float32(np.nan), -np.float32(np.nan)], ids=["+nan", "-nan"])
@pytest.mark.parametrize("at", [0, 5, 19])
def test_rows_with_nan_are_nan_and_others_are_not(nan, at):
    x = normal(4, 20)
    x[2, at] = nan
    ones = np.ones(20, FLOAT32)
    target = np.array([1, 2, 3, 4])
    for name, args in {
        "softmax_forward": (x,),
        "layer_norm_forward": (x, ones, ones, 1e-5),
        "rms_norm_forward": (x, ones, 1e-5),
        "cross_entropy_forward": (x, target, -100, 0.0),
    }.items():
        result = run(name, *args)[0].reshape(4, -1)
        assert np.isnan(result).all(axis=1).tolist() == [False, False, True, False], name
        assert np.isfinite(result[[0, 1, 3]]).all(), name


def test_matrix_products_pass_nan_on():
    x, w = with_nan(normal(5, 7), (2, 3)), normal(6, 7)
    (y,) = run("linear_forward", x, w, None)
    assert np.isnan(y).all(axis=1).tolist() == [False, False, True, False, False]
    (y,) = run("matmul", x, np.ascontiguousarray(w.T))
    assert np.isnan(y).all(axis=1).tolist() == [False, False, True, False, False]


def test_attention_passes_nan_on_to_the_queries_that_see_it():
    q, k, v = normal(1, 1, 6, 4), with_nan(normal(1, 1, 6, 4), (0, 0, 3, 1)), normal(1, 1, 6, 4)
    out, lse = run("attention_forward", q, k, v, None, True, 0.5)
    assert np.isnan(out).all(axis=-1).ravel().tolist() == [False] * 3 + [True] * 3
    assert np.isnan(lse).ravel().tolist() == [False] * 3 + [True] * 3


def test_square_norm_and_adamw_pass_nan_on():
    x = with_nan(normal(40), (3,))
    assert np.isnan(run("square_norm", x)[0])
    state = [normal(40), x, np.zeros(40, FLOAT32), np.zeros(40, FLOAT32)]
    run("adamw_step", *state, 1e-3, 0.9, 0.999, 1e-8, 0.0, 1)
    assert np.flatnonzero(np.isnan(state[0])).tolist() == [3]


def test_extreme_logits():
    x = np.array([[-np.inf, 0, 0, -np.inf], [3e38, 0, -3e38, 1], [88, 89, 90, 91], [-1e4, -1e4, -2e4, -1e4]], FLOAT32)
    (y,) = run("softmax_forward", x)
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)
    assert y[0].tolist() == [0, 0.5, 0.5, 0]
    assert y[1].tolist() == [1, 0, 0, 0]
    loss, _ = run("cross_entropy_forward", x, np.array([1, 0, 3, 2]), -100, 0.0)
    np.testing.assert_allclose(loss, [np.log(2), 0, 0.440190, 1e4 + np.log(3)], rtol=1e-5, atol=1e-6)


def test_activations_saturate():
    x = np.array([-3e4, -100, -20, 20, 100, 3e4], FLOAT32)
    for name in ("gelu", "gelu_tanh", "silu"):
        np.testing.assert_allclose(run(f"{name}_forward", x)[0], [0, 0, 0, 20, 100, 3e4], atol=5e-8)
        slope = run(f"{name}_backward", np.ones_like(x), x)[0]
        np.testing.assert_allclose(slope, [0, 0, 0, 1, 1, 1], atol=5e-8)


def test_a_query_that_sees_nothing_gives_zeros_and_moves_nothing():
    q, k, v = normal(1, 2, 4, 3), normal(1, 2, 4, 3), normal(1, 2, 4, 3)
    mask = np.ones((4, 4), bool)
    mask[1] = False
    out, lse = run("attention_forward", q, k, v, mask, False, 1.0)
    assert (out[:, :, 1] == 0).all() and np.isneginf(lse[:, :, 1]).all()
    dq, dk, dv = run("attention_backward", np.ones_like(q), q, k, v, out, lse, mask, False, 1.0)
    assert (dq[:, :, 1] == 0).all() and np.isfinite(dk).all() and np.isfinite(dv).all()


def test_joining_the_heads_after_attention_copies_nothing():
    q = normal(2, 3, 5, 4)
    out, lse = run("attention_forward", q, q, q, None, True, 1.0)
    for x in (out, *run("attention_backward", q, q, q, q, out, lse, None, True, 1.0)):
        joined = x.transpose(0, 2, 1, 3).reshape(2, 5, 12)
        assert np.shares_memory(joined, x)


def test_first_keys_do_not_see_padding_that_the_last_layout_left_behind():
    """Scratch memory of another call is never read: garbage there must not matter, not even NaN times zero."""
    q, k = normal(1, 1, 70, 8), normal(1, 1, 70, 8)
    run("attention_forward", with_nan(q, (0, 0, 5, 0)), k, k, None, True, 1.0)
    out, lse = run("attention_forward", q, k, k, None, True, 1.0)
    assert np.isfinite(out).all() and np.isfinite(lse).all()
    for gradient in run("attention_backward", q, q, k, k, out, lse, None, True, 1.0):
        assert np.isfinite(gradient).all()
