# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Autograd: from a twelve-line expression to an engine you can trust
#
# **What will be built.** A scalar expression and its derivative; one operation with a hand-written backward rule; the
# twenty lines that walk a graph backwards; and a gradient check that catches wrong rules, with a look at what most
# published checks miss.
#
# **Time:** about 40 minutes to read, a few seconds to run. **Needs:** `pip install minitorch-peft[data]` (for plots).

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np

import minitorch_peft as mp
import minitorch_peft.functional as F

rng = np.random.default_rng(0)

# %% [markdown]
# ## Twelve lines
# Every operation makes a node; `backward()` walks the nodes from the result to the leaves and adds up the chain rule.

# %%
a = mp.tensor(-4.0, requires_grad=True)
b = mp.tensor(2.0, requires_grad=True)
c = a + b
d = a * b + b**3
c = c + c + 1
c = c + 1 + c - a
d = d + d * 2 + F.relu(b + a)
d = d + 3 * d + F.relu(b - a)
e = c - d
f = e**2
g = f / 2 + 10 / f
g.backward()
print(f"g = {g.item():.4f}, dg/da = {a.grad:.4f}, dg/db = {b.grad:.4f}")


# %% [markdown]
# Believe nothing: nudge each input and look at the slope. (In float64, because the difference of two nearly equal
# numbers loses digits.)


# %%
def expression(a: float, b: float) -> float:
    c, d = a + b, a * b + b**3
    c = c + c + 1
    c = c + 1 + c - a
    d = d + d * 2 + max(0, b + a)
    d = d + 3 * d + max(0, b - a)
    f = (c - d) ** 2
    return f / 2 + 10 / f


h = 1e-6
slope_a = (expression(-4 + h, 2) - expression(-4 - h, 2)) / (2 * h)
slope_b = (expression(-4, 2 + h) - expression(-4, 2 - h)) / (2 * h)
print(f"by nudging: dg/da = {slope_a:.4f}, dg/db = {slope_b:.4f}")
assert np.isclose(a.grad, slope_a, rtol=1e-4)
assert np.isclose(b.grad, slope_b, rtol=1e-4)

# %% [markdown]
# ## One operation, two rules
# A `Function` is a forward rule on arrays, and beside it the rule that sends the gradient of the output back to the
# inputs. For $y = \mathrm{softmax}(x)$ the Jacobian is $\mathrm{diag}(y) - y y^\top$, so with the incoming gradient
# $g$
#
# $$\bar x = y \odot (g - \langle g, y \rangle).$$


# %%
class Softmax(mp.Function):
    """(N, C) to (N, C), over the last axis."""

    @staticmethod
    def forward(ctx, x):
        e = np.exp(x - x.max(-1, keepdims=True))
        y = e / e.sum(-1, keepdims=True)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return y * (g - (g * y).sum(-1, keepdims=True))


x = mp.tensor(rng.standard_normal((3, 5)), requires_grad=True)
assert mp.gradcheck(Softmax.apply, (x,))
assert np.allclose(Softmax.apply(x).data, F.softmax(x, dim=-1).data)

# %% [markdown]
# ## The engine
# What is left is bookkeeping: visit the nodes in reverse topological order, hand each its gradient, and add what it
# returns to its inputs' gradients. Here it is in a dozen lines, on the library's own graph. (The real one, in
# `minitorch_peft/autograd/engine.py`, adds the checks: shapes, changed tensors, a second call.)


# %%
def my_backward(root):
    order, seen = [], set()

    def visit(t):
        if id(t) not in seen and t.grad_fn is not None:
            seen.add(id(t))
            for parent in t.grad_fn.inputs:
                if parent is not None:
                    visit(parent)
            order.append(t)

    visit(root)
    gradients = {id(root): np.ones_like(root.data)}
    for t in reversed(order):
        back = t.grad_fn.function.backward(t.grad_fn, gradients[id(t)])
        for parent, g in zip(t.grad_fn.inputs, back if isinstance(back, tuple) else (back,), strict=True):
            if parent is not None:
                gradients[id(parent)] = gradients.get(id(parent), 0) + g
    return gradients


w = mp.tensor(rng.standard_normal((5, 4)), requires_grad=True)
loss = (F.tanh(x @ w) * F.softmax(x @ w, dim=-1)).sum()
mine = my_backward(loss)
loss.backward()
assert np.allclose(mine[id(w)], w.grad) and np.allclose(mine[id(x)], x.grad)
print("twelve lines agree with the engine")

# %% [markdown]
# It recurses, so a chain of a few thousand operations would overflow Python's stack. The library's engine does not.

# %%
deep = x
for _ in range(5000):
    deep = deep + 0.001
deep.sum().backward()

# %% [markdown]
# ## Broadcasting is an operation
# When a bias $(C,)$ is added to a batch $(N, C)$, it is first *expanded*, and expanding copies. What is copied $N$
# times forward gets $N$ gradients back, which must be added. Expand and sum are each other's backward; no other
# operation needs to know.

# %%
bias = mp.tensor(np.zeros(4), requires_grad=True)
(x.detach() @ w.detach() + bias).sum().backward()
print("each bias entered", bias.grad, "sums")
assert (bias.grad == 3).all()

# %% [markdown]
# ## How small a nudge?
# The central difference $\frac{f(x+h)-f(x-h)}{2h}$ is off by $O(h^2)$ because it cuts Taylor's series, and by
# $O(\epsilon/h)$ because the computer rounds. Between the two lies the best step, near $\epsilon^{1/3}$.

# %%
steps = 10.0 ** np.arange(-14, 0.5, 0.25)
x0 = 0.7


