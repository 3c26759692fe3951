"""What a pass under adapters needs before the base runs: whose rows are whose, prompts, prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import Cache
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.registry import method_of

BASE = "__base__"  # in adapter_names: a row that runs under no adapter


def begin(context: ForwardContext, adapters: Mapping[str, Adapter], batch: int, cache: Cache | None) -> Cache | None:
    """Announce prompts in ``context`` and start the cache with prefixes; the cache to run with.

    Both are for a first pass: later ones find them in the cache. Where rows name their adapters neither acts, since
    the methods that have them are not row-wise.
    """
    context.prompt_length = 0
    if context.adapter_names is not None or (cache is not None and cache.length):
        return cache
    active = [a for a in adapters.values() if a.active]
    context.prompt_length = sum(a.prompt_length for a in active)
    prefixes = [p for p in (a.prefix(batch) for a in active) if p is not None]
    if not prefixes:
        return cache
    layers = zip(*prefixes, strict=True)
    start = Cache.from_prefix([(cat(k for k, _ in pairs), cat(v for _, v in pairs)) for pairs in layers])
    if cache is None:
        return start
    cache.entries, cache.next_position = start.entries, start.next_position
    return cache


def cat(parts: Iterable[Tensor]) -> Tensor:
    """Keys, or values, of several prefixes as those of one."""
    return F.cat(list(parts), dim=2)


def checked_rows(names: Sequence[str], adapters: Mapping[str, Adapter], batch: int) -> tuple[str, ...]:
    """One name for each row; ValueError where an adapter that is involved cannot act on single rows."""
    if len(names) != batch:
        raise ValueError(f"adapter_names has {len(names)} names for {batch} rows")
    standing_in = {name for name, a in adapters.items() if a.active and a.selected}
    involved = sorted({n for n in names if n != BASE} | standing_in)
    if bad := [n for n in involved if not method_of(adapters[n].config).rowwise]:
        raise ValueError(
            f"adapter {', '.join(bad)} changes the whole batch at once (its method is not row-wise): "
            "run its rows in a batch of their own, and deactivate it here"
        )
    return tuple(names)
