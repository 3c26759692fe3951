"""Share out work: every part of a kernel's work is one call of the same function, on one of Numba's threads.

``for t in prange(parts)`` says the same, but each such loop costs half a second of compiling, for what is always the
same: wake the threads, give each its t, wait for all. So that loop is compiled once, here, and calls by address.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import binding, ir
from numba import prange, types
from numba.core import cgutils

from .jit import INT, compiled_address, emitted

_LOOP = "minitorch_each_part"
_INT = ir.IntType(64)
_PART = ir.FunctionType(ir.VoidType(), [_INT] * 3)


@emitted
def _call(typingctx, function, t, parts, arguments):
    def codegen(context, builder, signature, args):
        builder.call(builder.inttoptr(args[0], _PART.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(INT, INT, INT, INT), codegen


@numba.njit(parallel=True)
def _loop(parts, function, arguments):
    for t in prange(parts):
        _call(function, t, parts, arguments)


def _entry(parts, function, arguments):
    _loop(parts, function, arguments)


def start() -> None:
    """Compile the loop, and let kernels find it."""
    numba.get_num_threads()  # loads the threads; code that comes from the cache does not
    binding.add_symbol(_LOOP, compiled_address(types.void(INT, INT, INT), _entry))


def _borrowed(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """An array without its owner (or a tuple of such): the kernel's caller keeps it, so threads need not count.

    Every slice would be counted, and all threads would write to one counter.
    """
    if isinstance(kind, types.BaseTuple):
        values = zip(kind, cgutils.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(builder, kind, [_borrowed(context, builder, *pair) for pair in values])
    if not isinstance(kind, types.Array):
        return value
    array = context.make_array(kind)(context, builder, value)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    array.parent = cgutils.get_null_value(array.parent.type)
    return array._getvalue()


def _stored(context: Any, builder: Any, kinds: tuple, values: Any) -> Any:
    """A pointer to the arguments, one after the other in this function's memory."""
    slot = cgutils.alloca_once(builder, ir.LiteralStructType([context.get_value_type(kind) for kind in kinds]))
    for i, (kind, value) in enumerate(zip(kinds, cgutils.unpack_tuple(builder, values), strict=True)):
        builder.store(_borrowed(context, builder, kind, value), cgutils.gep_inbounds(builder, slot, 0, i))
    return slot


def _worker(context: Any, builder: Any, entry: Any, kinds: tuple, struct: Any) -> Any:
    """Emit ``worker(t, parts, address of the arguments)``, which calls the compiled function ``entry`` with them."""
    name = builder.module.get_unique_name(f"part.{entry.fndesc.mangled_name}")
    worker = ir.Function(builder.module, _PART, name)
    worker.linkage = "internal"
    inside = ir.IRBuilder(worker.append_basic_block())
    t, parts, address = worker.args
    loaded = inside.load(inside.inttoptr(address, struct.as_pointer()))
    values = [inside.extract_value(loaded, i) for i in range(len(kinds))]
    function = context.declare_function(builder.module, entry.fndesc)
    context.call_conv.call_function(inside, function, types.none, (INT, INT, *kinds), [t, parts, *values])
    inside.ret_void()
    return worker


@emitted
def each_part(typingctx, parts, function, arguments):
    """Call ``function(t, parts, *arguments)`` for every t below ``parts``; one part alone runs on this thread.

    ``function`` is compiled (``inner``), returns nothing and raises nothing; ``arguments`` is a tuple.
    """
    kinds = tuple(arguments)
    function.get_call_type(typingctx, (INT, INT, *kinds), {})

    def codegen(context, builder, signature, args):
        entry = function.dispatcher.overloads[INT, INT, *kinds]
        context.active_code_library.add_linking_library(entry.library)
        slot, parts = _stored(context, builder, kinds, args[2]), args[0]
        worker = _worker(context, builder, entry, kinds, slot.type.pointee)
        address, alone = builder.ptrtoint(slot, _INT), builder.icmp_signed("==", parts, ir.Constant(_INT, 1))
        with builder.if_else(alone) as (here, shared):
            with here:
                builder.call(worker, [ir.Constant(_INT, 0), parts, address])
            with shared:
                loop = cgutils.get_or_insert_function(builder.module, _PART, _LOOP)
                builder.call(loop, [parts, builder.ptrtoint(worker, _INT), address])
        return context.get_dummy_value()

    return types.void(INT, function, arguments), codegen
