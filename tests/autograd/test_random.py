"""Numbers that depend on names, not on the order of calls."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from minitorch_peft.autograd.random import generator

GOLDEN = [0.19371764776699718, 0.5747067381763594]


def draw(*key) -> list[float]:
    return generator(*key).random(4).tolist()


def test_the_same_key_gives_the_same_numbers_whatever_was_drawn_before():
    first = draw(0, "init", "w")
    draw(0, "other")
    np.random.default_rng(1).random(100)
    assert draw(0, "init", "w") == first


def test_the_numbers_are_these_in_every_process_and_version():
    """A change here would change every initial value and every resumed run."""
    code = (
        "from minitorch_peft.autograd.random import generator; print(generator(0, 'init', 'w', 3).random(2).tolist())"
    )
    printed = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(generator(0, "init", "w", 3).random(2).tolist())
    np.testing.assert_allclose(generator(0, "init", "w", 3).random(2), GOLDEN, rtol=0, atol=0)


@pytest.mark.parametrize(
    "other",
    [
        (1, "a", 1),
        (0, "b", 1),
        (0, "a", 2),
        (0, "a"),
        (0, 1, "a"),
        (0, "a1"),
        (0, "a", "1"),
        (0, "a", 1, 0),
        (-0x100, "a", 1),
    ],
)
def test_another_key_gives_other_numbers(other):
    assert draw(0, "a", 1) != draw(*other)


def test_numpy_integers_and_bools_are_the_integers_that_they_are():
    assert draw(np.int64(3), "a", np.int32(1)) == draw(3, "a", 1)
    assert draw(3, "a", True) == draw(3, "a", 1)


@pytest.mark.parametrize("key", [(0.5,), (0, 0.5), (0, None), ("seed",)])
def test_other_keys_are_refused(key):
    """int(0.5) would be 0: two sites would quietly draw the same numbers."""
    with pytest.raises(TypeError):
        generator(*key)


def test_streams_of_neighbouring_keys_are_not_correlated():
    streams = np.array([generator(0, "dropout", "site", step).standard_normal(2000) for step in range(20)])
    correlation = np.corrcoef(streams) - np.eye(20)
    assert np.abs(correlation).max() < 0.12  # 5 standard deviations of 1/√2000
