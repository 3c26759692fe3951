"""Products with a weight in four bits: every way a tile can lie over blocks and rows, and no W anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import FLOAT32, LAYOUTS, assert_agrees, laid_out
from minitorch_peft.kernels import get, nibbles
from minitorch_peft.kernels.examples import double
from minitorch_peft.kernels.four_bit.layout import BLOCKSIZES
from minitorch_peft.kernels.four_bit.reference import dequantize_4bit, quantize_4bit
from minitorch_peft.kernels.gemm import at
from minitorch_peft.kernels.linear_4bit import numba as fast
from minitorch_peft.kernels.linear_4bit import reference
from minitorch_peft.kernels.linear_4bit.tiles import FEW, tile_shape
from numba.core.runtime import _nrt_python, rtsys

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(FLOAT32)


@numba.njit
def decoded(packed, absmax, nested_map, nested_absmax, offset, blocksize, table, first, last, out):
    nibbles.decode((packed, absmax, nested_map, nested_absmax, offset, blocksize, table), first, last, at(out, 1))


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 700), blocksize=st.sampled_from(BLOCKSIZES), kind=st.sampled_from(["nf4", "fp4", "int4"]),
    nested=st.booleans(), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)  # fmt: skip
def test_any_stretch_of_a_tensor_is_decoded_to_the_bit(size, blocksize, kind, nested, ends):
    first, last = sorted(int(end * size) for end in ends)
    q = quantize_4bit(normal(size), blocksize, kind, nested)
    out = np.full(last - first + 2, 9, FLOAT32)
    _kept, weight = nibbles.arguments(q)
    decoded(*weight, first, last, out)
    assert out[1:-1].tobytes() == dequantize_4bit(q)[first:last].tobytes()
    assert out[0] == out[-1] == 9  # nothing is written beside it


@pytest.mark.skipif(not nibbles.AVX512, reason="this processor looks codes up one by one anyway")
def test_without_avx512_the_same_bits():
    """In a process of its own, compiled for a processor that has none."""
    code = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1])\n"
        "from test_kernel_linear_4bit import decoded, nibbles, normal, quantize_4bit, dequantize_4bit\n"
        "assert not nibbles.AVX512\n"
        "for size in (1, 2, 15, 16, 17, 333):\n"
        "    q, out = quantize_4bit(normal(size), 32, 'nf4', True), np.zeros(size + 2, np.float32)\n"
        "    kept, weight = nibbles.arguments(q)\n"
        "    decoded(*weight, 0, size, out)\n"
        "    assert out[1:-1].tobytes() == dequantize_4bit(q).tobytes()\n"
    )
    plain = os.environ | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-P", "-c", code, str(Path(__file__).parent)], env=plain, check=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stored_weight_in_any_layout(layout):
    q = quantize_4bit(normal(33, 70), 32, "nf4", True)
    nested = q.nested._replace(absmax=laid_out(q.nested.absmax, layout), code=laid_out(q.nested.code, layout))
    strange = q._replace(packed=laid_out(q.packed, layout), absmax=laid_out(q.absmax, layout), nested=nested)
    before = strange.packed.tobytes(), strange.absmax.tobytes(), strange.nested.absmax.tobytes()
    x = normal(5, 70)
    assert_agrees("linear_4bit_forward", x, strange, None)
    assert before == (strange.packed.tobytes(), strange.absmax.tobytes(), strange.nested.absmax.tobytes())


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("k", [1, 31, 96, 129])
def test_rows_that_are_no_whole_number_of_blocks(k, blocksize):
    """Where bitsandbytes' own CPU code is wrong with AVX-512 (a row of 32 or 96 and blocks of 64)."""
    q = quantize_4bit(normal(67, k) * np.arange(1, 68, dtype=FLOAT32)[:, None], blocksize)
    assert_agrees("linear_4bit_forward", normal(3, k), q, normal(67), tolerance=5e-5)
    assert_agrees("linear_4bit_backward", normal(3, 67), q, tolerance=5e-5)


@pytest.mark.parametrize("rows", [1, 2, 7, 16, FEW, FEW + 1])
@pytest.mark.parametrize("shape", [(300, 1500), (1500, 300), (17, 4500), (2, 9000)])
def test_decoding_and_training_tiles(rows, shape):
    q = quantize_4bit(normal(*shape), compress_statistics=True)
    x, g = normal(rows, shape[1]), normal(rows, shape[0])
    a, b = normal(3, shape[1]), normal(shape[0], 3)
    assert_agrees("lora_linear_4bit_forward", x, q, None, a, b, 0.1, tolerance=1e-4)
    assert_agrees("lora_linear_4bit_backward", g, x, x @ a.T, q, a, b, 0.1, (True,) * 4, tolerance=1e-4)


