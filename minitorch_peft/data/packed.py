"""Text as one long row of ids: random windows to train on, every window once to evaluate on.

Layout, the same for pretraining and adaptation: ``<|endoftext|> verse <|endoftext|> verse ...``, verses in the
order of the book, so a window reads on from verse to verse. The separators cost 2 % of the tokens; they buy a model
that knows where a verse starts and ends, which pairs, classification and generation from an empty prompt all need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minitorch_peft.autograd.random import generator
from minitorch_peft.data.corpora import Corpus
from minitorch_peft.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
IGNORE = -100  # the label that the loss leaves out, as in torch and transformers


@dataclass(frozen=True)
class PackedText:
    """A corpus as one row of ids.

    Attributes:
        ids: (N,) int64; each verse is preceded by the end-of-text id.
        nbytes: bytes of the verses' text, separators not counted.
        pad: the id that fills a short row.
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
        rows = tokenizer.encode_batch(corpus.texts)
        ids = np.fromiter((i for row in rows for i in (end, *row)), dtype=np.int64)
        return cls(ids, corpus.nbytes, tokenizer.pad_token_id)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each predicted token.

        Every token but the very first is predicted, separators too. They cost nats and bring no bytes, so
        ``nats per token / ln 2 / bytes_per_token`` is the honest bits per byte of the text.
        """
        return self.nbytes / (len(self.ids) - 1)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """The mean loss over `windows` (weighted by predicted tokens), as bits for each byte of text."""
        return nats_per_token / math.log(2) / self.bytes_per_token

    def random_batch(self, step: int, batch_size: int, length: int, seed: int = 0) -> Batch:
        """``batch_size`` random windows; a pure function of (seed, step), so a resumed run needs only its step.

        Args:
            length: T, tokens in a row. The model predicts T - 1 of them, so T positions are enough.

        Returns:
            input_ids, labels (equal to it: the model shifts) and attention_mask, each (B, T) int64.

        Raises:
            ValueError: the text is shorter than one window.
        """
        self._check(length)
        starts = generator(seed, "data", step).integers(0, len(self.ids) - length + 1, size=batch_size)
        rows = self.ids[starts[:, None] + np.arange(length)]
        return {"input_ids": rows, "labels": rows.copy(), "attention_mask": np.ones_like(rows)}

    def windows(self, batch_size: int, length: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches that predict every token but the first exactly once, in order.

        Rows of T tokens start T - 1 apart: the last token of a row is the context of the next row's first
        prediction. The last row is filled with pads, which the labels leave out.

        Args:
            limit: at most this many rows, spread evenly over the text (a cheaper estimate of the same mean).
        """
        if length < 2:
            raise ValueError(f"length must be at least 2 (one token to read, one to predict), got {length}")
        starts = np.arange(0, len(self.ids) - 1, length - 1)
        if limit is not None and limit < len(starts):
            starts = starts[np.linspace(0, len(starts) - 1, limit).round().astype(np.int64)]
        for at in range(0, len(starts), batch_size):
            yield self._rows(starts[at : at + batch_size], length)

    def _rows(self, starts: np.ndarray, length: int) -> Batch:
        index = starts[:, None] + np.arange(length)
        real = index < len(self.ids)
        rows = np.where(real, self.ids[np.minimum(index, len(self.ids) - 1)], self.pad)
        return {
            "input_ids": rows,
            "labels": np.where(real, rows, IGNORE),
            "attention_mask": real.astype(np.int64),
        }

    def _check(self, length: int) -> None:
        if length < 2:
            raise ValueError(f"length must be at least 2 (one token to read, one to predict), got {length}")
        if len(self.ids) < length:
            raise ValueError(f"the text has {len(self.ids)} tokens, fewer than one window of {length}")
