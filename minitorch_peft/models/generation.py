"""Continue a text: greedy or sampled, with a cache, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from minitorch_peft.autograd.random import generator
from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.models.cache import Cache
from minitorch_peft.models.config import GPTConfig
from minitorch_peft.models.inputs import as_array, as_ids
from minitorch_peft.nn import mode_of


def generate(
    model: Any,
    input_ids: Any,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    attention_mask: Any = None,
    eos_token_id: int | Iterable[int] | None = None,
    pad_token_id: int = 0,
    use_cache: bool = True,
    stream: Callable[[np.ndarray], None] | None = None,
    past_key_values: Cache | None = None,
    **forward_options: Any,
) -> np.ndarray:
    """Append up to ``max_new_tokens`` tokens to each row of ``input_ids``.

    Args:
        input_ids: int (B, T). Rows of different lengths are padded on the left, with ``attention_mask``
            (B, T).
        do_sample: draw from the distribution instead of taking its largest entry. The draw of row i at step t
            depends on (seed, i, t) only.
        temperature, top_k, top_p: as in ``transformers``: logits / temperature, then the k largest, then the
            smallest set whose probabilities sum to at least p.
        eos_token_id: one or more ids that end a row; it is filled with ``pad_token_id`` from there.
        use_cache: False recomputes every position at every step; the same tokens, more slowly.
        stream: called with the new ids (B,) after every step.
        past_key_values: a cache to go on from (a compressed prompt, for example), which is left as it is.
        forward_options: handed to the model at every step (``adapter_names``).

    Returns:
        int (B, T + new); fewer than ``max_new_tokens`` are new where every row has ended.
    """
    check_sampling(max_new_tokens, do_sample, temperature, top_k, top_p)
    if past_key_values is not None and not use_cache:
        raise ValueError("past_key_values is a cache to go on from: it needs use_cache=True")
    ids, mask = checked_input(model.config, input_ids, attention_mask)
    if past_key_values is not None and past_key_values.length:
        past = past_key_values.next_position  # what adapters put before the text is in the cache already
    else:
        past = model.positions_before(len(ids), **forward_options)
    check_positions(model.config, mask, max_new_tokens, past)
    ends = eos_token_id if isinstance(eos_token_id, Iterable) else [eos_token_id]
    stop = np.array([i for i in ends if i is not None], dtype=ids.dtype)
    done = np.zeros(len(ids), bool)
    cache, new = None if past_key_values is None else past_key_values.copy(), ids
    for step in range(max_new_tokens):
        with no_grad(), mode_of(model, training=False):
            out = model(
                new if use_cache else ids, attention_mask=mask, past_key_values=cache, use_cache=use_cache,
                **forward_options,
            )  # fmt: skip
        cache = out.past_key_values
        logits = out.logits.data[:, -1]
        if do_sample:
            weights = probabilities(logits, temperature, top_k, top_p)
            chosen = np.array([sample(p, seed, row, step) for row, p in enumerate(weights)])
        else:
            chosen = logits.argmax(axis=-1)
        chosen = np.where(done, pad_token_id, chosen).astype(ids.dtype)
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=True)
        done |= np.isin(chosen, stop)
        new = chosen[:, None]
        ids = np.concatenate([ids, new], axis=1)
        if stream is not None:
            stream(chosen)
        if done.all():
            break
    return ids


def checked_input(config: GPTConfig, input_ids: Any, attention_mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """ids int64 (B, T) and mask bool (B, T), or a ValueError before the first token is written."""
    ids = as_ids(input_ids, config.vocab_size).astype(np.int64)
    if ids.shape[1] == 0:
        raise ValueError("input_ids must hold at least one token in each row, got none")
    mask = np.ones(ids.shape, bool) if attention_mask is None else as_array(attention_mask)
    if mask.shape != ids.shape or mask.dtype.kind not in "biu":
        raise ValueError(f"attention_mask must be bool or 0 and 1 of shape {ids.shape}, got {mask.dtype} {mask.shape}")
    mask = mask.astype(bool)
    if not mask[:, -1].all():
        raise ValueError("a row ends in a masked position: pad on the left, so that its text goes on where it ends")
    return ids, mask


def check_positions(config: GPTConfig, mask: np.ndarray, max_new_tokens: int, past: Any) -> None:
    """ValueError where a row would need more than there are; ``past``, or ``past`` (B,), are taken already."""
    longest = int(np.max(past + mask.sum(axis=1), initial=0))
    needed = longest + max_new_tokens - 1
    if needed > config.n_positions:
        raise ValueError(
            f"{max_new_tokens} new tokens after {longest} needs {needed} positions, the model has "
            f"{config.n_positions}: shorten the input or lower max_new_tokens"
        )


def check_sampling(
    max_new_tokens: int, do_sample: bool, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    if not do_sample and (temperature != 1.0 or top_k is not None or top_p is not None):
        raise ValueError("temperature, top_k and top_p act on sampling only: pass do_sample=True")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}; for 0, pass do_sample=False")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def probabilities(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """(B, V) logits to the (B, V) distribution that is drawn from (Holtzman et al. 2020, section 3.1)."""
    # BEGIN SOLUTION(task="2.6a")
    z = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < z.shape[-1]:
        kth = np.partition(z, -top_k, axis=-1)[:, -top_k, None]
        z = np.where(z < kth, -np.inf, z)
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    if top_p is not None and top_p < 1:
        order = np.argsort(-p, axis=-1, kind="stable")
        sorted_p = np.take_along_axis(p, order, axis=-1)
        outside = np.cumsum(sorted_p, axis=-1) - sorted_p >= top_p  # what comes before already sums to p
        np.put_along_axis(p, order, np.where(outside, 0, sorted_p), axis=-1)
        p /= p.sum(axis=-1, keepdims=True)
    return p
    # END SOLUTION


def sample(p: np.ndarray, seed: int, row: int, step: int) -> int:
    """One index drawn from ``p`` (V,), by inverting its cumulative sum."""
    u = generator(seed, "generate", row, step).random()
    # BEGIN SOLUTION(task="2.6b")
    return int(min(np.searchsorted(np.cumsum(p), u, side="right"), np.flatnonzero(p)[-1]))
    # END SOLUTION
