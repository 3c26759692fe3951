"""The gate on machine code: what it reads, what it lets through; and every Triton kernel held to it (no GPU needed)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
RECORDED = HERE / "aot_expectations.json"
RECORD = f"python -P -m minitorch_peft.kernels.device.gate --json > {RECORDED.relative_to(HERE.parents[1])}"


def run(*command: object) -> subprocess.CompletedProcess:
    pytest.importorskip("triton", reason="Triton has wheels for Linux alone")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-P", *command], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def gated():
    done = run(HERE / "device_programs.py", "gated")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


BROKEN = {
    "product, sm_80": [],
    "product, sm_90": [],
    "decoded, sm_90": [],
    "scaled, sm_80": [],
    "of a tuple, sm_80": [],
    "too many registers, sm_90": ["registers spill to memory"],
    "too much shared memory, sm_80": ["bytes of shared memory, 166912 is the most", "no block fits"],
    "narrow, sm_80": ["instructions per element, 7.0 is the most"],
    "no product, sm_80": [
        "a product without tensor-core instructions",
        "instructions per element, 0.5 is the most",
    ],
    "not from registers, sm_90": ["an operand that should be in registers comes from shared memory"],
}


def test_what_a_kernel_breaks_is_said(gated):
    without_figures = {name: [law.lstrip("0123456789. ") for law in row["broken"]] for name, row in gated.items()}
    assert without_figures == BROKEN


def test_machine_code_is_read(gated):
    a100, h100 = gated["product, sm_80"], gated["product, sm_90"]
    assert (a100["tensor_core"], h100["tensor_core"]) == (
        64,
        4,
    )  # 128 x 128 x 64: mma is 16 x 8 x 16, wgmma 64 x 128 x 16
    assert (a100["register_operands"], h100["register_operands"]) == (0, 0)
    assert (a100["shared"], h100["shared"]) == (2 * 2 * 128 * 64 * 2, 3 * 2 * 128 * 64 * 2)
    assert gated["decoded, sm_90"]["register_operands"] == gated["decoded, sm_90"]["tensor_core"] == 4
    assert gated["scaled, sm_80"]["loads"] == {"128": 4}  # two inputs of 1024 float32, 128 threads
    assert gated["of a tuple, sm_80"]["loads"] == {"128": 4}
    assert gated["narrow, sm_80"]["loads"] == {"32": 16}
    assert gated["too many registers, sm_90"]["registers"] == 255
    assert gated["too many registers, sm_90"]["spills"] > 1000 < gated["too many registers, sm_90"]["stack"]
    each = gated["scaled, sm_80"]["instructions"] * 128 / 1024
    assert gated["scaled, sm_80"]["per_element"] == pytest.approx(each, abs=0.01)


@pytest.mark.parametrize("name", ["product, sm_80", "product, sm_90", "scaled, sm_80"])
def test_as_many_blocks_as_the_registers_and_the_shared_memory_allow(gated, name):
    row, threads = gated[name], 128 if "scaled" in name else 256
    by_shared = {"sm_80": 164, "sm_90": 228}[name[-5:]] * 1024 // (row["shared"] + 1024)
    by_registers = 65536 // (-(-row["registers"] // 8) * 8 * threads)
    assert row["blocks"] == min(by_shared, by_registers, 2048 // threads)


def test_arguments_that_are_not_the_kernels_are_refused():
    done = run(HERE / "device_programs.py", "misnamed")
    message = (
        "product: signature and constants name ['BLOCK', 'K', 'a', 'b', 'c'], the kernel takes ['BLOCK', 'K', 'STEP',"
    )
    assert message in done.stderr


def test_a_product_and_a_sum_are_rounded_one_by_one():
    """As in the reference, whose bits are promised."""
    assert json.loads(run(HERE / "device_programs.py", "rounded_twice").stdout) == {"fused": False}


@pytest.fixture(scope="module")
def kernels():
    """The rows of the gate's own table: every build of every Triton kernel."""
    done = run("-m", "minitorch_peft.kernels.device.gate", "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


def test_every_kernel_passes_the_gate(kernels):
    assert {name: row["broken"] for name, row in kernels["kernels"].items() if row["broken"]} == {}


def test_every_build_is_recorded(kernels, recorded):
    assert sorted(kernels["kernels"]) == sorted(recorded["kernels"]), f"builds were added or removed; {RECORD}"


def test_no_kernel_costs_more_than_was_recorded(kernels, recorded):
    """Another version of the compiler may spend a little more; the same one may not."""
    slack = 0 if kernels["triton"] == recorded["triton"] else 16
    for name, row in kernels["kernels"].items():
        before = recorded["kernels"].get(name, row)
        for what in ("registers", "instructions"):
            most = before[what] * (1 + slack / 100)
            assert row[what] <= most, f"{name}: {row[what]} {what}, were {before[what]}; if that is meant: {RECORD}"
        for what in ("shared", "spills"):
            assert row[what] <= before[what], f"{name}: {row[what]} {what}, were {before[what]}; {RECORD}"
        assert row["blocks"] >= before["blocks"] or slack, f"{name}: fewer blocks at a time; {RECORD}"


def test_where_there_is_nothing_to_build_the_gate_says_so(monkeypatch, capsys):
    gate = pytest.importorskip("minitorch_peft.kernels.device.gate", exc_type=ImportError)
    monkeypatch.setattr(gate, "FAMILIES", {})
    monkeypatch.setattr("sys.argv", ["gate"])
    assert gate.main() == 2
    assert "nothing to build here" in capsys.readouterr().err
