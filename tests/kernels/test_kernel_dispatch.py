"""The table and the rule: which implementation runs, and what is loaded when."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from minitorch_peft.kernels import FAMILIES, TABLE, dispatch, get, use_backend

from minitorch_peft import kernels

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")


@pytest.fixture(autouse=True)
def nothing_resolved(monkeypatch):
    monkeypatch.delenv("MINITORCH_KERNELS", raising=False)
    dispatch._resolved.clear()
    yield
    dispatch._resolved.clear()


def python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def test_float32_runs_numba_and_everything_else_the_reference():
    for name, family in TABLE.items():
        assert get(name, FLOAT32).__module__ == f"minitorch_peft.kernels.{family}.numba"
        assert get(name, FLOAT64).__module__ == f"minitorch_peft.kernels.{family}.reference"
        assert get(name, np.dtype("float16")) is get(name, FLOAT64)
        assert get(name, np.float32) is get(name, FLOAT32)


def test_families_do_not_share_names():
    assert len(TABLE) == sum(len(names) for names, _ in FAMILIES.values())


def test_environment_overrides(monkeypatch):
    monkeypatch.setenv("MINITORCH_KERNELS", "reference")
    assert get("matmul", FLOAT32).__module__.endswith("matmul.reference")


def test_use_backend_overrides_and_is_undone_even_after_an_error(monkeypatch):
    monkeypatch.setenv("MINITORCH_KERNELS", "reference")
    with use_backend("numba"):
        assert get("matmul", FLOAT32).__module__.endswith("matmul.numba")
        assert get("matmul", FLOAT64).__module__.endswith("matmul.reference")
    with pytest.raises(ZeroDivisionError), use_backend("numba"):
        raise ZeroDivisionError
    assert get("matmul", FLOAT32).__module__.endswith("matmul.reference")


def test_unknown_backend_names_the_valid_ones(monkeypatch):
    with pytest.raises(ValueError, match="reference, numba, triton"), use_backend("cuda"):
        pass
    monkeypatch.setenv("MINITORCH_KERNELS", "fast")
    with pytest.raises(ValueError, match=r"MINITORCH_KERNELS: unknown backend 'fast'; .* reference, numba, triton"):
        get("matmul", FLOAT32)


def test_unknown_kernel_names_the_kernels():
    with pytest.raises(KeyError, match=r"no kernel is called 'matmull'.*attention_forward"):
        get("matmull", FLOAT32)


def test_triton_leaves_the_families_that_are_the_cpus_alone_to_numba():
    with use_backend("triton"):
        assert get("matmul", FLOAT32).__module__.endswith("matmul.numba")


def test_without_numba_the_reference_runs_after_one_warning(monkeypatch):
    monkeypatch.setattr(dispatch, "_warned", False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "numba" else found(name, *a))
    with pytest.warns(RuntimeWarning, match="pip install numba") as warned:
        assert get("matmul", FLOAT32).__module__.endswith("matmul.reference")
        assert get("linear_forward", FLOAT32).__module__.endswith("linear.reference")
    assert len(warned) == 1


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_numba_that_was_asked_for_and_is_missing_is_named(monkeypatch, backend):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "numba" else found(name, *a))
    with (
        use_backend(backend),
        pytest.raises(ImportError, match=r"numba is not installed \(pip install numba\); .*reference"),
    ):
        get("matmul", FLOAT32)


def test_importing_loads_neither_numba_nor_scipy():
    code = "import sys, minitorch_peft.kernels; print({'numba', 'scipy'} & set(sys.modules))"
    assert python(code).stdout.strip() == "set()"


def test_reference_backend_never_loads_numba():
    code = (
        "import sys, numpy as np; from minitorch_peft.kernels import get;"
        "get('gelu_tanh_forward', np.dtype('float32'))(np.ones(3, np.float32)); print('numba' in sys.modules)"
    )
    assert python(code, MINITORCH_KERNELS="reference").stdout.strip() == "False"


def test_public_names():
    assert all(hasattr(kernels, name) for name in kernels.__all__)
