"""What a compiled kernel costs, read in its machine code with the disassembler of Triton's wheel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from .compile import Build, Target
from .triton import triton

# An instruction of a listing: address, predicate, name with its suffixes, operands.
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+ +)?([A-Z][\w.]*) *([^;]*);", re.M)
USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
WIDTH = re.compile(r"\.[US]?(8|16|64|128)\b")


class Cost(NamedTuple):
    """Per thread: registers, bytes of stack, and instructions by kind (counted once each: loops are not unrolled).

    spills: loads and stores of registers that did not fit. loads: bits of a global load -> how many. tensor_core:
    matrix instructions (HMMA: A100; HGMMA, wgmma in PTX: H100), register_operands: those of the latter whose first
    operand is in registers. shared: bytes a block. blocks: how many fit on a multiprocessor at a time.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    blocks: int
    tensor_core: int
    register_operands: int
    loads: dict[int, int]
    instructions: int
    per_element: float | None


def cost(what: Build, compiled: Any, target: Target) -> Cost:
    """Read the cost of ``compiled``, which ``compile.build`` made of ``what``."""
    listing, usage = _disassembled(compiled.asm["cubin"])
    found = USAGE.search(usage)
    if found is None:
        raise RuntimeError(f"cuobjdump did not say what the kernel uses: {usage}")
    registers, stack = map(int, found.groups())
    code = instructions(listing)
    kinds = Counter(name.partition(".")[0] for name, _ in code)
    shared, threads = compiled.metadata.shared, 32 * what.num_warps
    return Cost(
        registers=registers,
        stack=stack,
        spills=kinds["LDL"] + kinds["STL"],
        shared=shared,
        blocks=blocks_at_once(registers, shared, what.num_warps, target),
        tensor_core=sum(count for kind, count in kinds.items() if kind in ("HMMA", "HGMMA", "IMMA", "IGMMA")),
        register_operands=sum(operands.split(",")[1].strip().startswith("R") for n, operands in code if "GMMA" in n),
        loads=dict(sorted(Counter(_bits(name) for name, _ in code if name.startswith(("LDG.", "LDGSTS"))).items())),
        instructions=len(code),
        per_element=round(len(code) * threads / what.decoded_elements, 2) if what.decoded_elements else None,
    )


def instructions(listing: str) -> list[tuple[str, str]]:
    """Names with their suffixes, and operands; without what fills the end of a kernel up.

    >>> instructions("  /*0c50*/  @!P0 LDG.E.128 R4, [R2.64] ;  /* 0x01e0 */\\n  /*0c60*/  NOP ;  /* 0x0918 */")
    [('LDG.E.128', 'R4, [R2.64] ')]
    """
    return [(name, operands) for name, operands in INSTRUCTION.findall(listing) if name != "NOP"]


def _bits(load: str) -> int:
    width = WIDTH.search(load)
    return int(width[1]) if width else 32


def blocks_at_once(registers: int, shared: int, warps: int, target: Target) -> int:
    """How many blocks a multiprocessor holds: a warp gets registers by 256, a block 1 KiB of shared memory more.

    >>> h100 = Target(90, most_shared=227 * 1024, shared=228 * 1024)
    >>> blocks_at_once(32, 113 * 1024, 4, h100), blocks_at_once(32, 114 * 1024, 4, h100)
    (2, 1)
    >>> blocks_at_once(128, 0, 8, h100), blocks_at_once(129, 0, 8, h100), blocks_at_once(16, 0, 8, h100)
    (2, 1, 8)
    """
    by_registers = target.registers // (-(-registers * 32 // 256) * 256 * warps)
    return min(by_registers, target.shared // (shared + 1024), target.warps // warps, 32)


def _disassembled(cubin: bytes) -> tuple[str, str]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        options = ("-sass", "-res-usage")
        runs = [subprocess.run([tool, o, path], capture_output=True, text=True, check=True) for o in options]
    return runs[0].stdout, runs[1].stdout + runs[1].stderr
