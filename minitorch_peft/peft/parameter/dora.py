"""DoRA: LoRA changes a weight's direction, the lengths of its rows train apart (Liu et al. 2024, eq. 5).

    y = x W'ᵀ + b,   W' = m (W + s B A) / n,   n = ‖W + s B A‖,   A (r, in), B (out, r), m (out,), n (out,)

The norm is each row's, over the inputs. m starts as that of W, so that the adapted model starts as the base. With
LoRA's output v = x (W + s B A)ᵀ + b this is y = v + (m / n - 1)(v - b): LoRA, and one factor for each output.
Parameters: LoRA's, and out for each layer. Targets by default: the query and value projections.

Nothing of W's size is made for the norm, neither forward nor backward, as

    n_i² = ‖w_i‖² + 2 s b_i · (W Aᵀ)_i + s² b_i (A Aᵀ) b_iᵀ

has W Aᵀ (out, r) and, made once, ‖w_i‖². (``peft`` forms B A and W + s B A in every pass.) Where several adapters
stand on one layer, n is of the base's W and of this one's change only, as it is in ``peft``.

The gradient passes through n: the exact one. ``peft`` holds n constant in the backward pass, as the paper proposes to
save memory (section 4.3), which the identity saves as well; ``dora_detach_norm=True`` gives that gradient. The outputs
are the same. Dropout is of the low-rank path only (``peft`` drops what W is multiplied by as well, where m / n ≠ 1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor, is_grad_enabled
from minitorch_peft.kernels.four_bit.layout import Quantized
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext, Module
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.parameter.dora_files import MAGNITUDE, DoraFiles
from minitorch_peft.peft.parameter.dora_functions import Rescaled, RowLengths, times, times_transposed, weight_of
from minitorch_peft.peft.parameter.lora import Lora, LoraConfig, LoraLayer, lora_count
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import on_rows


class DoraNorm(Function):
    """n (out,), the norm of each row of W' = W + s B A, which is not formed; sums are taken in float64.

    W is (out, in), or None where it is in four bits, ``q``; ``squares`` are ‖w_i‖². With P = W Aᵀ and, kept for the
    backward pass, S = W' Aᵀ = P + s B (A Aᵀ), both (out, r),

        n² = ‖w‖² + s Σ_r B (P + S).

    Since dn_i = w'_i · dw'_i / n_i, with H = (G / n) B, the rows of B times those numbers:

        dB = s (G / n) S      dA = s Hᵀ W' = s Hᵀ W + s² (Hᵀ B) A      dW = (G / n) W'
    """

    @staticmethod
    def forward(ctx: Any, W, A, B, *, s: float, q: Quantized | None, squares: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
        exact = A.astype(np.float64)
        P = times_transposed(A, W, q).T
        S = P + s * (B @ (exact @ exact.T).astype(A.dtype))
        n = np.sqrt(np.maximum(squares + s * np.einsum("or,or->o", B, P + S, dtype=np.float64), 0)).astype(A.dtype)
        ctx.s, ctx.q = s, q
        ctx.save_for_backward(W, A, B, S, n)
        return n

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        (W, A, B, S, n), s, (need_W, need_A, need_B) = ctx.saved, ctx.s, ctx.needs_input_grad
        row = (G / n)[:, None]
        H = row * B
        return (
            row * (W + s * (B @ A)) if need_W else None,
            s * times(H.T, W, ctx.q) + s * s * ((H.T @ B) @ A) if need_A else None,
            s * row * S if need_B else None,
        )


class Known(NamedTuple):
    """A norm, and what it was made of: copies of A and B, the lengths of W's rows."""

    A: np.ndarray
    B: np.ndarray
    squares: np.ndarray
    norm: Tensor

    def of(self, A: np.ndarray, B: np.ndarray, squares: np.ndarray) -> bool:
        """Is it still what these make?"""
        return self.squares is squares and np.array_equal(self.A, A) and np.array_equal(self.B, B)


