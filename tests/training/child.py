"""A training run in a process of its own, for tests that kill it: python child.py OUT --steps N [options]."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from training_cases import batch, held_out, new_model, settings

from minitorch_peft.formats import files
from minitorch_peft.training import TrainingError, TrainingInterrupted, train


def slow_source(at: int, seconds: float):
    """The same batches; the one numbered ``at`` takes a while."""

    def source(i: int):
        if i == at:
            print("waiting", flush=True)
            time.sleep(seconds)
        return batch(i)

    return source


def slow_writes(seconds: float) -> None:
    """Every file lies half-way, written but not in its place, for a while."""
    flush = files._flush

    def slow_flush(path: Path) -> None:
        time.sleep(seconds)
        flush(path)

    files._flush = slow_flush


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, default=1)
    parser.add_argument("--slow-writes", type=float, default=0.0)
    parser.add_argument("--wait-at", type=int, default=-1)
    parser.add_argument("--largest-file", type=int, default=0)
    parser.add_argument("--fill-at", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent does with Ctrl-C
    if options.slow_writes:
        slow_writes(options.slow_writes)
    if options.largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.largest_file, options.largest_file))
    config = settings(steps=options.steps, out=options.out, save_every=options.save_every, eval_every=7, keep=2)

    def progress(report) -> None:
        print("step", report.step, flush=True)
        if report.step == options.fill_at:
            fill(options.out / "filler")

    try:
        train(new_model(), slow_source(options.wait_at, 60), config, held_out, progress, resume=True)
    except TrainingInterrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 1
    print("done", flush=True)
    return 0


def fill(path: Path) -> None:
    """Take all the room that the disk has."""
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        print("full", flush=True)


if __name__ == "__main__":
    sys.exit(main())
