"""The figures of the lesson on four bits: those stored, and the command that makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import quantization
from minitorch_peft.analysis.quantization import relative_error, stored_bits

STORED = Path(quantization.__file__).parent / "results" / "quantization.json"


def one(rows: list[dict], **values: object) -> dict:
    (row,) = (row for row in rows if all(row[key] == value for key, value in values.items()))
    return row


def test_the_stored_figures_say_what_the_lesson_says():
    table = json.loads(STORED.read_text())
    errors, models = table["errors"], table["models"]
    for weights in ("normal", "model"):
        nf4, fp4, int4 = (
            one(errors, weights=weights, quant_type=kind, blocksize=64, double=True) for kind in ("nf4", "fp4", "int4")
        )
        assert nf4["relative_error"] < int4["relative_error"] < fp4["relative_error"]
        assert nf4["bits"] == stored_bits(64, double=True)
    lost = {row["quant_type"]: row["bits_per_byte"]["modern"] for row in models if row["double"] or row["bits"] == 32}
    assert lost["float32"] < lost["nf4"] < min(lost["fp4"], lost["int4"])
    full, lora, qlora = (
        one(table["adapted"], name=name)["bits_per_byte"]["held_out"]["mean"] for name in quantization.ADAPTED
    )
    assert full < lora and abs(qlora - lora) < 0.05


def test_the_stored_errors_are_still_those_of_the_code():
    from minitorch_peft.analysis.quantization import linear_weights
    from minitorch_peft.models import GPT

    row = one(json.loads(STORED.read_text())["errors"], weights="model", quant_type="nf4", blocksize=64, double=True)
    now = relative_error(linear_weights(GPT.from_pretrained("tiny")), "nf4", 64, double=True)
    assert now == pytest.approx(row["relative_error"], rel=1e-6)


@pytest.mark.slow
def test_the_command_writes_table_and_picture(tmp_path, capsys):
    arguments = ["--seeds", "1", "--steps", "2", "--eval-rows", "4", "--out", tmp_path / "runs", "--results", tmp_path]
    quantization.main([str(argument) for argument in arguments])
    table = json.loads((tmp_path / "quantization.json").read_text())
    assert [row["name"] for row in table["adapted"]] == quantization.ADAPTED
    assert all("seconds_per_step" not in row for row in table["adapted"])
    assert (tmp_path / "quantization.png").stat().st_size > 10_000
    assert "model weights, nf4, double quantization" in capsys.readouterr().out
