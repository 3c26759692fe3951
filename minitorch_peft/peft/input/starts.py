"""Where virtual tokens start: at words of the vocabulary, or at what the base computes for real words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.models import GPT
from minitorch_peft.models.inputs import as_ids
from minitorch_peft.nn import init, mode_of
from minitorch_peft.peft.inject import base_module


def words(model: GPT, k: int, ids: Sequence[int] | None, text: str | None, tokenizer: str | None) -> list[int]:
    """``k`` ids of this model: those given, or those of ``text``; repeated to fill and cut to fit, as in ``peft``.

    ``tokenizer`` is a directory or an embedded checkpoint, None for the shipped one. Nothing is put around the text.
    ValueError where there are none, or one is not in the vocabulary.
    """
    if ids is None:
        ids = (Tokenizer.shipped() if tokenizer is None else Tokenizer.from_pretrained(tokenizer)).encode(text or "")
    if not len(ids):
        raise ValueError(f"no words to start {k} virtual tokens from: the text {text!r} has no tokens")
    filled = np.resize(as_ids(np.asarray(ids)[None], model.config.vocab_size), k)
    return filled.tolist()


def vocabulary(model: GPT) -> np.ndarray:
    """The vectors (V, C) of all words."""
    return base_module(model, "embed.tokens").dense_weight().T


def at(table: np.ndarray) -> init.Init:
    """Start at ``table``, whatever the seed."""
    return partial(_at, table)


def sampled_rows(table: np.ndarray) -> init.Init:
    """Start at rows of ``table`` that the seed draws, each as likely as any other."""
    return partial(_sampled_rows, table)


def _at(table: np.ndarray, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return table


def _sampled_rows(table: np.ndarray, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return table[rng.integers(0, len(table), shape[0])]


def activations(model: GPT, ids: Sequence[int]) -> np.ndarray:
    """The keys and values that the base computes for ``ids`` (k), as a prefix's table (k, 2 n_layer kv_heads head_dim).

    They are as the cache holds them: keys of a model with rotary positions are turned already, by the positions
    0 ... k - 1, which a prefix has too. So a prefix of them is to the text after it what the words themselves were.
    """
    with no_grad(), mode_of(model, training=False):
        cache = model(np.asarray(ids)[None], use_cache=True).past_key_values
    pairs = [t for layer in range(model.config.n_layer) for t in cache.entries[layer]]
    stacked = F.stack(pairs, dim=0)[:, 0]  # (2 n_layer, kv_heads, k, head_dim)
    return stacked.permute(2, 0, 1, 3).reshape(len(ids), -1).data


def solved(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """The smallest X with A X = B, A (k, h); ValueError where the rows of A are too few numbers to make those of B."""
    X = np.linalg.lstsq(A.astype(np.float64), B.astype(np.float64), rcond=None)[0]
    if not np.allclose(A @ X, B, rtol=1e-4, atol=1e-4 * np.abs(B).max(initial=0)):
        k, h = A.shape
        raise ValueError(f"an encoder_hidden_size of {h - 1} cannot make {k} given rows: at least {k - 1} are needed")
    return X
