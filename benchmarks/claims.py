"""The lecture's claims, held against runs made for them: a verdict for each.

    python -m benchmarks.claims [--seeds 2] [--out runs/claims] [--results benchmarks/results]

Runs are kept one by one in ``--out``: a stopped benchmark goes on where it was. Writes claims.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from minitorch_peft.analysis import claims
from minitorch_peft.analysis.comparison import Comparison
from minitorch_peft.analysis.contenders import Contender
from minitorch_peft.analysis.plan import Plan
from minitorch_peft.analysis.rates import RateSearch
from minitorch_peft.analysis.summary import Row, rows
from minitorch_peft.data import Tokenizer
from minitorch_peft.models import GPT
from minitorch_peft.peft import METHODS

SIZES = ("tiny-0.25m", "tiny", "tiny-2m")
FULL = Contender("full-all", "full fine-tuning", "full", 0.0, budget="all")
PROMPTS = tuple(
    Contender(f"prompt_tuning-{k}", f"prompt of {k}", "prompt_tuning", 0.0,
              {"num_virtual_tokens": k, "prompt_tuning_init": "SAMPLE_VOCAB"}, budget=str(k))
    for k in (20, 4, 100)
)  # fmt: skip
PREFIX = (Contender("prefix_tuning-20", "prefix of 20", "prefix_tuning", 0.0, {"num_virtual_tokens": 20}, budget="20"),)
ADAPTERS = tuple(
    Contender(f"seq_bn-{w}", f"adapter of {w}", "seq_bn", 0.0, {"bottleneck_size": w}, budget=str(w))
    for w in (16, 1, 4, 64)
)
LORA = tuple(
    Contender(f"lora-{r}", f"LoRA r={r}", "lora", 0.0, {"r": r, "lora_alpha": 2 * r, "target_modules": "all-linear"},
              budget=str(r))
    for r in (16, 1, 4, 64)
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each method")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"), help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where to write")
    parser.add_argument("--steps", type=int, default=Plan().steps, help="updates in a run")
    parser.add_argument("--batch-size", type=int, default=Plan().batch_size, help="rows in a step")
    parser.add_argument("--eval-rows", type=int, default=Plan().eval_rows, help="rows that each text is measured on")
    options = parser.parse_args(argv)
    plans = {
        base: Plan(
            base,
            steps=options.steps,
            batch_size=options.batch_size,
            warmup=min(10, options.steps // 4),
            eval_rows=options.eval_rows,
        )
        for base in SIZES
    }
    tiny = Comparing(plans["tiny"], (FULL, *PROMPTS, *PREFIX, *ADAPTERS, *LORA), options)
    sizes = {base: tiny if base == "tiny" else Comparing(plans[base], (FULL, PROMPTS[0]), options) for base in SIZES}
    verdicts = judged(tiny, sizes)
    for v in verdicts:
        print(f"{'held' if v.held else 'DID NOT HOLD'}: {v.claim}\n    rule: {v.rule}\n    {rounded(v.figures)}")
    value = {"plan": plans["tiny"].to_dict(), "seeds": options.seeds, "verdicts": [v.to_dict() for v in verdicts]}
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "claims.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


class Comparing:
    """The runs of one base: rates searched, then every contender with every seed."""

    def __init__(self, plan: Plan, contenders: Sequence[Contender], options: argparse.Namespace) -> None:
        tokenizer = Tokenizer.shipped()
        comparison = Comparison(plan, contenders, range(options.seeds), tokenizer, options.out / plan.base)
        search = RateSearch(plan, comparison.settings, tokenizer, comparison.out)
        comparison.contenders, _ = search.with_rates(contenders, print)
        self.before = comparison.base_bits()
        self.rows = {r.contender.name: r for r in rows(comparison.contenders, comparison.results())}

    def of(self, contenders: Sequence[Contender]) -> list[Row]:
        return [self.rows[c.name] for c in contenders]


def judged(tiny: Comparing, sizes: dict[str, Comparing]) -> list[claims.Verdict]:
    full, before = tiny.rows[FULL.name], tiny.before
    middle = {c.title: tiny.rows[c.name] for c in (PROMPTS[0], PREFIX[0], FULL, LORA[0], ADAPTERS[0])}
    prompts = {name: middle.pop(name) for name in (PROMPTS[0].title, PREFIX[0].title)}
    by_size = {base: (c.rows[PROMPTS[0].name], c.rows[FULL.name], c.before) for base, c in sizes.items()}
    configs = {
        name: METHODS[name].make(settings)
        for name, settings in {
            "prompt_tuning": {"num_virtual_tokens": 8}, "prefix_tuning": {"num_virtual_tokens": 8},
            "lora": LORA[0].settings, "seq_bn": ADAPTERS[0].settings,
        }.items()
    }  # fmt: skip
    tokens = {name: configs.pop(name) for name in ("prompt_tuning", "prefix_tuning")}
    return [
        claims.limited_by_capacity(tiny.of(PROMPTS), tiny.of(LORA), full, before),
        claims.better_with_more(tiny.of(ADAPTERS), full, before),
        claims.close_to_full(tiny.of(LORA), full, before),
        claims.catches_up(by_size),
        claims.better_outside(prompts, middle, full, before),
        claims.nothing_without_weights(GPT.from_pretrained("tiny"), tokens, configs),
    ]


def rounded(x: object) -> object:
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    return round(x, 3) if isinstance(x, float) else x


if __name__ == "__main__":
    main()
