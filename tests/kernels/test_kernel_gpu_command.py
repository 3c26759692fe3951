"""``python -m benchmarks.gpu``, as far as can be told without a GPU: no wrong result passes for a right one."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mock_driver import Outcome, build

pytestmark = pytest.mark.slow
PROGRAMS = Path(__file__).parent / "device_programs.py"


@pytest.fixture(scope="module")
def mock(tmp_path_factory):
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def command(mock, tmp_path):
    def start(*arguments: str, **settings: str) -> Outcome:
        return Outcome(mock, tmp_path / "log", "-m", "benchmarks.gpu", *arguments, "--results", tmp_path, **settings)

    return start


def test_what_the_mock_does_not_compute_is_wrong_and_not_timed(command, tmp_path):
    """Two kernels on the host's whole path: compiled for the device, launched, copied back, compared."""
    outcome = command("dequantize_4bit", "lora_linear_forward")
    assert outcome.status == 1, outcome.errors
    assert outcome.output.count("WRONG: ") == 2
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert (stored["machine"]["name"], stored["machine"]["capability"]) == ("Mock GPU", [9, 0])
    assert [sorted(row) for row in stored["table"]] == [["kernel", "rows", "wrong"]] * 2
    assert {"dequantize", "in_loop"} <= {launch["kernel"].lstrip("_") for launch in outcome.launches}


def test_a_kernel_that_cannot_be_launched_is_wrong_and_the_next_one_is_tried(command, tmp_path):
    outcome = command("lora_linear_forward", "linear_4bit_backward", MOCK_LAUNCH="refuse")
    assert outcome.status == 1, outcome.errors
    rows = json.loads((tmp_path / "gpu.json").read_text())["table"]
    assert sorted(row["kernel"] for row in rows) == ["linear_4bit_backward", "lora_linear_forward"]
    assert all("too many resources requested" in row["wrong"] for row in rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MOCK_DEVICES": "0"}, "nothing was run: no GPU: cuInit says CUDA_ERROR_NO_DEVICE"),
        ({"TRITON_INTERPRET": "1"}, "nothing was run: TRITON_INTERPRET=1 runs the kernels on the CPU; unset it"),
    ],
)
def test_without_a_gpu_nothing_is_run_and_nothing_stored(command, tmp_path, settings, message):
    outcome = command(**settings)
    assert outcome.status == 2
    assert outcome.message.startswith(message)
    assert not (tmp_path / "gpu.json").exists() and not outcome.launches


def test_without_a_driver_nothing_is_run(tmp_path):
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has the NVIDIA driver")
    run = [sys.executable, "-m", "benchmarks.gpu", "--results", tmp_path]
    done = subprocess.run(run, cwd=PROGRAMS.parents[2], capture_output=True, text=True)
    assert done.returncode == 2 and "nothing was run: no GPU: the NVIDIA driver's library" in done.stderr


def test_an_unknown_kernel_is_refused(command):
    outcome = command("dequantise_4bit")
    assert outcome.status == 2
    assert "no Triton kernel is called dequantise_4bit; there are:" in outcome.message


def test_what_is_right_is_timed_beside_its_bound(mock, tmp_path):
    """With functions that do nothing in place of kernels, on small arrays."""
    outcome = Outcome(mock, tmp_path / "log", "-P", PROGRAMS, "benchmarked", MOCK_NAME="NVIDIA H100 80GB HBM3")
    row, values, wrong = (outcome.result[name] for name in ("row", "values", "wrong"))
    assert 0 < row["low us"] <= row["us"] <= row["high us"] < 1e6
    # 4096 rows, from 4096 to 16384, rank 16: the product's arithmetic, a pass over x, x A.T in parts and their sum.
    assert row["bound us"] == pytest.approx(557.8 + 10.1 + 0.8, abs=0.2)
    assert values == [[1.0, -2.5], [1.0078125, 3.0]]  # 1.005 and 3.001 in bfloat16
    assert wrong is None
    right, wrong_later, too_large = outcome.result["rows"]
    assert right == [{"us": 1.0}] * 3
    assert wrong_later == [{"us": 1.0}, {"kernel": "wrong", "rows": 512, "wrong": "is off"}]
    assert [row.get("wrong") for row in too_large] == [None, "MemoryError: 2 GB asked for"]


@pytest.mark.parity
def test_the_peers_side_runs():
    from_clone = f"import sys; sys.path.append({str(PROGRAMS.parents[2])!r}); from benchmarks import gpu_peers as g; "
    call = "sys.path.pop(); import json; print(json.dumps(g.main('cpu', 128, 64, 4, 3)))"
    done = subprocess.run([sys.executable, "-P", "-c", from_clone + call], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["lora_linear_4bit_backward"]) == {"3"}
    assert {peer for ways in found.values() for peer in ways["3"]} == {"bitsandbytes", "dense torch", "peft"}
    assert all(us > 0 for ways in found.values() for us in ways["3"].values())
