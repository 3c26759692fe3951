"""Function: one operation, its forward and its backward side by side, on arrays."""

from __future__ import annotations

import zlib
from typing import Any, ClassVar

import numpy as np

from minitorch_peft.autograd import profiler
from minitorch_peft.autograd.tensor import Tensor, Version, is_grad_enabled

ARRAY = (np.ndarray, np.generic)


class ContractError(RuntimeError):
    """An operation broke its contract with the engine: it returned the wrong number of gradients or a gradient of
    another shape or dtype, or it wrote to an array that is not its own (the last is noticed in debug mode)."""

    def __init__(self, operation: str, cause: str, message: str, input_index: int | None = None) -> None:
        super().__init__(f"{operation}.{message}")
        self.operation, self.cause, self.input_index = operation, cause, input_index


class Context:
    """What one call of a Function leaves for its backward pass.

    ``needs_input_grad`` has one bool per positional input: no work is done, and nothing is kept, for an input
    that needs no gradient. Attributes may be set freely (``ctx.dim = dim``); arrays go through
    :meth:`save_for_backward`, so that a later write to them is noticed.
    """

    debug: ClassVar[bool] = False
    tape: ClassVar[list[tuple[Node, tuple[Tensor | None, ...], dict[str, Any]]] | None] = None  # gradcheck's record

    def __init__(self, name: str, needs_input_grad: tuple[bool, ...]) -> None:
        self.name = name
        self.needs_input_grad = needs_input_grad
        self.saved: tuple[Any, ...] = ()

    def save_for_backward(self, *arrays: np.ndarray | None) -> None:
        """Keep arrays for backward, where they stand in ``ctx.saved``. Does nothing if no gradient is needed."""
        if any(self.needs_input_grad):
            self.saved = arrays


class Output:
    """What the graph keeps of an operation's output, in place of the tensor: not its array.

    So the graph holds no array but those that were saved, and an output goes as soon as nobody needs it.
    """

    __slots__ = ("dtype", "grad", "grad_fn", "remade", "shape")
    is_leaf = False

    def __init__(self, node: Node, array: np.ndarray) -> None:
        self.grad_fn, self.shape, self.dtype = node, array.shape, array.dtype
        self.grad: np.ndarray | None = None  # stays so: only leaves get one
        self.remade: np.ndarray | None = None

    def array(self) -> np.ndarray:
        """The output once more; all who saved it share it. It goes with the last of them."""
        if self.remade is None:
            node = self.grad_fn
            assert node.function is not None
            node.restore()
            node.check_unchanged()
            with profiler.record(node.name, "again"):
                self.remade = node.function.again(node)
            if profiler.meter is not None:
                profiler.meter.again(node, self.remade)
        return self.remade


class Node(Context):
    """A Context that is part of the graph: it knows its Function and what it came from, leaves or others' outputs."""

    def __init__(self, function: type[Function], inputs: tuple[Tensor | None, ...], needs_input_grad: tuple[bool, ...]):
        super().__init__(function.__name__, needs_input_grad)
        self.function: type[Function] | None = function
        # an input that needs no gradient is not kept: the graph must not hold its memory
        pairs = zip(inputs, needs_input_grad, strict=True)
        self.inputs: tuple[Any, ...] = tuple([(t.output or t) if need and t is not None else None for t, need in pairs])
        self.watched: list[tuple[Version, int]] = []
        self.checksums: list[int] | None = None

    def keep_less(self, given: list[Tensor]) -> None:
        """Leave out of ``saved`` the inputs that their operation can make again."""
        for t in given:
            if t.output is not None and t.output.grad_fn.makes_again():
                self.saved = tuple([t.output if a is t.data else a for a in self.saved])

    def makes_again(self) -> bool:
        return self.function is not None and self.function.again is not Function.again

    def restore(self) -> None:
        """Put back into ``saved`` what was left out of it."""
        self.saved = tuple([a.array() if isinstance(a, Output) else a for a in self.saved])

    def watch(self, tensors: list[Tensor]) -> None:
        """Note the version of every tensor whose memory was saved."""
        arrays = [a for a in self.saved if isinstance(a, np.ndarray)]
        for t in tensors:
            for a in arrays:
                if a is t.data or np.may_share_memory(a, t.data):
                    self.watched.append((t.version, t.version.count))
                    break
        if Context.debug:
            self.checksums = [checksum(a) for a in arrays]

    def check_unchanged(self) -> None:
        for version, count in self.watched:
            if version.count != count:
                raise RuntimeError(
                    f"{self.name} saved a tensor for backward that was changed in place afterwards "
                    f"({version.count - count} write(s) since). Change it after backward(), or change a copy."
                )
        if self.checksums is not None:
            arrays = [a for a in self.saved if isinstance(a, np.ndarray)]
            if [checksum(a) for a in arrays] != self.checksums:
                message = "forward saved an array that was written to since (through .data, or by a rule): use a copy"
                raise ContractError(self.name, "mutates-saved", message)

    def release(self) -> None:
        """Drop everything that was kept; a second backward through here is an error."""
        name = self.name
        self.__dict__.clear()
        self.name, self.function, self.inputs = name, None, ()


def checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)


def set_debug(enabled: bool) -> None:
    """With debugging on, checksums tell when an array is written to that should not be: a saved one through
    ``.data``, an input by a forward, an incoming gradient or a saved array by a backward."""
    Context.debug = enabled


class Function:
    """An operation with a hand-written backward pass. Subclass it and call ``apply``.

    ``forward(ctx, *arrays, **constants)`` returns one array; ``backward(ctx, g)`` takes the gradient of the
    output and returns one array (or None) for each positional input, of that input's shape and dtype.

    >>> import minitorch_peft as mp
    >>> class Double(mp.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         return 2 * x
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         return 2 * g
    >>> x = mp.tensor([1.0, 2.0], requires_grad=True)
    >>> y = Double.apply(x)
    >>> y.backward(gradient=y.data); x.grad
    array([4., 8.], dtype=float32)
    """

    @staticmethod
    def forward(ctx: Any, *arrays: Any, **constants: Any) -> np.ndarray:
        raise NotImplementedError("a Function defines forward(ctx, *arrays, **constants)")

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> Any:
        raise NotImplementedError("a Function defines backward(ctx, g)")

    @staticmethod
    def again(ctx: Any) -> np.ndarray:
        """Make the output once more, bit for bit, from what was saved: for one that takes more memory than time.

        Where a Function defines it, operations that save such an output do not keep it.
        """
        raise NotImplementedError("a Function whose output need not be kept defines again(ctx)")

    @classmethod
    def apply(cls, *inputs: Tensor | None, **constants: Any) -> Tensor:
        """Run the operation; an optional positional input (a bias) may be None."""
        tensors = tuple([x if x is None or isinstance(x, Tensor) else as_tensor(x, cls.__name__) for x in inputs])
        given = [t for t in tensors if t is not None]
        enabled = is_grad_enabled()
        needs = tuple([enabled and t is not None and t.requires_grad for t in tensors])
        ctx = Node(cls, tensors, needs) if True in needs else Context(cls.__name__, needs)
        if Context.tape is not None and isinstance(ctx, Node):
            Context.tape.append((ctx, tensors, constants))
        before = [checksum(t.data) for t in given] if Context.debug else None
        with profiler.record(cls.__name__, "forward"):
            array = cls.forward(ctx, *[None if t is None else t.data for t in tensors], **constants)
        if before is not None and before != [checksum(t.data) for t in given]:
            raise ContractError(cls.__name__, "mutates-input", "forward wrote to one of its inputs")
        if not isinstance(array, ARRAY) or array.dtype.kind not in "biuf":
            got = "None: is a return missing?" if array is None else f"{type(array).__name__}; one numeric array is due"
            raise ContractError(cls.__name__, "no-array", f"forward returned {got}")
        out = Tensor(np.asarray(array))
        for t in given:  # a view of an input is the same memory: a write to one is a write to the other
            if shares_buffer(out.data, t.data):
                out.version = t.version
        if isinstance(ctx, Node):
            ctx.watch([*given, out])
            ctx.keep_less(given)
            out.grad_fn, out.output = ctx, Output(ctx, out.data)
            out.requires_grad = True
        if profiler.meter is not None:
            profiler.meter.forward(ctx, tensors, constants, out.data)
        return out


def as_tensor(x: Any, name: str) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.ndarray | np.generic):
        return Tensor(np.asarray(x))
    raise TypeError(f"{name} takes tensors or arrays as positional inputs, not {type(x).__name__}")


def shares_buffer(out: np.ndarray, x: np.ndarray) -> bool:
    """Is ``out`` the array ``x``, or a view of the memory that ``x`` views? (Cheap: no overlap is computed.)"""
    if out is x:
        return True
    root = x if x.base is None else x.base
    return out.base is not None and (out.base is root or out.base is x)
