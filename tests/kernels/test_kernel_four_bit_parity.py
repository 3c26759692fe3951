"""Beside bitsandbytes on the CPU: the same bytes where it keeps to its CUDA definition, and where it does not."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from minitorch_peft.kernels import get
from minitorch_peft.kernels.four_bit.layout import BLOCKSIZES, Quantized
from minitorch_peft.kernels.four_bit.reference import code_table, create_dynamic_map, dequantized_absmax

pytestmark = pytest.mark.parity
f32 = np.float32


@pytest.fixture(scope="module")
def bnb():
    logging.disable(logging.WARNING)  # it looks for a package called kernels, and says that there is none
    import bitsandbytes.functional

    logging.disable(logging.NOTSET)
    return bitsandbytes.functional


def theirs(bnb, x: np.ndarray, *args, **kwargs) -> tuple[np.ndarray, object, object]:
    import torch

    packed, state = bnb.quantize_4bit(torch.from_numpy(x), *args, **kwargs)
    return packed.numpy().reshape(-1), state, packed


def ours(x: np.ndarray, *args) -> Quantized:
    return get("quantize_4bit", f32)(x, *args)


def nibbles(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed >> 4, packed & 15], 1).reshape(-1)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(f32)


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("shape", [(64, 128), (96, 4096 // 3 + 1), (7, 33, 32)])
def test_the_same_bytes_and_absmax(bnb, shape, blocksize):
    """A last, partial block is left out: there it divides, where CUDA multiplies by the reciprocal."""
    x = normal(*shape)
    packed, state, _ = theirs(bnb, x, blocksize=blocksize, quant_type="nf4")
    q = ours(x, blocksize)
    whole = x.size // blocksize * blocksize // 2
    assert (q.packed[:whole] == packed[:whole]).all() and (q.absmax == state.absmax.numpy()).all()
    last = x.reshape(-1)[2 * whole :]
    if last.size:  # dividing there gives its bytes
        divided = np.searchsorted(code_table("nf4")[:-1] / 2 + code_table("nf4")[1:] / 2, last / np.abs(last).max())
        assert (nibbles(packed)[2 * whole : x.size] == divided).all()


def test_the_same_ties(bnb):
    values = code_table("nf4")
    middles = (values[1:] + values[:-1]) * f32(0.5)
    x = np.concatenate([[1], middles, np.nextafter(middles, f32(2)), np.nextafter(middles, f32(-2)), np.zeros(18)])
    packed, _, _ = theirs(bnb, x.astype(f32), blocksize=64, quant_type="nf4")
    assert (ours(x.astype(f32)).packed == packed).all()


def test_zeros(bnb):
    packed, state, _ = theirs(bnb, np.zeros(128, f32), blocksize=64, quant_type="nf4")
    q = ours(np.zeros(128, f32))
    assert (q.packed == packed).all() and (q.absmax == state.absmax.numpy()).all()


def test_fp4_differs_in_the_sign_of_zero_alone(bnb):
    """Its CPU path counts in a sorted table, where -0 stands before 0: a tiny positive number becomes -0."""
    x = normal(64, 128)
    packed, state, _ = theirs(bnb, x, blocksize=64, quant_type="fp4")
    a, b = nibbles(ours(x, 64, "fp4").packed), nibbles(packed)
    assert (a != b).any() and set(a[a != b]) <= {0, 8} and set(b[a != b]) <= {0, 8}
    assert state.code.tolist() == code_table("fp4").tolist()


@pytest.mark.parametrize("blocksize", [32, 64, 128, 512])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_same_values(bnb, blocksize, quant_type, dtype):
    import torch

    x = normal(48, 512)
    tensor = torch.from_numpy(x).to(getattr(torch, dtype))
    packed, state = bnb.quantize_4bit(tensor, blocksize=blocksize, quant_type=quant_type)
    q = Quantized(packed.numpy().reshape(-1), state.absmax.numpy(), x.shape, blocksize, quant_type, None)
    values = bnb.dequantize_4bit(packed, state)
    expected = (values.view(torch.int16) if dtype == "bfloat16" else values).numpy()
    got = get("dequantize_4bit", f32)(q, dtype)
    assert (got.view(expected.dtype) == expected).all()


def test_double_quantization_goes_to_the_nearest_value(bnb):
    """Offset and scale agree; its 8-bit codes come from a coarse table on the CPU: ours are never farther away."""
    import torch

    x = normal(64, 1024) * np.random.default_rng(0).lognormal(0, 2, (64, 1)).astype(f32)
    _, state, _ = theirs(bnb, x, blocksize=64, quant_type="nf4", compress_statistics=True)
    q, exact = ours(x, 64, "nf4", True), ours(x).absmax
    assert q.nested.code.tobytes() == state.state2.code.numpy().tobytes()
    np.testing.assert_allclose(q.nested.offset, state.offset.item(), rtol=1e-6)
    np.testing.assert_allclose(q.nested.absmax, state.state2.absmax.numpy(), rtol=1e-6)
    with torch.no_grad():
        recovered = (bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset).numpy()
    assert (q.absmax != state.absmax.numpy()).any()
    assert (np.abs(dequantized_absmax(q) - exact) <= np.abs(recovered - exact) + 1e-6 * exact.max()).all()


def test_the_maps_are_equal(bnb):
    for signed in (True, False):
        assert create_dynamic_map(signed).tobytes() == bnb.create_dynamic_map(signed).numpy().tobytes()


@pytest.mark.parametrize("shape", [(4, 32), (128, 32), (96, 96), (64, 48), (7, 16)])
def test_rows_that_are_no_whole_number_of_blocks(bnb, shape):
    """With AVX-512 its CPU path takes the absmax of another block there, and says nothing. Ours is right everywhere.

    It reads absmax by row, as if every row began a block: wrong where a row has a multiple of 16 elements, but none
    of the blocksize. On machines without AVX-512 it is right.
    """
    x = normal(*shape) * np.linspace(1, 100, math.prod(shape)).reshape(shape).astype(f32)
    q = ours(x)
    values = get("dequantize_4bit", f32)(q)
    scale = np.repeat(q.absmax, 64)[: x.size].reshape(shape)
    half_gap = np.diff(code_table("nf4")).max() / 2
    assert (np.abs(values - x) <= half_gap * scale * (1 + 1e-5)).all()
    packed, state, tensor = theirs(bnb, x, blocksize=64, quant_type="nf4")
    dequantized = bnb.dequantize_4bit(tensor, state).numpy().reshape(shape)
    right = np.allclose(dequantized, values)
    rows = q.absmax[np.minimum(np.arange(shape[0]) * (shape[1] // 64), q.absmax.size - 1)]  # what it reads
    by_row = code_table("nf4")[nibbles(packed)[: x.size]].reshape(shape) * rows[:, None]
    assert right or shape[1] > 64 or np.allclose(dequantized, by_row)
    assert right or np.abs(dequantized - x).max() > 2 * half_gap * scale.max()
