"""The stored ledger of the wide model, and the command that makes it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import ledger

STORED = Path(ledger.__file__).parent / "results" / "ledger.json"


def test_the_stored_figures_say_what_the_lecture_says():
    rows = {row["method"]: row for row in json.loads(STORED.read_text())["rows"]}
    for name, row in rows.items():
        for key, said in row["predicted"].items():
            assert said == pytest.approx(row["measured"][key], rel=0.1), (name, key)
        assert row["allocated"] == pytest.approx(row["predicted"]["peak"], rel=0.1), name
    through = {name: row for name, row in rows.items() if name in ("lora", "bitfit", "prompt_tuning", "prefix_tuning")}
    for row in through.values():
        assert row["measured"]["optimizer"] < 0.1 * rows["full"]["measured"]["optimizer"]
        assert row["measured"]["activations"] > 0.95 * rows["full"]["measured"]["activations"]
        assert rows["ladder"]["measured"]["backward"] < 0.2 * row["measured"]["backward"]
        assert rows["ladder"]["resident"] < 0.7 * row["resident"]


def test_the_stored_prediction_is_still_that_of_the_code():
    from minitorch_peft.analysis.ledger import ledger as predict
    from minitorch_peft.peft import METHODS

    (row,) = (row for row in json.loads(STORED.read_text())["rows"] if row["method"] == "lora")
    now = predict(ledger.SHAPE, METHODS["lora"].config(), ledger.BATCH).totals()
    assert now == pytest.approx(row["predicted"], rel=0.02)


def test_a_method_that_fails_loses_no_row_of_the_others(tmp_path, capsys, monkeypatch):
    good, written = json.loads(STORED.read_text())["rows"][0], []

    def child(command, **options):
        if (tmp_path / "ledger.json").exists():
            written.append(len(json.loads((tmp_path / "ledger.json").read_text())["rows"]))
        dies = command[-1] == "ladder"
        return SimpleNamespace(returncode=int(dies), stdout=json.dumps(good), stderr="MemoryError: too wide\n" * dies)

    monkeypatch.setattr(ledger.subprocess, "run", child)
    with pytest.raises(SystemExit, match="failed: ladder"):
        ledger.main([*("--method", "lora"), *("--method", "ladder"), *("--method", "full"), "--results", str(tmp_path)])
    assert json.loads((tmp_path / "ledger.json").read_text())["rows"] == [
        good, {"method": "ladder", "failed": "exit 1: MemoryError: too wide"}, good
    ]  # fmt: skip
    assert written == [1, 2] and "too wide" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_writes_a_row_for_each_method(tmp_path, capsys):
    ledger.main(["--method", "bitfit", "--results", str(tmp_path)])
    (row,) = json.loads((tmp_path / "ledger.json").read_text())["rows"]
    assert row["predicted"]["peak"] == pytest.approx(row["allocated"], rel=0.1)
    assert "bitfit" in capsys.readouterr().out
