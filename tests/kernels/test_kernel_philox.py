"""Random numbers from a counter: the published cipher, Triton's bits, and any number by its place alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minitorch_peft.kernels import get
from minitorch_peft.kernels.philox import reference

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")
WORDS = st.integers(0, 2**64 - 1)
SEEDS, OFFSETS = (0, 5, 2**32 + 9, 2**64 - 1), (0, 7, 2**31 - 30, 2**32 - 30, 2**40 + 1)


def same_bits(a, b) -> bool:
    return a.dtype == b.dtype == FLOAT32 and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_the_cipher_s_published_answer():
    """The first word of Random123's known answer for philox4x32-10, counter and key zero (kat_vectors)."""
    zero = np.zeros(1, np.uint64)
    assert reference.philox_4x32(zero, zero, zero[0], zero[0])[0] == 0x6627E8D5


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_bits_are_those_of_triton_s_rand(tmp_path):
    cases = [(seed, offset) for seed in SEEDS for offset in OFFSETS]
    numbers = [str(n) for case in cases for n in (*case, 100)]
    command = [sys.executable, "-P", Path(__file__).with_name("philox_program.py"), tmp_path / "bits.npz", *numbers]
    subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)
    theirs = np.load(tmp_path / "bits.npz")
    for seed, offset in cases:
        for dtype in (FLOAT32, FLOAT64):
            ours = get("philox_uniform", dtype)(seed, offset, (100,))
            assert same_bits(ours, theirs[f"{seed} {offset}"]), (seed, offset, dtype)


@settings(max_examples=50, deadline=None)
@given(WORDS, WORDS, st.integers(0, 40))
def test_both_versions_give_the_same_bits(seed, offset, count):
    fast, plain = (get("philox_uniform", dtype)(seed, offset, (count,)) for dtype in (FLOAT32, FLOAT64))
    assert same_bits(fast, plain)


@settings(max_examples=20, deadline=None)
@given(WORDS, st.integers(0, 2**40), st.integers(0, 30), st.integers(1, 30))
def test_a_number_depends_on_its_place_alone(seed, offset, skip, count):
    draw = get("philox_uniform", FLOAT32)
    assert same_bits(draw(seed, offset, (skip + count,))[skip:], draw(seed, offset + skip, (count,)))
    assert same_bits(draw(seed, offset, (2, count)).reshape(-1), draw(seed, offset, (2 * count,)))


def test_the_numbers_are_uniform_in_0_to_1():
    u = get("philox_uniform", FLOAT32)(3, 0, (200_000,))
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, 20, (0, 1))[0] / 10_000
    assert np.abs(counts - 1).max() < 0.05
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(u, get("philox_uniform", FLOAT32)(4, 0, u.shape))[0, 1]) < 0.01


def test_the_ends_of_the_range():
    words = np.array([0, 2**31 - 1, 2**31, 2**32 - 1], np.uint32)
    u = reference.to_uniform(words)
    assert u[0] == u[3] == 0 and u[1] == u[2] == np.float32(1 - 2**-24)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize(
    "args, message",
    [
        ((-1, 0, (1,)), r"seed must be in \[0, 2\*\*64\), got -1"),
        ((0, 2**64, (1,)), r"offset must be in \[0, 2\*\*64\)"),
    ],
)
def test_seeds_and_offsets_have_64_bits(args, message, dtype):
    with pytest.raises(ValueError, match=message):
        get("philox_uniform", dtype)(*args)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_seeds_and_offsets_are_whole_numbers(dtype):
    for args, message in (
        ((1.5, 0, (1,)), "seed must be a whole number, got 1.5"),
        ((0, 1.0, (1,)), "offset must be a w"),
    ):
        with pytest.raises(TypeError, match=message):
            get("philox_uniform", dtype)(*args)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9])
def test_dropping_keeps_the_mean(p):
    x = np.random.default_rng(0).standard_normal((200, 300))
    y = reference.dropped(x, p, 11)
    kept = y != 0
    assert abs(kept.mean() - (1 - p)) < 0.01
    np.testing.assert_allclose(y[kept], x[kept] / (1 - p))
    assert np.array_equal(kept, get("philox_uniform", FLOAT32)(11, 0, x.shape) >= np.float32(p))
