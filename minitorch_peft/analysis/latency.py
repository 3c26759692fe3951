"""How long a generated token takes: under an adapter, and with the adapter merged."""

from __future__ import annotations

import math
import time
import warnings

from minitorch_peft.autograd.random import generator
from minitorch_peft.models import GPT
from minitorch_peft.peft import PeftModel
from minitorch_peft.peft.registry import method_of

PROMPT, NEW, ROUNDS = 32, 32, 3


def token_seconds(model: GPT | PeftModel, before: int | None = None) -> float:
    """Seconds for each of ``NEW`` greedy tokens of one row after ``PROMPT`` tokens, with the cache: the best round.

    The first token takes the pass over the prompt, and over an adapter's own vectors before it, with it. Both numbers
    are smaller where the model has too few positions; ``before`` of them are taken (None: as many as the model says).
    """
    taken = int(model.positions_before(1)[0]) if before is None else before
    half = (model.config.n_positions - taken) // 2
    length, new = min(PROMPT, half), min(NEW, half)
    ids = generator(0, "latency").integers(0, model.config.vocab_size, (1, length))
    best = math.inf
    for _ in range(ROUNDS + 1):  # one more to warm up
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=new)
        best = min(best, (time.perf_counter() - start) / new)
    return best


def latencies(model: PeftModel) -> dict[str, float | None]:
    """Seconds a token of the base alone, under the active adapters, and with them merged (None: they cannot be)."""
    before = int(model.positions_before(1)[0])  # the base alone gets as many tokens as the adapted model
    with model.disable_adapter():
        base = token_seconds(model, before)
    adapted, merged = token_seconds(model), None
    if all(method_of(model.adapters[name].config).mergeable for name in model.active_adapters):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "merging changed a weight that the embedding and the head shared")
            model.merge_adapter()
        merged = token_seconds(model)
        model.unmerge_adapter()
    return {"base": base, "adapter": adapted, "merged": merged}
