"""What four bits cost and what adapters give back: errors, bits per parameter, bits per byte; a table and a picture.

    python -m benchmarks.quantization [--seeds 3] [--out runs/compare] [--results benchmarks/results]

The adapted rows are those of ``minitorch-peft compare``, which keeps its runs in ``--out``: what is stored there is not
run again. Writes quantization.json and quantization.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from minitorch_peft.analysis import quantization, quantization_picture
from minitorch_peft.analysis.comparison import Comparison
from minitorch_peft.analysis.contenders import contenders_named
from minitorch_peft.analysis.experiment import bits
from minitorch_peft.analysis.plan import Plan
from minitorch_peft.analysis.summary import Row, rows
from minitorch_peft.data import Tokenizer
from minitorch_peft.models import GPT

ADAPTED = ["full", "lora-r16", "qlora"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="where the comparison keeps its runs")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where to write")
    parser.add_argument("--steps", type=int, default=Plan().steps, help="updates in a run")
    parser.add_argument("--eval-rows", type=int, default=Plan().eval_rows, help="rows that each text is measured on")
    options = parser.parse_args(argv)
    plan = Plan(steps=options.steps, warmup=min(Plan().warmup, options.steps // 4), eval_rows=options.eval_rows)
    comparison = Comparison(plan, contenders_named(ADAPTED), range(options.seeds), Tokenizer.shipped(), options.out)
    model = comparison.base
    weights = {"normal": quantization.normal_weights(), "model": quantization.linear_weights(model)}
    errors = quantization.rounding_errors(weights)
    print_errors(errors)
    models = quantization.quantized_models(
        lambda: GPT.from_pretrained(plan.base), lambda m: bits(m, comparison.texts, plan)
    )
    print_models(models)
    adapted = rows(comparison.contenders, comparison.results())
    print_adapted(comparison.base_bits(), adapted)
    options.results.mkdir(parents=True, exist_ok=True)
    quantization_picture.draw(errors, models, adapted, options.results / "quantization.png")
    table = {"errors": errors, "models": models, "adapted": [quality(row) for row in adapted], "plan": plan.to_dict()}
    (options.results / "quantization.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def quality(row: Row) -> dict[str, Any]:
    """Without the time of a step, which is the comparison's to tell."""
    return {key: value for key, value in row.to_dict().items() if key != "seconds_per_step"}


def print_errors(errors: list[dict]) -> None:
    print("rounding error, % of the weights (root mean square), blocks of 64")
    for row in errors:
        if row["blocksize"] == 64:
            double = ", double quantization" if row["double"] else ""
            name = f"{row['weights']} weights, {row['quant_type']}{double}"
            print(f"  {name:44s} {100 * row['relative_error']:6.2f} %  at {row['bits']:.3f} bits a weight")


def print_models(models: list[dict]) -> None:
    print("the model, quantized: bits per byte")
    for row in models:
        double = ", double quantization" if row["double"] else ""
        texts = "  ".join(f"{name} {value:.3f}" for name, value in row["bits_per_byte"].items())
        print(f"  {row['quant_type'] + double:28s} {row['bits']:6.3f} bits a weight  {texts}")


def print_adapted(before: dict[str, float], adapted: list[Row]) -> None:
    print(f"adapted to another English: bits per byte on held-out books (untouched: {before['held_out']:.2f})")
    for row in adapted:
        print(f"  {row.contender.title:20s} {row.bits['held_out'].text(3)}")


if __name__ == "__main__":
    main()