def error(dtype):
    """Relative error of the nudged derivative of exp(sin x), worked out in this dtype."""
    f = lambda v: np.exp(np.sin(v, dtype=dtype), dtype=dtype)  # noqa: E731
    true = np.cos(x0) * np.exp(np.sin(x0))
    estimates = [(f(dtype(x0) + dtype(h)) - f(dtype(x0) - dtype(h))).astype(float) / (2 * h) for h in steps]
    return np.abs(np.array(estimates) - true) / abs(true)


fig, ax = plt.subplots(figsize=(6, 3.5))
for dtype, colour in ((np.float64, "tab:blue"), (np.float32, "tab:orange")):
    ax.loglog(steps, error(dtype) + 1e-17, ".-", color=colour, label=np.dtype(dtype).name)
ax.set(xlabel="step h", ylabel="relative error", title="Too large a step truncates, too small a step rounds")
ax.legend()
plt.show()
best64, best32 = error(np.float64).min(), error(np.float32).min()
print(f"best error: {best64:.0e} in float64, {best32:.0e} in float32: that is why gradients are checked in float64")
assert best64 < 1e-9 < 1e-6 < best32


# %% [markdown]
# ## The blind spot of most gradient checks
# Many courses check `out.sum().backward()`. Summing is a cotangent of ones: it asks only whether the *sum* of the
# outputs has the right slope. A softmax always sums to one, so its true gradient under that question is zero, and a
# backward rule that returns zeros **passes**.


# %%
class LazySoftmax(Softmax):
    @staticmethod
    def backward(ctx, g):
        return np.zeros_like(g)


def sum_check(fn, x, h=1e-6):
    """The usual check: compare d(sum of outputs) with nudges, element by element."""
    x = mp.tensor(x, requires_grad=True)
    fn(x).sum().backward()
    for index in np.ndindex(x.shape):
        nudge = np.zeros(x.shape)
        nudge[index] = h
        numeric = (fn(mp.tensor(x.data + nudge)).data.sum() - fn(mp.tensor(x.data - nudge)).data.sum()) / (2 * h)
        if not np.isclose(x.grad[index], numeric, atol=1e-5):
            return False
    return True


assert sum_check(LazySoftmax.apply, x.data), "the sum check believes a backward that does nothing"

# %% [markdown]
# `mp.gradcheck` asks a random question instead: a random cotangent $u$ against a random direction $v$,
#
# $$\langle \mathrm{backward}(u),\, v\rangle \;=\; \frac{d}{dh}\,\langle u,\, f(x + h v)\rangle .$$
#
# One number each side. A wrong rule agrees only by a coincidence of probability zero. When they disagree, it goes
# looking for the operation, the element and the likely cause.

# %%
try:
    mp.gradcheck(LazySoftmax.apply, (x,))
except mp.GradcheckError as error_found:
    print(error_found)
    assert error_found.operation == "LazySoftmax"
else:
    raise AssertionError("the lazy rule was not caught")


# %%
class HalfSquare(mp.Function):
    """x², with the factor 2 forgotten in backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved[0]


try:
    mp.gradcheck(lambda x: F.tanh(HalfSquare.apply(x)) @ w, (x,))
except mp.GradcheckError as error_found:
    print(error_found)
    assert error_found.operation == "HalfSquare", "the check names the culprit inside a longer computation"
else:
    raise AssertionError("the forgotten factor was not caught")

# %% [markdown]
# ## It learns
# Two interleaved spirals, a network of two hidden layers, plain gradient descent: everything above in one loop.

# %%
n = 200
angle = np.linspace(0.3, 3, n) * np.pi
radius = np.linspace(0.2, 1, n)
spiral = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
points = np.concatenate([spiral, -spiral]) + rng.normal(0, 0.02, (2 * n, 2))
labels = np.repeat([0, 1], n)

sizes = [2, 32, 32, 2]
weights = [mp.tensor(rng.standard_normal((o, i)) * np.sqrt(2 / i), requires_grad=True) for i, o in pairwise(sizes)]
biases = [mp.tensor(np.zeros(o), requires_grad=True) for o in sizes[1:]]


def network(inputs):
    h = mp.tensor(inputs)
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        h = F.linear(F.tanh(h) if layer else h, w, b)
    return h


losses = []
for _ in range(1500):
    loss = F.cross_entropy(network(points), labels)
    loss.backward()
    losses.append(loss.item())
    for p in (*weights, *biases):
        with mp.no_grad():
            p.sub_(0.3 * p.grad)
        p.grad = None

grid = np.stack(np.meshgrid(np.linspace(-1.2, 1.2, 120), np.linspace(-1.2, 1.2, 120)), -1)
with mp.no_grad():
    score = F.softmax(network(grid.reshape(-1, 2)), dim=-1).data[:, 1].reshape(120, 120)
    accuracy = (network(points).data.argmax(1) == labels).mean()

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.semilogy(losses)
left.set(xlabel="step", ylabel="cross-entropy", title="loss")
right.contourf(grid[..., 0], grid[..., 1], score, levels=20, cmap="RdBu", alpha=0.7)
right.scatter(*points.T, c=labels, cmap="RdBu", s=6, edgecolors="k", linewidths=0.2)
right.set(title=f"what it learned ({accuracy:.0%} right)", aspect="equal")
plt.show()
assert accuracy > 0.95

# %% [markdown]
# **Try it yourself.** Write `class LogSoftmax(mp.Function)` with a backward that uses only its output, and let
# `mp.gradcheck` be the judge. Then break it on purpose, a sign or a missing sum, and see whether the diagnosis finds
# what you did.
