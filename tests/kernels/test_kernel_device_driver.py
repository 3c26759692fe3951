"""The host's side of a launch on a GPU, end to end against a mock driver: compiled, loaded, launched, copied back.

The mock (mock_libcuda.c) is strict about what a driver is strict about, and computes one kernel; the arguments of each
launch are read back from its log, byte by byte.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from mock_driver import Outcome, build

pytestmark = pytest.mark.slow
PROGRAMS = Path(__file__).parent / "device_programs.py"


@pytest.fixture(scope="module")
def mock(tmp_path_factory):
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def program(mock, tmp_path):
    def start(name: str, **settings: str) -> Outcome:
        """Run a program of device_programs.py with the mock driver."""
        return Outcome(mock, tmp_path / "log", "-P", PROGRAMS, name, **settings)

    return start


def unpacked(launch: dict, layout: str) -> tuple:
    """The arguments of a launch, each read as the type that its letter (of the module struct) names."""
    raw = [bytes.fromhex(text) for text in launch["arguments"]]
    assert [len(value) for value in raw] == [struct.calcsize(letter) for letter in layout], launch
    return tuple(struct.unpack(f"<{letter}", value)[0] for letter, value in zip(layout, raw, strict=True))


def assert_computed(outcome: Outcome) -> None:
    assert outcome.result["out"] == pytest.approx(outcome.result["expected"], abs=1e-6)


@pytest.mark.parametrize("capability", ["80", "90"])
def test_numpy_arrays_go_there_and_back(program, capability):
    outcome = program("numpy_arrays", MOCK_CAPABILITY=capability)
    assert_computed(outcome)
    assert outcome.result["kept"]
    (launch,) = outcome.launches
    assert launch["kernel"] == "scale_add"
    assert (launch["grid"], launch["block"], launch["stream"]) == ([3, 1, 1], [64, 1, 1], 0)
    # Three pointers, the length, the scale; then the addresses of two scratch buffers of Triton, unused.
    *pointers, n, scale, scratch, profile = unpacked(launch, "QQQifQQ")
    assert (n, scale, scratch, profile) == (150, 2.5, 0, 0)
    assert len(set(pointers)) == 3
    assert outcome.memory == {"granted": 3, "bytes_in_use": 0}


def test_device_arrays_are_passed_by_their_address(program):
    outcome = program("device_arrays")
    assert_computed(outcome)
    (launch,) = outcome.launches
    assert list(unpacked(launch, "QQQifQQ")[:3]) == outcome.result["pointers"]
    assert launch["block"] == [128, 1, 1]


def test_an_array_passed_twice_is_one_on_the_device(program):
    outcome = program("one_array_twice")
    assert_computed(outcome)
    x, y, out, *_ = unpacked(outcome.launches[0], "QQQifQQ")
    assert x == out != y
    assert outcome.memory["granted"] == 2


def test_arrays_in_a_tuple_are_passed_one_by_one(program):
    outcome = program("arrays_in_a_tuple")
    (launch,) = outcome.launches  # the mock does not compute this kernel
    *pointers, n, scale, _, _ = unpacked(launch, "QQQifQQ")
    assert (len(set(pointers)), n, scale) == (3, 150, 2.5)
    assert outcome.memory == {"granted": 3, "bytes_in_use": 0}


def test_arrays_of_another_library_are_used_in_place(program):
    outcome = program("lent_arrays")
    assert_computed(outcome)
    assert outcome.memory == {"granted": 3, "bytes_in_use": 0}


def test_shared_memory_and_types(program):
    outcome = program("shared_memory")
    (launch,) = outcome.launches
    assert launch["shared"] == outcome.result["shared"] > 48 * 1024
    assert not outcome.result["fusion"]  # a product and a sum in one rounding are not the reference's bits
    assert outcome.result["types"][:4] == ["*bf16", "*bf16", "*bf16", "i32"]
    assert unpacked(launch, "QQQiQQ")[3] == 256


def test_autotuning_measures_each_configuration_once(program):
    outcome = program("autotuned")
    assert_computed(outcome)
    assert outcome.result["keys"] == 1
    warps = [launch["block"][0] // 32 for launch in outcome.launches]
    assert set(warps[:-4]) == {1, 2, 4} and len(warps) > 3 * 7
    assert warps[-4:] == [outcome.result["best"], outcome.result["best"], 8, 2]
    assert outcome.memory["bytes_in_use"] <= 3 * 150 * 4


def test_memory_is_given_back_when_an_array_is_collected(program):
    outcome = program("collected", MOCK_MEMORY="4000")
    assert outcome.result == {"strides": [10, 2], "nbytes": 30, "text": "DeviceArray(shape=(3, 5), dtype=bfloat16)"}
    assert outcome.memory["granted"] == 11


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("too_large", {"MOCK_MEMORY": "1000000"},
         r"^MemoryError: .*CUDA_ERROR_OUT_OF_MEMORY.*4,294,968,296 bytes asked for, 996,000 of 1,000,000 are free"),
        ("numpy_arrays", {"MOCK_DEVICES": "0"}, r"NoGPUError: no GPU: cuInit .*NO_DEVICE.*TRITON_INTERPRET=1"),
        ("numpy_arrays", {"MOCK_LAUNCH": "refuse"}, r"^RuntimeError: .*too many resources requested"),
        ("numpy_arrays", {"MOCK_LAUNCH": "crash"}, r"^RuntimeError: .*cuCtxSynchronize .*CUDA_ERROR_ILLEGAL_ADDRESS"),
        pytest.param("with_torch_imported", {}, r"NoGPUError: no GPU: torch is imported.*built without CUDA",
                     marks=pytest.mark.parity),
        ("overlapping", {}, r"^ValueError: two arguments overlap in memory"),
        ("lent_with_strides", {}, r"^ValueError: array of shape \(150,\) is not C-contiguous on the device"),
    ],
)  # fmt: skip
def test_refusals(program, name, settings, message):
    outcome = program(name, **settings)
    assert outcome.status == 1
    assert re.search(message, outcome.message), outcome.errors
