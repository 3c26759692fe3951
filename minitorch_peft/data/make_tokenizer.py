"""Make the shipped tokenizer again: ``python -m minitorch_peft.data.make_tokenizer PATH``."""

from __future__ import annotations

import sys

from minitorch_peft.data.corpora import TRANSLATIONS, load_corpus
from minitorch_peft.data.tokenizer import Tokenizer, train_tokenizer


def make_tokenizer() -> Tokenizer:
    """Train on the training books of every translation (why those: see `minitorch_peft.data.tokenizer`)."""
    return train_tokenizer(text for name in TRANSLATIONS for text in load_corpus(name).split("train").texts)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m minitorch_peft.data.make_tokenizer PATH   (writes a tokenizer.json)")
    make_tokenizer().save(sys.argv[1])
