"""Linear4bit: a leaf like the others, whose weight is a buffer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minitorch_peft.kernels import dispatch, use_backend
from minitorch_peft.kernels.four_bit.reference import code_table, dequantize_4bit, quantize_4bit

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.nn import Linear, Linear4bit, Parameter
from minitorch_peft.ops.linear_4bit import linear_4bit, lora_linear_4bit

RNG = np.random.default_rng(0)


def matrix(rows, columns):
    return RNG.standard_normal((rows, columns)).astype(np.float32)


def layer(out=5, into=48, bias=True, **how):
    bias = Parameter(RNG.standard_normal(out).astype(np.float32)) if bias else None
    return Linear4bit(quantize_4bit(matrix(out, into), **how), bias)


@settings(max_examples=25, deadline=None)
@given(out=st.integers(1, 9), into=st.integers(1, 40), lead=st.lists(st.integers(1, 3), max_size=2),
       nested=st.booleans(), bias=st.booleans(), rank=st.integers(1, 3))  # fmt: skip
def test_gradients_in_float64_are_those_of_the_dequantized_layer(out, into, lead, nested, bias, rank):
    packed = layer(out, into, bias, blocksize=32, compress_statistics=nested).astype(np.float64)
    dense = packed.dense(np.float64)
    np.testing.assert_array_equal(dense.weight.data, dequantize_4bit(packed.weight))
    x = mp.tensor(RNG.standard_normal((*lead, into)), requires_grad=True)
    A, B = (mp.tensor(RNG.standard_normal(s), requires_grad=True) for s in ((rank, into), (out, rank)))
    np.testing.assert_array_equal(packed(x).data, dense(x).data)
    terms = {"bias": packed.bias} if bias else {}
    assert mp.gradcheck(lambda x: packed(x), (x,), parameters=terms)
    assert mp.gradcheck(lambda x, A, B: packed.low_rank(x, A, B, 0.7), (x, A, B), parameters=terms)
    expected = dense(x) + F.linear(F.linear(x, A), B) * 0.7
    np.testing.assert_allclose(packed.low_rank(x, A, B, 0.7).data, expected.data, rtol=1e-12, atol=1e-12)


def test_no_work_is_done_that_nobody_needs(monkeypatch):
    used, get = [], dispatch.get
    monkeypatch.setattr(dispatch, "get", lambda name, dtype: used.append(name) or get(name, dtype))
    packed = layer().requires_grad_(False)
    x = mp.tensor(matrix(3, 48))
    assert packed(x).grad_fn is None
    packed.bias.requires_grad_()
    y = packed(x)
    y.backward(gradient=np.ones_like(y.data))
    np.testing.assert_allclose(packed.bias.grad, 3.0)
    assert x.grad is None and "linear_4bit_backward" not in used
    x.requires_grad_()
    packed(x).backward(gradient=np.ones_like(y.data))
    assert used[-1] == "linear_4bit_backward" and x.grad.any()


def test_the_weight_is_state_but_not_a_parameter():
    packed = layer(compress_statistics=True)
    assert [name for name, _ in packed.named_parameters()] == ["bias"]
    assert sorted(packed.state_dict()) == ["absmax", "bias", "nested_absmax", "nested_offset", "packed", "quant_map"]
    assert packed.num_parameters() == 5 * 48 + 5 and packed.num_parameters(only_trainable=True) == 5
    assert packed.get_memory_footprint() == 5 * 4 + sum(a.nbytes for _, a in packed.named_buffers()) < 4 * 5 * 48 / 4
    assert sorted(layer(bias=False).state_dict()) == ["absmax", "packed", "quant_map"]


def test_state_goes_from_one_layer_to_another():
    one, other = layer(compress_statistics=True), layer(compress_statistics=True)
    x = mp.tensor(matrix(2, 48))
    assert np.abs(one(x).data - other(x).data).max() > 0.1
    other.load_state_dict({name: a.copy() for name, a in one.state_dict().items()})
    assert one(x).data.tobytes() == other(x).data.tobytes()
    assert float(other.nested_offset) == other.weight.nested.offset == one.weight.nested.offset
    with pytest.raises(KeyError, match=r"missing .*nested_absmax"):
        one.load_state_dict(layer().state_dict())
    wrong = one.state_dict() | {"packed": one.packed.astype(np.float32)}
    with pytest.raises(ValueError, match="'packed': the state is float32, the model uint8"):
        one.load_state_dict(wrong)


@pytest.mark.parametrize("kind", ["fp4", "int4"])
def test_the_state_of_another_type_is_refused(kind):
    """Shapes and dtypes are the same; the codes mean something else."""
    nf4, other = layer(compress_statistics=True), layer(compress_statistics=True, quant_type=kind)
    before = nf4.packed.tobytes()
    with pytest.raises(ValueError, match="'quant_map': the state is of another type"):
        nf4.load_state_dict(other.state_dict())
    assert nf4.packed.tobytes() == before
    state = {name: a for name, a in nf4.state_dict().items() if name != "quant_map"}
    with pytest.raises(KeyError, match=r"missing .*quant_map"):
        nf4.load_state_dict(state)


def test_float32_and_the_reference_agree_in_a_layer():
    packed, x = layer(64, 96), mp.tensor(matrix(7, 96))
    fast = packed(x).data
    with use_backend("reference"):
        np.testing.assert_allclose(packed(x).data, fast, rtol=1e-4, atol=1e-5)


def test_dense_and_back():
    packed = layer(7, 30, compress_statistics=True, quant_type="fp4", blocksize=32)
    dense = packed.dense(np.float32)
    assert type(dense) is Linear and dense.bias is packed.bias and not dense.weight.requires_grad
    again = packed.repacked(dense)
    assert repr(again) == repr(packed) == "Linear4bit(30, 7, fp4 in blocks of 32, nested)"
    table = code_table("fp4")  # compared are the values: the code of -0 becomes that of 0
    for shift in (0, 4):
        np.testing.assert_array_equal(table[again.packed >> shift & 15], table[packed.packed >> shift & 15])
    with pytest.raises(RuntimeError, match="stored in four bits"):
        packed.set_dense_weight(dense.dense_weight())


def test_what_does_not_fit():
    q = quantize_4bit(matrix(4, 6))
    with pytest.raises(ValueError, match="expected a matrix"):
        Linear4bit(quantize_4bit(np.ones(5, np.float32)))
    nested = quantize_4bit(matrix(4, 6), compress_statistics=True)
    strange = nested._replace(nested=nested.nested._replace(code=nested.nested.code[::-1].copy()))
    with pytest.raises(ValueError, match="nested with a map that bitsandbytes does not use"):
        Linear4bit(strange)
    with pytest.raises(ValueError, match=r"got \(2, 5\), \(4, 6\) and None"):
        linear_4bit(mp.tensor(matrix(2, 5)), q)
    with pytest.raises(ValueError, match=r"and \(6,\)"):
        lora_linear_4bit(mp.tensor(matrix(2, 6)), q, mp.tensor(matrix(1, 6)[0]), None, None, 1.0)
    with pytest.raises(TypeError, match="floating-point input, got int64"):
        linear_4bit(mp.tensor(np.ones((2, 6), np.int64)), q)
