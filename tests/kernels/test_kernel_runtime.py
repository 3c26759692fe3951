"""The process that Numba kernels run in: BLAS, memory, the announcement; and the documentation's examples."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from minitorch_peft.kernels import jit, memory, runtime

from minitorch_peft import kernels

MODULES = [m.name for m in pkgutil.walk_packages(kernels.__path__, "minitorch_peft.kernels.")]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("version", ["0.3.28", "0.3.29", "0.3.29.0.0"])
def test_a_blas_that_is_wrong_under_concurrent_calls_is_refused(version):
    library = {"internal_api": "openblas", "version": version, "filepath": "/env/scipy.libs/libscipy_openblas.so"}
    with pytest.raises(RuntimeError, match=r"OpenBLAS 0\.3\.2[89].*concurrent.*pip install -U scipy"):
        runtime.check_blas([library])


@pytest.mark.parametrize(
    "library",
    [
        {"internal_api": "openblas", "version": "0.3.30", "filepath": "/env/scipy.libs/libscipy_openblas.so"},
        {"internal_api": "openblas", "version": "0.3.27", "filepath": "/env/scipy.libs/libscipy_openblas.so"},
        {"internal_api": "openblas", "version": "0.3.29", "filepath": "/env/numpy.libs/libscipy_openblas64_.so"},
        {"internal_api": "mkl", "version": "0.3.29", "filepath": "/env/lib/libmkl_rt.so"},
    ],
)
def test_other_blas_is_accepted(library):
    runtime.check_blas([library])


def test_starting_leaves_one_thread_pool():
    import threadpoolctl

    runtime.start()
    blas = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    ours = [lib for lib in blas if "scipy" in lib["filepath"] or "numpy" in lib["filepath"]]
    assert ours and {lib["num_threads"] for lib in ours} == {1}


@pytest.mark.parametrize(("given", "used"), [({}, runtime.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(given, used):
    """The setting must stand before Numba loads its threads, which happens at the first call of a kernel."""
    code = "import os, minitorch_peft.kernels.jit as jit; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | given
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == used, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_buffers_are_kept():
    """A 64 MiB array that was freed and is asked for again costs no new pages."""
    code = (
        "import resource, numpy as np; from minitorch_peft.kernels import memory;"
        "assert memory.keep_freed_buffers();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "np.ones(1 << 24, np.float32); before = faults(); np.ones(1 << 24, np.float32); print(faults() - before)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 200  # 16384 pages otherwise


def test_memory_tuning_is_optional(monkeypatch):
    def no_library(name):
        raise OSError

    monkeypatch.setattr(memory.ctypes, "CDLL", no_library)
    assert memory.keep_freed_buffers() is False


def test_slow_compilation_is_announced_once(capsys, monkeypatch):
    monkeypatch.setattr(jit, "_told", threading.Event())
    monkeypatch.setattr(jit, "PATIENCE", 0.01)
    for _ in range(2):
        with jit._announced():
            time.sleep(0.1)
    assert capsys.readouterr().err.count("compiling kernels for this machine (first run only)") == 1


def test_fast_compilation_is_silent(capsys, monkeypatch):
    monkeypatch.setattr(jit, "_told", threading.Event())
    with jit._announced():
        pass
    time.sleep(0.01)
    assert capsys.readouterr().err == ""


def test_small_problems_stay_on_one_thread():
    import numba

    assert jit.parts(jit.GRAIN - 1) == 1
    assert jit.parts(jit.GRAIN) == numba.get_num_threads()
    before = numba.get_num_threads()
    kernels.get("gelu_forward", np.dtype("float32"))(np.ones(3, np.float32))
    assert numba.get_num_threads() == before


def test_changing_a_shared_file_changes_the_cache_folder(tmp_path):
    for folder, compiled, plain in (("old", "a", "a"), ("same", "a", "b"), ("new", "b", "a")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "math32.py").write_text(f"from .jit import inner  # {compiled}")
        (tmp_path / folder / "dispatch.py").write_text(plain)
    old, same, new = (jit.shared_sources(tmp_path / folder) for folder in ("old", "same", "new"))
    assert old == same != new


def test_machine_code_is_kept_where_it_can_be_written(tmp_path, monkeypatch):
    import numba

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "asked for"))
    assert jit.cache_root() == tmp_path / "asked for"
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert jit.cache_root() == Path(jit.__file__).parent / "__pycache__"
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "read-only" / "jit.py"))
    (tmp_path / "read-only").write_text("a file where a folder should be")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jit.cache_root() == tmp_path / ".cache" / "minitorch-peft"
    monkeypatch.setenv("HOME", str(tmp_path / "read-only"))
    assert jit.cache_root() is None


@pytest.mark.slow
def test_results_do_not_depend_on_who_ran_before(tmp_path):
    """A cold process (nothing cached on disk) gives the bits of a warm one."""
    code = (
        "import numpy as np, hashlib; from minitorch_peft.kernels import get;"
        "x = np.random.default_rng(0).standard_normal((300, 70), dtype=np.float32);"
        "y = get('linear_forward', x.dtype)(x, x[:50], None);"
        "print(hashlib.sha256(y.tobytes()).hexdigest())"
    )
    cold = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        for env in (cold, cold, dict(os.environ))
    ]
    assert len(set(runs)) == 1
