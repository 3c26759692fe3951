"""The README's own code: it runs, and prints what the README says."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", README, flags=re.DOTALL)


def code_with(word: str) -> str:
    (block,) = [body for kind, body in BLOCKS if kind == "python" and word in body]
    return block


def test_the_six_lines_print_what_the_readme_shows():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code_with("print_trainable_parameters"), {})
    (shown,) = [body for kind, body in BLOCKS if kind == "text"]
    assert printed.getvalue().strip() == shown.strip()


def test_the_method_in_thirty_lines_learns(monkeypatch):
    import numpy as np

    from minitorch_peft.models import GPT, GPTConfig
    from minitorch_peft.optim import AdamW
    from minitorch_peft.peft import METHODS, get_peft_model

    module = types.ModuleType("readme")  # dataclasses look up the module that they are defined in
    monkeypatch.setitem(sys.modules, "readme", module)
    try:
        exec(code_with("class GainLayer"), vars(module))
        model = GPT(GPTConfig(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2), seed=0)
        config = module.GainConfig()
        adapted = get_peft_model(model, config)
        assert adapted.get_nb_trainable_parameters()[0] == METHODS["gain"].count(model, config) == 32
        ids = np.random.default_rng(0).integers(0, 31, (4, 16))
        optimizer = AdamW([(n, p) for n, p in adapted.named_parameters() if p.requires_grad], lr=0.1)
        losses = []
        for _ in range(10):
            loss = adapted(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
    finally:
        METHODS.pop("gain", None)


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)]+)\)", README))
def test_every_link_of_the_readme_leads_somewhere(path):
    assert (Path(__file__).parents[1] / path).exists()


TEACHING = (Path(__file__).parents[1] / "docs" / "teaching.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:\.venv/bin/)?minitorch-peft (course \w+|\w+)(.*)$", TEACHING, flags=re.MULTILINE)


@pytest.mark.parametrize("command", sorted({name for name, _ in COMMANDS}))
def test_the_commands_of_the_teachers_page_exist_with_their_options(command):
    help = [sys.executable, "-P", "-m", "minitorch_peft.cli", *command.split(), "--help"]
    known = subprocess.run(help, capture_output=True, text=True, check=True, env={"COLUMNS": "200"}).stdout
    for options in (rest for name, rest in COMMANDS if name == command):
        for option in re.findall(r"--[\w-]+", options):
            assert option in known, f"{command} has no {option}"


def field_rows(stored):
    """The rows of the README's table of the whole field, from the stored comparison."""
    by_title: dict[str, dict[str, dict]] = {}
    for m in stored["methods"]:
        by_title.setdefault(m["title"], {})[m["budget"]] = m

    def bits(m):
        return "" if m is None else f"{m['bits_per_byte']['held_out']['mean']:.2f}"

    def best(of):
        return min(m["bits_per_byte"]["held_out"]["mean"] for m in of.values())

    for title, of in sorted(by_title.items(), key=lambda item: best(item[1])):
        paper, small, large = of["paper"], of.get("4k"), of.get("40k")
        shown = large or small or paper
        forgotten = shown["bits_per_byte"]["modern"]["mean"] - stored["before"]["modern"]
        yield (
            f"| {title} | {paper['changes']} | {paper['trainable_parameters']:,} | {bits(paper)} | {bits(small)} "
            f"| {bits(large)} | {forgotten:+.2f} | {shown['peak_bytes']['mean'] / 1e6:.0f} MB "
            f"| {shown['deployed_bytes'] / 1e3:,.0f} kB |"
        )


def test_the_table_of_the_whole_field_is_the_stored_comparison():
    stored = json.loads((ROOT / "benchmarks/results/compare_all.json").read_text(encoding="utf-8"))
    assert "\n".join(field_rows(stored)) in README
    assert stored["command"] in README
    assert max(m["bits_per_byte"]["held_out"]["std"] for m in stored["methods"]) <= 0.06
