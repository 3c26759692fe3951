"""Labelled verses: which translation is this?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from minitorch_peft.data.corpora import Corpus
from minitorch_peft.data.order import epoch_slices
from minitorch_peft.data.rows import Batch, Side, check_any_left, pad_rows
from minitorch_peft.data.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class LabelledVerses:
    """Verses and the translation that each comes from, every translation with the same verses.

    A verse that one translation lacks (or that is too long in one) is left out of all: the classes are
    equally large, and what a verse is about does not tell its class. A row is ``<|endoftext|> verse
    <|endoftext|>``: its last token, which a classifier reads, has seen the verse and knows that it ended.

    Attributes:
        rows: ids of each example.
        labels: (N,) int64, index into ``names``.
        names: the translations.
        texts: what each row says.
        left_out: how many verses that all have were too long in one of them.
        pad: the id that fills a short row.
    """

    rows: tuple[list[int], ...]
    labels: np.ndarray
    names: tuple[str, ...]
    texts: tuple[str, ...]
    left_out: int
    pad: int

    @classmethod
    def from_corpora(cls, corpora: Sequence[Corpus], tokenizer: Tokenizer, max_length: int) -> LabelledVerses:
        """Label the verses of several translations of the same split.

        Args:
            max_length: the longest row in tokens, at most the model's positions.

        Raises:
            ValueError: no verse is left.
        """
        shared = [verse for verse in corpora[0].verses if all(verse in c.verses for c in corpora)]
        end = tokenizer.eos_token_id
        encoded = [tokenizer.encode_batch([c.verses[verse] for verse in shared]) for c in corpora]
        kept = [i for i in range(len(shared)) if max(len(ids[i]) for ids in encoded) + 2 <= max_length]
        names = tuple(c.name for c in corpora)
        check_any_left(len(shared), len(kept), max_length, f"verses that {', '.join(names)} share")
        rows = tuple([end, *ids[i], end] for i in kept for ids in encoded)
        texts = tuple(c.verses[shared[i]] for i in kept for c in corpora)
        labels = np.tile(np.arange(len(corpora), dtype=np.int64), len(kept))
        return cls(rows, labels, names, texts, len(shared) - len(kept), tokenizer.pad_token_id)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, step: int, batch_size: int, seed: int = 0, padding_side: Side = "right") -> Batch:
        """The examples of one training step, shuffled anew each epoch: a pure function of (seed, step).

        Returns:
            input_ids and attention_mask, (B, T) int64; labels, (B,) int64.
        """
        slices = epoch_slices(len(self), step, batch_size, seed, "labelled")
        return self._rows(np.concatenate([indices for _, indices in slices]), padding_side)

    def batches(self, batch_size: int, padding_side: Side = "right") -> Iterator[Batch]:
        """Every example once, in order."""
        for at in range(0, len(self), batch_size):
            yield self._rows(np.arange(at, min(at + batch_size, len(self))), padding_side)

    def _rows(self, indices: np.ndarray, side: Side) -> Batch:
        rows = [self.rows[i] for i in indices]
        return {
            "input_ids": pad_rows(rows, self.pad, side),
            "labels": self.labels[indices],
            "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, side),
        }
