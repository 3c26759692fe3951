"""What a step of each method costs on a model 384 wide, of six blocks: predicted, counted, and seen by the process.

    python -m benchmarks.ledger [--method lora ...] [--results benchmarks/results]

Each method runs in a fresh process, under its defaults; random_mask, partial and fusion, which have none, under the
settings of their first example. ``allocated`` is the most that Python and NumPy hold at once in a step of the trainer
(tracemalloc), ``resident`` what the system gave to the process beyond what it had before there was a model. Writes
ledger.json after each method; one that fails has a row that says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.contest import BOOTSTRAP
from minitorch_peft.formats.files import atomic_write
from minitorch_peft.models import GPTConfig
from minitorch_peft.peft import METHODS

SHAPE = GPTConfig(vocab_size=1024, n_positions=288, n_embd=384, n_layer=6, n_head=6)
BATCH = (8, 128)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, action="append", help="again for each; default: all")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where to write")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    options.results.mkdir(parents=True, exist_ok=True)
    print(f"{'':16s}{'trainable':>10s}{'peak':>9s}{'allocated':>11s}{'resident':>10s}{'forward':>10s}{'backward':>10s}")
    for method in options.method or METHODS:
        rows.append(row := measured(method))
        print_row(row)
        table = {"model": SHAPE.to_dict(), "batch": list(BATCH), "optimizer": "adamw", "rows": rows}
        with atomic_write(options.results / "ledger.json") as temporary:
            temporary.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    if failed := [row["method"] for row in rows if "failed" in row]:
        raise SystemExit(f"failed: {', '.join(failed)}; the rows of the others are written")


def measured(method: str) -> dict[str, Any]:
    """One method's row, from a process of its own; where that fails, the last line of what it said."""
    command = [sys.executable, "-P", "-c", BOOTSTRAP, "benchmarks.ledger_step", method]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"method": method, "failed": f"exit {done.returncode}: {said[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def print_row(row: dict[str, Any]) -> None:
    if "failed" in row:
        print(f"{row['method']:16s}{row['failed']}", flush=True)
        return
    said, peak = row["predicted"], row["predicted"]["peak"]
    print(
        f"{row['method']:16s}{row['trainable']:10,d}{peak / 1e6:6.1f} MB{row['allocated'] / peak:10.3f}x"
        f"{row['resident'] / peak:9.3f}x{said['forward'] / 1e9:8.2f} G{said['backward'] / 1e9:8.2f} G",
        flush=True,
    )


if __name__ == "__main__":
    main()
