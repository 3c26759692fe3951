"""Block-wise 8-bit quantization, to the exact nearest value, and AdamW with moments kept that way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Drawn
from minitorch_peft.kernels import get, use_backend
from minitorch_peft.kernels.adamw_8bit.examples import EXAMPLES
from minitorch_peft.kernels.eight_bit.codes import boundaries, create_dynamic_map, float32_linspace
from minitorch_peft.kernels.eight_bit.numba import search
from minitorch_peft.kernels.verify import disagreement

f32 = np.float32
CODES = {
    "signed": create_dynamic_map(),
    "unsigned": create_dynamic_map(signed=False),
    "linear": np.linspace(-1, 1, 256, dtype=f32),
    "crowded": np.linspace(0.999, 1, 256, dtype=f32),  # several boundaries between floats with the same upper half
}


@pytest.fixture(params=["reference", "numba"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def quantize(*args):
    return get("quantize_blockwise", f32)(*args)


def dequantize(*args):
    return get("dequantize_blockwise", f32)(*args)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 600), st.sampled_from(list(CODES)), st.sampled_from([1, 7, 256]))
def test_no_other_code_is_nearer(seed, n, code, blocksize):
    code, rng = CODES[code], np.random.default_rng(seed)
    x = (rng.standard_normal(n) * rng.lognormal(0, 5, n)).astype(f32)
    with use_backend("reference"):
        codes, absmax = quantize(x, code, blocksize)
    with use_backend("numba"):
        fast = quantize(x, code, blocksize)
    assert fast[0].tobytes() == codes.tobytes() and fast[1].tobytes() == absmax.tobytes()
    scaled = x * np.repeat(1 / np.maximum(absmax, f32(1e-37)), blocksize)[:n]
    distance = np.abs(scaled[:, None].astype(np.float64) - code)
    assert (distance[np.arange(n), codes] <= distance.min(axis=1, initial=np.inf) + 1e-7).all()


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_in_the_middle_the_even_code(backend, code):
    middles = (code[1:] + code[:-1]) * f32(0.5)
    between = (middles > code[:-1]) & (middles < code[1:])  # else two values are neighbours
    x = np.concatenate([[1], middles]).astype(f32)
    got = quantize(x, code, x.size)[0][1:].astype(int)
    lower = np.arange(255)
    assert (got[between] == (lower + lower % 2)[between]).all()


def test_values_of_the_code_keep_their_number(backend):
    for code in CODES.values():
        assert quantize(code, code, 256)[0].tolist() == list(range(256))


def test_boundaries_are_the_middles_within_one_unit():
    middle = (CODES["signed"][1:] + CODES["signed"][:-1]) * f32(0.5)
    assert (np.abs(boundaries(CODES["signed"]).view(np.int32) - middle.view(np.int32)) <= 1).all()


def test_one_comparison_is_left_of_the_search_in_the_dynamic_maps():
    rounds = {name: search(code.tobytes())[2] for name, code in CODES.items()}
    assert rounds["signed"] == rounds["unsigned"] == 1 < rounds["crowded"]


def test_linspace_ends_where_it_should():
    for count in (2, 8, 9, 65):
        points = float32_linspace(0.9, 0.1, count)
        assert points[0] == f32(0.9) and points[-1] == f32(0.1) and (np.diff(points) < 0).all()


def test_round_trip_over_threads(backend):
    x = np.random.default_rng(0).standard_normal((300, 257)).astype(f32)
    codes, absmax = quantize(x, CODES["signed"])
    values = dequantize(codes, absmax, CODES["signed"], x.shape)
    assert values.shape == x.shape and values.dtype == f32
    assert np.abs(values - x).max() < 0.008 * np.abs(x).max()
    with use_backend("reference"):
        assert quantize(x, CODES["signed"])[0].tobytes() == codes.tobytes()
        assert dequantize(codes, absmax, CODES["signed"], x.shape).tobytes() == values.tobytes()


def test_zero_and_tiny_blocks(backend):
    x = np.array([0, 0, 1e-45, -1e-45], f32)
    codes, absmax = quantize(x, CODES["signed"], 2)
    assert codes.tolist() == [127, 127, 255, 0] and absmax.tolist() == [0, float(f32(1e-45))]


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((np.ones(3, int), CODES["signed"]), TypeError, "x must be float16, float32 or float64, got int64"),
        ((np.array([1, np.nan]), CODES["signed"]), ValueError, r"x holds nan at position 1 of 2 \(block 0\)"),
        ((np.array([1, 2, np.inf]), CODES["signed"], 2), ValueError, r"x holds inf at position 2 of 3 \(block 1\)"),
        ((np.ones(3), CODES["signed"], 0), ValueError, "blocksize must be at least 1, got 0"),
        ((np.ones(3), CODES["signed"], 4.0), TypeError, "blocksize must be a whole number, got 4.0"),
        (
            (np.ones(3), CODES["signed"][:16]),
            ValueError,
            r"code must be 256 float32 in rising order, got float32 \(16,\)",
        ),
        ((np.ones(3), CODES["signed"].astype(float)), ValueError, "got float64"),
        ((np.ones(3), CODES["signed"][::-1]), ValueError, "in rising order"),
    ],
)
def test_quantize_names_the_bad_argument(backend, args, error, text):
    with pytest.raises(error, match=f"quantize_blockwise: .*{text}"):
        quantize(*args)


def test_dequantize_names_the_bad_argument(backend):
    codes, absmax, code = np.zeros(5, np.uint8), np.ones(2, f32), CODES["signed"]
    for args, error, text in (
        ((codes.astype(int), absmax, code, (5,), 4), TypeError, "codes must be uint8"),
        ((codes, absmax.astype(float), code, (5,), 4), TypeError, "absmax float32, got uint8 and float64"),
        ((codes, absmax, code, (6,), 4), ValueError, r"shape \(6,\) in blocks of 4 calls for codes \(6,\)"),
        ((codes, absmax, code, (5,), 0), ValueError, "blocksize must be at least 1, got 0"),
        ((codes, absmax, code, (5,), 4.0), TypeError, "blocksize must be a whole number, got 4.0"),
        ((codes, absmax, code, (5,), 5), ValueError, r"absmax \(1,\)"),
        ((codes[:0], absmax[:0], code, (2**33, 2**33), 4), ValueError, "calls for codes"),  # 0, counted in 64 bits
    ):
        with pytest.raises(error, match=text):
            dequantize(*args)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_adamw_8bit_gives_the_bits_of_its_reference(data):
    args = EXAMPLES["adamw_8bit_step"].drawn(Drawn(data.draw))
    with use_backend("numba"):
        assert disagreement("adamw_8bit_step", get("adamw_8bit_step", f32), args) is None


def moments(p: np.ndarray) -> tuple[np.ndarray, ...]:
    blocks = -(-p.size // 256)
    return np.zeros(p.shape, np.uint8), np.zeros(blocks, f32), np.zeros(p.shape, np.uint8), np.zeros(blocks, f32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adamw_8bit_follows_adamw(backend, dtype):
    """Over threads; the first step, whose moments are quantized only after it, is AdamW's own."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal((300, 257)).astype(dtype)
    state, exact = moments(p), [p.copy(), np.zeros_like(p), np.zeros_like(p)]
    for step in range(1, 6):
        g = rng.standard_normal(p.shape).astype(dtype)
        get("adamw_8bit_step", p.dtype)(p, g, *state, 1e-2, 0.9, 0.99, 1e-8, 0.1, step)
        get("adamw_step", p.dtype)(exact[0], g, *exact[1:], 1e-2, 0.9, 0.99, 1e-8, 0.1, step)
        np.testing.assert_allclose(p, exact[0], rtol=0, atol=1e-6 if step == 1 else 2e-3 * step)
    assert p.dtype == dtype


