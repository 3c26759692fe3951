"""On the day there is a GPU: verify every Triton kernel on it, tune it, time it, and store the table.

    python -m benchmarks.gpu [KERNEL ...] [--rows 16 512 4096] [--results FOLDER]

Each kernel meets small ragged arguments in float32, with every configuration of its tiles in turn, and those of a layer
of a 7B model in bfloat16; one that differs from the NumPy reference is reported and not timed. Then it is tuned, and
timed as it is called from Python: on arrays that are on the device, the second-level cache overwritten before each run.
Beside it stand the least time that its traffic allows, and what bitsandbytes, torch and peft's formula take for the
same where they are installed (in a process of their own). All of it goes to results/gpu.json.

The exit status is 0 if all kernels were right, 1 if one was wrong, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minitorch_peft.kernels.device import cuda
from minitorch_peft.kernels.device.triton import triton

from benchmarks.contest import BOOTSTRAP
from benchmarks.gpu_kernels import INPUTS, LAYER, OF_THE_WEIGHT_ALONE, OUTPUTS, kernels, timed, wrong


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="some of them only")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 512, 4096])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    chosen = {name: f for name, f in kernels().items() if name in (options.kernels or kernels())}
    if unknown := set(options.kernels) - set(chosen):
        parser.error(f"no Triton kernel is called {', '.join(unknown)}; there are: {', '.join(kernels())}")
    try:
        device = usable_device()
    except RuntimeError as error:
        print(f"nothing was run: {error}", file=sys.stderr)
        return 2
    print(f"{device.name}, driver {device.driver}, Triton {triton.__version__}")
    table = []
    for name, function in chosen.items():
        for row in measured(name, function, tuple(options.rows)):
            show(row)
            table.append(row)
    stored = {"machine": device._asdict(), "triton": triton.__version__, "table": table}
    (options.results / "gpu.json").write_text(json.dumps(stored, indent=1) + "\n")
    return int(any("wrong" in row for row in table))


def usable_device() -> cuda.Device:
    """The GPU. Raises RuntimeError where there is none, or where the interpreter would stand in for it."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 runs the kernels on the CPU; unset it")
    return cuda.device()


def measured(kernel: str, function: Callable, rows: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """One row that says what is wrong, or a row of timings for each number of rows."""
    try:
        text = wrong(kernel, function, rows[0])
    except Exception as error:  # whatever it is, the other kernels' rows are not to be lost
        text = f"{type(error).__name__}: {error}"
    if text:
        yield {"kernel": kernel, "wrong": text}
        return
    for m in rows[:1] if kernel in OF_THE_WEIGHT_ALONE else rows:
        yield {**timed(kernel, function, m), "peers us": peers(rows).get(kernel, {}).get(str(m), {})}


@functools.cache
def peers(rows: tuple[int, ...]) -> dict[str, Any]:
    """Microseconds of the peers: kernel -> rows -> peer. None, with a line that says why, where they cannot run."""
    sizes = map(str, [OUTPUTS, INPUTS, LAYER.rank, *rows])
    command = [sys.executable, "-P", "-c", BOOTSTRAP, "benchmarks.gpu_peers", "cuda", *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout) if done.returncode == 0 else {"missing": "their process ended with an error"}
    if "missing" in found:
        print(f"peers were not timed: {found['missing']}")
    return found


def show(row: dict[str, Any]) -> None:
    if "wrong" in row:
        print(f"{row['kernel']:28s} WRONG: {row['wrong']}")
        return
    bound = f"{row['bound us'] / row['us']:.0%} of the roof" if "bound us" in row else ""
    others = "  ".join(f"{name} {us / row['us']:.2f}" for name, us in row["peers us"].items())
    print(
        f"{row['kernel']:28s}{row['rows']:6d} rows {row['us']:9.1f} us  {bound:18s}",
        others and f"peer / ours: {others}",
    )


if __name__ == "__main__":
    sys.exit(main())
