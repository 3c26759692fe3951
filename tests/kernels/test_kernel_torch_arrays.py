"""Arrays of torch as arguments of the Triton kernels: strided ones give right numbers, or are refused."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from minitorch_peft.kernels.device import arguments

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux alone")
PROGRAM = """
import numpy as np, torch
from minitorch_peft.kernels.device.launch import run
from minitorch_peft.kernels.four_bit import reference, triton as four_bit
from minitorch_peft.kernels.lora.reference import lora_linear_forward as reference_forward
from minitorch_peft.kernels.lora.triton import lora_linear_forward

strided = lambda rows, columns: torch.randn(columns, rows).t()
x, weight, a, b = strided(5, 8), strided(6, 8), strided(2, 8), strided(6, 2)
ours, _ = lora_linear_forward(x, weight, None, a, b, 2.0)
exact, _ = reference_forward(x.double().numpy(), weight.double().numpy(), None, a.double().numpy(),
                             b.double().numpy(), 2.0)
assert np.abs(ours.numpy() - exact).max() < 1e-5
ours, theirs = four_bit.quantize_4bit(weight), reference.quantize_4bit(weight.numpy())
assert (ours.packed.numpy() == theirs.packed).all()
into = lambda: four_bit.dequantize_4bit(ours, "float32", strided(6, 8))
for wrong in (into, lambda: run(four_bit.dequantize, (1,), x)):
    try:
        wrong()
    except ValueError as error:
        assert "is not contiguous; pass its .contiguous()" in str(error), error
    else:
        raise AssertionError("not refused")
many = torch.ones(200, dtype=torch.bfloat16)
many[77] = float("nan")
try:
    four_bit.quantize_4bit(many)
except ValueError as error:
    assert "x holds nan at position 77 of 200 (block 1)" in str(error), error
else:
    raise AssertionError("not refused")
"""


@pytest.mark.slow
@pytest.mark.parity
def test_strided_tensors_give_right_numbers_or_are_refused():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_array_with_strides_is_refused_on_the_device():
    array = SimpleNamespace(data_ptr=lambda: 0, shape=(2, 3), dtype="float32", is_contiguous=lambda: False)
    with pytest.raises(ValueError, match=r"tensor of shape \(2, 3\) is not contiguous"):
        arguments.argument(array, "float32")
    with pytest.raises(ValueError, match=r"tensor of shape \(2, 3\) is not contiguous"), arguments.on_device([array]):
        pass


def test_bfloat16_of_a_device_is_read_by_value():
    from minitorch_peft.kernels.tiles.arrays import values

    bits = SimpleNamespace(dtype="bfloat16", numpy=lambda: np.array([0x3F80, 0x7F80, 0xFFC0], np.uint16))
    np.testing.assert_array_equal(values(bits), np.array([1, np.inf, np.nan], np.float32))
