"""One training step against PyTorch eager (full fine-tuning) and PyTorch + peft (LoRA): speed and peak memory.

    python -m benchmarks.train_step [--size small|large] [--method full|lora] [--rounds 5] [--seconds 4]

The same weights, batch, threads and AdamW on both sides; the losses of the first steps are compared before anything
is timed. "PyTorch, tuned" is PyTorch with its fused AdamW and a C library that keeps freed buffers, as our kernels have
it. Memory is the most that a process holds during a step, beyond what it held after a step of a much smaller model:
libraries and compiled code count on neither side. Needs the extra ``peers``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks import contest

SIZES = {
    "small": {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 128, "batch": 16},
    "large": {"n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": 256, "batch": 8},
}
WARM_UP = "warm-up"
SHAPES = SIZES | {WARM_UP: {"n_layer": 1, "n_embd": 64, "n_head": 2, "n_positions": 64, "batch": 8}}
GOALS = {("small", "full"): 1.2, ("small", "lora"): 1.55, ("large", "full"): 1.05, ("large", "lora"): 1.33}
VOCABULARY = 1024
RANK, ALPHA, RATE = 8, 16, 1e-3


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--method", choices=("full", "lora"), action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--profile", action="store_true", help="our step's time by operation, instead")
    options = parser.parse_args(argv)
    cases = [(s, m) for s in options.size or SIZES for m in options.method or ("full", "lora")]
    if options.profile:
        for size, method in cases:
            print_profile(size, method)
        return
    rows = [compare(size, method, options) for size, method in cases]
    print(f"{machine()}, {options.threads} threads; ratio = peer's time / ours, above 1 is faster")
    for row in rows:
        print(f"{row['size']} {row['method']}: ours {row['ours_ms']:.1f} ms, {row['ours_mib']:.0f} MiB")
        for name, peer in row["peers"].items():
            print(
                f"    {name:15s}{peer['ms']:7.1f} ms  ratio {peer['ratio']:.2f} ({peer['low']:.2f} to "
                f"{peer['high']:.2f}), goal {peer['goal']}   {peer['mib']:.0f} MiB, ours {peer['memory']:.2f} of it"
            )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "threads": options.threads, "rows": rows}, indent=2))


def compare(size: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    ours = contest.Contender("ours", "train_step_ours", [size, method])
    peer = contest.Contender("PyTorch", "train_step_torch", [size, method])
    tuned = contest.Contender("PyTorch, tuned", "train_step_torch", [size, method, "tuned"], contest.KEEP_BUFFERS)
    contest.run([peer, ours, tuned], options.rounds, options.seconds, options.threads)
    peers = {}
    for p, goal in ((peer, GOALS[size, method]), (tuned, 1.0)):
        if max(abs(a - b) for a, b in zip(ours.hello, p.hello, strict=True)) > 2e-4:
            raise SystemExit(f"{size} {method}: the losses differ, ours {ours.hello}, {p.name} {p.hello}: not timed")
        value, low, high = contest.ratio(p, ours)
        peers[p.name] = {
            "ms": 1e3 * p.seconds, "ratio": value, "low": low, "high": high, "goal": goal,
            "mib": p.memory / 2**20, "memory": ours.memory / p.memory,
        }  # fmt: skip
    return {
        "size": size, "method": method, "ours_ms": 1e3 * ours.seconds, "ours_mib": ours.memory / 2**20,
        "losses": ours.hello, "peers": peers,
    }  # fmt: skip


def print_profile(size: str, method: str) -> None:
    from benchmarks.train_step_ours import make_step
    from minitorch_peft.autograd.profiler import profile

    step = make_step(size, method)
    for _ in range(3):
        step()
    with profile() as p:
        for _ in range(5):
            step()
    total = sum(seconds for *_, seconds in p.rows())
    print(f"{size} {method}: {1e3 * total / 5:.1f} ms a step in operations")
    for name, phase, calls, seconds in p.rows()[:16]:
        print(
            f"  {name:20s} {phase:8s} {calls // 5:4d} calls {1e3 * seconds / 5:8.2f} ms {100 * seconds / total:5.1f}%"
        )


def machine() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.processor()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
