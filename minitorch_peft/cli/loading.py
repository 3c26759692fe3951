"""Bases, tokenizers and adapters from what a user names, checked against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitorch_peft.cli.errors import FILE, USAGE, CommandError

if TYPE_CHECKING:
    from minitorch_peft.data.tokenizer import Tokenizer
    from minitorch_peft.models import GPT


def load_base(name: str) -> GPT:
    """An embedded checkpoint by name, a Hugging Face folder, or a file that pretrain wrote."""
    from minitorch_peft.models import GPT

    return GPT.from_pretrained(name)


def load_tokenizer(base: str, model: GPT, path: Path | None = None) -> Tokenizer:
    """The tokenizer of ``path``, else the base's own; it must not know more ids than the model."""
    from minitorch_peft.data.tokenizer import Tokenizer

    if path is not None:
        tokenizer = Tokenizer.from_file(path)
    elif Path(base).is_dir():
        tokenizer = Tokenizer.from_pretrained(base)
    else:
        tokenizer = Tokenizer.shipped()  # embedded checkpoints, and what pretrain writes
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CommandError(
            f"vocabulary mismatch: the tokenizer has {tokenizer.vocab_size} entries, {base} only "
            f"{model.config.vocab_size}: give the tokenizer.json that the model was trained with",
            FILE,
        )
    return tokenizer


def check_length(length: int, model: GPT) -> None:
    if length > model.config.n_positions:
        raise CommandError(
            f"--length {length}: the model has {model.config.n_positions} positions, give at most that", USAGE
        )


def load_adapted(base: str | None, adapter: Path | None) -> tuple[Any, str]:
    """(model, name of its base): the base alone, or a PeftModel with the adapter of a folder.

    Where no base is named it is the one that ``adapt`` or ``compare`` noted beside the adapter, else "tiny".
    """
    from minitorch_peft.peft import PeftModel

    name = base or noted_base(adapter) or "tiny"
    model = load_base(name)
    if adapter is None:
        return model, name
    if not adapter.is_dir():
        raise CommandError(f"{adapter}: no such folder; expected one that holds an adapter", FILE)
    return PeftModel.from_pretrained(model, adapter).eval(), name


def noted_base(adapter: Path | None) -> str | None:
    from minitorch_peft.formats.files import read_json

    note = None if adapter is None else adapter / "result.json"
    return None if note is None or not note.is_file() else read_json(note).get("base")
