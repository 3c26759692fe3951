"""Fixtures: a way to call commands, a small base, a text, an adapter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minitorch_peft.cli.app import app
from minitorch_peft.data.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))

from cli_cases import Called, adapt_options, make_base


@pytest.fixture
def call(monkeypatch, tmp_path):
    """``call("adapt", "--steps", 2)``: what the command printed, and its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINITORCH_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*args: object) -> Called:
        result = CliRunner().invoke(app, [str(a) for a in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # a bug: foreseen errors leave through an exit code
        return Called(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with a random GPT that reads the shipped tokenizer's ids, and that tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    make_base(Tokenizer.shipped().vocab_size).save_pretrained(folder)
    Tokenizer.shipped().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def letters(tmp_path_factory):
    """A text file of 40 lines."""
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    lines = [f"Dear friend, this is letter number {i}, and all is well with us here." for i in range(40)]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def adapted(call, base, letters, tmp_path):
    """The folder of an adapter that ``adapt`` made."""
    done = call(*adapt_options(base, letters), "--out", tmp_path / "adapted")
    assert done.code == 0, done.err
    return tmp_path / "adapted"
