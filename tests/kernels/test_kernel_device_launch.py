"""Running Triton kernels: arguments, what is refused, the interpreter on NumPy arrays."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from minitorch_peft.kernels.device import arguments, interpreter

PROGRAMS = Path(__file__).parent / "device_programs.py"


@pytest.mark.parametrize(
    ("array", "dtype", "error", "message"),
    [
        (np.zeros((3, 4)).T, None, ValueError, r"shape \(4, 3\) is not C-contiguous; use np.ascontiguousarray"),
        (np.zeros(3, complex), None, TypeError, "no counterpart of dtype complex128; expected one of bool"),
        (np.zeros(3, np.float32), "bfloat16", TypeError, "bfloat16 are held as uint16, not as float32"),
        (np.zeros(3, np.float32), "float16", TypeError, "float16 are held as float16, not as float32"),
        (np.zeros(3, np.float32), "nf4", TypeError, "no counterpart of dtype nf4"),
        (np.zeros(3, ">f4"), None, TypeError, "no counterpart of dtype >f4"),
    ],
)
def test_arrays_that_a_kernel_cannot_read_are_refused(array, dtype, error, message):
    with pytest.raises(error, match=message):
        interpreter.HostArray(array, dtype)


def test_an_argument_may_be_named_bfloat16():
    assert arguments.argument(np.zeros(3, np.uint16), "bfloat16").dtype == "bfloat16"


@pytest.mark.parity
def test_new_arrays_are_of_the_callers_library():
    torch = importlib.import_module("torch")
    ours = arguments.empty_like(torch.zeros(1), (2, 3), "bfloat16")
    assert (type(ours), ours.shape, ours.dtype) == (torch.Tensor, (2, 3), torch.bfloat16)
    assert arguments.argument(ours, "bfloat16") is ours
    with pytest.raises(TypeError, match=r"torch tensor in the host's memory .*\.cuda\(\)"), arguments.on_device([ours]):
        pass


@pytest.mark.parametrize("version", [None, "3.7.1"])
def test_without_triton_the_error_says_what_to_install(monkeypatch, version):
    module = "minitorch_peft.kernels.device.triton"
    monkeypatch.delitem(sys.modules, module, raising=False)
    if version is None:
        monkeypatch.setitem(sys.modules, "triton", None)
    else:
        monkeypatch.setattr(importlib.import_module("triton"), "__version__", version)
    with pytest.raises(ImportError, match=r"triton >= 3\.8 \(Linux\): pip install 'minitorch-peft\[gpu\]'"):
        importlib.import_module(module)


def program(name: str, **settings: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | settings
    return subprocess.run([sys.executable, "-P", PROGRAMS, name], env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numpy_arrays", "one_array_twice", "arrays_in_a_tuple", "interpreted"])
def test_the_interpreter_runs_on_numpy_arrays(name):
    done = program(name, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["out"] == pytest.approx(result["expected"], abs=1e-6)


@pytest.mark.slow
def test_the_variable_set_too_late_is_noticed():
    done = program("set_too_late")
    assert "RuntimeError: TRITON_INTERPRET is '1' now, but it was off when the kernels were imported" in done.stderr


@pytest.mark.slow
def test_without_a_gpu_the_error_says_what_to_do():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has the NVIDIA driver")
    done = program("numpy_arrays")
    assert done.returncode != 0
    assert "NoGPUError: no GPU: the NVIDIA driver's library libcuda.so.1 was not found." in done.stderr
    assert "set TRITON_INTERPRET=1 before the process starts" in done.stderr
