"""The gate that machine code must pass, on a machine without a GPU: ``python -m minitorch_peft.kernels.device.gate``.

Every Triton kernel is compiled ahead of time for each of its targets and configurations; the table says what each costs
and what it breaks. ``--json`` prints the same for a machine: the tests keep it, and compare.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ..dispatch import FAMILIES
from .compile import TARGETS, Build, build
from .machine_code import Cost, cost
from .triton import triton


def builds() -> Iterator[tuple[str, Build]]:
    """Family and build, of every family that has Triton kernels."""
    for family, (_, backends) in FAMILIES.items():
        if "triton" in backends:
            module = importlib.import_module(f"..{family}.triton", __package__)
            yield from ((family, what) for what in module.AOT)


def broken(what: Build, target: str, found: Cost) -> list[str]:
    """What ``found`` breaks of that which every kernel must keep; empty if nothing."""
    most = TARGETS[target].most_shared
    laws = {
        "registers spill to memory": found.spills or found.stack,
        f"{found.shared} bytes of shared memory, {most} is the most": found.shared > most,
        "no block fits": not found.blocks,
        "a product without tensor-core instructions": what.matmul and not found.tensor_core,
        f"{found.per_element} instructions per element, {what.most_per_element} is the most": (
            found.per_element is not None and found.per_element > what.most_per_element
        ),
        "an operand that should be in registers comes from shared memory": (
            what.register_operand and target == "sm_90" and found.register_operands < found.tensor_core
        ),
    }
    return [law for law, is_broken in laws.items() if is_broken]


def table() -> dict[str, dict]:
    """Family, build and target -> cost, and what it breaks. All cores build: it is the assembler that takes time."""
    jobs = {f"{family}: {what.name}, {target}": (what, target) for family, what in builds() for target in what.targets}
    expected = sum(len(what.targets) for _, what in builds())
    if len(jobs) < expected:
        raise ValueError("two builds of a family have the same name")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(jobs, pool.map(lambda job: _row(*job), jobs.values()), strict=True))


def _row(what: Build, target: str) -> dict:
    found = cost(what, build(what, target), TARGETS[target])
    return {**found._asdict(), "broken": broken(what, target, found)}


HEAD = (
    "registers",
    "spills",
    "shared KiB",
    "blocks",
    "tensor core",
    "in registers",
    "loads",
    "instructions",
    "an element",
)


def line(row: dict) -> list[str]:
    """One row's cells, under HEAD."""
    loads = " ".join(f"{count}x{bits}" for bits, count in row["loads"].items())
    each = "" if row["per_element"] is None else f"{row['per_element']:.1f}"
    cells = (row["registers"], row["spills"], f"{row['shared'] / 1024:.1f}", row["blocks"], row["tensor_core"],
             row["register_operands"], loads, row["instructions"], each)  # fmt: skip
    return [str(cell) for cell in cells]


def main() -> int:
    """Print the table; the exit status is 1 where a kernel breaks a law, 2 where there is none."""
    parser = argparse.ArgumentParser(prog="python -m minitorch_peft.kernels.device.gate", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args().json
    rows = table()
    if not rows:
        print("there is nothing to build here: no family has Triton kernels with builds (AOT)", file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps({"triton": triton.__version__, "kernels": rows}, indent=1))
    else:
        show(rows)
    return int(any(row["broken"] for row in rows.values()))


def show(rows: dict[str, dict]) -> None:
    """Print aligned columns, and under a row what it breaks."""
    cells = [["kernel", *HEAD], *([key, *line(row)] for key, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    breaks = [[], *(row["broken"] for row in rows.values())]
    for texts, laws in zip(cells, breaks, strict=True):
        name, *numbers = (f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
        print(f"{name.strip():<{widths[0]}}", *numbers, sep="  ")
        for law in laws:
            print(f"    BROKEN: {law}")
    print(f"\n{len(rows)} builds with Triton {triton.__version__}; none of this has run on a GPU.")


if __name__ == "__main__":
    sys.exit(main())
