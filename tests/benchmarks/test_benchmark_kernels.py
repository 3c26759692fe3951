"""Each kernel is compared with something, and every contender computes what ours computes."""

from __future__ import annotations

import argparse
import doctest
import importlib
import io
import json

import numpy as np
import pytest
from minitorch_peft.kernels import TABLE

from benchmarks import contest, kernels, kernels_cases, kernels_ours, kernels_unfused
from benchmarks.kernels_cases import CASES, MACHINE, Case, named, select

# The first size at which bitsandbytes' CPU kernels are right: rows of whole blocks.
SIZE = {"bitsandbytes": "small", "bitsandbytes' C": "small"}
PAIRS = dict.fromkeys(
    (case.kernel, case.variant, peer, case.tolerance)
    for case in CASES
    for peer in case.peers
    if peer not in ("unfused", "PyTorch, tuned")
)


@pytest.mark.parametrize("module", [contest, kernels, kernels_cases], ids=lambda m: m.__name__)
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def test_every_kernel_is_compared_with_something():
    assert {case.kernel for case in CASES} == set(TABLE)
    assert all(case.peers for case in (*CASES, *MACHINE))
    assert len({case.name for case in CASES}) == len(CASES)
    assert {peer for case in CASES for peer in case.peers} < set(kernels.MODULES)


def test_names_of_cases_are_read_back():
    for case in CASES:
        assert named(case.name)[:2] == case[:2] and named(case.name).variant == case.variant


def test_goals_are_those_that_the_project_set_out_for():
    goals = {(case.name, peer): case.goal(peer) for case in CASES for peer in case.peers}
    assert goals["gelu_forward/large", "PyTorch"] == 1 and goals["gelu_forward/large", "PyTorch, tuned"] is None
    assert goals["quantize_4bit/wide", "bitsandbytes"] == 20
    assert goals["dequantize_4bit/wide", "bitsandbytes"] == 7
    assert goals["dequantize_4bit/wide/plain out", "bitsandbytes' C"] == 1
    assert goals["lora_linear_forward/large", "unfused"] == 1.2


def test_kernels_are_selected_by_name_stem_family_and_size():
    assert {case.kernel for case in select(["gelu"], None)} == {"gelu_forward", "gelu_backward"}
    assert {case.size for case in select(["linear"], "small")} == {"small"}
    assert len(select(None, None)) == len(CASES)
    with pytest.raises(ValueError, match="no kernel or family is called 'gellu'"):
        select(["gellu"], None)
    with pytest.raises(ValueError, match="no case matches; sizes: small, large"):
        select(["gelu"], "small")


def prepared(module: str, case: Case) -> list:
    contender = importlib.import_module(f"benchmarks.{module}")
    return contest.fingerprint(contender.prepare(case.name).arrays())


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [f.__name__ for f in kernels_unfused.UNFUSED])
def test_the_unfused_contender_computes_the_same(kernel):
    case = Case(kernel, "tiny")
    ours, theirs = prepared("kernels_ours", case), prepared("kernels_unfused", case)
    assert kernels.disagreement(ours, theirs, 1e-4) is None


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("kernel", "variant", "peer", "tolerance"), PAIRS)
def test_the_peers_compute_the_same(kernel, variant, peer, tolerance):
    case = Case(kernel, SIZE.get(peer, "tiny"), (peer,), variant, tolerance)
    ours, theirs = prepared("kernels_ours", case), prepared(kernels.MODULES[peer], case)
    assert kernels.disagreement(ours, theirs, tolerance) is None


def test_a_contender_that_computes_something_else_is_not_timed():
    class Other:
        def __init__(self, name, answer):
            self.name, self.answer, self.asked = name, answer, []

        def ask(self, command, *values):
            self.asked.append(command)
            return [[self.answer], 8, 0]

    ours, peer = Other("ours", [1.0, 0.5]), Other("PyTorch", [1.0, 0.6])
    with pytest.raises(SystemExit, match=r"silu_forward/large: PyTorch and ours differ: result 0 .* not timed"):
        kernels.drive(Case("silu_forward", "large", ("PyTorch",)), [ours, peer], argparse.Namespace(rounds=1))
    assert ours.asked == peer.asked == ["prepare"]


@pytest.mark.parametrize("wrong", [[], None, [(1.0, 0.5), (1.0, 0.5)], [(float("nan"), 0.5)]])
def test_fingerprints_that_say_nothing_are_no_agreement(wrong):
    assert kernels.disagreement([(1.0, 0.5)], wrong, 1e-3)


def test_a_contender_answers_until_its_input_ends(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("prepare silu_forward/tiny\ntime 0\n"))
    contest.serve_cases(kernels_ours.prepare)
    ready, (fingerprint, moved, flops), times = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready == "ready" and len(fingerprint) == 1 and len(times) == 2
    assert moved == 2 * 4 * 3 * 11 * 144 and flops == 0


def test_the_share_is_that_of_the_bound_that_takes_longest(monkeypatch):
    class Measured:
        name, rounds, seconds = "ours", [[0.5, 0.4]], 0.45

    monkeypatch.setattr(kernels, "drive", lambda *arguments: (20, 3))
    rates = {"copy": 100.0, "product": 10.0}  # 0.2 s and 0.3 s
    row = kernels.compare(Case("matmul", "large"), {"ours": Measured()}, rates, argparse.Namespace())
    assert row.bound == "product" and np.isclose(row.share, 0.3 / 0.4) and row.ours_ms == 450
