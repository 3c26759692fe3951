"""What the checks of A4 ask of the library beside single calls: arrays in, arrays out, no verdicts."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minitorch_peft.course.measure import traced
from minitorch_peft.kernels.four_bit import codes, reference
from minitorch_peft.kernels.four_bit.layout import Nested, Quantized

NF4 = np.array([
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
], np.float32)  # fmt: skip
"""The values as everyone has them."""

MIDDLES = (NF4[:-1] + NF4[1:]) * np.float32(0.5)


@contextmanager
def published() -> Iterator[None]:
    """The published values of NF4 in place of the derived ones: how these come about is another task."""
    derived: Any = codes.code_table

    def table(quant_type: str) -> np.ndarray:
        return NF4.copy() if quant_type == "nf4" else derived(quant_type)

    codes.code_table = reference.code_table = table  # type: ignore[assignment]
    codes.boundaries.cache_clear()
    try:
        yield
    finally:
        codes.code_table = reference.code_table = derived
        codes.boundaries.cache_clear()


# -- 4.1 the table -----------------------------------------------------------------------------------------------------
def table(offset: float) -> np.ndarray:
    """NF4's values if its largest quantile were another one."""
    before, codes.NF4_OFFSET = codes.NF4_OFFSET, offset
    try:
        return codes.code_table.__wrapped__("nf4")
    finally:
        codes.NF4_OFFSET = before


# -- 4.2, 4.3 and 4.4: quantized tensors -------------------------------------------------------------------------------
def quantized(parts: list[Any]) -> Quantized:
    """The tensor that consists of these parts, as a wire carries them."""
    packed, absmax, shape, blocksize, quant_type, nested = parts
    return Quantized(packed, absmax, tuple(shape), blocksize, quant_type, None if nested is None else Nested(*nested))


def quantize(x: np.ndarray, blocksize: int, quant_type: str) -> Any:
    with published():
        return reference.quantize_4bit(x, blocksize, quant_type)


def dequantize(parts: list[Any], dtype: str) -> Any:
    with published():
        return reference.dequantize_4bit(quantized(parts), dtype)


def compressed(absmax: np.ndarray) -> Any:
    """Double quantization of these statistics, which belong to blocks of 32."""
    packed = np.zeros(16 * absmax.size, np.uint8)
    return reference.compressed(Quantized(packed, absmax, (32 * absmax.size,), 32, "nf4", None))


def statistics(numbers: np.ndarray, code: np.ndarray, absmax: np.ndarray, offset: float) -> Any:
    """The absmax of every block, from its second quantization."""
    packed = np.zeros(16 * numbers.size, np.uint8)
    nested = Nested(code, absmax, offset, 256)
    return reference.dequantized_absmax(Quantized(packed, numbers, (32 * numbers.size,), 32, "nf4", nested))


# -- 4.5 the compiled loops --------------------------------------------------------------------------------------------
GUARD = 64  # elements on both sides of an output, which nobody is to write to
GUARDED: dict[Any, float] = {np.uint8: 0xAB, np.float32: -7.0}


