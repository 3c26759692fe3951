"""The kernels on rows of many adapters as they are compiled ahead of time: rank 16, bfloat16."""

from __future__ import annotations

from ..device.compile import Build
from ..tiles.builds import A100, BFLOAT16, H100, signature
from . import triton_rows as rows

PLAN = dict.fromkeys(("order", "first", "last", "adapter"), "*i32")
SIZES = ("M", "N", "K", "rank")


def rows_product(name: str, targets: tuple[str, ...], **tile: int) -> Build:
    types = signature(arrays="x weight bias low ups scaling out", integers="M N K rank") | PLAN
    return Build(name, rows._rows_product.fn, types, {**BFLOAT16, "TRANSPOSED": True, "R": 16, **tile}, num_warps=8,
                 divisible=SIZES, matmul=True, targets=targets)  # fmt: skip


AOT = (
    rows_product("forward 64 x 256 x 64", H100, BM=64, BN=256, BK=64),
    rows_product("forward 64 x 128 x 32", A100, BM=64, BN=128, BK=32),
    Build(
        "x A.T",
        rows._rows_to_rank.fn,
        signature(arrays="x downs out", integers="M K rank parts") | PLAN,
        {**BFLOAT16, "scaling": None, "TRANSPOSED": True, "R": 16, "BM": 64, "BK": 64},
        num_stages=4,
        divisible=("M", "K", "rank"),
        matmul=True,
    ),
    Build(
        "dA",
        rows._sum_by_adapter.fn,
        signature(arrays="x low out", integers="M K rank r_step") | {"order": "*i32", "bounds": "*i32"},
        {**BFLOAT16, "scaling": None, "k_step": 1, "R": 16, "BM": 64, "BK": 64},
        divisible=("M", "K", "rank", "r_step"),
        matmul=True,
    ),
)
