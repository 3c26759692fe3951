"""The operations as methods and operators of Tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minitorch_peft import functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import NUMBERS

# F.name(x, ...) is also x.name(...)
METHODS = """
    add sub mul div pow maximum minimum masked_fill
    neg abs exp expm1 log log1p log2 sqrt rsqrt square reciprocal sin cos erf clamp sign floor ceil round
    tanh sigmoid relu softmax log_softmax
    eq ne lt le gt ge logical_and logical_or logical_not isnan isinf isfinite any all
    sum mean cumsum prod var std norm logsumexp amax amin argmax argmin max min sort argsort topk
    expand broadcast_to reshape view flatten unflatten squeeze unsqueeze permute transpose movedim t
    clone contiguous split chunk unbind flip roll tile repeat_interleave
    gather take_along_dim index_select index_add scatter_add tril triu
    matmul bmm to
""".split()  # noqa: SIM905 - a list of strings would be a page of quotes

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "__add__": F.add, "__radd__": F.add, "__sub__": F.sub, "__mul__": F.mul, "__rmul__": F.mul,
    "__truediv__": F.div, "__pow__": F.pow, "__matmul__": F.matmul,
    "__eq__": F.eq, "__ne__": F.ne, "__lt__": F.lt, "__le__": F.le, "__gt__": F.gt, "__ge__": F.ge,
}  # fmt: skip
REFLECTED: dict[str, Callable[..., Tensor]] = {
    "__rsub__": F.sub, "__rtruediv__": F.div, "__rpow__": F.pow, "__rmatmul__": F.matmul,
}  # fmt: skip
OPERANDS = (Tensor, np.ndarray, np.generic, *NUMBERS)
LOGIC: dict[str, Callable[..., Tensor]] = {"__and__": F.logical_and, "__or__": F.logical_or}
CASTS = {"float": np.float32, "double": np.float64, "long": np.int64, "int": np.int32, "bool": np.bool_}


def install() -> None:
    """Give Tensor its methods and operators (called once, when the package is imported)."""
    for name in METHODS:
        setattr(Tensor, name, getattr(F, name))
    for name, function in OPERATORS.items():
        setattr(Tensor, name, _operator(function, name))
    for name, function in REFLECTED.items():
        setattr(Tensor, name, _operator(lambda x, y, f=function: f(y, x), name))
    for name, function in LOGIC.items():
        setattr(Tensor, name, _operator(_of_bools(function), name))
    for name, dtype in CASTS.items():
        setattr(Tensor, name, _cast(name, dtype))
    for name, function in {
        "__neg__": F.neg,
        "__abs__": F.abs,
        "__getitem__": F.getitem,
        "repeat": F.tile,
    }.items():
        setattr(Tensor, name, function)
    Tensor.__invert__ = _of_bools(F.logical_not)  # type: ignore[attr-defined]
    Tensor.T = property(F.t, doc="A matrix transposed.")  # type: ignore[attr-defined]
    Tensor.mT = property(_swapped, doc="The last two axes swapped.")  # type: ignore[attr-defined]


def _operator(function: Callable[..., Tensor], name: str) -> Callable[..., Any]:
    """An operator that leaves operands it does not know to the other side, as Python's protocol asks."""

    def operator(self: Tensor, other: Any) -> Any:
        if isinstance(other, OPERANDS):
            return function(self, other)
        return NotImplemented

    operator.__name__, operator.__doc__ = name, function.__doc__
    return operator


def _of_bools(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def logic(*tensors: Tensor) -> Tensor:
        if any(np.asarray(getattr(t, "data", t)).dtype.kind != "b" for t in tensors):
            raise TypeError("&, | and ~ are for bool tensors; compare first, or use logical_and, logical_or")
        return function(*tensors)

    return logic


def _cast(name: str, dtype: Any) -> Callable[[Tensor], Tensor]:
    def cast(self: Tensor) -> Tensor:
        return F.to(self, dtype)

    cast.__name__, cast.__doc__ = name, f"``to({np.dtype(dtype).name})``."
    return cast


def _swapped(self: Tensor) -> Tensor:
    return F.transpose(self, -2, -1)
