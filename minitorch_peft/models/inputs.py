"""What a pass is given, checked and put into the form that the modules use."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models.cache import Cache
from minitorch_peft.models.config import GPTConfig
from minitorch_peft.nn.context import ForwardContext


def as_array(x: Any) -> np.ndarray:
    """The array in a tensor, an array or nested lists."""
    return x.data if isinstance(x, Tensor) else np.asarray(x)


def as_ids(input_ids: Any, vocab_size: int) -> np.ndarray:
    """int (B, T) within the vocabulary, or an error that says what was wrong."""
    ids = as_array(input_ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"input_ids must be integers of shape (B, T), got {ids.dtype} {ids.shape}")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        bad = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise ValueError(
            f"input_ids contains {bad}, the model's vocabulary is 0..{vocab_size - 1}: was the text encoded "
            "with this model's tokenizer?"
        )
    return ids


def prepare(
    context: ForwardContext, config: GPTConfig, vectors: Tensor, cache: Cache | None,
    attention_mask: Any, position_ids: Any,
) -> None:  # fmt: skip
    """Fill in the GPT's part of the context: cache, visible keys, positions, rotations."""
    B, T = vectors.shape[:2]
    past = 0 if cache is None else cache.length
    prompt = context.prompt_length
    offset = 0 if cache is None else cache.next_position
    context.cache, context.past_length = cache, past
    real = real_keys(context, cache, B, T, past)
    context.keep = visible_keys(attention_mask, B, T, prompt, past)
    if real is not None:
        context.keep = real if context.keep is None else context.keep & real
    padded = attention_mask is not None and as_array(attention_mask).ndim == 2
    counted = context.keep if padded else real
    context.first = as_array(attention_mask)[:, -T:].astype(bool).argmax(axis=1) if padded and T else None
    before = 0 if cache is None else cache.before
    own = prompt if context.prompt_keep is None else context.prompt_keep.sum(axis=1)
    if position_ids is None:
        context.position_ids = positions(counted, T, prompt, past, offset)
    else:
        context.position_ids = given_positions(position_ids, context, B, T, before)
    if context.hidden is not None:
        shown = ~context.hidden[:, None]
        context.keep = shown if context.keep is None else context.keep & shown
    highest = int(context.position_ids.max(initial=-1))
    if highest >= config.n_positions:
        raise ValueError(
            f"the sequence needs {highest + 1} positions, the model has {config.n_positions}: "
            "shorten the input, the prompt or max_new_tokens"
        )
    if cache is not None:
        cache.next_position = offset + prompt + T
        cache.before = before + own
        cache.real = None if real is None else real[:, 0, 0]
    if config.position_embedding == "rotary":
        context.rotary = rotation(context.position_ids, config.head_dim, config.rope_theta, vectors.dtype)


def real_keys(context: ForwardContext, cache: Cache | None, B: int, T: int, past: int) -> np.ndarray | None:
    """bool (B, 1, 1, S), false at what only fills up the prompts and prefixes of a row; None where nothing does."""
    before = None if cache is None or not past else cache.real
    if before is None and context.prompt_keep is None:
        return None
    parts = [
        np.ones((B, past), bool) if before is None else before,
        np.ones((B, context.prompt_length), bool) if context.prompt_keep is None else context.prompt_keep,
        np.ones((B, T), bool),
    ]
    return np.concatenate(parts, axis=1)[:, None, None]


