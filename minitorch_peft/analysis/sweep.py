"""Finding each method's learning rate, on a training book that is set aside: held-out books play no part in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from minitorch_peft.analysis.contenders import Contender
from minitorch_peft.analysis.experiment import adapted
from minitorch_peft.analysis.plan import Plan
from minitorch_peft.analysis.texts import Texts
from minitorch_peft.data.books import BOOKS
from minitorch_peft.data.corpora import Corpus, load_corpus
from minitorch_peft.data.packed import PackedText
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.training import TrainingError, train

SET_ASIDE = "Acts"
FACTORS = (1 / 4, 1 / 2, 1, 2, 4)  # of the rate that a contender has now


def sweep_texts(plan: Plan, tokenizer: Tokenizer) -> Texts:
    """The training books without one, and that one to judge on."""
    corpus = load_corpus(plan.translation).split("train")

    def pack(keep: Callable[[str], bool]) -> PackedText:
        verses = {v: text for v, text in corpus.verses.items() if keep(BOOKS[v // 1_000_000])}
        return PackedText.from_corpus(Corpus(corpus.name, verses), tokenizer)

    validation = pack(lambda book: book == SET_ASIDE)
    return Texts(pack(lambda book: book != SET_ASIDE), {"validation": validation}, plan.batch_size, plan.length)


def try_rates(plan: Plan, contender: Contender, seed: int, texts: Texts) -> Iterator[tuple[float, float]]:
    """(rate, bits per byte on the book set aside) for rates around the contender's own; inf where it diverged."""
    for factor in FACTORS:
        lr = contender.lr * factor
        yield lr, validation_bits(plan, replace(contender, lr=lr), seed, texts)


def validation_bits(plan: Plan, contender: Contender, seed: int, texts: Texts) -> float:
    model = adapted(plan, contender, seed)
    try:
        train(model, texts.batches(seed), plan.training(contender.lr, seed))
    except TrainingError:
        return math.inf
    return texts.bits_per_byte(model, "validation", plan.eval_rows)
