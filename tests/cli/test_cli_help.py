"""Help that teaches and starts fast; one table of exit codes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from minitorch_peft.cli import errors
from minitorch_peft.cli.app import app

COMMANDS = ("compare", "adapt", "generate", "merge", "inspect", "ledger", "pretrain")
HEAVY = {
    *("numba", "scipy", "tokenizers", "matplotlib", "safetensors", "torch", "rich.progress"),
    *("minitorch_peft.models", "minitorch_peft.peft", "minitorch_peft.training", "minitorch_peft.data.corpora"),
}


def test_help_lists_every_command_and_the_exit_codes(call):
    shown = call("--help").out
    assert all(command in shown for command in COMMANDS)
    codes = re.findall(r"^ +(\d+)  ", errors.__doc__, flags=re.MULTILINE)
    assert set(codes) == {"0", "1", "2", "3", "4", "5", "6", "130"}
    assert set(codes) - {"1"} <= set(re.findall(r"(?:codes: |· )\s*(\d+)", shown))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(call, command):
    shown = call(command, "--help").out
    examples = re.findall(rf"^\s+minitorch-peft {command} ", shown, flags=re.MULTILINE)
    assert len(examples) >= 1 and "Examples" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_use_options_that_exist(call, command):
    shown = call(command, "--help").out
    for line in re.findall(r"^\s+minitorch-peft (.*)$", shown, flags=re.MULTILINE):
        name, *rest = line.split()
        options = call(name, "--help").out
        for option in (word for word in rest if word.startswith("--")):
            assert re.search(rf"{option}\b", options), f"minitorch-peft {line}"


def test_nothing_heavy_is_imported_for_the_help():
    code = "import sys, minitorch_peft.cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_the_installed_script_answers():
    code = "from minitorch_peft.cli import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", code, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"minitorch-peft \d+\.\d+\.\d+\n", done.stdout)


def test_an_unknown_command_is_a_usage_error(call):
    done = call("fly")
    assert done.code == errors.USAGE and "fly" in done.err and done.out == ""


def test_a_bug_is_not_hidden_behind_an_exit_code(monkeypatch):
    from typer.testing import CliRunner

    def broken(*_: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("minitorch_peft.cli.inspect.look", broken)
    assert isinstance(CliRunner().invoke(app, ["inspect", "x"]).exception, AssertionError)


def test_debug_shows_where_an_error_came_from(call, monkeypatch):
    monkeypatch.setenv("MINITORCH_DEBUG", "1")
    with pytest.raises(errors.CommandError, match="nothing to inspect"):
        call("inspect", "nowhere")
