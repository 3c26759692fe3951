"""The compiled matrix product, through every way it can take; and the sharing out of work among threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minitorch_peft.kernels import jit, runtime
from minitorch_peft.kernels.gemm import at, gemm, gemm_bias, gemm_sum, skinny_step
from minitorch_peft.kernels.jit import INT, OUT1, OUT2, REAL, inner, span
from minitorch_peft.kernels.microkernel import COLUMNS, LANES, ROWS
from minitorch_peft.kernels.threads import each_part
from minitorch_peft.kernels.transpose import transpose


@jit.kernel(INT, INT, INT, INT, INT, INT, REAL, OUT2, OUT2, REAL, OUT2, OUT1)
def _product(parts, blas, trans_a, trans_b, m, n, k, alpha, a, b, beta, c, bias):
    lda, ldb, ldc = a.shape[1], b.shape[1], c.shape[1]
    if bias.size:
        gemm_bias(blas, trans_a, trans_b, m, n, k, alpha, at(a, 0), lda, at(b, 0), ldb, at(bias, 0), at(c, 0), ldc)
    else:
        gemm(blas, trans_a, trans_b, m, n, k, alpha, at(a, 0), lda, at(b, 0), ldb, beta, at(c, 0), ldc)


def check(m: int, n: int, k: int, trans_a: bool, trans_b: bool, alpha: float, beta: float, bias: bool, extra: int = 3):
    """Against float64, with rows that are ``extra`` longer than they need be; what lies between them stays as it is."""
    rng = np.random.default_rng(m + n + k)
    a, b, c = (rng.standard_normal((rows, columns + extra)).astype(np.float32) for rows, columns in (
        (k, m) if trans_a else (m, k), (n, k) if trans_b else (k, n), (m, n),
    ))  # fmt: skip
    start = rng.standard_normal(n if bias else 0).astype(np.float32)
    before = c.copy()
    if beta == 0 or bias:
        c[:, :n] = np.nan  # must not be read
    left = (a[:, :m].T if trans_a else a[:, :k]).astype(float)
    right = (b[:, :k].T if trans_b else b[:, :n]).astype(float)
    exact = alpha * left @ right + (start if bias else beta * before[:, :n].astype(float))
    _product(1, runtime.start(), trans_a, trans_b, m, n, k, alpha, a, b, beta, c, start)
    np.testing.assert_allclose(c[:, :n], exact, rtol=0, atol=3e-6 * (1 + abs(alpha) * np.sqrt(k)) * (1 + k / 200))
    np.testing.assert_array_equal(c[:, n:], before[:, n:])


flags = st.booleans()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40), st.integers(0, 70), st.integers(0, 40), flags, flags, st.sampled_from([0.0, 1.0, -0.5]), flags
)
def test_small_products(m, n, k, trans_a, trans_b, beta, bias):
    check(m, n, k, trans_a, trans_b, 0.7, beta, bias)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), flags, flags, st.sampled_from([0.0, 1.0, -0.5]), flags)
def test_products_too_large_to_be_left_where_they_lie(m, n, trans_a, trans_b, beta, bias):
    """Edges of tiles on both sides, several panels deep, B read in place and copied."""
    check(m, n, 1_000_001 // (m * n) + 1, trans_a, trans_b, 0.7, beta, bias)


@jit.kernel(INT, INT, INT, INT, INT, OUT2, OUT2, OUT1, INT, REAL, OUT2, OUT2, OUT2)
def _sum(parts, blas, trans_b, m, n, k, a, b, bias, k2, alpha2, a2, b2, c):
    start, ld = at(bias, 0) if bias.size else 0, c.shape[1]
    gemm_sum(
        blas, trans_b, m, n, k, at(a, 0), a.shape[1], at(b, 0), b.shape[1], start,
        k2, alpha2, at(a2, 0), a2.shape[1], at(b2, 0), b2.shape[1], at(c, 0), ld,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([0, 1, 8, 64, 65, 200]), flags, flags, flags)
def test_a_sum_of_two_products(m, n, k2, trans_b, bias, large):
    """Tile by tile up to a depth of 64, one after the other beyond it, and where BLAS multiplies."""
    k = 1_000_001 // (m * n) + 1 if large else 7
    rng = np.random.default_rng(m + n + k2)
    a, a2, b, b2 = (rng.standard_normal(s).astype(np.float32) for s in (
        (m, k), (m, k2), (n, k) if trans_b else (k, n), (n, k2) if trans_b else (k2, n),
    ))  # fmt: skip
    start, c = rng.standard_normal(n if bias else 0).astype(np.float32), np.full((m, n + 2), np.nan, np.float32)
    right, right2 = (x.T.astype(float) if trans_b else x.astype(float) for x in (b, b2))
    exact = a.astype(float) @ right - 0.3 * a2.astype(float) @ right2 + (start if bias else 0)
    _sum(1, runtime.start(), trans_b, m, n, k, a, b, start, k2, -0.3, a2, b2, c)
    np.testing.assert_allclose(c[:, :n], exact, rtol=0, atol=3e-6 * (1 + np.sqrt(k + k2)) * (1 + k / 200))
    assert np.isnan(c[:, n:]).all()


@pytest.mark.parametrize("k", [1, 511, 512, 513, 1030])
@pytest.mark.parametrize(("m", "n"), [(ROWS, COLUMNS), (2 * ROWS, 2 * COLUMNS), (ROWS + 1, COLUMNS + 1), (71, LANES)])
@pytest.mark.parametrize("bias", [True, False])
def test_whole_tiles_and_panels(m, n, k, bias):
    scale = max(1, 1_000_000 // (m * n * k) + 1)
    check(scale * m, n, k, False, True, 1.0, 0.0, bias, extra=0)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    """Where it lies within a tile, or in how many rows: the sums of a row are added up in the same order."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((203, 160), (160, 96)))
    whole, shifted = np.empty((203, 96), np.float32), np.empty((200, 96), np.float32)
    none = np.empty(0, np.float32)
    _product(1, runtime.start(), False, False, 203, 96, 160, 1.0, a, b, 0.0, whole, none)
    _product(1, runtime.start(), False, False, 200, 96, 160, 1.0, a[3:].copy(), b, 0.0, shifted, none)
    np.testing.assert_array_equal(whole[3:], shifted)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_reach_their_row_only(bad):
    a, b, c = np.ones((130, 130), np.float32), np.ones((130, 130), np.float32), np.empty((130, 130), np.float32)
    a[9, 7] = bad
    _product(1, runtime.start(), False, True, 130, 130, 130, 1.0, a, b, 0.0, c, np.zeros(130, np.float32))
    assert np.flatnonzero(~np.isfinite(c).all(axis=1)).tolist() == [9]


