"""The whole field: nobody is left out silently, budgets are kept, rates are searched, energy is read or modelled."""

from __future__ import annotations

import math

import pytest

from minitorch_peft.analysis import energy, field_picture, rates, summary
from minitorch_peft.analysis.contenders import Contender
from minitorch_peft.analysis.experiment import MEASURED
from minitorch_peft.analysis.field import BUDGETS, ENTRIES, NOT_COMPARED, TOLERANCE, field, outside
from minitorch_peft.analysis.plan import Plan
from minitorch_peft.models import GPT
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
    count, wanted = METHODS[contender.method].count(TINY, contender.config()), BUDGETS[contender.budget]
    assert wanted is None or abs(count / wanted - 1) <= TOLERANCE, count


def test_an_unknown_budget_or_method_is_named():
    with pytest.raises(ValueError, match="unknown budget 5k: expected some of paper, 4k, 40k"):
        field(["5k"])
    with pytest.raises(ValueError, match=r"unknown method fly: expected some of full, .*lora"):
        field(["4k"], ["fly", "lora"])
    assert [c.name for c in field(["4k", "paper"], ["lora", "full"])] == ["lora-4k", "full-paper", "lora-paper"]


def test_the_best_rate_of_a_method_serves_all_its_budgets(tmp_path, monkeypatch):
    calls = []

    def bits(plan, contender, seed, texts):
        calls.append((contender.name, contender.lr))
        return math.inf if contender.lr > 0.05 else abs(math.log(contender.lr / 0.01)) + 1

    monkeypatch.setattr(rates, "validation_bits", bits)
    monkeypatch.setattr(rates.RateSearch, "texts", None)
    search = rates.RateSearch(Plan(steps=8), {"version": 1}, None, tmp_path)
    assert (search.plan.steps, search.plan.warmup) == (4, 5)
    chosen, tried = search.with_rates(field(["4k", "40k"], ["lora"]), lambda text: None)
    assert [c.lr for c in chosen] == [0.01, 0.01] and set(calls) == {("lora-4k", lr) for lr in (3e-3, 1e-2, 3e-2)}
    assert list(tried["lora"]) == [3e-3, 1e-2, 3e-2]
    again, _ = search.with_rates(field(["4k", "40k"], ["lora"]), lambda text: None)
    assert again == chosen and len(calls) == 3  # nothing was tried twice
    given = Contender("lora-4k", "LoRA", "lora", 0.5, budget="4k")
    assert search.with_rates([given], lambda text: None) == ((given,), {})
    monkeypatch.setattr(rates, "validation_bits", lambda plan, c, seed, texts: -math.log(c.lr))
    upwards, tried = search.with_rates(field(["4k"], ["dora"]), lambda text: None)
    assert upwards[0].lr == 1.0 and list(tried["dora"]) == [1e-2, 3e-2, 1e-1, 3e-1, 1.0]
    monkeypatch.setattr(rates, "validation_bits", lambda plan, c, seed, texts: math.log(c.lr))
    downwards, tried = search.with_rates(field(["4k"], ["ia3"]), lambda text: None)
    assert downwards[0].lr == 1e-3 and list(tried["ia3"]) == [1e-3, 3e-3, 1e-2, 3e-2]
    monkeypatch.setattr(rates, "validation_bits", lambda *a: math.inf)
    with pytest.raises(ValueError, match=r"BitFit diverged at 0.003, 0.01, 0.03"):
        search.with_rates(field(["4k"], ["bitfit"]), lambda text: None)


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
