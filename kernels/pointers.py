"""Read a row of a strided array as the contiguous vector that it is, so that loops over it are vectorised."""

from __future__ import annotations

import numba
from numba import types
from numba.extending import intrinsic

from .jit import inner


@intrinsic
def _as_pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.intp), codegen


@inner
def row_at(address, size):
    """The ``size`` float32 that lie one after the other from this address on."""
    return numba.carray(_as_pointer(address), (size,))  # type: ignore[call-arg]  # Numba adds the first argument
