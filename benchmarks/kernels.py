"""Each kernel against what a user would call instead: PyTorch's operator, bitsandbytes, peft, or the same work unfused.

    python -m benchmarks.kernels [--kernel NAME ...] [--size NAME] [--rounds 5] [--seconds 0.5] [--json FILE]

Run it in the clone's folder, and without -P. The same arguments in every process; results are compared before anything
is timed. Ratios are the peer's time / ours, above 1 is faster: of the medians (lowest and highest round), and of the
shortest times. "PyTorch, tuned" is PyTorch with glibc told to keep freed buffers, as our process tells it. Shares are
of the rates that this machine reached in the same run: copying 64 MiB (bytes read and bytes written both count), or the
faster of our and PyTorch's product of 2048 x 2048 matrices. Needs the extra ``peers``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import contest
from benchmarks.kernels_cases import MACHINE, Case, select
from benchmarks.train_step import machine

MODULES = {
    "ours": "kernels_ours",
    "PyTorch": "kernels_torch",
    "PyTorch, tuned": "kernels_torch",
    "peft": "kernels_peft",
    "unfused": "kernels_unfused",
    "bitsandbytes": "kernels_bitsandbytes",
    "bitsandbytes' C": "kernels_bitsandbytes_c",
}


@dataclass
class Row:
    """What came out for one case: our median and shortest time, what they mean, and each peer's."""

    case: str
    ours_ms: float
    best_ms: float
    bytes: int
    flops: int
    bound: str
    share: float
    """Of the time that the bound allows, this fraction was reached (above 1: the arrays lie in a cache)."""
    share_goal: float | None
    peers: list[dict] = field(default_factory=list)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kernel", action="append", help="a kernel, the stem of two, or a family; several times")
    parser.add_argument("--size", help="only the cases of this size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each contender in each round")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args(argv)
    try:
        cases = select(options.kernel, options.size)
    except ValueError as error:
        parser.error(str(error))
    print(f"{machine()}, {options.threads} threads; ratio = peer's time / ours, above 1 is faster", flush=True)
    rows, rates = measure(cases, options)
    if options.json:
        table = {"machine": machine(), "threads": options.threads, "rates": rates, "rows": [asdict(r) for r in rows]}
        options.json.write_text(json.dumps(table, indent=2) + "\n")


def measure(cases: list[Case], options: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    wanted = dict.fromkeys(["ours", *(peer for case in [*MACHINE, *cases] for peer in case.peers)])
    contenders = {name: contest.Contender(name, MODULES[name], []) for name in wanted}
    if "PyTorch, tuned" in contenders:
        contenders["PyTorch, tuned"].environment = contest.KEEP_BUFFERS
    started = []
    try:
        for contender in contenders.values():
            contender.start(options.threads)
            started.append(contender)
        rates = {case.kernel: machine_rate(case, contenders, options) for case in MACHINE}
        print(f"this machine copies {rates['copy'] / 1e9:.1f} GB/s, multiplies {rates['product'] / 1e9:.1f} GFLOP/s")
        rows = []
        for case in cases:
            rows.append(compare(case, contenders, rates, options))
            print_row(rows[-1])
        return rows, rates
    finally:
        for contender in started:
            contender.stop()


def machine_rate(case: Case, contenders: dict[str, contest.Contender], options: argparse.Namespace) -> float:
    """Bytes or operations a second, of the contender that was fastest, in its best moment."""
    rivals = [contenders[name] for name in ("ours", *case.peers)]
    size, flops = drive(case, rivals, options)
    return (size if case.kernel == "copy" else flops) / min(map(shortest, rivals))


def drive(case: Case, contenders: list[contest.Contender], options: argparse.Namespace) -> tuple[int, int]:
    """Let all prepare the case, compare what they computed, time them in turn; return its bytes and operations."""
    ours, *peers = contenders
    for contender in contenders:
        contender.rounds = []
        contender.hello = contender.ask("prepare", case.name)
    for peer in peers:
        if difference := disagreement(ours.hello[0], peer.hello[0], case.tolerance):
            raise SystemExit(f"{case.name}: {peer.name} and ours differ: {difference}; not timed")
    for _ in range(options.rounds):
        for contender in contenders:
            contender.rounds.append(contender.ask("time", options.seconds))
            time.sleep(0.05)  # let its workers go to sleep before the next one starts
    return ours.hello[1], ours.hello[2]


def disagreement(ours: list | None, peer: list | None, tolerance: float) -> str | None:
    """Whether two fingerprints are those of the same arrays; the peer may return fewer (only y, say).

    >>> disagreement([(5.0, 1.0), (2.0, 0.0)], [(5.0, 1.00001)], 1e-3)
    >>> disagreement([(5.0, 1.0)], [(5.0, 1.1)], 1e-3)
    'result 0 has (norm, projection) (5.0, 1.0), the peer (5.0, 1.1)'
    """
    if not ours or not peer or len(peer) > len(ours):
        return f"fingerprints {ours} and {peer}"
    for i, (a, b) in enumerate(zip(ours, peer, strict=False)):
        if any(not abs(x - y) <= tolerance * max(abs(a[0]), 1e-30) for x, y in zip(a, b, strict=True)):
            return f"result {i} has (norm, projection) {tuple(a)}, the peer {tuple(b)}"
    return None


def compare(
    case: Case, contenders: dict[str, contest.Contender], rates: dict[str, float], options: argparse.Namespace
) -> Row:
    ours, *peers = (contenders[name] for name in ("ours", *case.peers))
    size, flops = drive(case, [ours, *peers], options)
    allowed = {"copy": size / rates["copy"], "product": flops / rates["product"]}
    bound = max(allowed, key=allowed.__getitem__)
    best = shortest(ours)
    row = Row(case.name, 1e3 * ours.seconds, 1e3 * best, size, flops, bound, allowed[bound] / best, case.share_goal)
    for peer in peers:
        value, low, high = contest.ratio(peer, ours)
        facts = {"peer": peer.name, "ms": 1e3 * peer.seconds, "ratio": value, "low": low, "high": high}
        row.peers.append(facts | {"best": shortest(peer) / best, "goal": case.goal(peer.name)})
    return row


def shortest(contender: contest.Contender) -> float:
    return min(map(min, contender.rounds))


def print_row(row: Row) -> None:
    rate = (
        f"{row.bytes / row.best_ms / 1e6:.1f} GB/s"
        if row.bound == "copy"
        else f"{row.flops / row.best_ms / 1e6:.1f} GF/s"
    )
    share = f"{row.share:.2f} of the {row.bound} rate{verdict(row.share, row.share_goal)}"
    print(f"{row.case:38s} ours {row.ours_ms:10.3f} ms   {rate} at best, {share}")
    for p in row.peers:
        ratio = f"ratio {p['ratio']:6.2f} ({p['low']:.2f} to {p['high']:.2f}), best {p['best']:.2f}"
        print(f"    {p['peer']:34s} {p['ms']:14.3f} ms   {ratio}{verdict(p['ratio'], p['goal'])}", flush=True)


def verdict(value: float, goal: float | None) -> str:
    """
    >>> verdict(1.3, 1.2), verdict(1.1, 1.2), verdict(1.1, None)
    ('  goal 1.2 reached', '  goal 1.2 MISSED', '')
    """
    return "" if goal is None else f"  goal {goal:g} {'reached' if value >= goal else 'MISSED'}"


if __name__ == "__main__":
    main()
