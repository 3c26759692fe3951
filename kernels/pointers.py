"""Read a row of a strided array as the contiguous vector that it is, so that loops over it are vectorised."""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from .jit import inner


@intrinsic
def _as_pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.intp), codegen


@inner
def row_at(address, size):
    """The ``size`` float32 that lie one after the other from this address on."""
    return numba.carray(_as_pointer(address), (size,), np.float32)  # type: ignore[call-arg]  # Numba adds the first argument


@inner
def bytes_at(address, size):
    """The same of uint8. Unlike a slice, neither counts references: that costs as much as a block of 64 elements."""
    return numba.carray(_as_pointer(address), (size,), np.uint8)  # type: ignore[call-arg]
