"""The texts of an experiment: one to learn from, others that are only measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from minitorch_peft.data.corpora import Corpus, load_corpus
from minitorch_peft.data.packed import PackedText
from minitorch_peft.data.rows import Batch
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.nn import Module
from minitorch_peft.training import evaluate


class TextError(ValueError):
    """A text that is too short for what is wanted of it."""


@dataclass(frozen=True, eq=False)
class Texts:
    """``train`` is learned from; bits per byte are taken on each of ``measured``, by name.

    A row has ``length`` tokens, a batch ``batch_size`` rows. TextError where ``train`` is shorter than a row.
    """

    train: PackedText
    measured: Mapping[str, PackedText]
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        if len(self.train) < self.length:
            raise TextError(f"the text has {len(self.train)} tokens, fewer than a row of {self.length}")

    def batches(self, seed: int) -> Callable[[int], Batch]:
        """The i-th training batch, a function of (seed, i)."""
        return lambda i: without_mask(self.train.batch(i, self.batch_size, self.length, seed))

    def windows(self, name: str, limit: int | None = None) -> Iterator[Batch]:
        """The text called ``name`` in batches; ``limit`` rows of it, spread evenly, where that is given."""
        return map(without_mask, self.measured[name].windows(self.batch_size, self.length, limit))

    def bits_per_byte(self, model: Module, name: str, limit: int | None = None) -> float:
        """How well ``model`` predicts the text called ``name``."""
        return self.measured[name].bits_per_byte(evaluate(model, self.windows(name, limit)).loss)


def without_mask(batch: Batch) -> Batch:
    """Packed rows are full, or padded on the right, where causality hides the padding: they need no mask.

    A row's first token is no target: only a model with a prompt before it could predict it, and all are to be
    measured on the same tokens.
    """
    labels = batch["labels"].copy()
    labels[:, 0] = -100
    return {"input_ids": batch["input_ids"], "labels": labels}


def pack_split(translation: str, split: str, tokenizer: Tokenizer) -> PackedText:
    """The "train", "held_out" or "out_of_domain" books of a translation."""
    return PackedText.from_corpus(load_corpus(translation).split(split), tokenizer)


def pack_file(path: Path, tokenizer: Tokenizer, held_out: float = 0.1) -> tuple[PackedText, PackedText]:
    """A user's text file (UTF-8), its lines packed like verses: its first part, and the last ``held_out``.

    Raises:
        FileFormatError: there is no such file, or it is not UTF-8.
        TextError: fewer than two of its lines hold text.
    """
    if not path.is_file():
        raise FileFormatError(path, "no such file", "check the path")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise FileFormatError(path, f"is not UTF-8 text ({error})", "convert it first") from error
    if len(lines) < 2:
        raise TextError(f"{path} has text in {len(lines)} line(s): give at least 2, the last ones are held out")
    cut = max(1, min(len(lines) - 1, round(len(lines) * (1 - held_out))))
    first, last = (
        PackedText.from_corpus(Corpus(path.name, dict(enumerate(part))), tokenizer)
        for part in (lines[:cut], lines[cut:])
    )
    return first, last
