"""What a pass under adapters needs before the base runs: whose rows are whose, prompts, prefixes, masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import Cache
from minitorch_peft.models.inputs import as_array
from minitorch_peft.nn import ForwardContext, Module
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.inject import slot
from minitorch_peft.peft.registry import method_of

BASE = "__base__"  # in adapter_names: a row that runs under no adapter


def begin(
    context: ForwardContext, adapters: Mapping[str, Adapter], ids: np.ndarray, cache: Cache | None, use_cache: bool,
    attention_mask: Any = None,
) -> Cache | None:  # fmt: skip
    """Announce prompts and masks in ``context`` and start the cache with prefixes; the cache to run with.

    ``ids`` (B, T) are the tokens of this pass, -1 where vectors were given. Prompts and prefixes are for a first pass:
    later ones find them in the cache, and a cache that holds others is refused.
    """
    acting = [a for a in adapters.values() if a.rows(context) is not False]
    context.prompt_length, context.prompt_keep, context.prompts_placed, context.hidden = 0, None, False, None
    given, fresh = makers(context, acting, len(ids)), cache is None or not cache.length
    check_makers(cache, given)
    # BEGIN SOLUTION(task="5.5b")
    if cache is None or not cache.length:
        context.prompt_length, context.prompt_keep = places(context, {a.name: a.prompt_length for a in acting})
        cache = with_prefixes(context, acting, len(ids), cache)
    # END SOLUTION
    if fresh and any(given):
        cache = Cache() if cache is None and use_cache else cache
    if fresh and cache is not None:
        cache.made_by = given
        cache.before = cache.length if cache.real is None else cache.real.sum(axis=1)  # a prompt is counted by the base
    hiding = [a for a in acting if type(a).hidden is not Adapter.hidden]
    if hiding or (cache is not None and cache.ids is not None):  # tokens are kept in every pass, or in none
        cache = Cache() if cache is None and use_cache else cache
        hidden = hidden_keys(context, hiding, unmasked(ids, attention_mask), cache)
        context.hidden = hidden if hiding else None
    return cache


def unmasked(ids: np.ndarray, attention_mask: Any) -> np.ndarray:
    """``ids`` (B, T), -1 where the mask hides one from every position: it is no word of the text."""
    if attention_mask is None:
        return ids
    seen = as_array(attention_mask).astype(bool)
    # (B, S), of which the last T are those of this pass
    seen = np.asarray(seen[:, 0].any(axis=1)) if seen.ndim == 4 else seen
    own = seen[:, -ids.shape[1] :] if seen.ndim == 2 else seen
    return np.where(own, ids, -1) if own.shape == ids.shape else ids  # else the base says what is wrong


def makers(context: ForwardContext, acting: Sequence[Adapter], batch: int) -> tuple[tuple[str, ...], ...]:
    """For each row the adapters that put vectors before its text."""
    names = sorted(a.name for a in acting if a.prompt_length or a.prefix_length)
    if context.adapter_names is None:
        return (tuple(names),) * batch
    return tuple((name,) if name in names else () for name in context.adapter_names)


def check_makers(cache: Cache | None, given: tuple[tuple[str, ...], ...]) -> None:
    """ValueError where a cache was filled under other prompts or prefixes than those that act now."""
    if cache is None or not cache.length:
        return
    held = cache.made_by or ((),) * len(given)
    for row, (before, now) in enumerate(zip(held, given, strict=False)):
        if before != now:
            raise ValueError(
                f"the cache holds {said(before)} in row {row}, but {said(now)} acts: go on under the adapters that "
                "filled it, or start with an empty Cache()"
            )


def said(names: Sequence[str]) -> str:
    return f"the prompt or prefix of {', '.join(names)}" if names else "no prompt or prefix"


def places(context: ForwardContext, lengths: Mapping[str, int]) -> tuple[int, np.ndarray | None]:
    """How many places adapters of these lengths need before the input, and bool (B, places): which are a row's own.

    Adapters that act together stand behind each other; where each row has its own, all rows share the places of the
    longest and use the last of them. None: all rows use all.
    """
    if context.adapter_names is None:
        return sum(lengths.values()), None
    own = np.array([lengths.get(name, 0) for name in context.adapter_names])
    longest = int(own.max(initial=0))
    keep = np.arange(longest) >= longest - own[:, None]
    return longest, None if keep.all() else keep


def with_prefixes(context: ForwardContext, acting: list[Adapter], batch: int, cache: Cache | None) -> Cache | None:
    """The cache, started with the prefixes of the acting adapters, if any has one."""
    prefixes = {a.name: pairs for a in acting if (pairs := a.prefix()) is not None}
    if not prefixes:
        return cache
    owner, longest, real = None, 0, None
    if context.adapter_names is not None:
        longest, real = places(context, {name: pairs[0][0].shape[1] for name, pairs in prefixes.items()})
        owner = np.array([[*prefixes].index(n) + 1 if n in prefixes else 0 for n in context.adapter_names])
    layers = []
    for of_layer in zip(*prefixes.values(), strict=True):
        keys, values = zip(*of_layer, strict=True)
        both = [in_line(t, batch) if owner is None else own_rows(t, longest, owner) for t in (keys, values)]
        layers.append((both[0], both[1]))
    # BEGIN SOLUTION(task="5.5c")
    start = Cache.from_prefix(layers)
    cache = start if cache is None else cache
    cache.entries, cache.next_position, cache.real = start.entries, start.next_position, real
    return cache
    # END SOLUTION


def in_line(parts: Sequence[Tensor], batch: int) -> Tensor:
    """Keys, or values, (kv_heads, k, head_dim) of several prefixes as those of one, for every row."""
    # BEGIN SOLUTION(task="5.5d")
    whole = F.cat(list(parts), dim=1)
    return whole.expand(batch, *whole.shape)
    # END SOLUTION


def own_rows(parts: Sequence[Tensor], longest: int, owner: np.ndarray) -> Tensor:
    """Each row's own keys, or values, filled up in front to ``longest``; row b has part ``owner[b]`` - 1, or none."""
    heads, _, width = parts[0].shape
    filled = [Tensor(np.zeros((heads, longest, width), parts[0].dtype))]
    for part in parts:
        gap = longest - part.shape[1]
        fill = Tensor(np.zeros((heads, gap, width), part.dtype))
        filled.append(F.cat([fill, part], dim=1) if gap else part)
    return F.stack(filled, dim=0)[owner]


