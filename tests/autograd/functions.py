"""Small Functions for the tests of the engine: they know no other floor."""

from __future__ import annotations

import numpy as np

import minitorch_peft as mp


class Twice(mp.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Times(mp.Function):
    """Keeps an input only where the other one needs a gradient."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        return None if b is None else g * b, None if a is None else g * a


class Plus(mp.Function):
    """Gives the incoming array itself to both inputs."""

    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, g):
        return g, g


class Power(mp.Function):
    """Saves its output."""

    @staticmethod
    def forward(ctx, x):
        y = np.exp(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved[0]


class Turn(mp.Function):
    """A view."""

    @staticmethod
    def forward(ctx, x):
        return x.T

    @staticmethod
    def backward(ctx, g):
        return g.T


def leaf(values, dtype=np.float64) -> mp.Tensor:
    return mp.tensor(np.asarray(values, dtype), requires_grad=True)


def returning(result) -> type[mp.Function]:
    """An identity whose backward gives ``result(g)``."""

    class Odd(mp.Function):
        @staticmethod
        def forward(ctx, x):
            return x.copy()

        @staticmethod
        def backward(ctx, g):
            return result(g)

    return Odd
