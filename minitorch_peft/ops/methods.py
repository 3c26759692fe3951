"""The operations as methods and operators of Tensor."""

from __future__ import annotations

from typing import Any

from minitorch_peft import functional as F
from minitorch_peft.autograd.tensor import Tensor

# F.name(x, ...) is also x.name(...)
METHODS = (
    "exp log tanh relu "
    "sum mean "
    "expand reshape permute transpose squeeze unsqueeze flatten "
    "add sub mul div neg pow matmul softmax to"
).split()
OPERATORS = {
    "__add__": F.add, "__radd__": F.add, "__sub__": F.sub, "__mul__": F.mul, "__rmul__": F.mul,
    "__truediv__": F.div, "__pow__": F.pow, "__matmul__": F.matmul, "__neg__": F.neg, "__getitem__": F.getitem,
}  # fmt: skip


def install() -> None:
    """Give Tensor its methods and operators (called once, when the package is imported)."""
    for name in METHODS:
        setattr(Tensor, name, getattr(F, name))
    for name, function in OPERATORS.items():
        setattr(Tensor, name, function)
    for name, function in (("__rsub__", F.sub), ("__rtruediv__", F.div), ("__rpow__", F.pow), ("__rmatmul__", F.matmul)):
        setattr(Tensor, name, _reflected(function))
    Tensor.T = property(_transposed)  # type: ignore[attr-defined]
    Tensor.view = F.reshape  # type: ignore[attr-defined]


def _reflected(function: Any) -> Any:
    def reflected(self: Tensor, other: Any) -> Tensor:
        return function(other, self)

    return reflected


def _transposed(self: Tensor) -> Tensor:
    if self.ndim > 2:
        raise ValueError(f".T is for at most 2 axes, this tensor has shape {self.shape}; use .mT or permute")
    return F.permute(self, tuple(range(self.ndim))[::-1])
