"""How long a generated token takes: under an adapter, and with the adapter merged."""

from __future__ import annotations

import math
import time
import warnings

from minitorch_peft.autograd.random import generator
from minitorch_peft.models import GPT
from minitorch_peft.peft import PeftModel
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.registry import method_of

PROMPT, NEW, ROUNDS = 32, 32, 3


def token_seconds(model: GPT | PeftModel) -> float:
    """Seconds for each of ``NEW`` greedy tokens of one row after ``PROMPT`` tokens, with the cache: the best round.

    The first token takes the pass over the prompt, and over an adapter's own vectors before it, with it. Both numbers
    are smaller where the model has too few positions.
    """
    own = max((a.prompt_length + a.prefix_length for a in adapters_of(model)), default=0)
    half = (model.config.n_positions - own) // 2
    length, new = min(PROMPT, half), min(NEW, half)
    ids = generator(0, "latency").integers(0, model.config.vocab_size, (1, length))
    best = math.inf
    for _ in range(ROUNDS + 1):  # one more to warm up
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=new)
        best = min(best, (time.perf_counter() - start) / new)
    return best


def adapters_of(model: GPT | PeftModel) -> list[Adapter]:
    return list(model.adapters.values()) if isinstance(model, PeftModel) else []


def latencies(model: PeftModel) -> dict[str, float | None]:
    """Seconds a token of the base alone, under the active adapters, and with them merged (None: they cannot be)."""
    with model.disable_adapter():
        base = token_seconds(model)
    adapted, merged = token_seconds(model), None
    if all(method_of(model.adapters[name].config).mergeable for name in model.active_adapters):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an untied head is put back at once
            model.merge_adapter()
        merged = token_seconds(model)
        model.unmerge_adapter()
    return {"base": base, "adapter": adapted, "merged": merged}
