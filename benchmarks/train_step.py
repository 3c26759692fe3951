"""One training step against PyTorch eager (full fine-tuning) and PyTorch + peft (LoRA): speed and peak memory.

    python -m benchmarks.train_step [--size small|large] [--method full|lora] [--rounds 5] [--seconds 4]

The same weights, batch, threads and AdamW on both sides; the losses of the first steps are compared before anything
is timed. Needs the extra ``peers``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from benchmarks import contest

SIZES = {
    "small": {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 128, "batch": 16},
    "large": {"n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": 256, "batch": 8},
}
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
        print(
            f"{row['size']:6s}{row['method']:5s} ours {row['ours_ms']:7.1f} ms  PyTorch {row['peer_ms']:7.1f} ms  "
            f"ratio {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})  peak memory ours "
            f"{row['ours_mib']:.0f} MiB, PyTorch {row['peer_mib']:.0f} MiB ({row['ours_mib'] / row['peer_mib']:.2f} x)"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "threads": options.threads, "rows": rows}, indent=2))


def compare(size: str, method: str, options: argparse.Namespace) -> dict[str, object]:
    ours = contest.Contender("ours", "train_step_ours", [size, method])
    peer = contest.Contender("PyTorch", "train_step_torch", [size, method])
    contest.run([peer, ours], options.rounds, options.seconds, options.threads)
    if max(abs(a - b) for a, b in zip(ours.hello, peer.hello, strict=True)) > 2e-4:
        raise SystemExit(f"{size} {method}: the losses differ, ours {ours.hello}, PyTorch {peer.hello}: not timed")
    value, low, high = contest.ratio(peer, ours)
    mib = {c.name: c.memory / 2**20 for c in (ours, peer)}  # type: ignore[attr-defined]
    return {
        "size": size, "method": method, "ratio": value, "low": low, "high": high,
        "ours_ms": 1e3 * ours.seconds, "peer_ms": 1e3 * peer.seconds,
        "ours_mib": mib["ours"], "peer_mib": mib["PyTorch"], "losses": ours.hello,
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
