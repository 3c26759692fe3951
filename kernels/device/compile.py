"""Build Triton kernels ahead of time: no GPU and no driver is needed, only the compiler that Triton's wheel brings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .launch import COMPILED, is_interpreted
from .triton import triton


class Target(NamedTuple):
    """A kind of GPU: number of its architecture, and what one multiprocessor offers to the blocks that it runs.

    most_shared: bytes that one block may have; shared: bytes of all blocks (each also costs 1 KiB); warps.
    """

    capability: int
    most_shared: int
    shared: int
    warps: int = 64
    registers: int = 65536


TARGETS = {
    "sm_80": Target(80, most_shared=163 * 1024, shared=164 * 1024),
    "sm_90": Target(90, most_shared=227 * 1024, shared=228 * 1024),
}
"""A100 and H100 (CUDA C++ Programming Guide, technical specifications per compute capability)."""


Type = str | tuple["Type", ...]


@dataclass(frozen=True)
class Build:
    """One way in which a kernel is compiled: types of its arguments, constants, warps and stages.

    Each ``<family>/triton.py`` lists its own as ``AOT: tuple[Build, ...]``; ``gate`` holds them to what they promise.
    """

    name: str
    """Unique in its family: kernel and configuration, such as "linear_4bit_forward 128x128x64"."""
    kernel: Any
    """A function under ``@triton.jit`` (of an autotuned one: ``kernel.fn``)."""
    signature: Mapping[str, Type]
    """Argument -> "*bf16", "*fp32", "*u8", "i32", "fp32", ..., or a tuple of these; without the constants."""
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
    most_per_element: float = 7.0
    """The most instructions that a decoded element may cost."""
    register_operand: bool = False
    """On sm_90 the first operand of every wgmma must come from registers."""
    targets: tuple[str, ...] = tuple(TARGETS)


def build(what: Build, target: str) -> Any:
    """What Triton's compiler makes of it: ``.asm["cubin"]``, ``.asm["ptx"]``, ``.metadata.shared``.

    Raises RuntimeError under ``TRITON_INTERPRET=1`` (then there is nothing to compile), ValueError where the arguments
    are not those of the kernel.
    """
    if is_interpreted(what.kernel):
        raise RuntimeError("TRITON_INTERPRET=1 replaces the compiler; unset it before the process starts")
    names = what.kernel.arg_names
    given = {**what.signature, **dict.fromkeys(what.constants, "constexpr")}
    if set(given) != set(names) or set(what.divisible) - set(what.signature):
        raise ValueError(f"{what.name}: signature and constants name {sorted(given)}, the kernel takes {sorted(names)}")
    types = {(names.index(name), *path): kind for name in names for path, kind in _leaves(given[name])}
    aligned = [path for path, kind in types.items() if kind.startswith("*") or names[path[0]] in what.divisible]
    source = triton.compiler.ASTSource(
        fn=what.kernel,
        signature={name: given[name] for name in names},
        constexprs={(names.index(name),): value for name, value in what.constants.items()},
        attrs={path: [["tt.divisibility", 16]] for path in aligned},
    )
    options = {"num_warps": what.num_warps, "num_stages": what.num_stages, **COMPILED}
    gpu = triton.backends.compiler.GPUTarget("cuda", TARGETS[target].capability, 32)
    return triton.compile(source, target=gpu, options=options)


def _leaves(kind: Type) -> Iterator[tuple[tuple[int, ...], str]]:
    """Where each type stands in nested tuples, and what it is.

    >>> list(_leaves(("i32", ("*u8",))))
    [((0,), 'i32'), ((1, 0), '*u8')]
    """
    if isinstance(kind, str):
        yield (), kind
    else:
        yield from (((i, *path), leaf) for i, part in enumerate(kind) for path, leaf in _leaves(part))
