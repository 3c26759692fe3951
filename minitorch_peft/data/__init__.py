"""Real text with real answers: corpora, the tokenizer, and batches of three kinds.

``load_corpus(name).split(split)`` gives verses; `PackedText`, `Pairs` and `LabelledVerses` turn them into
batches, which are dicts of integer arrays: input_ids, labels, attention_mask.
"""

from minitorch_peft.data.alignment import AlignmentError
from minitorch_peft.data.books import HELD_OUT, OUT_OF_DOMAIN, SPLITS
from minitorch_peft.data.corpora import TRANSLATIONS, Corpus, load_corpus
from minitorch_peft.data.labelled import LabelledVerses
from minitorch_peft.data.packed import PackedText
from minitorch_peft.data.pairs import Pairs
from minitorch_peft.data.rows import IGNORE, Batch, pad_rows, targets
from minitorch_peft.data.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "HELD_OUT",
    "IGNORE",
    "OUT_OF_DOMAIN",
    "SPLITS",
    "TRANSLATIONS",
    "AlignmentError",
    "Batch",
    "Corpus",
    "LabelledVerses",
    "PackedText",
    "Pairs",
    "Tokenizer",
    "load_corpus",
    "pad_rows",
    "targets",
    "train_tokenizer",
]
