"""compare: results, table, picture; what is stored is not run again."""

from __future__ import annotations

import pytest
from cli_cases import POSITIONS

from minitorch_peft.analysis import comparison, experiment, sweep
from minitorch_peft.analysis.contenders import CONTENDERS
from minitorch_peft.analysis.experiment import MEASURED
from minitorch_peft.analysis.plan import Plan
from minitorch_peft.analysis.summary import Row, Spread
from minitorch_peft.cli.tables import WIDE, comparison_tables, comparison_title
from minitorch_peft.data.corpora import Corpus, load_corpus
from minitorch_peft.data.packed import PackedText
from minitorch_peft.formats.files import read_json
from minitorch_peft.models import GPT
from minitorch_peft.quant import QLORA

TINY = ["--seeds", 2, "--steps", 3, "--batch-size", 2, "--length", 16, "--eval-rows", 2]
TWO = ["--method", "lora-r4", "--method", "bitfit"]


@pytest.fixture
def compare(call, base, tmp_path, monkeypatch):
    """compare on the first verses of each text."""

    def few_verses(translation, split, tokenizer):
        verses = list(load_corpus(translation).split(split).verses.items())[:20]
        return PackedText.from_corpus(Corpus(translation, dict(verses)), tokenizer)

    monkeypatch.setattr(experiment, "pack_split", few_verses)

    def run(*more):
        usual = () if "--methods" in more else TWO
        return call("compare", "--base", base, *TINY, *usual, "--out", tmp_path / "out", *more)

    return run


def test_the_table_has_every_method_and_the_json_every_figure(compare, tmp_path):
    done = compare("--json")
    assert done.code == 0, done.err
    value = done.json
    assert [m["name"] for m in value["methods"]] == ["lora-r4", "bitfit"]
    for m in value["methods"]:
        assert m["trainable_percent"] < 100 and m["stored_bytes"] > 4 * m["trainable_parameters"]
        assert m["peak_bytes"]["mean"] > 0 and m["seconds_per_step"]["mean"] > 0
        assert all(spread["std"] > 0 for spread in m["bits_per_byte"].values())
    assert set(value["before"]) == {"held_out", "out_of_domain", "modern"}
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert read_json(tmp_path / "out" / "results.json") == {k: v for k, v in value.items() if k != "picture"}
    assert (tmp_path / "out" / "bitfit" / "seed-1" / "adapter_model.safetensors").is_file()
    shown = compare()
    assert "4 runs are stored" in shown.err
    assert all(name in shown.out for name in ("untouched", "LoRA r=4", "BitFit", "±", "picture:"))


@pytest.mark.slow
def test_qlora_has_its_row(compare, base, tmp_path):
    options = ["--method", "qlora", "--method", "lora-r16", "--seeds", 1]
    done = compare(*options, "--json")
    assert done.code == 0, done.err
    by_name = {m["name"]: m for m in done.json["methods"]}
    dense, packed = by_name["lora-r16"], by_name["qlora"]
    assert packed["trainable_parameters"] == dense["trainable_parameters"]
    assert packed["trainable_percent"] == dense["trainable_percent"]
    assert packed["quantization"]["bnb_4bit_use_double_quant"] and "quantization" not in dense
    assert 4 < packed["bits_per_weight"] < 5
    for method, config in ((dense, None), (packed, QLORA)):
        assert method["base_bytes"] == GPT.from_pretrained(base, quantization_config=config).get_memory_footprint()
    assert packed["quantized_bits_per_byte"].keys() == done.json["before"].keys()
    stored = read_json(tmp_path / "out" / "qlora" / "seed-0" / "result.json")
    assert stored["quantization"] == packed["quantization"] and stored["base_bytes"] == packed["base_bytes"]
    shown = compare(*options).out
    assert "QLoRA r=16" in shown and "bits each instead of" in shown


