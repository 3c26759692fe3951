"""The whole field: nobody is left out silently, budgets are kept, rates are searched, energy is read or modelled."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from minitorch_peft.analysis import energy, field_picture, rates, summary
from minitorch_peft.analysis.contenders import Contender
from minitorch_peft.analysis.experiment import MEASURED
from minitorch_peft.analysis.field import (
    BUDGETS,
    ENTRIES,
    NOT_COMPARED,
    RATES,
    TOLERANCE,
    counted,
    field,
    fitting,
    outside,
)
from minitorch_peft.analysis.plan import Plan
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import METHODS

TINY = GPT.from_pretrained("tiny")


def test_every_method_takes_part_or_it_is_said_why_not():
    assert {e.method for e in ENTRIES} | set(NOT_COMPARED) == set(METHODS)
    assert not {e.method for e in ENTRIES} & set(NOT_COMPARED)
    assert len({e.name for e in ENTRIES}) == len({e.title for e in ENTRIES}) == len(ENTRIES)
    for budget, missing in outside().items():
        titles = {c.title for c in field([budget])}
        assert titles | missing.keys() == {e.title for e in ENTRIES} and not titles & missing.keys()


@pytest.mark.parametrize("contender", field(), ids=lambda c: c.name)
def test_a_contender_keeps_its_budget(contender):
    count, wanted = counted(contender, TINY), BUDGETS[contender.budget]
    assert wanted is None or abs(count / wanted - 1) <= TOLERANCE, count
    assert contender.method == "diff_pruning" or count == METHODS[contender.method].count(TINY, contender.config())


def test_an_unknown_budget_or_method_is_named():
    with pytest.raises(ValueError, match="unknown budget 5k: expected some of paper, 4k, 40k"):
        field(["5k"])
    with pytest.raises(ValueError, match=r"unknown method fly: expected some of full, .*lora"):
        field(["4k"], ["fly", "lora"])
    assert [c.name for c in field(["4k", "paper"], ["lora", "full"])] == ["lora-4k", "full-paper", "lora-paper"]


def test_on_another_base_the_budgets_are_counted_anew():
    small = GPT.from_pretrained("tiny-0.25m")
    fit, why = fitting(field(), small)
    assert {c.name for c in fit} >= {"lora-paper", "full-paper"} and "lora-40k" not in {c.name for c in fit}
    assert why["40k"]["LoRA"] == "would have 18,432 numbers on this base"
    assert all(abs(counted(c, small) / BUDGETS[c.budget] - 1) <= TOLERANCE for c in fit if c.budget != "paper")
    llama = GPT(GPTConfig.llama(vocab_size=29, n_positions=160, n_embd=16, n_layer=2, n_head=2))
    fit, why = fitting(field(["paper"]), llama)
    assert "does not apply to this base: this model has no biases" in why["paper"]["BitFit"]
    assert "lora-paper" in {c.name for c in fit}


def search_with(monkeypatch, tmp_path, bits):
    """A search whose trials give ``bits(rate)``; it and the (name, rate) of the trials so far."""
    calls = []

    def validation_bits(plan, contender, seed, texts):
        calls.append((contender.name, contender.lr))
        return bits(contender.lr)

    monkeypatch.setattr(rates, "validation_bits", validation_bits)
    monkeypatch.setattr(rates.RateSearch, "texts", None)
    return rates.RateSearch(Plan(steps=8), {"version": 1}, None, tmp_path), calls


def test_every_contender_gets_the_rate_that_is_best_for_it(tmp_path, monkeypatch):
    search, calls = search_with(monkeypatch, tmp_path, lambda lr: abs(math.log(lr / 0.01)) + 1)
    assert (search.plan.steps, search.plan.warmup) == (4, 5)
    chosen, tried = search.with_rates(field(["4k", "40k"], ["lora"]), lambda text: None)
    assert [c.lr for c in chosen] == [0.01, 0.01] and list(tried["lora-4k"]) == [3e-3, 1e-2, 3e-2]
    assert set(calls) == {(name, lr) for name in ("lora-4k", "lora-40k") for lr in (3e-3, 1e-2, 3e-2)}
    for budgets in (["4k", "40k"], ["4k"], ["40k"]):  # nothing is tried twice, however the comparison is split
        again, _ = search.with_rates(field(budgets, ["lora"]), lambda text: None)
        assert all(c in chosen for c in again) and len(calls) == 6
    given = Contender("lora-4k", "LoRA", "lora", 0.5, budget="4k")
    assert search.with_rates([given], lambda text: None) == ((given,), {})
    changed = replace(field(["4k"], ["lora"])[0], settings={"r": 3})
    search.with_rates([changed], lambda text: None)
    assert len(calls) == 9  # other settings: tried anew


@pytest.mark.parametrize(
    ("bits", "found", "on_the_way"),
    [
        (lambda lr: -math.log(lr), 1.0, [3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0]),
        (lambda lr: math.log(lr), 1e-3, [1e-3, 3e-3, 1e-2, 3e-2]),
        (lambda lr: 2.0 if lr < 2e-3 else math.inf, 1e-3, [1e-3, 3e-3, 1e-2, 3e-2]),
        (lambda lr: math.inf, 1e-3, [1e-3, 3e-3, 1e-2, 3e-2]),
    ],
    ids=["upwards", "downwards", "out of divergence", "hopeless"],
)
def test_the_search_climbs(bits, found, on_the_way, tmp_path, monkeypatch):
    search, _ = search_with(monkeypatch, tmp_path, bits)
    chosen, tried = search.with_rates(field(["4k"], ["bitfit"]), lambda text: None)
    assert chosen[0].lr == found and list(tried["bitfit-4k"]) == on_the_way
    assert rates.at_the_edge(tried["bitfit-4k"])
    assert not rates.at_the_edge({1e-3: 2.0, 3e-3: 1.0, 1e-2: 1.5})


def test_the_rates_are_those_of_the_stored_comparison():
    stored = json.loads((Path(__file__).parents[2] / "benchmarks/results/compare_all.json").read_text(encoding="utf-8"))
    budgets = {"prefix_tuning": "40k", "p_tuning": "40k"}
    found = {m["method"]: m["lr"] for m in stored["methods"] if m["budget"] == budgets.get(m["method"], "paper")}
    assert found == RATES and RATES.keys() == {e.method for e in ENTRIES}
    assert stored["command"].startswith("NUMBA_NUM_THREADS=1 minitorch-peft compare --methods all")


def test_the_picture_numbers_every_method_once(tmp_path):
    spread = summary.Spread(2.5, 0.1)
    rows = {
        budget: [
            summary.Row(c, 1000 * (i + 1), 1.0, 4000, summary.Spread(1e8, 0.0), summary.Spread(0.1, 0.01),
                        dict.fromkeys(MEASURED, spread))
            for i, c in enumerate(field([budget]))
        ]
        for budget in ("4k", "40k")
    }  # fmt: skip
    field_picture.draw_field(rows, dict.fromkeys(MEASURED, 3.0), tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    titles = {c.title for c in field(["4k", "40k"])}
    assert all(f"{title} -->" in drawn for title in titles)
    points = 4 * len([r for of_budget in rows.values() for r in of_budget])  # a number in each of four panels
    assert len(re.findall(r"<!-- \d+ -->", drawn)) >= points
    assert "about 4,000 parameters" in drawn and "the paper's defaults" not in drawn


def test_energy_is_read_where_there_is_a_meter(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "METERS", tmp_path)
    with energy.metered() as modelled:
        sum(range(100_000))
    assert modelled.how == "modelled" and modelled.joules > 0
    for name in ("intel-rapl:0", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("1000000")
    with energy.metered() as measured:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("3500000")
    assert (measured.how, measured.joules) == ("measured", 2.5)
    with energy.metered() as ran_over:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("7")
    assert ran_over.how == "modelled"
