"""Text as one long row of ids: shuffled windows to train on, every token once to evaluate on.

Layout, the same for pretraining and adaptation: ``<|endoftext|> verse <|endoftext|> verse ...``, verses in
the order of the book, so a window reads on from verse to verse. The separators are 2 % of the tokens; they
buy a model that knows where a verse starts and ends, which pairs, classification and generation from an
empty prompt all need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minitorch_peft.autograd.random import generator
from minitorch_peft.data.corpora import Corpus
from minitorch_peft.data.order import epoch_slices
from minitorch_peft.data.rows import IGNORE, Batch
from minitorch_peft.data.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class PackedText:
    """A corpus as one row of ids.

    Attributes:
        ids: (N,) int64; each verse is preceded by the end-of-text id.
        nbytes: bytes of the verses' text (UTF-8), separators not counted.
        pad: the id that fills a short row.

    >>> text = PackedText(np.arange(10), nbytes=27, pad=99)
    >>> text.batch(step=0, batch_size=2, length=4)["input_ids"].shape
    (2, 4)
    >>> [b["input_ids"].tolist() for b in text.windows(batch_size=2, length=4)]
    [[[0, 1, 2, 3], [3, 4, 5, 6]], [[6, 7, 8, 9]]]
    >>> round(text.bits_per_byte(nats_per_token=2.0), 3)    # 2 nats, 3 bytes a token
    0.962
    """

    ids: np.ndarray
    nbytes: int
    pad: int

    @classmethod
    def from_corpus(cls, corpus: Corpus, tokenizer: Tokenizer) -> PackedText:
        """Tokenize and pack a corpus.

        Raises:
            ValueError: the corpus is empty.
        """
        if not len(corpus):
            raise ValueError(f"{corpus.name}: no verses to pack (does this translation have these books?)")
        end = tokenizer.eos_token_id
        ids = [i for row in tokenizer.encode_batch(corpus.texts) for i in (end, *row)]
        return cls(np.array(ids, dtype=np.int64), corpus.nbytes, tokenizer.pad_token_id)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each predicted token.

        Every token but the very first is predicted, separators too: they cost nats and bring no bytes.
        """
        return self.nbytes / (len(self.ids) - 1)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A mean loss over `windows`, weighted by predicted tokens, as bits for each byte of text.

        Total nats over all predicted tokens / (ln 2 * bytes of text): honest, since neither a coarser
        vocabulary nor more separators can lower it.
        """
        return nats_per_token / math.log(2) / self.bytes_per_token

    def batch(self, step: int, batch_size: int, length: int, seed: int = 0) -> Batch:
        """The windows of one training step: a pure function of (seed, step), all that resuming needs.

        Each epoch cuts the text into windows at an offset of its own and visits them in a shuffled order: all
        of the text, but for less than a window at each end, is seen once, in ever new surroundings.

        Args:
            length: T, tokens in a row. The model predicts T - 1 of them from T positions.

        Returns:
            input_ids, labels (the same ids: the model shifts) and attention_mask, each (B, T) int64.

        Raises:
            ValueError: the text is shorter than one window.
        """
        _check_length(length)
        if len(self.ids) < length:
            raise ValueError(f"the text has {len(self.ids)} tokens, fewer than one window of {length}")
        stride = length - 1
        total = max(1, (len(self.ids) - 1) // stride - 1)
        slack = len(self.ids) - length - (total - 1) * stride
        starts = [
            int(generator(seed, "data", "offset", epoch).integers(slack + 1)) + stride * windows
            for epoch, windows in epoch_slices(total, step, batch_size, seed, "packed")
        ]
        rows = self.ids[np.concatenate(starts)[:, None] + np.arange(length)]
        return {"input_ids": rows, "labels": rows.copy(), "attention_mask": np.ones_like(rows)}

    def windows(self, batch_size: int, length: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches that predict every token but the first exactly once, in order.

        Rows of T tokens start T - 1 apart: the last token of a row is what the next row starts from. Each row
        starts without context, as in training. The last row is filled up on the right.

        Args:
            limit: at most this many rows, spread evenly over the text (a cheaper estimate of the same mean).
        """
        _check_length(length)
        if batch_size < 1 or (limit is not None and limit < 1):
            raise ValueError(f"expected batch_size and limit >= 1, got {batch_size} and {limit}")
        starts = np.arange(0, len(self.ids) - 1, length - 1)
        if limit is not None and limit < len(starts):
            starts = starts[np.linspace(0, len(starts) - 1, limit).round().astype(np.int64)]
        for at in range(0, len(starts), batch_size):
            index = starts[at : at + batch_size, None] + np.arange(length)
            real = index < len(self.ids)
            rows = np.where(real, self.ids[np.minimum(index, len(self.ids) - 1)], self.pad)
            labels = np.where(real, rows, IGNORE)
            yield {"input_ids": rows, "labels": labels, "attention_mask": real.astype(np.int64)}


def _check_length(length: int) -> None:
    if length < 2:
        raise ValueError(f"length is {length}: expected at least 2, one token to read and one to predict")