@pytest.mark.slow
def test_only_what_is_missing_or_made_otherwise_is_run(compare, tmp_path, monkeypatch):
    ran = []

    def watched(plan, contender, seed, *rest):
        ran.append((contender.name, seed))
        return real(plan, contender, seed, *rest)

    real = experiment.run
    monkeypatch.setattr(comparison, "run", watched)
    assert compare().code == 0
    assert ran == [("lora-r4", 0), ("bitfit", 0), ("lora-r4", 1), ("bitfit", 1)]
    ran.clear()
    (tmp_path / "out" / "bitfit" / "seed-0" / "result.json").unlink()
    (tmp_path / "out" / "lora-r4" / "seed-1" / "result.json").write_text("{")
    assert compare().code == 0
    assert ran == [("bitfit", 0), ("lora-r4", 1)]
    ran.clear()
    assert compare("--lr", "bitfit=0.5").code == 0
    assert ran == [("bitfit", 0), ("bitfit", 1)]
    ran.clear()
    assert compare("--steps", 2).code == 0
    assert len(ran) == 4


def test_ctrl_c_keeps_the_runs_that_ended(compare, tmp_path, monkeypatch):
    real = experiment.run

    def stopped(plan, contender, seed, *rest):
        if (contender.name, seed) == ("lora-r4", 1):
            raise KeyboardInterrupt
        return real(plan, contender, seed, *rest)

    monkeypatch.setattr(comparison, "run", stopped)
    done = compare()
    assert done.code == 130 and "2 of 4 runs" in done.error and str(tmp_path / "out") in done.error


def test_a_diverging_method_says_which_one(compare):
    done = compare("--method", "full", "--lr", "full=1e30", "--steps", 6)
    assert done.code == 5 and "full fine-tuning" in done.error and "--lr full=" in done.error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "fly"], ["fly", "lora-r16"]),
        (["--lr", "bitfit"], ["METHOD=RATE"]),
        (["--lr", "full=0.1"], ["'full' is not compared", "bitfit"]),
        (["--length", POSITIONS + 1], ["positions"]),
        (["--corpus", "klingon"], ["klingon", "wyc"]),
    ],
)
def test_what_cannot_be_compared(compare, options, words):
    done = compare(*options)
    assert done.code == 2 and all(word in done.error for word in words), done.error


def test_without_matplotlib_it_says_so_before_the_runs(compare, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = compare()
    assert done.code == 4 and "minitorch-peft[data]" in done.error


def test_sweep_tries_rates_and_names_the_best(compare, tmp_path, monkeypatch):
    corpus = Corpus("wyc", {44_001_000 + i: "and he seide so" for i in range(1, 9)} | {
        1_001_000 + i: "in the bigynnyng" for i in range(1, 9)})  # fmt: skip
    monkeypatch.setattr(sweep, "load_corpus", lambda name: corpus)
    monkeypatch.setattr(sweep, "FACTORS", (1, 2))
    done = compare("--sweep", "--json")
    assert done.code == 0, done.err
    best = done.json["best"]
    assert set(best) == {"lora-r4", "bitfit"} and all(b["bits_per_byte"] > 0 for b in best.values())
    assert read_json(tmp_path / "out" / "sweep.json")["best"] == best


@pytest.mark.parametrize(("width", "tables"), [(80, 2), (WIDE, 1)])
def test_a_narrow_terminal_gets_costs_and_effects_in_two_tables(width, tables):
    from rich.console import Console

    spread = Spread(2.5, 0.1)
    rows = [
        Row(
            c,
            957_184,
            100.0,
            3_830_000,
            Spread(1.1e8, 0.0),
            Spread(1.2, 0.03),
            dict.fromkeys(MEASURED, spread),
            3_830_000,
        )
        for c in CONTENDERS
    ]
    plan = Plan()
    parts = list(comparison_tables(comparison_title(plan, 3), rows, dict.fromkeys(MEASURED, 4.0), width))
    console = Console(width=width)
    assert len(parts) == tables + 1
    with console.capture() as shown:
        for part in parts:
            console.print(part)
    assert "…" not in shown.get() and shown.get().count("full fine-tuning") == tables


def test_the_whole_field_at_its_budgets(compare, tmp_path, monkeypatch):
    import minitorch_peft.analysis.rates as rates
    from minitorch_peft.analysis import field

    monkeypatch.setattr(field, "TOLERANCE", 9.0)  # the budgets are made for a larger base
    monkeypatch.setattr(rates, "GRID", (1e-3, 1e-2))
    monkeypatch.setattr(rates, "sweep_texts", lambda plan, tokenizer: None)
    tried = []
    monkeypatch.setattr(rates, "validation_bits", lambda plan, c, seed, texts: tried.append(c.name) or 2 + c.lr)
    options = ["--methods", "all", "--budget", "paper", "--budget", "4k", "--seeds", 1]
    options = [*options, "--method", "lora", "--method", "full"]
    runs, interrupt = [], [3]
    real = experiment.run

    def some_runs(plan, contender, *more):
        if len(runs) == interrupt[0]:
            raise KeyboardInterrupt
        runs.append(contender.name)
        return real(plan, contender, *more)

    monkeypatch.setattr(comparison, "run", some_runs)
    interrupt[0] = 1
    assert compare(*options).code == 130
    interrupt[0] = 9
    done = compare(*options, "--json")
    assert done.code == 0, done.err
    assert runs == ["full-paper", "lora-paper", "lora-4k"] and len(tried) == len(set(tried)) * 2  # each rate once
    assert [(m["name"], m["budget"], m["lr"]) for m in done.json["methods"]] == [
        ("full-paper", "paper", 1e-3), ("lora-paper", "paper", 1e-3), ("lora-4k", "4k", 1e-3),
    ]  # fmt: skip
    assert done.json["outside"]["4k"]["full fine-tuning"] == "trains every parameter"
    assert done.json["rates_tried"]["lora-4k"] == {"0.001": 2.001, "0.01": 2.01}
    assert done.json["best_rate_at_the_edge"] == ["full-paper", "lora-paper", "lora-4k"]
    assert all(m["deployed_bytes"] == 4 * m["trainable_parameters"] for m in done.json["methods"])
    assert all(m["joules"] > 0 and m["seconds_per_token"]["merged"] > 0 for m in done.json["methods"])
    assert (tmp_path / "out" / "compare-all.png").read_bytes().startswith(b"\x89PNG")
    shown = compare(*options).out
    assert "About 4k trainable parameters" in shown and "Not at this budget: full fine-tuning" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "most"], ["usual or all"]),
        (["--budget", "4k"], ["goes with --methods all"]),
        (["--methods", "all", "--budget", "5k"], ["unknown budget 5k"]),
        (["--methods", "all", "--sweep"], ["leave --sweep out"]),
    ],
)
def test_what_cannot_be_compared_in_the_field(compare, options, words):
    done = compare(*options)
    assert done.code == 2 and all(word in done.err for word in words)


