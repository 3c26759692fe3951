"""The four base shapes. Every method is one of them: a small trainable function attached from outside.

=========  ====================================================================  ================================
Reparam    defines ``effective(W)`` and a ``forward`` held equal to it           LoRA, DoRA, diff pruning
Around     a function of a wrapped module's input or output                      adapters, IA3, LoReFT, a ladder
Tokens     vectors before the positions are added, or keys and values to start   prompt tuning, prefix tuning
Select     a trainable copy in place of each chosen parameter                    full, top layers, BitFit
=========  ====================================================================  ================================
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import ForwardContext, Module, Parameter
from minitorch_peft.peft.inject import Wrapper, slot

if TYPE_CHECKING:
    from minitorch_peft.peft.adapter import Adapter


class Attached(Wrapper):
    """A wrapper that belongs to a named adapter and acts on the rows that run under it.

    A shape defines ``adapted`` (all rows run under the adapter) and ``mixed`` (some do: ``rows``, bool (B,)).
    """

    def __init__(self, base_layer: Module, adapter: Adapter) -> None:
        self.base_layer = base_layer
        self.adapter = adapter

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        rows = self.adapter.rows(context)
        if isinstance(rows, np.ndarray):
            return self.mixed(x, context, rows)
        return self.adapted(x, context) if rows else self.base_layer(x, context)

    def adapted(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        raise NotImplementedError

    def mixed(self, x: Tensor, context: ForwardContext | None, rows: np.ndarray) -> Tensor:
        raise NotImplementedError

    def chain(self) -> Iterator[Any]:
        """The wrappers from here down to the base's own module."""
        here: Any = self
        while isinstance(here, Wrapper):
            yield here
            here = here.base_layer

    def extra_repr(self) -> str:
        return repr(self.adapter.name)


def on_rows(rows: np.ndarray, y: Tensor, otherwise: Tensor) -> Tensor:
    """``y`` (B, ...) where ``rows`` (B,) is true, ``otherwise`` elsewhere."""
    return F.where(Tensor(rows.reshape(-1, *[1] * (y.ndim - 1))), y, otherwise)


class Reparam(Attached):
    """Stands for a layer whose weight W (out, in) is replaced by ``effective(W)``, without forming it.

    ``delta(x)`` is what the adapter adds to the layer's output; it is zero in the rows of other adapters.
    """

    def effective(self, weight: np.ndarray) -> np.ndarray:
        """The weight (out, in) that this layer amounts to: for merging, and as an oracle for ``forward``."""
        raise NotImplementedError

    def effective_bias(self, bias: np.ndarray) -> np.ndarray:
        """The bias (out,) that this layer amounts to, where it has one; the same object where it is left alone."""
        return bias

    def delta(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        raise NotImplementedError

    def adapted(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        return self.base_layer(x, context) + self.delta(x, context)

    def mixed(self, x: Tensor, context: ForwardContext | None, rows: np.ndarray) -> Tensor:
        y = self.base_layer(x, context)
        return on_rows(rows, y + self.delta(x, context), y)


class ParameterReparam(Module):
    """Makes another parameter of one of the base's, of any kind: a weight, a bias, a norm's, the embedding's.

    For the length of a pass ``tensor(theta)`` stands in the parameter's place. Its own parameters are the method's.
    """

    def tensor(self, theta: Tensor, context: ForwardContext | None) -> Tensor:
        """The parameter that acts, differentiable; ``theta`` is the base's, or what another adapter made of it."""
        raise NotImplementedError

    def effective(self, theta: np.ndarray) -> np.ndarray:
        """The same of an array, without noise: for merging, and as an oracle for ``tensor``."""
        raise NotImplementedError


class Around(Attached):
    """A function of the wrapped module's input (``before``), output (``after``), or both."""

    def before(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        return x

    def after(self, y: Tensor, x: Tensor, context: ForwardContext | None) -> Tensor:
        """What becomes of the output ``y`` that the wrapped module gave for ``x``."""
        return y

    def adapted(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        return self.after(self.base_layer(self.before(x, context), context), x, context)

    def mixed(self, x: Tensor, context: ForwardContext | None, rows: np.ndarray) -> Tensor:
        y = self.base_layer(on_rows(rows, self.before(x, context), x), context)
        return on_rows(rows, self.after(y, x, context), y)


class Tokens(Around):
    """Stands around ``embed``: puts ``prompt()`` (k, C) before the vectors of the input, in the first pass only.

    Its adapter says how many they are, in ``prompt_length``. A prefix is no wrapper: see ``Adapter.prefix``.
    """

    def prompt(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        # BEGIN SOLUTION(task="5.3a")
        if context is not None and (context.prompts_placed or not context.prompt_length):
            return self.base_layer(x, context)  # in a later pass the cache holds the prompt's keys and values already
        return super().forward(x, context)
        # END SOLUTION

    def before(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        # BEGIN SOLUTION(task="5.3b")
        prompt = self.prompt()
        return F.cat([prompt.expand(x.shape[0], *prompt.shape), x], dim=1)
        # END SOLUTION

    def mixed(self, x: Tensor, context: ForwardContext | None, rows: np.ndarray) -> Tensor:
        """Each row's own prompt, at the right end of places that all rows share; what is left of it is masked."""
        assert context is not None and context.adapter_names is not None
        layers = {layer.adapter.name: layer for layer in self.chain() if isinstance(layer, Tokens)}
        prompts = {n: layers[n].prompt() for n in dict.fromkeys(context.adapter_names) if n in layers}
        table, first = [Tensor(np.zeros((1, x.shape[-1]), x.dtype))], {}
        for name in prompts:
            first[name] = sum(len(t) for t in table)
            table.append(prompts[name])
        index = np.zeros((x.shape[0], context.prompt_length), int)
        for row, name in enumerate(context.adapter_names):
            if name in first:
                k = len(prompts[name])
                index[row, context.prompt_length - k :] = first[name] + np.arange(k)
        context.prompts_placed = True
        return self.base_layer(F.cat([F.cat(table, dim=0)[index], x], dim=1), context)


class Selected:
    """One parameter of the base with a trainable copy: while its adapter is active, the copy stands in its place.

    It is known by its path: merging may put another layer there, with the same bias.
    """

    def __init__(self, model: Module, path: str, adapter: str) -> None:
        self.model = model
        self.path = path
        self.original: Parameter = self._here()
        self.copy = Parameter(self.original.data.copy(), self.original.init, owner=adapter)

    def put_in(self) -> None:
        setattr(*slot(self.model, self.path), self.copy)

    def take_out(self) -> None:
        """The original back in its place, unless another adapter's copy stands there."""
        if self._here() is self.copy:
            setattr(*slot(self.model, self.path), self.original)

    def _here(self) -> Parameter:
        holder, name = slot(self.model, self.path)
        return holder.get(name)


def parameters_of(wrapper: Attached) -> dict[str, Parameter]:
    """A wrapper's own parameters, those of its own sub-modules included, without what it wraps."""
    found: dict[str, Parameter] = {}
    for name, value in vars(wrapper).items():
        if isinstance(value, Parameter):
            found[name] = value
        elif isinstance(value, Module) and name != "base_layer":
            found.update({f"{name}.{n}": p for n, p in value.named_parameters()})
    return found
