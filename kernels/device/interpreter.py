"""NumPy arrays as arguments of Triton kernels under ``TRITON_INTERPRET=1``, without torch and without a copy.

Triton's interpreter runs a kernel's Python line by line on NumPy blocks: slow (2 to 3 ms for a 128 x 128 x 64 product),
but on every machine. It expects torch tensors; of those it uses the few methods below. Its bfloat16 is wrong without
saying so (it adds and multiplies the raw bits, and cuts float32 where a GPU rounds to nearest), so kernels take their
compute dtype as a constant, and the interpreter is given float32 or float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# What Triton calls the types of memory that it can load; NumPy has no bfloat16: its bits travel as uint16.
DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "float16", "bfloat16", "float32", "float64")  # fmt: skip


def storage_dtype(dtype: str) -> np.dtype:
    """The NumPy dtype that holds elements of Triton's ``dtype``. Raises TypeError where Triton has no such type.

    >>> storage_dtype("bfloat16"), storage_dtype("float32")
    (dtype('uint16'), dtype('float32'))
    """
    if dtype not in DTYPES:
        raise TypeError(f"Triton has no counterpart of dtype {dtype}; expected one of {', '.join(DTYPES)}")
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


class HostArray:
    """A NumPy array and the dtype that Triton is to see, which differs where the array holds bfloat16 bits as uint16.

    Raises TypeError for a dtype without a counterpart in Triton, ValueError for an array that is not C-contiguous
    (kernels compute addresses from shapes).

    >>> HostArray(np.zeros((2, 3), np.uint16), "bfloat16").dtype
    'bfloat16'
    """

    def __init__(self, array: np.ndarray, dtype: str | None = None):
        self.array, self.dtype = array, dtype or str(array.dtype)
        if array.dtype != storage_dtype(self.dtype):
            raise TypeError(f"elements of {self.dtype} are held as {storage_dtype(self.dtype)}, not as {array.dtype}")
        if not array.flags.c_contiguous:
            raise ValueError(f"array of shape {array.shape} is not C-contiguous; use np.ascontiguousarray")

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    # What the interpreter asks of an argument before the kernel (a copy on the host: this array itself is one) ...
    def untyped_storage(self) -> HostArray:
        return self

    def cpu(self) -> HostArray:
        return self

    def new_empty(self, *size: int, **options: Any) -> HostArray:
        return self

    def set_(self, *view: Any) -> None:
        pass

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    # ... and after it (the kernel wrote into the array itself).
    def copy_(self, other: HostArray) -> None:
        pass
