"""VeRA: two random matrices for all layers, frozen; two vectors for each layer train (Kopiczko et al. 2024, eq. 2).

    y = x Wᵀ + b + λ_b ∘ ((λ_d ∘ (x Aᵀ)) Bᵀ),   A (r, in), B (out, r),   λ_d (r,), λ_b (out,)

λ_b starts at zero, so that the adapted model starts as the base, λ_d at ``d_initial``. A and B are as large as the
largest target needs, and a layer takes the part of them that ``peft`` gives it: A's first columns and B's first rows;
of a module that ``transformers`` fuses, q, k and v take their rows behind each other. Parameters: r + out for each
layer. Targets by default: the query and value projections.

A and B follow from ``projection_prng_key`` alone, and are ``peft``'s bit for bit: drawn by torch's generator, the
Mersenne twister, whose stream NumPy has as well. A file holds them only if ``save_projection``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import Dropout, ForwardContext, Module, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig, check_count, check_dropout, is_whole
from minitorch_peft.peft.hooks import check_state
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.parameter.vera_files import VeraFiles
from minitorch_peft.peft.parameter.vera_projection import Projection, draw
from minitorch_peft.peft.patterns import Pattern, target_leaves
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import Reparam


@dataclass
class VeraConfig(PeftConfig):
    """``r`` is larger than LoRA's would be, and may exceed a layer's size: the paper has 256 to 1024."""

    peft_type: ClassVar[str] = "VERA"

    r: int = 256
    target_modules: Pattern = ("q_proj", "v_proj")
    layers_to_transform: int | list[int] | None = None
    exclude_modules: Pattern | None = None
    projection_prng_key: int = 0
    save_projection: bool = True
    vera_dropout: float = 0.0
    d_initial: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("r", self.r)
        check_dropout("vera_dropout", self.vera_dropout)
        if not is_whole(self.projection_prng_key):
            raise ValueError(f"projection_prng_key must be a whole number, got {self.projection_prng_key!r}")
        if not math.isfinite(self.d_initial) or not self.d_initial:
            raise ValueError(f"d_initial must be a number, and not 0, of which nothing would come: {self.d_initial!r}")

    def targets(self, model: GPT) -> dict[str, Any]:
        """Path to module of every layer that the config names; ValueError where a name fits none."""
        found = target_leaves(model, self.target_modules, self.layers_to_transform, self.exclude_modules)
        if ids := [path for path, leaf in found.items() if leaf.takes_ids]:
            raise ValueError(f"{ids[0]} is an embedding: VeRA is of linear layers, leave it out or use LoRA")
        return found


class VeraChange(Function):
    """y = λ_b ∘ ((λ_d ∘ u) Bᵀ) of u = x Aᵀ (..., r). Of what has a row for each token, u alone is kept:

        dλ_b = Σ G ∘ z,  z = (λ_d ∘ u) Bᵀ made again;   t = (λ_b ∘ G) B:   dλ_d = Σ t ∘ u,   du = λ_d ∘ t

    with sums over all rows. B is frozen.
    """

    @staticmethod
    def forward(ctx: Any, u, lambda_d, lambda_b, *, B: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
        ctx.B = B
        ctx.save_for_backward(u, lambda_d, lambda_b)
        return ((u * lambda_d) @ B.T) * lambda_b

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        (u, lambda_d, lambda_b), (need_u, need_d, need_b) = ctx.saved, ctx.needs_input_grad
        g, rows = G.reshape(-1, len(lambda_b)), u.reshape(-1, len(lambda_d))
        t = (g * lambda_b) @ ctx.B
        return (
            (t * lambda_d).reshape(u.shape) if need_u else None,
            np.einsum("tr,tr->r", t, rows) if need_d else None,
            np.einsum("to,to->o", g, (rows * lambda_d) @ ctx.B.T) if need_b else None,
        )


class VeraLayer(Reparam):
    """A frozen layer and its two vectors."""

    def __init__(self, base_layer: Module, path: str, adapter: Vera, config: VeraConfig) -> None:
        super().__init__(base_layer, adapter)
        n, first = self.base.out_features, adapter.projection.first[path]
        self.vera_lambda_b = adapter.new_parameter(f"{path}.vera_lambda_b", (n,), init.zeros)
        start = np.full(config.r, config.d_initial)
        self.vera_lambda_d = adapter.new_parameter(f"{path}.vera_lambda_d", start.shape, lambda *_: start)
        self.A = Tensor(adapter.projection.A[:, : self.base.in_features])  # views: the adapter holds one array
        self.B = Tensor(adapter.projection.B[first : first + n])
        self.dropout = Dropout(config.vera_dropout, f"{adapter.name}.{path}")

    def delta(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        dtype = self.vera_lambda_d.dtype
        u = self.base.project(self.dropout(x, context), self.A.to(dtype))
        return VeraChange.apply(u, self.vera_lambda_d, self.vera_lambda_b, B=self.B.to(dtype).data)

    def effective(self, weight: np.ndarray) -> np.ndarray:
        parts = (self.A, self.B, self.vera_lambda_d, self.vera_lambda_b)
        A, B, lambda_d, lambda_b = (part.data.astype(weight.dtype) for part in parts)
        return weight + (lambda_b[:, None] * B) @ (lambda_d[:, None] * A)


class Vera(Adapter):
    projection: Projection

    def attach(self, config: VeraConfig) -> None:
        targets = config.targets(self.model)
        self.projection = draw(self.model, targets, config.r, config.projection_prng_key, self.dtype)
        self.wrappers = inject(self.model, targets, lambda base, path: VeraLayer(base, path, self, config))

    def deployed(self) -> dict[str, np.ndarray]:
        """The vectors: the matrices follow from the key."""
        return {name: p.data for name, p in self.named_parameters().items()}

    def frozen(self) -> dict[str, np.ndarray]:
        return self.method_state() if self.config.save_projection else {}

    def method_state(self) -> dict[str, np.ndarray]:
        return {"vera_A": self.projection.A, "vera_B": self.projection.B}

    def load_method_state(self, state: dict[str, np.ndarray]) -> None:
        check_state(self.name, state, self.method_state())
        for name, array in self.method_state().items():
            array[...] = state[name]


def vera_count(model: GPT, config: VeraConfig) -> int:
    """Σ r + out over the targets."""
    return sum(config.r + target.out_features for target in config.targets(model).values())


register(
    Method(
        name="vera", config=VeraConfig, adapter=Vera, shape="reparam", folder="parameter", start="bitwise",
        count=vera_count, mergeable=True, rowwise=True, stackable_with=("reparam", "around", "tokens", "select"),
        summary="vectors between shared random matrices",
        examples=(
            VeraConfig(r=48),
            VeraConfig(
                r=8, target_modules=["k_proj", "o_proj", "up_proj"], projection_prng_key=3, save_projection=False,
                vera_dropout=0.1, d_initial=0.5,
            ),
        ),
        peft_files=VeraFiles(),
    )
)  # fmt: skip
