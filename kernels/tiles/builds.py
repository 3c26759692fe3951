"""What the tables of ahead-of-time builds share: types, and how their numbers are multiplied."""

from __future__ import annotations

from typing import Any

from ..device.triton import tl

BFLOAT16 = {"COMPUTE": tl.bfloat16, "PRECISION": "tf32x3"}
FLOAT32 = {"COMPUTE": tl.float32, "PRECISION": "tf32x3"}
H100, A100 = ("sm_90",), ("sm_80",)


def signature(*, arrays: str = "", sums: str = "", integers: str = "", reals: str = "", kind: str = "*bf16") -> dict:
    """Names of arguments, apart by spaces, to their types: ``arrays`` of ``kind``, ``sums`` of float32.

    >>> signature(arrays="x y", integers="M")
    {'x': '*bf16', 'y': '*bf16', 'M': 'i32'}
    """
    types: dict[str, Any] = {}
    for names, of in ((arrays, kind), (sums, "*fp32"), (integers, "i32"), (reals, "fp32")):
        types |= dict.fromkeys(names.split(), of)
    return types


def of_each(count: int, *, arrays: str = "", sums: str = "", integers: str = "", kind: str = "*bf16") -> dict:
    """The same for arguments that are tuples of ``count``.

    >>> of_each(2, arrays="xs", integers="depths")
    {'xs': ('*bf16', '*bf16'), 'depths': ('i32', 'i32')}
    """
    one = signature(arrays=arrays, sums=sums, integers=integers, kind=kind)
    return {name: (of,) * count for name, of in one.items()}