def test_another_processor_gets_blas():
    """Code for one without AVX-512 (NUMBA_CPU_NAME, as in a container built for many machines) agrees too."""
    code = (
        "import numpy as np; from minitorch_peft.kernels import get, jit; assert not jit.host_has('avx512f');"
        "x, w = (np.random.default_rng(0).standard_normal(s, dtype=np.float32) for s in ((150, 130), (90, 130)));"
        "y = get('linear_forward', x.dtype)(x, w, w[:, 0].copy());"
        "np.testing.assert_allclose(y, x.astype(float) @ w.T + w[:, 0], rtol=1e-5, atol=5e-5)"
    )
    env = {**os.environ, "NUMBA_CPU_NAME": "haswell"}
    subprocess.run([sys.executable, "-P", "-c", code], env=env, check=True)


@pytest.mark.parametrize(
    ("name", "features", "expected"),
    [("haswell", None, False), (None, "+avx2,+avx512f", True), ("skylake-avx512", "+avx2,-avx512f", False)],
)
def test_features_are_those_that_numba_compiles_for(monkeypatch, name, features, expected):
    monkeypatch.setattr(numba.config, "CPU_NAME", name)
    monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
    assert jit.host_has("avx512f") is expected


def test_skinny_products_are_cut_where_blas_would_copy():
    assert skinny_step.py_func(2048, 128, 8) * 128 * 8 <= 1_000_000 < 2048 * 128 * 8


# -- transposed copies -----------------------------------------------------------------------------------------------
@jit.kernel(OUT2, INT, INT, OUT2)
def _turn(parts, x, rows, columns, out):
    transpose(at(x, 0), x.shape[1], rows, columns, at(out, 0), out.shape[1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(0, 50))
def test_transpose(rows, columns):
    x = np.arange(rows * (columns + 3), dtype=np.float32).reshape(rows, columns + 3)
    out = np.full((columns, rows + 2), -1, np.float32)
    _turn(1, x, rows, columns, out)
    np.testing.assert_array_equal(out[:, :rows], x[:, :columns].T)
    assert (out[:, rows:] == -1).all()


# -- parts -----------------------------------------------------------------------------------------------------------
@inner
def _note(t, parts, first, counts, options, out):
    add, factor = options
    lo, hi = span(t, parts, len(out))
    for i in range(lo, hi):
        counts[i] += 1
        for j in range(out.shape[1]):
            out[i, j] = first[j] * factor + t if add else 0.0


@jit.kernel(OUT1, OUT1, numba.types.boolean, REAL, OUT2)
def _noted(parts, first, counts, add, factor, out):
    each_part(parts, _note, (first, counts, (add, factor), out))


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64])
def test_each_part_runs_once_with_its_arguments(parts):
    first, counts, out = np.arange(3, dtype=np.float32), np.zeros(20, np.float32), np.empty((20, 3), np.float32)
    _noted(parts, first, counts, True, 2.0, out)
    owner = [max(t for t in range(parts) if t * 20 // parts <= i < (t + 1) * 20 // parts) for i in range(20)]
    assert counts.tolist() == [1] * 20
    np.testing.assert_array_equal(out, 2 * first + np.array(owner, np.float32)[:, None])


def test_arrays_belong_to_the_caller_before_and_after():
    out = np.empty((20, 3), np.float32)
    references = sys.getrefcount(out)
    for parts in (1, 4):
        _noted(parts, out[0], np.zeros(20, np.float32), False, 0.0, out)
    assert sys.getrefcount(out) == references
