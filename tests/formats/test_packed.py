"""Matrices in four bits, taken apart and put together: no value changes, and what can stay in fewer bits does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minitorch_peft.kernels.four_bit.layout import check_quantized
from minitorch_peft.kernels.four_bit.reference import dequantize_4bit, quantize_4bit

from minitorch_peft.formats.packed import join_rows, split_rows


def quantized(rows, columns, **how):
    x = np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(np.float32)
    return quantize_4bit(x * np.linspace(1, 5, rows, dtype=np.float32)[:, None], **how)


def same(a, b):
    return all(x.tobytes() == y.tobytes() if isinstance(x, np.ndarray) else x == y for x, y in zip(a, b, strict=True))


@settings(max_examples=80, deadline=None)
@given(count=st.sampled_from([1, 2, 3]), rows=st.integers(1, 6), columns=st.integers(1, 5), nested=st.booleans(),
       blocksize=st.sampled_from([32, 64, 128]), kind=st.sampled_from(["nf4", "fp4"]))  # fmt: skip
def test_parts_stand_for_the_rows_of_the_whole(count, rows, columns, nested, blocksize, kind):
    q = quantized(count * rows, 32 * columns, blocksize=blocksize, quant_type=kind, compress_statistics=nested)
    parts = split_rows(q, count)
    for part in parts:
        check_quantized("test", part)
    np.testing.assert_array_equal(np.concatenate([dequantize_4bit(part) for part in parts]), dequantize_4bit(q))
    whole = join_rows(parts)
    check_quantized("test", whole)
    np.testing.assert_array_equal(dequantize_4bit(whole), dequantize_4bit(q))
    assert whole.shape == q.shape and whole.packed.tobytes() == q.packed.tobytes()
    if rows * 32 * columns % blocksize == 0:
        assert whole.blocksize == blocksize


@settings(max_examples=40, deadline=None)
@given(heights=st.lists(st.integers(1, 4), min_size=2, max_size=3), nested=st.booleans(), blocksizes=st.booleans())
def test_parts_that_were_never_one(heights, nested, blocksizes):
    parts = [
        quantized(rows, 64, compress_statistics=nested, blocksize=32 if blocksizes and i else 64)
        for i, rows in enumerate(heights)
    ]
    whole = join_rows(parts)
    check_quantized("test", whole)
    np.testing.assert_array_equal(dequantize_4bit(whole), np.concatenate([dequantize_4bit(part) for part in parts]))
    assert whole.nested is None  # each was quantized around a mean of its own


def test_double_quantization_is_kept_where_its_blocks_fit():
    """128 x 128 elements are 256 blocks of 64: one block of absmax. GPT-2's 768 x 768 fit too."""
    q = quantized(3 * 128, 128, compress_statistics=True)
    parts = split_rows(q, 3)
    assert all(part.nested is not None and len(part.nested.absmax) == 1 for part in parts)
    whole = join_rows(parts)
    assert same(whole[:5], q[:5]) and same(whole.nested, q.nested)
    assert all(part.nested is None for part in split_rows(quantized(3 * 64, 64, compress_statistics=True), 3))


def test_a_single_matrix_is_itself():
    q = quantized(3, 5, compress_statistics=True)
    assert split_rows(q, 1)[0] is q and join_rows([q]) is q


def test_what_no_blocks_fit():
    with pytest.raises(ValueError, match="blocks of 64 elements reach from one part of 48 elements into the next"):
        split_rows(quantized(6, 24), 3)
    with pytest.raises(ValueError, match="reach from one part"):
        join_rows([quantized(2, 24), quantized(2, 24)])
    with pytest.raises(ValueError, match="parts of different types: nf4, fp4"):
        join_rows([quantized(2, 64), quantized(2, 64, quant_type="fp4")])