def test_a_method_that_diverges_or_does_not_apply_leaves_the_field_to_the_others(compare, monkeypatch):
    import minitorch_peft.analysis.rates as rates

    monkeypatch.setattr(rates, "sweep_texts", lambda plan, tokenizer: None)
    monkeypatch.setattr(rates, "validation_bits", lambda plan, c, seed, texts: 2 + c.lr)
    options = ["--methods", "all", "--budget", "paper", "--method", "lora", "--method", "full", "--seeds", 1]
    done = compare(*options, "--lr", "full=1e30", "--json")
    assert done.code == 0, done.err
    assert [m["name"] for m in done.json["methods"]] == ["lora-paper"]
    assert "full-paper" in done.json["failed"]
    shown = compare(*options, "--lr", "full=1e30").out
    assert "full-paper failed" in shown and "Not compared: gist" in shown


def test_who_is_not_compared_is_told_why(compare):
    done = compare("--methods", "all", "--method", "fusion")
    assert done.code == 2 and "fusion is not compared here: it mixes adapters" in done.err
    done = compare("--methods", "all", "--budget", "4k", "--method", "full")
    assert done.code == 2 and "full fine-tuning trains every parameter" in done.err


@pytest.mark.parametrize("width", [80, 120])
def test_the_field_s_tables_cut_nothing_off(width):
    from rich.console import Console

    from minitorch_peft.analysis.field import field
    from minitorch_peft.cli.tables import field_tables

    bits = dict.fromkeys(MEASURED, Spread(2.5, 0.1))
    rows = [
        Row(c, 957_184, 100.0, 3_830_000, Spread(1.1e8, 0.0), Spread(1.2, 0.03), bits, 3_830_000,
            joules=123.0, deployed_bytes=3_830_000, seconds_per_token={"adapter": 0.012, "merged": 0.011})
        for c in field(["paper"])
    ]  # fmt: skip
    console = Console(width=width)
    with console.capture() as shown:
        for part in field_tables("title", rows, dict.fromkeys(MEASURED, 4.0), width):
            console.print(part)
    assert "…" not in shown.get() and shown.get().count("LoRA experts") == (2 if width == 120 else 3)
