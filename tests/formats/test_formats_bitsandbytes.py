"""4-bit tensors under bitsandbytes' keys: its file is read, its bytes are written, damage is named."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minitorch_peft.kernels.four_bit.reference import dequantize_4bit, quantize_4bit

from minitorch_peft import kernels
from minitorch_peft.formats.bitsandbytes import from_tensors, quant_state, quantized_names, to_tensors
from minitorch_peft.formats.files import read_arrays, write_arrays

GOLDEN = Path(__file__).parents[1] / "golden" / "four_bit.safetensors"


@pytest.fixture
def golden():
    return read_arrays(GOLDEN)


@pytest.fixture
def tensors():
    """A doubly quantized parameter among others, to be damaged."""
    x = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    return {"norm.weight": x[0], **to_tensors("w", quantize_4bit(x, compress_statistics=True), "bfloat16")}


def edit_state(tensors: dict[str, np.ndarray], **changes) -> None:
    key = "w.quant_state.bitsandbytes__nf4"
    state = json.loads(tensors[key].tobytes()) | changes
    state = {field: value for field, value in state.items() if value is not None}
    tensors[key] = np.frombuffer(json.dumps(state).encode(), np.uint8)


def same_parts(a, b) -> bool:
    return all(x.tobytes() == y.tobytes() if isinstance(x, np.ndarray) else x == y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("kind", "shape"), [("nf4", (12, 64)), ("fp4", (3, 64))])
def test_what_bitsandbytes_wrote_is_read_and_written_again(golden, kind, shape):
    name = f"{kind}.weight"
    q = from_tensors(name, golden)
    assert (q.quant_type, q.shape, q.blocksize, q.nested is not None) == (kind, shape, 64, kind == "nf4")
    for dtype in (np.float32, np.float64):
        assert (kernels.get("dequantize_4bit", dtype)(q) == golden[f"{kind}.values"]).all()
    written = to_tensors(name, q, quant_state(name, golden)["dtype"])
    theirs = {key: array for key, array in golden.items() if key.startswith(name)}
    assert written.keys() == theirs.keys()
    for key, array in theirs.items():
        assert (written[key].dtype, written[key].shape) == (array.dtype, array.shape), key
        assert written[key].tobytes() == array.tobytes(), key


def test_names_of_4_bit_parameters(golden):
    assert sorted(quantized_names(golden)) == ["fp4.weight", "nf4.weight"]
    assert quantized_names({"a.weight": np.zeros(1)}) == []


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 20), max_size=3),
    st.sampled_from([32, 64, 4096]),
    st.sampled_from(["nf4", "fp4"]),
    st.booleans(),
    st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_round_trip(shape, blocksize, quant_type, nested, dtype):
    x = np.random.default_rng(0).standard_normal(shape)
    q = quantize_4bit(x, blocksize, quant_type, nested)
    tensors = to_tensors("a.b.weight", q, dtype)
    again = from_tensors("a.b.weight", tensors)
    assert same_parts(again[:-1], q[:-1]) and (q.nested is None or same_parts(again.nested, q.nested))
    assert quant_state("a.b.weight", tensors)["dtype"] == dtype


def test_round_trip_through_a_file(tensors, tmp_path):
    write_arrays(tmp_path / "model.safetensors", tensors)
    q = from_tensors("w", read_arrays(tmp_path / "model.safetensors"))
    assert dequantize_4bit(q).tobytes() == dequantize_4bit(from_tensors("w", tensors)).tobytes()


@pytest.mark.parametrize("part", ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"])
def test_a_missing_part_is_named(tensors, part):
    del tensors[f"w{part}"]
    with pytest.raises(KeyError, match=re.escape(f"'w' lacks w{part}")):
        from_tensors("w", tensors)


def test_the_state_must_be_there_once(tensors):
    state = tensors["w.quant_state.bitsandbytes__nf4"]
    tensors["w.quant_state.bitsandbytes__fp4"] = state
    with pytest.raises(KeyError, match=r"exactly one of .*__nf4 or .*__fp4, found \[.*, .*\]"):
        from_tensors("w", tensors)
    del tensors["w.quant_state.bitsandbytes__nf4"]
    with pytest.raises(ValueError, match="__fp4 says quant_type 'nf4'"):
        from_tensors("w", tensors)
    del tensors["w.quant_state.bitsandbytes__fp4"]
    with pytest.raises(KeyError, match="found none"):
        from_tensors("w", tensors)
    with pytest.raises(KeyError, match="found none"):
        from_tensors("norm.weight", tensors)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"shape": [6, 65]}, r"shape \(6, 65\) calls for packed \(195,\), got \(192,\)"),
        ({"shape": [-6, -64]}, r"shape cannot be \[-6, -64\]"),
        ({"shape": 384}, "shape cannot be 384"),
        ({"blocksize": 63}, "blocksize must be one of 32, .*; got 63"),
        ({"blocksize": "64"}, "blocksize cannot be '64'"),
        ({"blocksize": True}, "blocksize cannot be True"),
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"dtype": None}, "must hold exactly quant_type, blocksize, dtype, shape, nested_blocksize"),
        ({"nested_offset": None}, "must hold exactly"),
        ({"nested_offset": float("nan")}, "a finite nested_offset"),
        ({"nested_offset": 1e60}, "a finite nested_offset"),
        ({"nested_blocksize": 128}, "nested.blocksize must be 256, got 128"),
        ({"nested_blocksize": 0}, "a nested_blocksize of at least 1"),
        ({"nested_dtype": "float16"}, "nested_dtype float32"),
        ({"zero_point": 3}, "must hold exactly"),
    ],
)
def test_an_odd_state_is_named(tensors, changes, text):
    edit_state(tensors, **changes)
    with pytest.raises(ValueError, match=text):
        from_tensors("w", tensors)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b"3"])
def test_a_state_that_is_no_object_is_named(tensors, content):
    tensors["w.quant_state.bitsandbytes__nf4"] = np.frombuffer(content, np.uint8)
    with pytest.raises(ValueError, match=r"w\.quant_state\.bitsandbytes__nf4"):
        from_tensors("w", tensors)


def damaged(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.reshape(-1)[0] = value
    return array


@pytest.mark.parametrize(
    ("key", "change", "text"),
    [
        ("w", lambda a: a.reshape(-1).view(np.float32), "stored as float32: only bnb_4bit_quant_storage='uint8'"),
        ("w", lambda a: a[1:], r"packed \(192,\), got \(191,\)"),
        ("w.absmax", lambda a: a.astype(np.float32), "absmax must be uint8, got float32"),
        ("w.absmax", lambda a: a[1:], r"absmax \(6,\), got \(5,\)"),
        ("w.quant_map", lambda a: a[::-1], "w.quant_map does not hold the sixteen values of nf4"),
        ("w.nested_absmax", lambda a: damaged(a, np.nan), "w.nested_absmax holds NaN"),
        ("w.nested_quant_map", lambda a: a[:16], r"nested.code \(256,\), got \(16,\)"),
    ],
)
def test_a_damaged_part_is_named(tensors, key, change, text):
    tensors[key] = change(tensors[key])
    with pytest.raises((ValueError, TypeError), match=text):
        from_tensors("w", tensors)


def test_parts_of_another_format_are_named(tensors):
    with pytest.raises(ValueError, match=r"w: beside absmax, .* stands SCB: not a 4-bit parameter's"):
        from_tensors("w", {**tensors, "w.SCB": np.zeros(6)})


def test_a_plain_absmax_with_nan_is_named():
    tensors = to_tensors("w", quantize_4bit(np.ones((2, 64))))
    tensors["w.absmax"] = damaged(tensors["w.absmax"], np.inf)
    with pytest.raises(ValueError, match=r"w\.absmax holds NaN or infinity"):
        from_tensors("w", tensors)


def test_only_what_bitsandbytes_knows_is_written():
    q = quantize_4bit(np.ones((2, 64)), quant_type="int4")
    with pytest.raises(ValueError, match="bitsandbytes stores nf4 and fp4, not int4"):
        to_tensors("w", q)
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16; got 'float64'"):
        to_tensors("w", quantize_4bit(np.ones(2)), "float64")


@pytest.mark.parity
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_reads_and_writes_the_same(quant_type, nested):
    import torch

    logging.disable(logging.WARNING)
    import bitsandbytes.functional as bnb

    logging.disable(logging.NOTSET)
    x = np.random.default_rng(0).standard_normal((32, 192)).astype(np.float32)
    q = quantize_4bit(x, 64, quant_type, nested)
    ours = {key: torch.from_numpy(array.copy()) for key, array in to_tensors("w", q, "float16").items()}
    state = bnb.QuantState.from_dict({key[2:]: t for key, t in ours.items() if key != "w"}, torch.device("cpu"))
    assert (state.dtype, state.shape, state.nested) == (torch.float16, (32, 192), nested)
    values = bnb.dequantize_4bit(ours["w"], state)
    assert values.numpy().tobytes() == dequantize_4bit(q, "float16").tobytes()
    theirs = {"w": ours["w"]} | {f"w.{key}": tensor for key, tensor in state.as_dict(packed=True).items()}
    assert theirs.keys() == ours.keys()
    assert all(theirs[key].numpy().tobytes() == tensor.numpy().tobytes() for key, tensor in ours.items())