def guarded(size: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """An array of ``size``, in the middle of a larger one, which is the second result."""
    whole: np.ndarray = np.full(size + 2 * GUARD, GUARDED[dtype], dtype)
    return whole[GUARD : GUARD + size], whole


def compiled(x: np.ndarray, blocksize: int) -> dict[str, Any]:
    """What the fast kernel writes, and whether it wrote anywhere else."""
    from minitorch_peft.course.assignments.a4.kernel import quantize_blocks

    (packed, around_packed), (absmax, around_absmax) = (
        guarded((x.size + 1) // 2, np.uint8), guarded(-(-x.size // blocksize), np.float32)
    )  # fmt: skip
    quantize_blocks(x, MIDDLES, blocksize, packed, absmax)
    outside = [np.delete(w, np.s_[GUARD : w.size - GUARD]) for w in (around_packed, around_absmax)]
    beyond = any((part != GUARDED[part.dtype.type]).any() for part in outside)
    return {"packed": packed, "absmax": absmax, "beyond": bool(beyond)}


@functools.cache
def normal(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def rounds(name: str, size: int, seed: int, count: int) -> dict[str, Any]:
    """Run one of the two kernels ``count`` times; what it wrote the last time. The grader looks at the clock."""
    from minitorch_peft.course.assignments.a4 import kernel

    x = normal(size, seed)
    packed, absmax = np.zeros(size // 2, np.uint8), np.zeros(size // 64, np.float32)
    for _ in range(count):
        packed.fill(0x5A)
        absmax.fill(-1)
        getattr(kernel, name)(x, MIDDLES, 64, packed, absmax)
    return {"packed": packed, "absmax": absmax}


def allocations(size: int) -> dict[str, Any]:
    """How many arrays the fast kernel makes, the bytes that Python sees, and whether its comparisons are of vectors."""
    import importlib

    from numba.core.runtime import rtsys

    from minitorch_peft.course.assignments.a4 import kernel

    importlib.import_module("numba.core.runtime._nrt_python").memsys_enable_stats()
    arguments = (normal(size, 0), MIDDLES, 64, np.zeros(size // 2, np.uint8), np.zeros(size // 64, np.float32))

    def arrays_made(run: Any) -> int:
        run(*arguments)  # compiled
        before = rtsys.get_allocation_stats().alloc
        run(*arguments)
        return rtsys.get_allocation_stats().alloc - before

    count = arrays_made(kernel.quantize_blocks) - arrays_made(kernel.quantize_slowly)  # arguments count in both
    peak = traced(lambda: kernel.quantize_blocks(*arguments))["peak"]
    code = "".join(kernel.quantize_blocks.inspect_llvm().values())
    return {"count": count, "peak": peak, "vectors": re.search(r"[fi]cmp [^\n]*<\d+ x ", code) is not None}


# -- 4.6 the backward pass ---------------------------------------------------------------------------------------------
def weight_rows(parts: list[Any], first: int, last: int) -> Any:
    from minitorch_peft.course.assignments.a4 import tiles

    return tiles.weight_rows(quantized(parts), first, last)


def backward(
    grad: np.ndarray, x: np.ndarray, xa: np.ndarray, parts: list[Any], a: np.ndarray, b: np.ndarray, s: float,
    needs: list[bool],
) -> Any:  # fmt: skip
    from minitorch_peft.course.assignments.a4 import tiles

    return tiles.lora_backward(grad, x, xa, quantized(parts), a, b, s, tuple(needs))  # type: ignore[arg-type]


def backward_traced(arguments: list[Any]) -> dict[str, Any]:
    """The same, with the bytes that it takes."""
    return traced(lambda: backward(*arguments))


# -- 4.7 the kernel for the GPU ----------------------------------------------------------------------------------------
class Watched:
    """The interpreter's memory, of which only some arrays may be touched: a GPU would stop, or go on with anything."""

    def __init__(self, memory: Any, arrays: dict[str, np.ndarray]) -> None:
        self.memory, self.arrays = memory, arrays

    def load(self, addresses: np.ndarray, mask: np.ndarray, *rest: Any) -> Any:
        self.look("reads", addresses[mask])
        return self.memory.load(addresses, mask, *rest)

    def store(self, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray) -> Any:
        self.look("writes", addresses[mask])
        return self.memory.store(addresses, values, mask)

    def look(self, verb: str, addresses: np.ndarray) -> None:
        left = addresses.astype(np.int64).ravel()
        for array in self.arrays.values():
            start = array.ctypes.data
            left = left[(left < start) | (left >= start + array.nbytes)]
        if left.size:
            gaps = {n: np.abs(left - (a.ctypes.data + a.nbytes)).min() for n, a in self.arrays.items()}
            name = min(gaps, key=lambda n: gaps[n])
            raise IndexError(
                f"the kernel {verb} {left.size} numbers outside of its arrays, perhaps beyond the end of {name}: "
                "a mask for every axis of every load and store"
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)


def tiled(x: np.ndarray, w: np.ndarray, xa: np.ndarray, b: np.ndarray, scaling: float, blocks: list[int]) -> np.ndarray:
    """y by the Triton kernel, in the interpreter; where nobody writes it is NaN."""
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter
    from triton.runtime.errors import InterpreterError

    from minitorch_peft.course.assignments.a4 import gpu
    from minitorch_peft.kernels.device.launch import run

    (R, K), (N, r) = x.shape, b.shape
    arrays = {"x": x, "w": w, "xa": xa, "b": b, "y": np.full((R, N), np.nan, x.dtype)}
    memory = interpreter._interpreter
    interpreter._interpreter = Watched(memory, arrays)
    try:
        run(gpu.lora_tile, (-(-R // blocks[0]), -(-N // blocks[1])), *arrays.values(), R, N, K, r, scaling, *blocks)
    except InterpreterError as error:
        raise error.__cause__ or error from None
    finally:
        interpreter._interpreter = memory
    return arrays["y"]
