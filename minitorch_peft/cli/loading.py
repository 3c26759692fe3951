"""Bases, tokenizers and adapters from what a user names, checked against each other."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitorch_peft.cli.errors import FILE, USAGE, CommandError

if TYPE_CHECKING:
    from minitorch_peft.data.tokenizer import Tokenizer
    from minitorch_peft.models import GPT
    from minitorch_peft.quant import BitsAndBytesConfig


def load_base(name: str, quantization: BitsAndBytesConfig | None = None) -> GPT:
    """An embedded checkpoint by name, a Hugging Face folder, or a file that pretrain wrote.

    Where ``quantization`` asks for it, its linear layers are put into four bits, unless they are already.
    """
    from minitorch_peft.models import GPT
    from minitorch_peft.quant import quantize_model, quantized_layers

    model = GPT.from_pretrained(name)
    if quantization is None or not quantization.load_in_4bit or quantized_layers(model):
        return model
    return quantize_model(model, **quantization.arguments())


def load_base_as(name: str, quantization: BitsAndBytesConfig, given: Collection[str]) -> tuple[GPT, BitsAndBytesConfig]:
    """:func:`load_base`, and how it is stored: as asked for, or where it was saved in four bits, as it was.

    ``given`` are the settings that the user named. CommandError where what was saved contradicts one of them, or where
    they are about four bits and nothing is.
    """
    from minitorch_peft.models import GPT
    from minitorch_peft.quant import quantization_of, quantize_model

    model = GPT.from_pretrained(name)
    found = quantization_of(model).to_dict()
    if not found["load_in_4bit"]:
        if quantization.load_in_4bit:
            return quantize_model(model, **quantization.arguments()), quantization
        if useless := sorted(set(given) - {"load_in_4bit"}):
            problem = (
                f"{', '.join(useless)}: {name} is not in four bits; add --set load_in_4bit=true, or --method qlora"
            )
            raise CommandError(problem, USAGE)
        return model, quantization
    found["bnb_4bit_compute_dtype"] = quantization.bnb_4bit_compute_dtype
    asked = quantization.to_dict()
    if conflicts := [f"{key}={asked[key]} (it has {found[key]})" for key in sorted(given) if asked[key] != found[key]]:
        raise CommandError(
            f"{name} is stored in four bits already, which cannot be changed by {', '.join(conflicts)}: leave the "
            "setting out, or start from the dense model",
            USAGE,
        )
    return model, type(quantization).from_dict(found)


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

    Where no base is named it is the one that ``adapt`` or ``compare`` noted beside the adapter, else "tiny"; it is
    quantized as it was when the adapter learned.
    """
    from minitorch_peft.peft import PeftModel

    model, name = base_of(base, adapter)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()), name


def base_of(base: str | None, adapter: Path | None) -> tuple[GPT, str]:
    """The base that :func:`load_adapted` puts an adapter on, alone, and its name."""
    from minitorch_peft.quant import BitsAndBytesConfig

    if adapter is not None and not adapter.is_dir():
        raise CommandError(f"{adapter}: no such folder; expected one that holds an adapter", FILE)
    noted = notes(adapter)
    name = base or noted.get("base") or "tiny"
    return load_base(name, BitsAndBytesConfig.from_dict(noted.get("quantization") or {})), name


def notes(adapter: Path | None) -> dict[str, Any]:
    """What ``adapt`` or ``compare`` wrote down beside an adapter; nothing where they did not."""
    from minitorch_peft.formats.files import read_json

    note = None if adapter is None else adapter / "result.json"
    return {} if note is None or not note.is_file() else read_json(note)