def visible_keys(attention_mask: Any, B: int, T: int, prompt: int, past: int) -> np.ndarray | None:
    """bool (B, 1, 1 or prompt + T, S), S = past + prompt + T; keys left of the mask are visible."""
    if attention_mask is None:
        return None
    mask = as_array(attention_mask)
    if mask.dtype.kind not in "biu":
        # where 0 means visible and -inf hidden, as in additive masks, a cast to bool would turn it around
        raise ValueError(f"attention_mask must be bool or 0 and 1 integers, got {mask.dtype}")
    mask = mask.astype(bool)
    keys = past + prompt + T
    if mask.ndim == 2:
        mask = mask[:, None, None, :]
    lead = mask.shape[:3] in ((B, 1, 1), (B, 1, T))
    if not lead or mask.ndim != 4 or not T <= mask.shape[3] <= keys:
        raise ValueError(
            f"attention_mask has shape {np.shape(attention_mask)}; expected (B, S) or (B, 1, T, S) "
            f"with B={B}, T={T} and S from {T} to {keys}"
        )
    rows = prompt if mask.shape[2] == T and T > 1 else 0  # prompt vectors are queries too, and see every key
    return np.pad(mask, ((0, 0), (0, 0), (rows, 0), (keys - mask.shape[3], 0)), constant_values=True)


def positions(keep: np.ndarray | None, T: int, prompt: int, past: int, offset: int) -> np.ndarray:
    """int (B or 1, prompt + T). ``offset`` is the position of the first new vector where no key is masked.

    ``keep`` is the mask (B, 1, 1, S) whose visible keys are counted, None to count all.
    """
    if keep is None:
        return (offset + np.arange(prompt + T))[None]
    counted = np.cumsum(keep[:, 0, 0], axis=1)[:, past:] - 1
    return np.maximum(counted + offset - past, 0)


def given_positions(position_ids: Any, context: ForwardContext, B: int, T: int, before: np.ndarray | int) -> np.ndarray:
    """int (B or 1, prompt + T): the caller's count the text alone, and each row's own vectors come before it.

    ``before`` (B,), or one number for all, are those that the cache holds; a prompt of this pass follows them.
    """
    ids = as_array(position_ids)
    if ids.ndim != 2 or ids.shape[0] not in (1, B) or ids.shape[1] != T:
        raise ValueError(f"position_ids has shape {ids.shape}; expected ({B}, {T}) or (1, {T})")
    keep = context.prompt_keep
    prompts = np.ones((1, context.prompt_length), bool) if keep is None else keep
    start = np.reshape(before, (-1, 1))
    first = np.maximum(start + np.cumsum(prompts, axis=1) - 1, 0)
    text = ids + start + prompts.sum(axis=1, keepdims=True)
    rows = max(len(first), len(text))
    parts = [np.broadcast_to(part, (rows, part.shape[1])) for part in (first, text)]
    return np.concatenate(parts, axis=1)


def rotation(position_ids: np.ndarray, head_dim: int, theta: float, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin (B or 1, T, D/2) of position · theta^(-2i/D) (Su et al. 2021, eq. 34)."""
    # angles are rounded to float32 on the way, as in transformers: at late positions this is seen in the logits
    frequency = 1 / (theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angle = position_ids[:, :, None].astype(np.float32) * frequency
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def shifted_labels(labels: Any, shape: tuple[int, int], one_before: bool, vocab_size: int) -> np.ndarray:
    """The label that each position predicts, -100 after the last: (B, T), or (B, T + 1) with one before."""
    y = as_array(labels)
    if y.shape != shape or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels must be integers of the input's shape {shape}, got {y.dtype} {y.shape}")
    if y.size and (y.max() >= vocab_size or ((y < 0) & (y != -100)).any()):
        raise ValueError(f"labels must be -100 or within the vocabulary 0..{vocab_size - 1}")
    # BEGIN SOLUTION(task="2.4a")
    return np.pad(y if one_before else y[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    # END SOLUTION


def start_at_the_text(targets: np.ndarray, first: np.ndarray, prompt_keep: np.ndarray | None) -> None:
    """In ``targets`` (B, T + 1), let the last vector of a row's prompt predict its first word, behind the padding."""
    own = np.ones(len(first), bool) if prompt_keep is None else prompt_keep[:, -1]
    rows = np.flatnonzero(own & (first > 0))
    targets[rows, 0] = targets[rows, first[rows]]
    targets[rows, first[rows]] = -100
