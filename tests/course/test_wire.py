"""The wire: what goes in comes out, and what is no frame is refused without harm."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minitorch_peft.course import wire

DTYPES = st.sampled_from([np.bool_, np.int8, np.int64, np.uint16, np.float16, np.float32, np.float64]).map(np.dtype)
ARRAYS = DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
PLAIN = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def through(value, functions=None, call=None):
    return wire.receive(io.BytesIO(wire.pack(value, functions)), call)


def same(a, b):
    if isinstance(a, np.ndarray | np.generic):
        assert type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
        return a.tobytes() == b.tobytes()
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and (a == b or a != a)


@given(VALUES)
def test_what_goes_in_comes_out(value):
    assert same(value, through(value))


def test_layouts_and_tuples():
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    back = through((fortran, fortran[::-1, ::2], np.float32(1.5)))
    assert isinstance(back, list) and back[0].flags.f_contiguous and not back[0].flags.c_contiguous
    assert (back[0] == fortran).all() and (back[1] == fortran[::-1, ::2]).all()
    assert type(back[2]) is np.float32 and back[0].flags.writeable


def test_functions_become_calls():
    functions = []
    (f,) = through([lambda x: x + 1], functions, lambda number, arguments: functions[number](*arguments))
    assert f(1) == 2
    with pytest.raises(wire.WireError, match="function"):
        through([lambda x: x], [])


class Sly(np.ndarray):
    pass


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, {1: 2}, b"bytes", np.array([None]), np.array(["a"]), np.ones(2) * 1j, np.ma.masked_array([1.0]),
     np.ones(2).view(Sly), iter([1]), 1j, np.datetime64("2020")],
)  # fmt: skip
def test_objects_are_refused(value):
    with pytest.raises(wire.WireError, match="expected"):
        wire.pack(value)


def test_nesting_has_an_end():
    value = []
    for _ in range(10_000):
        value = [value]
    with pytest.raises(wire.WireError, match="nested"):
        wire.pack(value)
    header = b"[" * 100_000
    with pytest.raises(wire.WireError):
        wire.unpack(header, len(header))


@given(VALUES, st.data())
def test_damaged_frames_are_refused_or_read(value, data):
    frame = bytearray(wire.pack(value))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(wire.WireError, EOFError):
        wire.receive(io.BytesIO(bytes(frame)))


@pytest.mark.parametrize("shape", [[2**62], [0, 2**62], [-1], [1.0], [True], [1] * 40, "x", [10**30]])
def test_shapes_that_lie_are_refused(shape):
    header = json.dumps({"a": ["<f8", shape, "C"]}).encode()
    with pytest.raises(wire.WireError):
        wire.unpack(header + b"\0" * 8, len(header))


def test_a_frame_that_claims_too_much_is_refused_before_it_is_read():
    with pytest.raises(wire.WireError, match="claims"):
        wire.receive(io.BytesIO(wire.HEAD.pack(10, wire.LARGEST + 1)))