@pytest.mark.parametrize("rows", [1, 60, 500])
def test_the_weight_is_never_held_in_full(rows):
    """Counted are NumPy's arrays; compiled code makes none of its own. Beside results, tiles: 512 KiB a thread."""
    n, k, rank = 1536, 1024, 8
    q = quantize_4bit(normal(n, k), compress_statistics=True)
    x, g, a, b = normal(rows, k), normal(rows, n), normal(rank, k), normal(n, rank)
    xa = x @ a.T
    calls = {
        "forward": lambda: fast.linear_4bit_forward(x, q),
        "backward": lambda: fast.linear_4bit_backward(g, q),
        "lora forward": lambda: fast.lora_linear_4bit_forward(x, q, None, a, b, 0.5),
        "lora backward": lambda: fast.lora_linear_4bit_backward(g, x, xa, q, a, b, 0.5),
    }
    tiles = numba.get_num_threads() * (512 << 10)
    shares = numba.get_num_threads() * (a.nbytes + b.nbytes)  # of dA and dB, from each thread
    assert tiles + shares < 4 * n * k / 4
    for name, call in calls.items():
        call()
        tracemalloc.start()
        result = call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        results = sum(r.nbytes for r in (result if isinstance(result, tuple) else (result,)) if r is not None)
        assert peak <= results + tiles + shares + 20_000, name


def test_compiled_code_makes_no_arrays():
    """Nothing escapes the count above: Numba's own runtime is asked for no more than a header for each argument."""
    q, x, g = quantize_4bit(normal(600, 500)), normal(100, 500), normal(100, 600)
    fast.linear_4bit_forward(x, q), fast.linear_4bit_backward(g, q)
    _nrt_python.memsys_enable_stats()
    try:
        before = rtsys.get_allocation_stats().alloc
        fast.linear_4bit_forward(x, q), fast.linear_4bit_backward(g, q)
        assert rtsys.get_allocation_stats().alloc - before == 7 + 10  # arrays in the two signatures
    finally:
        _nrt_python.memsys_disable_stats()


@pytest.mark.parametrize("rows", [0, 1, 64, 65, 10_000])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (700, 9000), (9000, 700)])
@pytest.mark.parametrize("sums_over_rows", [False, True])
def test_a_tile_is_never_empty_and_never_above_half_a_megabyte(rows, shape, sums_over_rows):
    high, wide = tile_shape(rows, *shape, sums_over_rows)
    assert 1 <= high <= max(1, shape[0]) and 1 <= wide <= max(1, shape[1]) and 4 * high * wide <= 512 << 10


def test_double_precision_is_exact_on_the_decoded_weight():
    q, x = quantize_4bit(normal(9, 33)), normal(4, 33).astype(float)
    y = get("linear_4bit_forward", x.dtype)(x, q, None)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, x @ double(dequantize_4bit(q)).T)


@pytest.mark.parametrize("module", [reference, fast], ids=["reference", "numba"])
def test_what_does_not_fit(module):
    q = quantize_4bit(normal(4, 6))
    cases = {
        r"x has shape \(2, 5\), the other arguments call for \(2, 6\)": lambda: module.linear_4bit_forward(
            normal(2, 5), q
        ),
        r"bias has shape \(6,\)": lambda: module.linear_4bit_forward(normal(2, 6), q, normal(6)),
        r"grad has shape \(2, 6\), the other arguments call for \(2, 4\)": lambda: module.linear_4bit_backward(
            normal(2, 6), q
        ),
        r"lora_a has shape \(2, 4\)": lambda: module.lora_linear_4bit_forward(
            normal(2, 6), q, None, normal(2, 4), normal(4, 2), 1.0
        ),
        r"xa has shape \(2, 1\)": lambda: module.lora_linear_4bit_backward(
            normal(2, 4), normal(2, 6), normal(2, 1), q, normal(2, 6), normal(4, 2), 1.0
        ),
        r"q must be a matrix \(N, K\), got shape \(24,\)": lambda: module.linear_4bit_forward(
            normal(2, 24), q._replace(shape=(24,))
        ),
        "packed": lambda: module.linear_4bit_forward(normal(2, 6), q._replace(packed=q.packed[:-1])),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("kernels", [reference, fast])
def test_arrays_of_one_floating_dtype_are_asked_for(kernels):
    q, x, g, a, b = quantize_4bit(normal(4, 6)), normal(2, 6), normal(2, 4), normal(3, 6), normal(4, 3)
    xa, bias = x @ a.T, normal(4)
    calls = {
        "expected floating-point arrays, got int64": (
            lambda: kernels.linear_4bit_forward(x.astype(int), q),
            lambda: kernels.linear_4bit_backward(g.astype(int), q),
            lambda: kernels.lora_linear_4bit_forward(x.astype(int), q, None, a, b, 1.0),
        ),
        "bias is float64, expected float32": (
            lambda: kernels.linear_4bit_forward(x, q, bias.astype(float)),
            lambda: kernels.lora_linear_4bit_forward(x, q, bias.astype(float), a, b, 1.0),
        ),
        "lora_a is float64": (lambda: kernels.lora_linear_4bit_forward(x, q, None, a.astype(float), b, 1.0),),
        "lora_b is float64": (lambda: kernels.lora_linear_4bit_backward(g, x, xa, q, a, b.astype(float), 1.0),),
        "grad is float64": (lambda: kernels.lora_linear_4bit_backward(g.astype(float), x, xa, q, a, b, 1.0),),
        "xa is float64": (lambda: kernels.lora_linear_4bit_backward(g, x, xa.astype(float), q, a, b, 1.0),),
    }
    for message, refused in calls.items():
        for call in refused:
            with pytest.raises(TypeError, match=f"linear_4bit: {message}"):
                call()
