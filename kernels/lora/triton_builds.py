"""The LoRA kernels as they are compiled ahead of time: tiles for an H100 and an A100, rank 16, bfloat16."""

from __future__ import annotations

from typing import Any

from ..device.compile import Build
from ..tiles import blocks
from ..tiles.builds import A100, BFLOAT16, FLOAT32, H100, of_each, signature
from ..tiles.product import _product
from . import triton_backward as backward
from . import triton_forward as forward

WIDE = {"BM": 128, "BN": 256, "BK": 64, "GROUP": 8}
SMALL = {"BM": 128, "BN": 128, "BK": 32, "GROUP": 8}


def product(name: str, targets: tuple[str, ...], tile: dict[str, int], *, transposed: bool, count: int = 1,
            kind: str = "*bf16") -> Build:  # fmt: skip
    """A product with ``count`` low-rank terms: forward (``transposed``, with a bias) or the gradient to x."""
    types = of_each(count, arrays="xs ws lows ups", integers="depths ranks", kind=kind)
    types |= signature(arrays="bias out", integers="M N", reals="scaling", kind=kind)
    constants: dict[str, Any] = {"TRANSPOSED_X": False, "TRANSPOSED_W": transposed, "R": 16, **tile}
    if not transposed:
        constants["bias"] = types.pop("bias") and None
    constants |= BFLOAT16 if kind == "*bf16" else FLOAT32
    sizes = " x ".join(str(tile[side]) for side in ("BM", "BN", "BK"))
    return Build(f"{name} {sizes}", _product.fn, types, constants, num_warps=8, matmul=True, targets=targets,
                 divisible=("depths", "ranks", "M", "N"))  # fmt: skip


def down(name: str, count: int, *, drop: bool, **tile: int) -> Build:
    """x A.T for ``count`` A."""
    types = signature(arrays="x", integers="M K parts", reals="p scale") | {"seed": "i64"}
    types |= of_each(count, arrays="lora_as outs", integers="ranks")
    return Build(name, forward._down.fn, types, {**BFLOAT16, "DROP": drop, "R": 16, **tile}, num_stages=4,
                 divisible=("ranks", "M", "K"), matmul=True)  # fmt: skip


def a_gradients(name: str, count: int, *, drop: bool, **tile: int) -> Build:
    """dA for ``count`` A."""
    types = signature(arrays="x", integers="M K parts", reals="p scale") | {"seed": "i64"}
    types |= of_each(count, arrays="dxas", sums="outs", integers="ranks")
    return Build(name, backward._a_gradients.fn, types, {**BFLOAT16, "DROP": drop, "R": 16, **tile},
                 divisible=("ranks", "M", "K"), matmul=True)  # fmt: skip


def in_loop(targets: tuple[str, ...], **tile: int) -> Build:
    types = signature(arrays="x weight bias lora_a lora_b y xa", integers="M N K rank", reals="scaling")
    sizes = " x ".join(map(str, tile.values()))
    return Build(f"forward, x A.T in the loop {sizes}", forward._in_loop.fn, types,
                 {**BFLOAT16, "R": 16, "GROUP": 8, **tile}, num_warps=8, matmul=True, targets=targets,
                 divisible=("rank", "M", "N", "K"))  # fmt: skip


AOT = (
    product("forward", H100, WIDE, transposed=True),
    product("forward", A100, SMALL, transposed=True),
    product("forward, float32", H100, SMALL, transposed=True, kind="*fp32"),
    product("forward, float32", A100, {**SMALL, "BN": 64}, transposed=True, kind="*fp32"),
    product("dx", H100, WIDE, transposed=False),
    product("dx", A100, SMALL, transposed=False),
    in_loop(H100, BM=128, BN=256, BK=64),
    in_loop(A100, BM=128, BN=128, BK=64),
    down("x A.T", 1, drop=False, BM=64, BK=64),
    Build(
        "d(xa) and dB",
        backward._low_gradients.fn,
        signature(arrays="grad xa lora_b", sums="dxa db", integers="M N rank parts"),
        {**BFLOAT16, "R": 16, "BM": 64, "BN": 128},
        divisible=("rank", "M", "N"),
        matmul=True,
    ),
    a_gradients("dA", 1, drop=False, BM=64, BK=64),
    Build(
        "sums of columns",
        backward._column_sums.fn,
        signature(arrays="grad", sums="out", integers="M N parts"),
        {"BM": 64, "BN": 64},
        divisible=("M", "N"),
    ),
    Build(
        "sum of parts",
        blocks._sum_parts.fn,
        signature(sums="partial", arrays="out", integers="count parts", reals="scale"),
        {"BLOCK": 1024},
        num_stages=1,
        divisible=("count",),
    ),
)
