"""A bottleneck as one operation: down, a function of each element, up, scaled, and added to what stands there."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Context, Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.ops.activation import Gelu, GeluTanh, Relu, Silu, Tanh


class Identity(Function):
    """y = x."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        return x

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g


NON_LINEARITIES: dict[str, type[Function]] = {
    "gelu": Gelu,
    "gelu_new": GeluTanh,
    "identity": Identity,
    "relu": Relu,
    "silu": Silu,
    "swish": Silu,
    "tanh": Tanh,
}
"""Those of ``nn.Activation``, AdapterHub's name for silu, and none at all."""


class Bottleneck(Function):
    """y = h + s ⊙ (a W_upᵀ + b_up), a = f(u), u = z W_downᵀ + b_down; h and z (..., C), W_down (w, C), W_up (C, w).

    ``h`` None: the change alone or, with ``to_z``, added to z. ``scale`` (1,) or (C,) is a learned s; None: s is the
    constant. Kept are z, where W_down trains, and the narrow u (..., w), from which a is made again. With G = dL/dy and
    P = Gᵀ a (C, w):

        dh = G            dW_up = s ⊙ P      db_up = s ⊙ Σ G      ds = Σ_w P ⊙ W_up + b_up ⊙ Σ G, for each channel
        du = ((s ⊙ G) W_up) f'(u)      dW_down = duᵀ z      db_down = Σ du      dz = du W_down (+ G)
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, h, z, W_down, b_down, W_up, b_up, scale, *, f: type[Function], s: float, to_z: bool
    ) -> np.ndarray:
        linear = dispatch.get("linear_forward", z.dtype)
        factor = np.full(1, s, z.dtype) if scale is None else scale
        # BEGIN SOLUTION(task="5.1a")
        u = linear(z, W_down, b_down)
        a = f.forward(Context(f.__name__, (False,)), u)
        y = linear(a, factor[:, None] * W_up, factor * b_up)
        if to_z or h is not None:
            y += z if to_z else h
        # END SOLUTION
        ctx.f, ctx.learned, ctx.to_z = f, scale is not None, to_z
        ctx.save_for_backward(z if ctx.needs_input_grad[2] else None, u, W_down, W_up, b_up, factor)
        return y

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        z, u, W_down, W_up, b_up, s = ctx.saved
        need_h, need_z, need_down, need_down_bias, *need_up = ctx.needs_input_grad
        below, above = need_z or need_down or need_down_bias, any(need_up)
        backward, inner = dispatch.get("linear_backward", G.dtype), Context(ctx.f.__name__, (True,))
        a = ctx.f.forward(inner, u)
        # BEGIN SOLUTION(task="5.2")
        da, P, total = backward(G, a, s[:, None] * W_up, (below, above, above))
        dz = dW_down = db_down = dW_up = db_up = ds = None
        if below:
            du = ctx.f.backward(inner, da)
            if z is None:
                rows = du.reshape(-1, du.shape[-1])
                dz = dispatch.get("matmul", G.dtype)(rows, W_down).reshape(G.shape) if need_z else None
                db_down = rows.sum(axis=0) if need_down_bias else None
            else:
                dz, dW_down, db_down = backward(du, z, W_down, (need_z, need_down, need_down_bias))
            if dz is not None and ctx.to_z:
                dz += G
        if above:
            dW_up, db_up = s[:, None] * P, s * total
            if ctx.learned:
                channels = (P * W_up).sum(axis=1) + b_up * total
                ds = channels if len(s) > 1 else channels.sum(keepdims=True)
        return G if need_h else None, dz, dW_down, db_down, dW_up, db_up, ds
        # END SOLUTION


def bottleneck(
    h: Tensor | None, z: Tensor, down: tuple[Tensor, Tensor | None], up: tuple[Tensor, Tensor | None],
    non_linearity: str, scaling: float | Tensor = 1.0,
) -> Tensor:  # fmt: skip
    """h + s (f(z W_downᵀ + b_down) W_upᵀ + b_up), shaped as z; ``down`` and ``up`` are (weight, bias).

    >>> import minitorch_peft as mp
    >>> one, none = mp.tensor([[1.0]]), mp.tensor([0.0])
    >>> bottleneck(mp.tensor([[10.0]]), mp.tensor([[2.0]]), (one, none), (one, none), "relu", 4.0).tolist()
    [[18.0]]
    """
    learned = scaling if isinstance(scaling, Tensor) else None
    s = 1.0 if isinstance(scaling, Tensor) else scaling
    to_z = h is z  # one gradient for both, then
    f = NON_LINEARITIES[non_linearity]
    return Bottleneck.apply(None if to_z else h, z, *down, *up, learned, f=f, s=s, to_z=to_z)
