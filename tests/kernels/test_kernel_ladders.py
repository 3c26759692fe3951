"""The steps from naive to fast are right, and the command that shows them says which is not."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from minitorch_peft.kernels import FAMILIES, TABLE, __main__, get, ladder, timing, verify
from minitorch_peft.kernels.device.driver import NoGPUError
from minitorch_peft.kernels.examples import SIZES, Draw, examples
from minitorch_peft.kernels.ladder import Rung, versions

LADDERS = {kernel: steps for family in FAMILIES for kernel, steps in ladder._ladder(family).items()}
STEPS = [(kernel, rung) for kernel, steps in LADDERS.items() for rung in steps[:-1]]


def main(*argv: str) -> int:
    return __main__.main([*argv, "--seconds", "0"])


@pytest.mark.parametrize("kernel", LADDERS)
def test_a_ladder_ends_with_the_version_that_runs(kernel):
    names = [rung.name for rung in versions(kernel)]
    assert len(set(names)) == len(names) and names[0] == "reference"
    assert LADDERS[kernel][-1].function is get(kernel, np.float32)
    assert all(len(rung.why.split()) > 10 and rung.why.endswith(".") for rung in LADDERS[kernel])


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "rung"), STEPS, ids=[f"{kernel} {rung.name}" for kernel, rung in STEPS])
def test_every_step_agrees_with_the_reference(kernel, rung):
    assert verify.first_disagreement(kernel, rung.function, draws=40) is None
    tiny = examples()[kernel].typical(Draw(1), SIZES["tiny"])
    assert verify.disagreement(kernel, rung.function, tiny) is None


@pytest.mark.parametrize("kernel", examples())
def test_typical_arguments_fit_the_kernel(kernel):
    example = examples()[kernel]
    args = example.typical(Draw(0), SIZES["tiny"])
    assert verify.disagreement(kernel, get(kernel, np.float32), args) is None
    if example.flops:
        assert example.flops(*args) > 0


def test_draws_repeat_and_differ():
    (x,), (again,), (other,) = (examples()["gelu_forward"].typical(Draw(s), SIZES["tiny"]) for s in (0, 0, 1))
    assert (x == again).all() and (x != other).any()


WRONG = {
    "fewer results": ("layer_norm_forward", lambda *a: a[0], "1 results instead of 3"),
    "shape": ("silu_forward", lambda x: x[1:], r"has shape \(1, 3\) instead of \(2, 3\)"),
    "dtype": ("silu_forward", lambda x: x.astype(np.float64), "is float64 instead of float32"),
    "value": ("silu_forward", lambda x: x, "is off by"),
    "nan": ("silu_forward", lambda x: np.full_like(x, np.nan), "is off by nan"),
    "absent": ("silu_forward", lambda x: None, r"is None instead of float64 \(2, 3\)"),
    "number": ("square_norm", lambda x: 1e9, "is off by"),
    "in place": ("adamw_step", lambda *a: None, "result 0 is off by"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found(case):
    kernel, function, message = WRONG[case]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    args = {
        "layer_norm_forward": (x, None, None, 1e-5),
        "adamw_step": (x, x + 1, x, x, 0.1, 0.9, 0.99, 1e-8, 0.0, 1),
    }.get(kernel, (x,))
    with pytest.raises(AssertionError, match=message):
        assert not verify.disagreement(kernel, function, args), verify.disagreement(kernel, function, args)


def test_an_exact_kernel_must_give_the_same_bits():
    zeros = np.zeros(3, np.float32)
    assert verify._not_equal(zeros, zeros) is None
    assert "has 3 wrong of 3" in verify._not_equal(-zeros, zeros)
    assert "is float64" in verify._not_equal(zeros.astype(float), zeros)
    assert verify._not_equal("nf4", "fp4") == "is 'nf4' instead of 'fp4'"


def test_time_is_shared_out_in_turns(monkeypatch):
    """Of a clock that goes on by 1 a look: each has 4 of 20, so 4 calls, in each of 5 turns."""
    clock, calls = itertools.count(), []
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))  # ours alone looks at it
    times = timing.best_times([lambda: calls.append("a"), lambda: calls.append("b")], 20)
    assert times == [1, 1]
    assert "".join(calls) == "aaaabbbb" * timing.ROUNDS


def test_bytes_of_what_is_changed_in_place_count_twice():
    x, y = np.zeros(4, np.float32), np.zeros(2, np.float32)
    assert timing.bytes_in_place((x, y, 0.5), (x + 1, y, 0.5)) == 16 + 8 + 16


def test_the_command_shows_every_version(capsys):
    assert main("silu_forward", "--size", "tiny") == 0
    out = capsys.readouterr().out
    assert "silu_forward (tiny: float32 (3, 11, 144))" in out
    assert [line.split()[0] for line in out.splitlines() if " ms" in line] == ["reference", "numba"]


def test_the_command_shows_one_version_and_families(capsys):
    assert main("rotary", "numba", "--size", "tiny") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line[:1].strip()] == [
        "rotary_forward", "version", "numba", "rotary_backward", "version", "numba",
    ]  # fmt: skip


def test_a_wrong_version_is_reported_and_not_timed(capsys, monkeypatch):
    wrong = Rung("doubled", lambda x: 2 * x, "It is faster, for it is wrong.")
    monkeypatch.setattr(__main__, "versions", lambda kernel: (*versions(kernel), wrong))
    assert main("silu_forward", "--size", "tiny") == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("doubled")]
    assert "WRONG: result 0 is off by" in line and " ms" not in line


def test_a_version_that_cannot_run_here_says_why(capsys, monkeypatch):
    def no_device(x):
        raise NoGPUError("there is none")

    monkeypatch.setattr(__main__, "versions", lambda kernel: (Rung("triton", no_device, "On the GPU."),))
    assert main("silu_forward", "--size", "tiny") == 0
    assert main("silu_forward", "triton", "--size", "tiny") == 2
    assert "not run: no GPU: there is none. The Triton kernels need" in capsys.readouterr().out


def test_another_error_of_a_version_is_not_taken_for_a_missing_device(monkeypatch):
    def broken(x):
        raise RuntimeError("an illegal address")

    monkeypatch.setattr(__main__, "versions", lambda kernel: (Rung("triton", broken, "On the GPU."),))
    with pytest.raises(RuntimeError, match="an illegal address"):
        main("silu_forward", "--size", "tiny")


def test_the_examples_of_its_help_run(capsys):
    start = "python -m minitorch_peft.kernels "
    found = [line.split("#")[0].split(start)[1] for line in __main__.__doc__.splitlines() if start in line]
    assert len(found) == 4
    assert [main(*line.split(), "--size", "tiny") for line in found] == [0] * 4


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
from minitorch_peft.kernels.__main__ import main
common = ["--size", "tiny", "--seconds", "0"]
print([main(["--list"]), main(["silu_forward", "reference", *common]), main(["silu_forward", "numba", *common])])
main(["silu_forward", "polynomial"])
"""


def test_without_numba_the_command_shows_what_is_left():
    done = subprocess.run([sys.executable, "-P", "-c", WITHOUT_NUMBA], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 2]", done.stderr
    assert "not run: numba is not installed (pip install numba)" in done.stdout
    assert "no version 'polynomial'; there are: reference, numba (the others need numba, which" in done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("matmull",), "no kernel or family is called 'matmull'; nearest: matmul"),
        (("softmax", "numbba"), "softmax has no version 'numbba'; there are: reference, sweeps, rows"),
        ((), "give the NAME of a kernel or family"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(*argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_list_names_every_kernel(capsys):
    assert main("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {*FAMILIES, *TABLE}


def test_importing_the_ladders_module_loads_neither_numba_nor_scipy():
    code = "import sys, minitorch_peft.kernels.__main__; print({'numba', 'scipy', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
