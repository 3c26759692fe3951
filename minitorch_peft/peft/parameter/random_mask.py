"""A random mask: N scalars of the base train, drawn uniformly among all of them (Ben Zaken et al. 2021, section 4).

    θ' = θ + S δ,   S (|θ|, N) with one 1 in each column: δ_j is added to the j-th chosen entry

The control of BitFit: does it matter that just the biases are trained, or would any N parameters do? δ (N,) starts at
zero, so the adapted model starts as the base, and all other entries stay as they are, bit for bit; weight decay acts on
δ alone. The gradient of every parameter with a chosen entry is still computed whole, so this saves no time. Parameters:
N. Targets by default: all parameters of the model. Which entries are drawn depends on ``mask_seed`` and on the model's
sizes, not on the adapter's own seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.random import counter_seed
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext, Parameter, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig, check_count
from minitorch_peft.peft.inject import parameter_sizes
from minitorch_peft.peft.patterns import Pattern, select
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import ParameterReparam


@dataclass
class RandomMaskConfig(PeftConfig):
    """``num_parameters``, or ``fraction`` of what ``target_parameters`` names (by default of the whole model).

    As many as BitFit has:

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import METHODS, BitFitConfig, get_peft_model
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> config = RandomMaskConfig(num_parameters=METHODS["bitfit"].count(base, BitFitConfig()))
    >>> get_peft_model(base, config).get_nb_trainable_parameters()[0] == config.num_parameters
    True
    """

    peft_type: ClassVar[str] = "RANDOM_MASK"

    num_parameters: int | None = None
    fraction: float | None = None
    mask_seed: int = 0
    target_parameters: Pattern | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.num_parameters is None) == (self.fraction is None):
            raise ValueError("give either num_parameters (a number) or fraction (of all of them)")
        if self.num_parameters is not None:
            check_count("num_parameters", self.num_parameters)
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction!r}")


class AddAt(Function):
    """θ with δ (n,) added to its flat entries at ``index`` (n,), all different: dθ = G, dδ = G at ``index``."""

    @staticmethod
    def forward(ctx: Any, theta: np.ndarray, delta: np.ndarray, *, index: np.ndarray) -> np.ndarray:
        ctx.index = index
        return added_at(theta, delta, index)

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return G if ctx.needs_input_grad[0] else None, G.reshape(-1)[ctx.index] if ctx.needs_input_grad[1] else None


def added_at(theta: np.ndarray, delta: np.ndarray, index: np.ndarray) -> np.ndarray:
    flat = theta.flatten()
    flat[index] += delta
    return flat.reshape(theta.shape)


class MaskedParameter(ParameterReparam):
    """A parameter with ``delta`` (n,) added to its chosen entries."""

    def __init__(self, delta: Parameter, index: np.ndarray) -> None:
        self.delta, self.index = delta, index

    def tensor(self, theta: Tensor, context: ForwardContext | None) -> Tensor:
        return AddAt.apply(theta, self.delta, index=self.index)

    def effective(self, theta: np.ndarray) -> np.ndarray:
        return added_at(theta, self.delta.data.astype(theta.dtype), self.index)


class RandomMask(Adapter):
    def attach(self, config: RandomMaskConfig) -> None:
        chosen = random_entries(mask_sizes(self.model, config), random_mask_count(self.model, config), config.mask_seed)
        starts = {path: self.new_parameter(f"{path}.delta", index.shape, init.zeros) for path, index in chosen.items()}
        self.reparametrize(list(chosen), lambda path, theta: MaskedParameter(starts[path], chosen[path]))


def mask_sizes(model: GPT, config: RandomMaskConfig) -> dict[str, int]:
    """Path to size of every parameter that entries are drawn from."""
    sizes = parameter_sizes(model)
    if config.target_parameters is None:
        return sizes
    return {path: sizes[path] for path in select(config.target_parameters, sizes, "parameter")}


def random_entries(sizes: dict[str, int], count: int, seed: int) -> dict[str, np.ndarray]:
    """Path to the flat indices, in order, of what is chosen of it: every set of ``count`` entries is equally likely.

    Each entry draws a number, and the smallest win. The numbers are the kernel's, the same with every version of NumPy.
    """
    ends = np.cumsum(list(sizes.values()))
    uniform = dispatch.get("philox_uniform", np.dtype(np.float32))(
        counter_seed(seed, "random_mask"), 0, (int(ends[-1]),)
    )
    last = np.partition(uniform, count - 1)[count - 1]
    below = np.flatnonzero(uniform < last)
    chosen = np.sort(np.concatenate([below, np.flatnonzero(uniform == last)[: count - len(below)]]))
    parts = np.split(chosen, np.searchsorted(chosen, ends)[:-1])
    starts = ends - list(sizes.values())
    return {path: part - start for path, part, start in zip(sizes, parts, starts, strict=True) if len(part)}


def random_mask_count(model: GPT, config: RandomMaskConfig) -> int:
    """N, or the fraction of the sizes' sum."""
    total = sum(mask_sizes(model, config).values())
    count = round(config.fraction * total) if config.num_parameters is None else config.num_parameters  # type: ignore[operator]
    if not 1 <= count <= total:
        raise ValueError(f"num_parameters={count} cannot be drawn from {total} parameters: from 1 to {total}")
    return count


register(
    Method(
        name="random_mask", config=RandomMaskConfig, adapter=RandomMask, shape="reparam", folder="parameter",
        start="bitwise", count=random_mask_count, mergeable=True, rowwise=False,
        stackable_with=("reparam", "around", "tokens", "select"), summary="scalars drawn at random, BitFit's control",
        examples=(
            RandomMaskConfig(num_parameters=640),
            RandomMaskConfig(fraction=0.5, mask_seed=1, target_parameters=["ln_1.**", "mlp.down_proj.weight"]),
        ),
    )
)  # fmt: skip
