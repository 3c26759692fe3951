"""Tensor: a NumPy array that remembers which operation made it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from minitorch_peft.autograd.function import Node, Output

_grad_enabled: ContextVar[bool] = ContextVar("grad_enabled", default=True)


class Version:
    """Counts the writes to one piece of memory; a tensor and its views share one."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Tensor:
    """An array with an optional gradient.

    ``data`` is the NumPy array, ``grad`` the accumulated gradient (an array of the same shape and dtype, on
    leaves only), ``grad_fn`` the record of the operation that made this tensor (``None`` on a leaf).

    >>> import minitorch_peft as mp
    >>> x = mp.tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4.], dtype=float32)
    """

    __slots__ = ("__weakref__", "data", "grad", "grad_fn", "output", "requires_grad", "version")
    # NumPy must hand ``array + tensor`` to Tensor.__radd__ instead of looping over the elements.
    __array_ufunc__ = None

    def __init__(self, data: np.ndarray, requires_grad: bool = False) -> None:
        if not isinstance(data, np.ndarray):
            raise TypeError(f"Tensor wraps a NumPy array, not {type(data).__name__}; use minitorch_peft.tensor(...)")
        self.data = data
        self.grad: np.ndarray | None = None
        self.grad_fn: Node | None = None
        self.output: Output | None = None  # this tensor in the graph
        self.version = Version()
        self.requires_grad = False
        if requires_grad:
            self.requires_grad_()

    if TYPE_CHECKING:  # the operations add their methods (x.sum(), x + y, ...) in minitorch_peft.ops.methods

        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...

    # -- what it is ------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def is_leaf(self) -> bool:
        return self.grad_fn is None

    def size(self, dim: int | None = None) -> tuple[int, ...] | int:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return self.data.size

    def is_floating_point(self) -> bool:
        return bool(np.issubdtype(self.dtype, np.floating))

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        body = np.array2string(self.data, separator=", ", precision=4, prefix="tensor(")
        if self.grad_fn is not None:
            return f"tensor({body}, grad_fn={self.grad_fn.name})"
        return f"tensor({body}{', requires_grad=True' if self.requires_grad else ''})"

    # -- values ----------------------------------------------------------------------------------------------
    def item(self) -> Any:
        """The value of a tensor of one element as a Python number."""
        if self.data.size != 1:
            raise ValueError(f"item() needs a tensor of one element, this one has shape {self.shape}")
        return self.data.reshape(()).item()

    def numpy(self) -> np.ndarray:
        """The array itself (not a copy): writes through it are not seen by backward's version check."""
        return self.data

    def tolist(self) -> Any:
        return self.data.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.data, dtype=dtype, copy=copy)

    # -- the graph -------------------------------------------------------------------------------------------
    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        if requires_grad and not self.is_floating_point():
            raise TypeError(f"only floating-point tensors can require a gradient, this one is {self.dtype}")
        if not requires_grad and self.grad_fn is not None:
            raise ValueError("requires_grad can be switched off on leaves only; use detach()")
        self.requires_grad = requires_grad
        return self

    def detach(self) -> Tensor:
        """The same memory without the history; a write to it is a write to this tensor."""
        out = Tensor(self.data)
        out.version = self.version
        return out

    def backward(self, gradient: Tensor | np.ndarray | None = None) -> None:
        """Add d(self . gradient)/d(leaf) to ``.grad`` of every leaf that requires a gradient.

        ``gradient`` has this tensor's shape; it may be left out where this tensor has one element.
        """
        from minitorch_peft.autograd.engine import backward

        backward(self, gradient)

    # -- writes in place: each counts a version, so backward sees that a saved tensor was changed -------------
    def _write(self, value: Any, ufunc: np.ufunc | None) -> Tensor:
        if self.requires_grad and is_grad_enabled():
            raise RuntimeError(
                "a tensor that requires a gradient is changed in place only under no_grad() "
                "(the change itself would not be differentiated)"
            )
        value = value.data if isinstance(value, Tensor) else value
        if ufunc is None:
            self.data[...] = value
        else:
            ufunc(self.data, value, out=self.data, casting="same_kind")
        self.version.count += 1
        return self

    def copy_(self, value: Any) -> Tensor:
        return self._write(value, None)

    def fill_(self, value: float) -> Tensor:
        return self._write(value, None)

    def zero_(self) -> Tensor:
        return self._write(0, None)

    def add_(self, value: Any) -> Tensor:
        return self._write(value, np.add)

    def sub_(self, value: Any) -> Tensor:
        return self._write(value, np.subtract)

    def mul_(self, value: Any) -> Tensor:
        return self._write(value, np.multiply)

    def div_(self, value: Any) -> Tensor:
        return self._write(value, np.true_divide)


def tensor(data: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A new tensor holding a copy of ``data`` (numbers, nested lists, an array or a tensor).

    Python floats become float32, Python integers int64; arrays keep their dtype.

    >>> tensor([[1.0, 2.0]]).dtype
    dtype('float32')
    """
    data = data.data if isinstance(data, Tensor) else data
    array = np.array(data, dtype=dtype)
    if array.dtype == object:
        raise TypeError("tensor() needs numbers of equal-length rows, got a ragged or non-numeric nesting")
    if dtype is None and not isinstance(data, np.ndarray | np.generic) and array.dtype == np.float64:
        array = array.astype(np.float32)
    return Tensor(array, requires_grad)


def is_grad_enabled() -> bool:
    return _grad_enabled.get()


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside, operations record nothing: no graph, nothing saved for backward."""
    token = _grad_enabled.set(False)
    try:
        yield
    finally:
        _grad_enabled.reset(token)
