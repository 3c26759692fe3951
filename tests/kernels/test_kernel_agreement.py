"""Each float32 Numba kernel, over drawn shapes and layouts, against the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, FLOAT32, LARGE, LAYOUTS, Drawn, assert_agrees, bits, run
from minitorch_peft.kernels import TABLE, get
from minitorch_peft.kernels.examples import double, examples
from minitorch_peft.kernels.verify import leaves

IN_PLACE = {name for name, example in examples().items() if example.in_place}


def test_every_kernel_has_a_case():
    assert set(CASES) | IN_PLACE == set(TABLE)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_numba_agrees_with_the_float64_reference(name, data):
    args = CASES[name](Drawn(data.draw))
    before = bits(args)
    assert_agrees(name, *args)
    assert before == bits(args), "an input was changed"


@pytest.mark.parametrize("name", [name for name in CASES if not examples()[name].exact])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_float32_reference_computes_the_same(name, data):
    """MINITORCH_KERNELS=reference keeps float32 float32."""
    args = CASES[name](Drawn(data.draw))
    fast, plain = (list(leaves(run(name, *args, backend=backend))) for backend in ("numba", "reference"))
    for ours, theirs in zip(fast, plain, strict=True):
        assert (ours is None) == (theirs is None)
        if isinstance(theirs, np.ndarray):
            assert theirs.dtype == FLOAT32
            finite = np.abs(theirs[np.isfinite(theirs)])
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5 * max(1.0, finite.max(initial=0)))


@pytest.mark.parametrize("case", LARGE)
def test_parts_are_put_together(case):
    rng = np.random.default_rng(0)
    assert_agrees(case.split()[0], *LARGE[case](lambda *s: rng.standard_normal(s).astype(FLOAT32)), tolerance=5e-5)


@pytest.mark.parametrize("rows", [1, 2, 15])
def test_few_rows_share_the_columns(rows):
    """Decoding: with few rows the threads divide the columns of the result."""
    rng = np.random.default_rng(rows)
    x, w, b, a, up = (
        rng.standard_normal(s).astype(FLOAT32) for s in ((rows, 300), (301, 300), 301, (4, 300), (301, 4))
    )
    assert_agrees("linear_forward", x, w, b, tolerance=5e-5)
    assert_agrees("linear_backward", x @ w.T, x, w, tolerance=5e-5)
    assert_agrees("lora_linear_forward", x, w, b, a, up, 0.5, tolerance=5e-5)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), step=st.integers(1, 20), decay=st.sampled_from([0.0, 0.1]))
def test_adamw_agrees_with_the_float64_reference(data, step, decay):
    d = Drawn(data.draw, tuple(n for n in LAYOUTS if n != "read-only"))
    shape = d.shape()
    state = [d.array(*shape) for _ in range(4)]
    np.abs(state[3], out=state[3])
    exact = [double(x) for x in state]
    constants = (1e-2, 0.9, 0.99, 1e-8, decay, step)
    get("adamw_step", FLOAT32)(*state, *constants)
    get("adamw_step", exact[0].dtype)(*exact, *constants)
    for ours, theirs in zip(state, exact, strict=True):
        assert ours.dtype == FLOAT32
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_gelu_keeps_the_relative_accuracy_of_its_tail():
    x = np.linspace(-12, 12, 2001, dtype=FLOAT32)
    exact = get("gelu_forward", np.dtype("float64"))(x.astype("float64"))
    (fast,) = run("gelu_forward", x)
    kept = np.abs(exact) > 1e-30
    np.testing.assert_allclose(fast[kept], exact[kept], rtol=2e-5)


def test_attention_reads_heads_whose_rows_overlap():
    """A row repeated by stride 0, or a sliding window over a vector, is no matrix for BLAS: it is copied."""
    rng = np.random.default_rng(0)
    q, row, line = (rng.standard_normal(s).astype(FLOAT32) for s in ((2, 2, 5, 4), (2, 2, 1, 4), (9,)))
    repeated = np.broadcast_to(row, q.shape)
    windows = np.broadcast_to(np.lib.stride_tricks.sliding_window_view(line, 4)[:5], q.shape)
    assert_agrees("attention_forward", q, repeated, windows, None, True, 0.5)
    assert_agrees("matmul", q, windows.swapaxes(-1, -2))
