"""The operations as methods and operators of Tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from minitorch_peft import functional as F
from minitorch_peft.autograd.tensor import Tensor, is_grad_enabled
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

OPERANDS = (Tensor, np.ndarray, np.generic, *NUMBERS)
CASTS = {"float": np.float32, "double": np.float64, "long": np.int64, "int": np.int32, "bool": np.bool_}


def install() -> None:
    """Give Tensor its methods and operators (called once, when the package is imported)."""
    methods: dict[str, Any] = {name: getattr(F, name) for name in METHODS}
    methods |= {
        "__add__": _operator(F.add), "__radd__": _reflected(F.add),
        "__sub__": _operator(F.sub), "__rsub__": _reflected(F.sub),
        "__mul__": _operator(F.mul), "__rmul__": _reflected(F.mul),
        "__truediv__": _operator(F.div), "__rtruediv__": _reflected(F.div),
        "__pow__": _operator(F.pow), "__rpow__": _reflected(F.pow),
        "__matmul__": _operator(F.matmul), "__rmatmul__": _reflected(F.matmul),
        "__iadd__": _in_place(F.add, Tensor.add_), "__isub__": _in_place(F.sub, Tensor.sub_),
        "__imul__": _in_place(F.mul, Tensor.mul_), "__itruediv__": _in_place(F.div, Tensor.div_),
        "__eq__": _operator(F.eq), "__ne__": _operator(F.ne), "__lt__": _operator(F.lt),
        "__le__": _operator(F.le), "__gt__": _operator(F.gt), "__ge__": _operator(F.ge),
        "__and__": _operator(_of_bools(F.logical_and)), "__or__": _operator(_of_bools(F.logical_or)),
        "__invert__": _of_bools(F.logical_not), "__neg__": F.neg, "__abs__": F.abs, "__getitem__": F.getitem,
        "repeat": F.tile, "mT": property(_swapped), "T": property(F.t, doc="The transpose of a matrix."),
    }  # fmt: skip
    methods |= {name: _cast(dtype) for name, dtype in CASTS.items()}
    for name, method in methods.items():
        setattr(Tensor, name, method)


def _operator(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """An operator that leaves operands it does not know to the other side, as Python's protocol asks."""

    @wraps(function)
    def operator(self: Tensor, other: Any) -> Any:
        return function(self, other) if isinstance(other, OPERANDS) else NotImplemented

    return operator


def _in_place(function: Callable[..., Tensor], write: Callable[..., Tensor]) -> Callable[..., Any]:
    """``x += y``: a write where nothing is to be differentiated (an update under no_grad), else x = x + y."""

    @wraps(function)
    def operator(self: Tensor, other: Any) -> Any:
        if not isinstance(other, OPERANDS):
            return NotImplemented
        recorded = self.requires_grad or (isinstance(other, Tensor) and other.requires_grad)
        return function(self, other) if recorded and is_grad_enabled() else write(self, other)

    return operator


def _reflected(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """The operator with this tensor on the right."""

    @wraps(function)
    def operator(self: Tensor, other: Any) -> Any:
        return function(other, self) if isinstance(other, OPERANDS) else NotImplemented

    return operator


def _of_bools(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(function)
    def logic(*operands: Any) -> Tensor:
        if any(np.asarray(x.data if isinstance(x, Tensor) else x).dtype.kind != "b" for x in operands):
            raise TypeError("&, | and ~ are for bool tensors; compare first, or use logical_and, logical_or")
        return function(*operands)

    return logic


def _cast(dtype: Any) -> Callable[[Tensor], Tensor]:
    def cast(self: Tensor) -> Tensor:
        return F.to(self, dtype)

    cast.__doc__ = f"``to({np.dtype(dtype).name})``."
    return cast


def _swapped(self: Tensor) -> Tensor:
    """The last two axes swapped."""
    return F.transpose(self, -2, -1)
