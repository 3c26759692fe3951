"""What lies beyond the ends of arrays, and beyond the edges of tiles, is not read into a result nor written."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux alone"),
]
GUARDED = """
import numpy as np

def guarded(array):
    '''At the beginning of a longer array, whose rest spoils what is computed with it.'''
    longer = np.full(array.size + 8192, np.nan if array.dtype.kind == "f" else 255, array.dtype)
    longer[: array.size] = array.ravel()
    return longer[: array.size].reshape(array.shape)

"""
ONE_ROW = """
from minitorch_peft.kernels.four_bit.reference import quantize_4bit
from minitorch_peft.kernels.linear_4bit import reference, triton

rng = np.random.default_rng(0)
x, weight = (rng.standard_normal((rows, 96)).astype(np.float32) for rows in (1, 5))
q = quantize_4bit(weight, 32, "nf4", True)
nested = q.nested._replace(absmax=guarded(q.nested.absmax))
spoilt = q._replace(packed=guarded(q.packed), absmax=guarded(q.absmax), nested=nested)
y = triton.linear_4bit_forward(guarded(x), spoilt)
np.testing.assert_allclose(y, reference.linear_4bit_forward(x.astype(float), q), atol=1e-5)
"""
SUMS = """
from minitorch_peft.kernels.tiles.blocks import sum_parts

partial = guarded(np.arange(6 * 37, dtype=np.float32).reshape(6, 37))
out = guarded(np.zeros(37, np.float32))
sum_parts(partial, out, 0.5)
np.testing.assert_array_equal(out, 0.5 * partial.sum(0))
assert np.isnan(out.base[37:]).all(), "written beyond its end"
"""


@pytest.mark.parametrize("program", [ONE_ROW, SUMS], ids=["one row, ragged", "sums of parts"])
def test_nothing_beyond_the_ends_counts(program):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-P", "-c", GUARDED + program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
