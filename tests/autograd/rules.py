"""Right rules, written plainly, for operations that the package fuses: what the wrong ones are made from."""

from __future__ import annotations

import numpy as np

import minitorch_peft as mp


class PlainAdd(mp.Function):
    """y = a + b with NumPy's broadcasting of b along a's leading axes."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.lead = tuple(range(a.ndim - b.ndim))
        return a + b

    @staticmethod
    def backward(ctx, g):
        return g, g.sum(ctx.lead)


class PlainMax(mp.Function):
    """The largest along an axis; it gets all of the gradient."""

    @staticmethod
    def forward(ctx, x, *, dim):
        y = x.max(dim, keepdims=True)
        ctx.save_for_backward(x == y)
        ctx.dim = dim
        return y.squeeze(dim)

    @staticmethod
    def backward(ctx, g):
        return ctx.saved[0] * np.expand_dims(g, ctx.dim)


class MaskedFill(mp.Function):
    @staticmethod
    def forward(ctx, x, *, mask, value):
        ctx.save_for_backward(mask)
        return np.where(mask, value, x)

    @staticmethod
    def backward(ctx, g):
        return np.where(ctx.saved[0], 0.0, g)


class PlainEmbedding(mp.Function):
    @staticmethod
    def forward(ctx, w, *, ids):
        ctx.ids, ctx.shape = ids, w.shape
        return w[ids]

    @staticmethod
    def backward(ctx, g):
        dw = np.zeros(ctx.shape)
        np.add.at(dw, ctx.ids, g)
        return dw


class PlainLinear(mp.Function):
    """y = x Wᵀ + b: x (T, I), W (O, I), b (O)."""

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return x @ w.T + b

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved
        return g @ w, g.T @ x, g.sum(0)


class PlainSoftmax(mp.Function):
    @staticmethod
    def forward(ctx, x, *, dim):
        e = np.exp(x - x.max(dim, keepdims=True))
        y = e / e.sum(dim, keepdims=True)
        ctx.save_for_backward(y)
        ctx.dim = dim
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return y * (g - (g * y).sum(ctx.dim, keepdims=True))


class PlainDropout(mp.Function):
    """Forward keeps the mask that it drew for backward."""

    @staticmethod
    def forward(ctx, x, *, key, p):
        mask = (np.random.default_rng(key).random(x.shape) >= p) / (1 - p)
        ctx.save_for_backward(mask)
        ctx.p = p
        return x * mask

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved[0]


class PlainLayerNorm(mp.Function):
    @staticmethod
    def forward(ctx, x, w, b, *, eps=1e-5):
        centred = x - x.mean(-1, keepdims=True)
        rstd = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        ctx.save_for_backward(x, centred * rstd, rstd, w)
        return centred * rstd * w + b

    @staticmethod
    def backward(ctx, g):
        _, h, rstd, w = ctx.saved
        d = g * w
        dx = rstd * (d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True))
        lead = tuple(range(g.ndim - 1))
        return dx, (g * h).sum(lead), g.sum(lead)


class PlainRmsNorm(mp.Function):
    @staticmethod
    def forward(ctx, x, w, *, eps=1e-5):
        rms = np.sqrt((x**2).mean(-1, keepdims=True) + eps)
        ctx.save_for_backward(x, w, rms)
        return x / rms * w

    @staticmethod
    def backward(ctx, g):
        x, w, rms = ctx.saved
        d = g * w
        dx = d / rms - x * (d * x).mean(-1, keepdims=True) / rms**3
        return dx, (g * x / rms).sum(tuple(range(g.ndim - 1)))


class PlainCrossEntropy(mp.Function):
    """Mean over the rows that are not ignored."""

    @staticmethod
    def forward(ctx, x, *, target, ignore_index=-100):
        kept = np.flatnonzero(target != ignore_index)
        logp = x - np.log(np.exp(x).sum(-1, keepdims=True))
        ctx.save_for_backward(np.exp(logp), target, kept)
        return np.asarray(-logp[kept, target[kept]].mean())

    @staticmethod
    def backward(ctx, g):
        p, target, kept = ctx.saved
        dx = np.zeros_like(p)
        dx[kept] = p[kept]
        dx[kept, target[kept]] -= 1
        return dx * g / len(kept)


class PlainAttention(mp.Function):
    """softmax(s Q Kᵀ) V, causal: q (T, D), k and v (T, D)."""

    @staticmethod
    def forward(ctx, q, k, v, *, scale):
        seen = np.tri(len(q), len(k), dtype=bool)
        e = np.where(seen, np.exp(q @ k.T * scale), 0.0)
        p = e / e.sum(-1, keepdims=True)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale = scale
        return p @ v

    @staticmethod
    def backward(ctx, g):
        q, k, v, p = ctx.saved
        dp = g @ v.T
        ds = p * (dp - (dp * p).sum(-1, keepdims=True))
        return ds @ k * ctx.scale, ds.T @ q * ctx.scale, p.T @ g


class GroupedValues(mp.Function):
    """Values (H, S, D) shared by groups of query heads: y = P repeat(v), P (H G, T, S)."""

    @staticmethod
    def forward(ctx, v, *, p):
        ctx.save_for_backward(p)
        ctx.group = len(p) // len(v)
        return p @ np.repeat(v, ctx.group, 0)

    @staticmethod
    def backward(ctx, g):
        dv = ctx.saved[0].swapaxes(-1, -2) @ g
        return dv.reshape(-1, ctx.group, *dv.shape[1:]).sum(1)


class PlainLora(mp.Function):
    """y = x Wᵀ + s (m x) Aᵀ Bᵀ with a dropout mask m: x (T, I), W (O, I), A (R, I), B (O, R)."""

    @staticmethod
    def forward(ctx, x, A, B, *, W, s, mask):
        ctx.save_for_backward(x, A, B, W, mask)
        ctx.s = s
        return x @ W.T + s * ((mask * x) @ A.T @ B.T)

    @staticmethod
    def backward(ctx, g):
        x, A, B, W, mask = ctx.saved
        dx = g @ W + ctx.s * (g @ B @ A) * mask
        return dx, ctx.s * (g @ B).T @ (mask * x), ctx.s * g.T @ (mask * x) @ A.T


class Ia3(mp.Function):
    """y = x l: x (B, T, C), the learned vector l (C)."""

    @staticmethod
    def forward(ctx, x, l):  # noqa: E741
        ctx.save_for_backward(x, l)
        return x * l

    @staticmethod
    def backward(ctx, g):
        x, l = ctx.saved  # noqa: E741
        return g * l, (g * x).sum((0, 1))


class Bottleneck(mp.Function):
    """An adapter: y = x + tanh(x D) U; x (T, C), D (C, R), U (R, C)."""

    @staticmethod
    def forward(ctx, x, D, U):
        h = np.tanh(x @ D)
        ctx.save_for_backward(x, D, U, h)
        return x + h @ U

    @staticmethod
    def backward(ctx, g):
        x, D, U, h = ctx.saved
        dz = (g @ U.T) * (1 - h * h)
        return g + dz @ D.T, x.T @ dz, h.T @ g


class SoftPrompt(mp.Function):
    """The same prompt (P, C) in front of every row of x (B, T, C)."""

    @staticmethod
    def forward(ctx, prompt, x):
        ctx.length = len(prompt)
        return np.concatenate([np.broadcast_to(prompt, (len(x), *prompt.shape)), x], axis=1)

    @staticmethod
    def backward(ctx, g):
        return g[:, : ctx.length].sum(0), g[:, ctx.length :]


class Dora(mp.Function):
    """The rows of V (O, I) at length m (O): W = m V / |V|."""

    @staticmethod
    def forward(ctx, v, m):
        size = np.linalg.norm(v, axis=1, keepdims=True)
        ctx.save_for_backward(v / size, size, m)
        return m[:, None] * v / size

    @staticmethod
    def backward(ctx, g):
        unit, size, m = ctx.saved
        along = (g * unit).sum(1, keepdims=True)
        return m[:, None] / size * (g - unit * along), along[:, 0]