def test_adamw_8bit_updates_what_is_not_contiguous(backend):
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal((40, 30)).astype(f32), rng.standard_normal((40, 30)).astype(f32)
    one, two = [p.copy(), *moments(p)], [np.asfortranarray(p), *(np.asfortranarray(a) for a in moments(p))]
    for state in (one, two):
        get("adamw_8bit_step", f32)(state[0], g, *state[1:], 1e-2, 0.9, 0.99, 1e-8, 0.1, 1)
    assert all((a == b).all() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_adamw_8bit_lets_a_diverging_run_be_seen(backend, bad):
    p = np.ones(600, f32)
    state, g = moments(p), np.ones(600, f32)
    g[300] = bad
    for step in (1, 2):
        with np.errstate(all="ignore"):
            get("adamw_8bit_step", f32)(p, g, *state, 1e-2, 0.9, 0.99, 1e-8, 0.1, step)
        g[300] = 1
    assert np.isnan(p[256:512]).all() and np.isfinite(p[:256]).all() and np.isfinite(p[512:]).all()


def test_adamw_8bit_names_what_does_not_fit(backend):
    p = np.ones((2, 3), f32)
    m, m_absmax, v, v_absmax = moments(p)
    rates = (1e-2, 0.9, 0.99, 1e-8, 0.1)
    for args, error, text in (
        ((p, p[:1], m, m_absmax, v, v_absmax, *rates, 1), ValueError, r"grad must have shape \(2, 3\), got \(1, 3\)"),
        ((p, p.astype(float), m, m_absmax, v, v_absmax, *rates, 1), TypeError, "grad must be float32, got float64"),
        ((p, p, m.astype(f32), m_absmax, v, v_absmax, *rates, 1), TypeError, "exp_avg must be uint8, got float32"),
        ((p, p, m, m_absmax, v, np.zeros(2, f32), *rates, 1), ValueError, r"exp_avg_sq_absmax must have shape \(1,\)"),
        ((p, p, m, m_absmax, v, v_absmax, *rates, 0), ValueError, "step counts from 1, got 0"),
    ):
        with pytest.raises(error, match=text):
            get("adamw_8bit_step", f32)(*args)


def test_the_map_search_is_that_of_bitsandbytes_cuda_kernel():
    """dQuantize of csrc/kernels.cu, transcribed: a tree of comparisons that ends on an even code."""

    def tree(code: np.ndarray, x: np.ndarray) -> list[int]:
        found = []
        for value in x:
            pivot, low, high = 127, 0, 255
            for i in (64, 32, 16, 8, 4, 2, 1):
                low, high, pivot = (pivot, high, pivot + i) if value > code[pivot] else (low, pivot, pivot - i)
            if value > code[pivot]:
                found.append(high if value > (code[high] + code[pivot]) * f32(0.5) else pivot)
            else:
                found.append(low if value < (code[low] + code[pivot]) * f32(0.5) else pivot)
        return found

    for name in ("signed", "unsigned"):
        code = CODES[name]
        middles = (code[1:] + code[:-1]) * f32(0.5)
        x = np.concatenate([[1], code, middles, np.nextafter(middles, f32(2)), np.nextafter(middles, f32(-2))]).astype(
            f32
        )
        with use_backend("reference"):
            assert quantize(x, code, x.size)[0].tolist() == tree(code, x)
