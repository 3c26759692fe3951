"""The LSTM (Hochreiter and Schmidhuber 1997), with the forget gate of Gers et al. (2000): one layer, one direction."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import floating, result_dtype, to


class LSTM(Function):
    """h_t for t = 1 ... T, from x (B, T, I), W (4H, I), U (4H, H), b and d (4H); h_0 = c_0 = 0.

        z_t = W x_t + b + U h_(t-1) + d = [z_i z_f z_g z_o],   i, f, o = sigmoid(z),   g = tanh(z_g)
        c_t = f c_(t-1) + i g,                                 h_t = o tanh(c_t)

    Backward walks from T to 1. What reaches h_t is G_t, and through the next step's gates Uᵀ δ_(t+1); what reaches
    c_t is that times o (1 - tanh² c_t), and through the next step's forget gate f_(t+1) dc_(t+1):

        dh = G_t + Uᵀ δ_(t+1),   dc = dh o (1 - tanh² c_t) + f_(t+1) dc_(t+1)
        δ_t = [dc g i(1-i),  dc c_(t-1) f(1-f),  dc i (1-g²),  dh tanh(c_t) o(1-o)]
        dx_t = Wᵀ δ_t,   dW = Σ δ_t x_tᵀ,   dU = Σ δ_t h_(t-1)ᵀ,   db = dd = Σ δ_t

    ``reverse`` walks from T to 1 instead; the output stays in the input's order.
    """

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, W: np.ndarray, U: np.ndarray, b: np.ndarray | None, d: np.ndarray | None, *,
        reverse: bool,
    ) -> np.ndarray:  # fmt: skip
        x = in_order(x, reverse)
        (B, T, _), H = x.shape, U.shape[1]
        z = (x @ W.T if b is None or d is None else x @ W.T + (b + d)).reshape(B, T, 4, H)
        gates = np.empty((B, T, 4, H), x.dtype)
        cells, hidden = np.zeros((2, B, T + 1, H), x.dtype)  # at 0 stands the state before the first step
        for t in range(T):
            sums = z[:, t] + (hidden[:, t] @ U.T).reshape(B, 4, H)
            gates[:, t] = sigmoid(sums)
            gates[:, t, 2] = np.tanh(sums[:, 2])
            i, f, g, o = np.moveaxis(gates[:, t], 1, 0)
            cells[:, t + 1] = f * cells[:, t] + i * g
            hidden[:, t + 1] = o * np.tanh(cells[:, t + 1])
        ctx.save_for_backward(x, W, U, gates, cells, hidden)
        ctx.reverse = reverse
        return in_order(hidden[:, 1:], reverse)

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, W, U, gates, cells, hidden = ctx.saved
        G = in_order(G, ctx.reverse)
        B, T, _, H = gates.shape
        delta = np.empty((B, T, 4, H), G.dtype)
        through_h = through_c = np.zeros((B, H), G.dtype)
        for t in reversed(range(T)):
            i, f, g, o = np.moveaxis(gates[:, t], 1, 0)
            tanh_c = np.tanh(cells[:, t + 1])
            dh = G[:, t] + through_h
            dc = dh * o * (1 - tanh_c**2) + through_c
            delta[:, t, 0] = dc * g * i * (1 - i)
            delta[:, t, 1] = dc * cells[:, t] * f * (1 - f)
            delta[:, t, 2] = dc * i * (1 - g**2)
            delta[:, t, 3] = dh * tanh_c * o * (1 - o)
            through_h, through_c = delta[:, t].reshape(B, 4 * H) @ U, dc * f
        rows = delta.reshape(B * T, 4 * H)
        need = ctx.needs_input_grad
        return (
            in_order((rows @ W).reshape(x.shape), ctx.reverse) if need[0] else None,
            rows.T @ x.reshape(B * T, x.shape[2]) if need[1] else None,
            rows.T @ hidden[:, :-1].reshape(B * T, H) if need[2] else None,
            rows.sum(0) if need[3] else None,
            rows.sum(0) if need[4] else None,
        )


def in_order(x: np.ndarray, reverse: bool) -> np.ndarray:
    """``x`` (B, T, ...) as the recurrence walks it."""
    return np.ascontiguousarray(x[:, ::-1]) if reverse else x


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x) without an overflow: (1 + tanh(x / 2)) / 2."""
    return 0.5 * np.tanh(0.5 * x) + 0.5


def lstm_layer(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """The hidden states (B, T, H) of one layer and direction of an LSTM over input (B, T, I), from a state of zeros.

    Weights and order of gates (input, forget, cell, output) are those of ``torch.nn.LSTM``: weight_ih (4H, I),
    weight_hh (4H, H), bias_ih and bias_hh (4H), both or neither. ``reverse`` reads the input from its end.
    ValueError for other shapes.

    >>> import minitorch_peft as mp
    >>> lstm_layer(mp.tensor([[[1.0], [1.0]]]), mp.tensor([[0.0]] * 4), mp.tensor([[0.0]] * 4)).tolist()
    [[[0.0], [0.0]]]
    """
    x, W, U = (floating(t, "lstm_layer") for t in (input, weight_ih, weight_hh))
    biases = [None if t is None else floating(t, "lstm_layer") for t in (bias_ih, bias_hh)]
    fits = x.ndim == 3 and W.ndim == U.ndim == 2 and W.shape[1] == x.shape[2] and len(W) == len(U) == 4 * U.shape[1]
    fits = fits and (bias_ih is None) == (bias_hh is None) and all(b is None or b.shape == W.shape[:1] for b in biases)
    if not fits:
        got = ", ".join(str(None if t is None else t.shape) for t in (x, W, U, *biases))
        raise ValueError(
            "lstm_layer: expected input (B, T, I), weight_ih (4H, I), weight_hh (4H, H) and two biases (4H) or none, "
            f"got {got}"
        )
    dtype = result_dtype(x, W, U, *(b for b in biases if b is not None))
    b, d = (None if t is None else to(t, dtype) for t in biases)
    return LSTM.apply(to(x, dtype), to(W, dtype), to(U, dtype), b, d, reverse=reverse)
