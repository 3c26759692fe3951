"""Module and Parameter: a plain tree with dotted names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn.init import Init

M = TypeVar("M", bound="Module")


class Parameter(Tensor):
    """A tensor that a module owns and that training may change.

    ``owner`` says whose it is: ``"base"``, or the name of an adapter. ``init`` draws its starting value.
    """

    __slots__ = ("init", "owner")

    def __init__(
        self, data: np.ndarray, init: Init | None = None, owner: str = "base", requires_grad: bool = True
    ) -> None:
        super().__init__(data, requires_grad)
        self.init = init
        self.owner = owner

    @classmethod
    def empty(cls, shape: tuple[int, ...], init: Init, owner: str = "base", dtype: Any = np.float32) -> Parameter:
        """A parameter of zeros that ``nn.init.initialize`` is to fill."""
        return cls(np.zeros(shape, dtype), init, owner)


class Module:
    """A function with parameters. Sub-modules, parameters and buffers are its attributes; nothing is registered.

    A buffer is a plain array: part of the state like a parameter, but never trained, and kept in its own dtype.
    ``forward(x, context)`` takes and returns one tensor. ``context`` is the :class:`ForwardContext` of this pass
    or None, and is handed down.
    """

    training: bool = True
    packed_parameters: int = 0  # how many numbers its buffers stand for: weights stored in fewer bits

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines forward(x, context=None)")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # -- the tree --------------------------------------------------------------------------------------------
    def named_children(self) -> Iterator[tuple[str, Module]]:
        return ((n, v) for n, v in vars(self).items() if isinstance(v, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module (named ``prefix``) and all below it, parents first."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Its own, then its children's, under the names that they give them."""
        yield from ((name, value) for name, value in vars(self).items() if isinstance(value, Parameter))
        for path, child in self.named_children():
            yield from ((f"{path}.{name}", p) for name, p in child.named_parameters())

    def parameters(self) -> Iterator[Parameter]:
        return (p for _, p in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        yield from ((name, value) for name, value in vars(self).items() if isinstance(value, np.ndarray))
        for path, child in self.named_children():
            yield from ((f"{path}.{name}", array) for name, array in child.named_buffers())

    def constants(self) -> Mapping[str, np.ndarray]:
        """What gives the buffers their meaning: saved beside them, and compared when a state is loaded."""
        return {}

    def named_constants(self) -> dict[str, np.ndarray]:
        """Those of this module and of all below it."""
        below = {f"{path}.{n}": a for path, child in self.named_children() for n, a in child.named_constants().items()}
        return {**self.constants(), **below}

    def get(self, path: str) -> Any:
        """The sub-module or parameter at a dotted path.

        >>> from minitorch_peft.models import GPT, GPTConfig
        >>> GPT(GPTConfig(vocab_size=7, n_positions=8, n_embd=4, n_layer=1, n_head=2)).get("blocks.0.attn.q_proj")
        Linear(4, 4)
        """
        here: Any = self
        for part in path.split(".") if path else ():
            if not isinstance(here, Module) or part not in vars(here):
                raise KeyError(self._no_such_path(path))
            here = vars(here)[part]
        return here

    def set(self, path: str, value: Module | Parameter) -> None:
        """Put another module or parameter at an existing path."""
        parent_path, _, name = path.rpartition(".")
        parent = self.get(parent_path)
        if not isinstance(parent, Module) or name not in vars(parent):
            raise KeyError(self._no_such_path(path))
        setattr(parent, name, value)

    def _no_such_path(self, path: str) -> str:
        names = [n for n, _ in self.named_modules() if n] + [n for n, _ in self.named_parameters()]
        near = difflib.get_close_matches(path, names, n=3, cutoff=0.4)
        return f"no module or parameter {path!r} here; nearest: {', '.join(near) or 'none'}"

    # -- state -----------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, np.ndarray]:
        """Name to array, of parameters, buffers and constants; the arrays are the module's own memory, not copies."""
        parameters = {name: p.data for name, p in self.named_parameters()}
        return {**parameters, **dict(self.named_buffers()), **self.named_constants()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy arrays into the parameters and buffers of the same names. All names and shapes must agree, the
        dtypes of buffers, and the values of constants, or nothing changes."""
        own, buffers, constants = self.state_dict(), dict(self.named_buffers()), self.named_constants()
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unexpected:
            raise KeyError(f"state does not fit: missing {missing or 'none'}; unexpected {unexpected or 'none'}")
        for name, array in own.items():
            if state[name].shape != array.shape:
                raise ValueError(f"{name!r}: the state has shape {state[name].shape}, the model {array.shape}")
            if name in buffers and state[name].dtype != array.dtype:
                raise ValueError(f"{name!r}: the state is {state[name].dtype}, the model {array.dtype}")
            if name in constants and not np.array_equal(state[name], array):
                raise ValueError(f"{name!r}: the state is of another type than the model's, {state[name]} not {array}")
        for name in own.keys() - constants.keys():
            own[name][...] = state[name]
        for p in self.parameters():
            p.version.count += 1

    def train(self: M, mode: bool = True) -> M:
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> None:
        for p in self.parameters():
            p.grad = None

    def astype(self: M, dtype: Any) -> M:
        """Change every parameter to ``dtype``, in place (float64 for gradient checks)."""
        for p in self.parameters():
            p.data = p.data.astype(dtype)
            p.grad = None
        return self

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers it has, or how many train; a weight in four bits counts as what it stands for."""
        if only_trainable:
            return sum(p.data.size for p in self.parameters() if p.requires_grad)
        packed = sum(module.packed_parameters for _, module in self.named_modules())
        return packed + sum(p.data.size for p in self.parameters())

    def get_memory_footprint(self) -> int:
        """The bytes of its parameters and buffers."""
        arrays = (*(p.data for p in self.parameters()), *(array for _, array in self.named_buffers()))
        return sum(array.nbytes for array in arrays)

    def extra_repr(self) -> str:
        return ""

    def __repr__(self) -> str:
        lines = [f"  ({n}): {c!r}".replace("\n", "\n  ") for n, c in self.named_children()]
        head = f"{type(self).__name__}({self.extra_repr()}"
        return head + ("\n" + "\n".join(lines) + "\n)" if lines else ")")


@contextmanager
def mode_of(model: Module, training: bool) -> Iterator[None]:
    """Inside, ``model.training`` (of every module) is ``training``; afterwards each has its own mode back."""
    before = [(module, module.training) for _, module in model.named_modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


class ModuleList(Module):
    """Sub-modules named "0", "1", ..."""

    def __init__(self, modules: list[Module]) -> None:
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __iter__(self) -> Iterator[Any]:
        return (child for _, child in self.named_children())

    def __getitem__(self, index: int) -> Any:
        return list(self)[index]
