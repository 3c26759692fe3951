"""On the day there is a GPU: verify every Triton kernel on it, tune it, time it, and store the table.

    python -m benchmarks.gpu [KERNEL ...] [--rows 16 512 4096] [--results FOLDER]

Run it in the clone's folder, and without -P. Each kernel has a process of its own, for an illegal address spoils the
one in which it happens. It meets small ragged arguments in float32, with every configuration of its tiles in turn, then
for each number of rows those of a layer of a 7B model in bfloat16; what differs from the NumPy reference is reported
and not timed. Then it is tuned, and timed as it is called from Python: on arrays that are on the device, the
second-level cache overwritten before each run. Beside it stand the least time that its traffic allows, and what
bitsandbytes, torch and peft's formula take for the same where they are installed (in one more process). All of it goes
to results/gpu.json, row by row.

The exit status is 0 if all kernels were right, 1 if one was wrong, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from minitorch_peft.kernels.device import cuda
from minitorch_peft.kernels.device.triton import triton

from benchmarks.contest import BOOTSTRAP
from benchmarks.gpu_kernels import INPUTS, LAYER, OUTPUTS, kernels


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    options.results.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Any] = {"machine": device._asdict(), "triton": triton.__version__, "table": []}
    for name in chosen:
        for row in with_peers(measured(name, options.rows), tuple(options.rows)):
            stored["table"].append(row)
            (options.results / "gpu.json").write_text(json.dumps(stored, indent=1) + "\n")
            show(row)
    return int(any("wrong" in row for row in stored["table"]))


def usable_device() -> cuda.Device:
    """The GPU. Raises RuntimeError where there is none, or where the interpreter would stand in for it."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 runs the kernels on the CPU; unset it")
    return cuda.device()


def measured(kernel: str, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows that the kernel's process prints, and one more if it dies. It waits while the caller has a row, so that
    the caller has the device to itself."""
    command = [sys.executable, "-P", "-c", BOOTSTRAP, "benchmarks.gpu_kernels", kernel, *map(str, rows)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        for line in process.stdout:
            yield json.loads(line)
            with suppress(BrokenPipeError):
                os.write(process.stdin.fileno(), b"\n")
    if process.returncode:
        yield {"kernel": kernel, "wrong": f"its process ended with {process.returncode}; the message is above"}


def with_peers(table: Iterator[dict[str, Any]], rows: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The rows, those of timings with what the peers take for the same."""
    for row in table:
        if "wrong" not in row:
            row["peers us"] = peers(rows).get(row["kernel"], {}).get(str(row["rows"]), {})
        yield row


@functools.cache
def peers(rows: tuple[int, ...]) -> dict[str, Any]:
    """Microseconds of the peers: kernel -> rows -> peer. None, with a line that says why, where they cannot run."""
    sizes = map(str, [OUTPUTS, INPUTS, LAYER.rank, *rows])
    command = [sys.executable, "-P", "-c", BOOTSTRAP, "benchmarks.gpu_peers", "cuda", *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    found = last_line(done.stdout) if done.returncode == 0 else {"missing": "their process ended with an error"}
    if "missing" in found:
        print(f"peers were not timed: {found['missing']}")
    return {} if "missing" in found else found


def last_line(printed: str) -> dict[str, Any]:
    """The JSON of the last line: libraries print what they like above it.

    >>> last_line('a warning\\n{"peft": 1}\\n'), last_line("")
    ({'peft': 1}, {'missing': 'their process printed no table'})
    """
    try:
        return json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        return {"missing": "their process printed no table"}


def show(row: dict[str, Any]) -> None:
    if "wrong" in row:
        rows = f"{row['rows']} rows: " if "rows" in row else ""
        print(f"{row['kernel']:28s} WRONG: {rows}{row['wrong']}")
        return
    bound = f"{row['bound us'] / row['us']:.0%} of the roof" if "bound us" in row else ""
    others = "  ".join(f"{name} {us / row['us']:.2f}" for name, us in row["peers us"].items())
    print(
        f"{row['kernel']:28s}{row['rows']:6d} rows {row['us']:9.1f} us  {bound:18s}",
        others and f"peer / ours: {others}",
    )


if __name__ == "__main__":
    sys.exit(main())
