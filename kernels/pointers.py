"""Read a row of a strided array as the contiguous vector that it is, so that loops over it are vectorised."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types

from .jit import emitted, inner


@emitted
def _as_pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.intp), codegen


def stack_floats(count: int) -> Any:
    """A function for compiled code: the address of so many float32 that live until the caller returns."""

    @emitted
    def address(typingctx):
        def codegen(context, builder, signature, args):
            with builder.goto_entry_block():  # once, not in every round of a loop
                slot = builder.alloca(ir.ArrayType(ir.FloatType(), count))
                slot.align = 64
            return builder.ptrtoint(slot, ir.IntType(64))

        return types.int64(), codegen

    return address


@inner
def row_at(address, size):
    """The ``size`` float32 that lie one after the other from this address on."""
    return numba.carray(_as_pointer(address), (size,), np.float32)


@inner
def bytes_at(address, size):
    """The same of uint8. Unlike a slice, neither counts references: that costs as much as a block of 64 elements."""
    return numba.carray(_as_pointer(address), (size,), np.uint8)