def hidden_keys(context: ForwardContext, hiding: Sequence[Adapter], ids: np.ndarray, cache: Cache | None) -> np.ndarray:
    """bool (B, new, S): what the adapters' masks hide; the cache keeps the tokens for later passes."""
    past, new = 0 if cache is None else cache.length, context.prompt_length + ids.shape[1]
    known = None if cache is None else cache.tokens(past)
    before = np.full((len(ids), past), -1) if known is None else known
    everything = np.concatenate([before, np.full((len(ids), context.prompt_length), -1), ids], axis=1)
    if cache is not None:
        cache.ids = everything
    hidden = np.zeros((len(ids), new, everything.shape[1]), bool)
    for adapter in hiding:
        rows = adapter.rows(context)
        hidden |= adapter.hidden(everything, new) & np.reshape(rows, (-1, 1, 1))
    return hidden


@contextmanager
def standing(model: Module, adapters: Mapping[str, Adapter], context: ForwardContext) -> Iterator[None]:
    """Inside, what adapters make of parameters stands in their place."""
    taken = []
    try:
        for adapter in adapters.values():
            made = adapter.reparametrized if adapter.active and not adapter.merged else {}
            for path, reparam in made.items():
                holder, name = slot(model, path)
                taken.append((holder, name, holder.get(name)))
                setattr(holder, name, reparam.tensor(holder.get(name), context))
        yield
    finally:
        for holder, name, parameter in reversed(taken):
            setattr(holder, name, parameter)


def checked_rows(names: Sequence[str], adapters: Mapping[str, Adapter], batch: int) -> tuple[str, ...]:
    """One name for each row; ValueError where an adapter that is involved cannot act on single rows."""
    if len(names) != batch:
        raise ValueError(f"adapter_names has {len(names)} names for {batch} rows")
    standing_in = {name for name, a in adapters.items() if a.active and (a.selected or a.reparametrized)}
    involved = sorted({n for n in names if n != BASE} | standing_in)
    if bad := [n for n in involved if not method_of(adapters[n].config).rowwise]:
        raise ValueError(
            f"adapter {', '.join(bad)} changes the whole batch at once (its method is not row-wise): "
            "run its rows in a batch of their own, and deactivate it here"
        )
    return tuple(names)
