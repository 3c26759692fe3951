"""(source, target) pairs: the same verse in two translations, with the loss on the target only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minitorch_peft.data.corpora import Corpus
from minitorch_peft.data.order import epoch_slices
from minitorch_peft.data.rows import IGNORE, Batch, Side, check_any_left, pad_rows
from minitorch_peft.data.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Pairs:
    """Verses to translate: the conditional language model's max sum of log P(y_t | x, y_<t).

    A row is ``<|endoftext|> source <|sep|> target <|endoftext|>``; the prompt is all up to the separator.

    Attributes:
        verses: keys of the verses, in order.
        prompts, answers: ids of each row's two parts.
        source_texts, target_texts: what they say.
        left_out: how many pairs were too long for ``max_length``.
        pad: the id that fills a short row.
    """

    verses: tuple[int, ...]
    prompts: tuple[list[int], ...]
    answers: tuple[list[int], ...]
    source_texts: tuple[str, ...]
    target_texts: tuple[str, ...]
    left_out: int
    pad: int

    @classmethod
    def from_corpora(cls, source: Corpus, target: Corpus, tokenizer: Tokenizer, max_length: int) -> Pairs:
        """Pair the verses that both have under numbers that mean the same.

        Args:
            source, target: two translations of the same split.
            max_length: the longest row in tokens, at most the model's positions; longer pairs are left out
                and counted in `left_out`.

        Raises:
            ValueError: no pair is left.
        """
        given, wanted = source.comparable().verses, target.comparable().verses
        both = [verse for verse in given if verse in wanted]
        sources = tokenizer.encode_batch([given[verse] for verse in both])
        targets = tokenizer.encode_batch([wanted[verse] for verse in both])
        end, sep = tokenizer.eos_token_id, tokenizer.sep_token_id
        rows = [
            (verse, [end, *x, sep], [*y, end], given[verse], wanted[verse])
            for verse, x, y in zip(both, sources, targets, strict=True)
            if len(x) + len(y) + 3 <= max_length
        ]
        check_any_left(len(both), len(rows), max_length, f"pairs of {source.name} and {target.name}")
        verses, prompts, answers, source_texts, target_texts = zip(*rows, strict=True)
        left_out = len(both) - len(rows)
        return cls(verses, prompts, answers, source_texts, target_texts, left_out, tokenizer.pad_token_id)

    def __len__(self) -> int:
        return len(self.verses)

    def batch(self, step: int, batch_size: int, seed: int = 0, padding_side: Side = "right") -> Batch:
        """The pairs of one training step, shuffled anew each epoch: a pure function of (seed, step).

        Returns:
            input_ids, labels (-100 on prompts and pads) and attention_mask, each (B, T) int64.
        """
        slices = epoch_slices(len(self), step, batch_size, seed, "pairs")
        return self._rows([int(i) for _, indices in slices for i in indices], padding_side)

    def batches(self, batch_size: int, padding_side: Side = "right") -> Iterator[Batch]:
        """Every pair once, in order."""
        for at in range(0, len(self), batch_size):
            yield self._rows(range(at, min(at + batch_size, len(self))), padding_side)

    def prompt_batch(self, indices: Sequence[int]) -> Batch:
        """Prompts to generate from, padded on the left: input_ids and attention_mask, (B, T) int64."""
        prompts = [self.prompts[i] for i in indices]
        return {
            "input_ids": pad_rows(prompts, self.pad, "left"),
            "attention_mask": pad_rows([[1] * len(p) for p in prompts], 0, "left"),
        }

    def _rows(self, indices: Sequence[int], side: Side) -> Batch:
        # BEGIN SOLUTION(task="2.4b")
        parts = [(self.prompts[i], self.answers[i]) for i in indices]
        return {
            "input_ids": pad_rows([x + y for x, y in parts], self.pad, side),
            "labels": pad_rows([[IGNORE] * len(x) + y for x, y in parts], IGNORE, side),
            "attention_mask": pad_rows([[1] * (len(x) + len(y)) for x, y in parts], 0, side),
        }
        # END SOLUTION