class DoraLayer(LoraLayer):
    """A frozen layer, its low-rank change, and the lengths of the rows that result."""

    additive = False

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, config: LoraConfig) -> None:
        super().__init__(base_layer, path, adapter, config)
        self.lengths = RowLengths()
        self.known: Known | None = None
        self.detached = config.dora_detach_norm
        start = np.sqrt(self.lengths.of_rows(self.base))
        if not start.all():
            raise ValueError(
                f"row {np.argmin(start)} of the weight of {path} is zero: it has no direction that DoRA could keep; "
                "leave the layer out, or use LoRA"
            )
        self.lora_magnitude_vector = adapter.new_parameter(f"{path}.{MAGNITUDE}", start.shape, lambda *_: start)

    def norm(self) -> Tensor:
        """‖W + s B A‖ of each row, (out,). Without gradients it is made once for the same weights."""
        (W, q), squares = weight_of(self.base), self.lengths.of_rows(self.base)
        inputs, constants = (W, self.lora_A, self.lora_B), {"s": self.scaling, "q": q, "squares": squares}
        if is_grad_enabled() and not self.detached and any(t is not None and t.requires_grad for t in inputs):
            return DoraNorm.apply(*inputs, **constants)
        A, B, known = self.lora_A.data, self.lora_B.data, self.known
        if known is None or not known.of(A, B, squares):
            detached = [t if t is None else t.detach() for t in inputs]
            known = self.known = Known(A.copy(), B.copy(), squares, DoraNorm.apply(*detached, **constants))
        return known.norm

    def rescaled(self, v: Tensor) -> Tensor:
        """m / n times ``v``, all but the base's bias."""
        return Rescaled.apply(v, self.lora_magnitude_vector / self.norm(), self.base_bias())

    def base_bias(self) -> Tensor | None:
        _, bias = self.base.packed_terms() or self.base.linear_terms() or (None, None)
        return bias

    def adapted(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        return self.rescaled(super().adapted(x, context))

    def mixed(self, x: Tensor, context: ForwardContext | None, rows: np.ndarray) -> Tensor:
        y = self.base_layer(x, context)
        return on_rows(rows, self.rescaled(y + self.delta(x, context)), y)

    def effective(self, weight: np.ndarray) -> np.ndarray:
        return self.factor(weight.dtype)[:, None] * super().effective(weight)

    def effective_bias(self, bias: np.ndarray) -> np.ndarray:
        """b + (m / n - 1)(b - b₀): what an adapter inside has made of the base's b₀ is rescaled as well."""
        base = self.base_bias()
        if base is None or np.array_equal(bias, base.data):
            return bias
        return bias + (self.factor(bias.dtype) - 1) * (bias - base.data)

    def factor(self, dtype: np.dtype) -> np.ndarray:
        """m / n (out,)."""
        n = np.linalg.norm(super().effective(self.base.dense_weight().astype(dtype)), axis=1)
        return self.lora_magnitude_vector.data / n


class Dora(Lora):
    layer = DoraLayer


def dora_count(model: GPT, config: LoraConfig) -> int:
    """LoRA's parameters, and out for each target."""
    return lora_count(model, config) + sum(t.out_features for t in config.targets(model).values())


register(
    Method(
        name="dora", config=LoraConfig, variant={"use_dora": True}, adapter=Dora, shape="reparam", folder="parameter",
        start="bitwise", count=dora_count, mergeable=True, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"), summary="a low-rank change of direction, and lengths",
        examples=(
            LoraConfig(r=4, lora_alpha=8, use_dora=True),
            LoraConfig(
                r=1, target_modules=["k_proj", "down_proj", "embed.tokens"], lora_dropout=0.1, use_rslora=True,
                use_dora=True,
            ),
        ),
        peft_files=DoraFiles(),
    )
)  # fmt: skip
