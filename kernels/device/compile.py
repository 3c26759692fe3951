"""Build Triton kernels ahead of time, without a GPU, and read what the machine code costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TARGETS = {"sm_80": 80, "sm_90": 90}
"""A100 and H100, by the name and the number that Triton's compiler gives them."""


@dataclass(frozen=True)
class Build:
    """One way in which a kernel is compiled: types of its arguments, constants, warps and stages.

    Each ``<family>/triton.py`` lists its own as ``AOT: tuple[Build, ...]``.
    """

    name: str
    """Unique in its family: kernel and configuration, such as "linear_4bit_forward 128x128x64"."""
    kernel: Any
    """A function under ``@triton.jit`` (of an autotuned one: ``kernel.fn``)."""
    signature: Mapping[str, str]
    """Argument -> "*bf16", "*fp32", "*u8", "i32", "fp32", ...; without the constants."""
    constants: Mapping[str, Any]
    """The constexprs; an argument that is always 1 or None may stand here too, as Triton specialises it."""
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    """Integers that are multiples of 16 in the shapes that count (pointers always are): wide loads depend on it."""
    matmul: bool = False
    """Must contain tensor-core instructions."""
    decoded_elements: int | None = None
    """Elements that one program decodes, for a kernel without loops: gives instructions per element."""
    register_operand: bool = False
    """On sm_90 the first operand of every wgmma must come from registers."""
    targets: tuple[str, ...] = ("sm_80", "sm_90")
