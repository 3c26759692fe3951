"""The products with a weight in four bits as they are compiled ahead of time: blocks of 64, nested absmax."""

from __future__ import annotations

from typing import Any

from ..device.compile import Build
from ..four_bit.triton_decode import SIGNATURE
from ..tiles.builds import A100, BFLOAT16, FLOAT32, H100, signature
from . import triton_decode as decode
from . import triton_train as train

WEIGHT = {"BLOCKSIZE": 64, "NESTED": 256}


def build(name: str, kernel: Any, types: dict[str, Any], constants: dict[str, Any], *, lora: bool = True,
          kind: str = "*bf16", **options: Any) -> Build:  # fmt: skip
    """One configuration, with a low-rank term or without (then there is no such argument to compile)."""
    types = SIGNATURE | types | ({} if lora else {"low": None, "up": None})
    constants = {**WEIGHT, "R": 16, **constants}
    if kernel is not decode._one_row:
        constants |= {"WHOLE": True, **(BFLOAT16 if kind == "*bf16" else FLOAT32)}
    constants |= {name: None for name, of in types.items() if of is None}
    types = {name: of for name, of in types.items() if of is not None}
    whole = tuple(name for name in ("M", "N", "K", "rank") if name in types and not (name == "M" and "parts" in types))
    return Build(name, kernel.fn, types, constants, divisible=whole, matmul=kernel is not decode._one_row, **options)


def forward(name: str, targets: tuple[str, ...], tile: dict[str, int], kind: str = "*bf16", **options: Any) -> Build:
    types = signature(arrays="x bias low up y", integers="M N K rank", reals="scaling", kind=kind)
    sizes = " x ".join(map(str, tile.values()))
    return build(f"{name} {sizes}", train._forward, types, {**tile, "GROUP": 8}, kind=kind, targets=targets, **options)


def grad_x(name: str, targets: tuple[str, ...], tile: dict[str, int], kind: str = "*bf16", **options: Any) -> Build:
    types = signature(arrays="grad low up dx", integers="M N K rank", kind=kind)
    sizes = " x ".join(map(str, tile.values()))
    return build(f"{name} {sizes}", train._grad_x, types, {**tile, "GROUP": 8}, kind=kind, targets=targets, **options)


FEW = signature(arrays="x bias low up", sums="sums", integers="M N K rank parts", reals="scaling")
ONE = {name: of for name, of in FEW.items() if name != "M"}

AOT = (
    forward("forward", H100, {"BM": 256, "BN": 128, "BK": 64}, lora=False, num_warps=8, register_operand=True),
    forward("forward with LoRA", H100, {"BM": 256, "BN": 128, "BK": 64}, num_warps=8),
    forward("forward with LoRA", A100, {"BM": 128, "BN": 128, "BK": 32}, num_warps=8),
    forward("forward with LoRA, float32", H100, {"BM": 128, "BN": 128, "BK": 32}, "*fp32", num_warps=8),
    forward("forward with LoRA, float32", A100, {"BM": 64, "BN": 64, "BK": 32}, "*fp32"),
    grad_x("dx with LoRA", H100, {"BM": 256, "BN": 64, "BK": 128}, num_warps=8),
    grad_x("dx with LoRA", A100, {"BM": 128, "BN": 32, "BK": 128}, num_warps=8),
    grad_x("dx with LoRA, float32", H100, {"BM": 128, "BN": 64, "BK": 64}, "*fp32", num_warps=8),
    grad_x("dx with LoRA, float32", A100, {"BM": 128, "BN": 32, "BK": 64}, "*fp32", num_warps=8),
    build("16 rows", decode._few_rows, FEW, {"BM": 16, "BN": 64, "BK": 64}, lora=False, num_stages=4,
          register_operand=True),
    build("16 rows with LoRA", decode._few_rows, FEW, {"BM": 16, "BN": 64, "BK": 64}, num_stages=4),
    build("1 row with LoRA", decode._one_row, ONE, {"BN": 8, "BK": 512}, num_stages=1),
)  # fmt: skip
