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
# # Assignment A1. Autograd
#
# **What you will build.** Adapting a language model means moving some of its parameters, or a few new ones, downhill.
# Every method of this course stands on one number for each parameter: how much the loss changes when that parameter
# moves a little. In this assignment you write what computes these numbers: six *backward rules* that a GPT needs, the
# *engine* that walks a graph of operations and runs them, and the *gradient checker* that tells a right rule from a
# wrong one. At the end a small GPT learns to write from real text with your rules, and you will see that a wrong rule
# often learns too: only the checker knows.
#
# **Time:** about three hours. **How it works.** The library around this notebook is complete, but for some holes:
#
#     # BEGIN SOLUTION(task="1.1a")
#     raise NotImplementedError("Task 1.1: ...")
#     # END SOLUTION
#
# Write your solution between the two marks, in as many lines as you like, and leave the marks and everything else as
# they are. What you need besides NumPy (as `np`) is already imported in each file. You can solve the tasks in any
# order: each one is checked on its own, and while 1.1 to 1.6 are checked there is no engine: their gradients are
# to be derived by hand. In a terminal:
#
#     minitorch-peft course check              # every task: a table with points
#     minitorch-peft course check 1.3          # one task: the smallest example that fails, and the likely cause
#     minitorch-peft course check 1.3 --hint   # a hint; again for a clearer one
#
# A task gives all of its points or none, 100 in all. The written questions are marked by a person, and their points
# come on top of these 100. Restart the kernel of this notebook after each change of a file.

# %%
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
from minitorch_peft.kernels import use_backend
from minitorch_peft.kernels.cross_entropy import reference as cross_entropy
from minitorch_peft.kernels.embedding import reference as embedding
from minitorch_peft.kernels.norm import reference as norm
from minitorch_peft.kernels.softmax import reference as softmax

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.autograd import difference
from minitorch_peft.autograd.function import Context
from minitorch_peft.data import load_corpus
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.ops.matmul import MatMul
from minitorch_peft.ops.reduction import Mean, Sum
from minitorch_peft.ops.shape import sum_to_shape
from minitorch_peft.optim import AdamW

rng = np.random.default_rng(0)


def run_rule(function, *inputs, g, **constants):
    """Forward, then the gradients of the inputs for the gradient g of the output: what the engine does for one node."""
    ctx = Context(function.__name__, (True,) * len(inputs))
    function.forward(ctx, *inputs, **constants)
    return function.backward(ctx, g)


# %% [markdown]
# ## The setting: what a backward rule gets, and what it owes
# An operation takes arrays $x$ and gives one array $y$. Somewhere behind it there is a number $L$, the loss. The rule
# is given
#
# $$g = \frac{\partial L}{\partial y}, \quad \text{an array of } y\text{'s shape,} \qquad \text{and owes} \qquad
# \frac{\partial L}{\partial x_j} = \sum_i g_i\, \frac{\partial y_i}{\partial x_j}, \quad \text{an array of } x\text{'s
# shape.}$$
#
# $g$ is called the *cotangent*. The matrix $\partial y_i / \partial x_j$, the Jacobian, is never built: for a softmax
# over a vocabulary of 50,000 it would have 2.5 billion elements for each position. Your work is to find the sum in
# closed form.
#
# A good habit for all tasks: (1) write *one* element of $y$ as a formula, (2) differentiate it by *one* element of $x$,
# (3) put that into the sum above and simplify, (4) only then think of arrays. And check every shape against the
# rule: *a gradient has the shape of the array that it belongs to.*

# %% [markdown]
# ## 1.1 Expand, sum and mean
# When a bias of shape $(C,)$ is added to a batch $(N, C)$, it is first *expanded*: element $c$ is copied into $N$ rows,
# $y_{nc} = x_c$. Which elements of $y$ depend on $x_c$, and with which derivative? The sum above then says what $x_c$
# gets.
#
# NumPy aligns shapes at the *last* axis. An array may be expanded by new axes in front, by axes of size 1 that grow, or
# both:
#
# | from | to | new axes | axes that grew |
# |---|---|---|---|
# | `(3,)` | `(2, 3)` | 0 | |
# | `(2, 1)` | `(2, 3)` | | 1 |
# | `(3, 1)` | `(2, 3, 4)` | 0 | 2 |
#
# A sum is the other way round: $y = \sum_n x_n$. How much does $y$ change with each $x_n$? In a mean, how much?
#
# **Holes.** `sum_to_shape` in `minitorch_peft/ops/shape.py` takes a gradient of the large shape to the small one.
# Then `Sum.backward` and `Mean.backward` in `minitorch_peft/ops/reduction.py`: `forward` has left there `ctx.shape`
# (the shape of x), `ctx.kept` (the same with size 1 at the axes that were reduced) and, for the mean, `ctx.count`
# (how many elements each mean is over). `broadcast_view` may help.

# %%
g = np.arange(6.0).reshape(2, 3)
print("expanded from (3,):  ", sum_to_shape(g, (3,)))
print("expanded from (2, 1):", sum_to_shape(g, (2, 1)).tolist())
for reduction in (Sum, Mean):
    dx = run_rule(reduction, np.zeros((2, 3)), g=np.array([1.0, 2.0, 3.0]), dims=(0,), keepdim=False)
    print(f"{reduction.__name__} over axis 0:", dx.tolist())

# %% [markdown]
# Note two things: a gradient always comes back in the shape of the input; and for any $x$ and $g$ the
# equation $\langle \mathrm{sum}(x), g\rangle = \langle x, \mathrm{backward}(g) \rangle$ holds, since the sum is
# linear. Such a pair is called *adjoint*.

# %%
x, g = rng.standard_normal((4, 3)), rng.standard_normal(3)
left = np.vdot(x.sum(0), g)
right = np.vdot(x, run_rule(Sum, x, g=g, dims=(0,), keepdim=False))
print(f"{left:.6f} = {right:.6f}")
assert np.isclose(left, right)

# %% [markdown]
# ## 1.2 The matrix product
# $Y = A B$, with $A$ of shape (M, K) and $B$ of shape (K, N):
#
# $$Y_{mn} = \sum_k A_{mk} B_{kn} .$$
#
# Fix one $A_{mk}$. It occurs in one row of $Y$ only, in every column $n$, with the factor $B_{kn}$. Write
# $\partial L / \partial A_{mk}$ as a sum over $n$, and read that sum as a matrix product again. The same for $B_{kn}$.
# There may be any number of batch axes in front, equal for both: then it is one product for each index of the batch.
#
# **Frozen inputs.** When a weight is frozen, nobody needs its gradient, and this product costs as much as the forward
# pass: it must not be computed. `ctx.needs_input_grad` has a bool for each input; and `forward` has saved each matrix
# only where it is needed, so `a, b = ctx.saved` may hold a `None`. Return two values; `None` for an input that needs
# no gradient.
#
# **Hole.** `MatMul.backward` in `minitorch_peft/ops/matmul.py`.

# %%
A, B, G = rng.standard_normal((2, 3)), rng.standard_normal((3, 4)), rng.standard_normal((2, 4))
grad_a, grad_b = run_rule(MatMul, A, B, g=G)
print("shapes:", grad_a.shape, grad_b.shape)
nudge = np.zeros_like(A)
nudge[1, 2] = 1e-6
change = (np.vdot(G, (A + nudge) @ B) - np.vdot(G, A @ B)) / 1e-6
print(f"the gradient of A[1, 2] is {grad_a[1, 2]:.6f}; by nudging A[1, 2]: {change:.6f}")
assert np.isclose(grad_a[1, 2], change, rtol=1e-4)

# %% [markdown]
# ## 1.3 Softmax and its gradient
# $$y_k = \frac{e^{x_k}}{\sum_l e^{x_l}}$$
#
# over the last axis. In `float64`, $e^{710}$ is infinite, and logits of a thousand do occur. Which number can be
# subtracted from all $x_k$ of a row so that no exponential overflows, and why does $y$ stay the same?
#
# For the gradient, use the quotient rule on $y_k$ twice: once by $x_k$ itself, once by another $x_j$. Both results
# can be written with $y$ alone, without $x$ (this is why only $y$ is kept for the backward pass), and both as *one*
# expression with the bracket $[j = k]$, which is 1 or 0. Put it into $\sum_k g_k\, \partial y_k / \partial x_j$.
#
# A test for your result: all $y$ of a row always sum to one. What must the gradient be, then, for a $g$ of equal
# numbers?
#
# **Holes.** `softmax_forward` and `softmax_backward` in `kernels/softmax/reference.py`.

# %%
y = softmax.softmax_forward(np.array([[1.0, 2.0, 3.0], [1001.0, 1002.0, 1003.0]]))
print(np.round(y, 4))
assert np.allclose(y[0], y[1]), "only differences count"
equal = softmax.softmax_backward(np.full((2, 3), 7.0), y)
print("for equal cotangents:", np.abs(equal).max())
assert np.abs(equal).max() < 1e-12
some = softmax.softmax_backward(np.array([[1.0, 0.0, 0.0]] * 2), y)
print("for [1, 0, 0]:", np.round(some[0], 4), "which sums to", np.round(some[0].sum(), 12))

# %% [markdown]
# ## 1.4 Layer norm and RMS norm
# For a row $x$ of $C$ numbers, with $\mu$ its mean and $\sigma^2$ its variance (divided by $C$):
#
# $$h = (x - \mu)\, r, \qquad r = \frac{1}{\sqrt{\sigma^2 + \epsilon}}, \qquad y = h \odot w + b .$$
#
# RMS norm leaves the mean out: $h = x\, r$, $r = 1 / \sqrt{\tfrac{1}{C} \sum x_c^2 + \epsilon}$, $y = h \odot w$.
#
# The way to the gradient of $x$. Let $d$ be the gradient with respect to $h$ (how does it come from $g$ and $w$?). When
# $x$ moves by a small $\delta$, then $h$ moves for three reasons: the numerator changes, $\mu$ changes, $r$ changes.
#
# 1. Write $\delta\mu$ as a function of $\delta$.
# 2. Write $\delta r$ through $\delta(\sigma^2)$. In $\delta(\sigma^2)$ the change of the mean drops out (why?); what
#    is left is an inner product of $\delta$ with $x - \mu$, so with $h$.
# 3. Collect $\langle d, \delta h \rangle$ and sort it as $\langle \,?\,, \delta\rangle$. The question mark is the
#    answer: $r$ times $d$ with two things taken out of it.
#
# A picture to check it with: adding a constant to all $x_c$ does not change $h$, nor (for $\epsilon = 0$) does scaling
# $x - \mu$. So the gradient of $x$ must be orthogonal to both of these directions.
#
# The gradients of $w$ and $b$ are sums over all rows (1.1: they were expanded). `needs` says which of the gradients are
# wanted; return `None` for the others. `mean` and `rstd` come from the forward pass: `eps` does not.
#
# **Holes.** Four functions in `kernels/norm/reference.py`; the helpers `_affine` and `_sum_rows` at the end of the file
# may be used. Compute the variance from `x - mean`: the mean of squares minus the square of the mean is the same on
# paper, and loses all digits where the mean is large.

# %%
x, g = rng.standard_normal((2, 5)) + 3, rng.standard_normal((2, 5))
y, mean, rstd = norm.layer_norm_forward(x, None, None, 0.0)
print("means", np.round(y.mean(-1), 12), "variances", np.round(y.var(-1), 12))
dx, _, _ = norm.layer_norm_backward(g, x, None, mean, rstd)
print("along a constant:", np.round(dx.sum(-1), 12), " along x - mean:", np.round((dx * y).sum(-1), 12))
assert np.allclose(dx.sum(-1), 0) and np.allclose((dx * y).sum(-1), 0)

# %% [markdown]
# ## 1.5 Cross-entropy
# A row of logits $x$ over $V$ classes, and a target class $t$. With *label smoothing* $s$ the target is a distribution:
# $q_v = (1 - s)\,[v = t] + s / V$. The loss is
#
# $$\ell = - \sum_v q_v \log p_v, \qquad p = \mathrm{softmax}(x), \qquad \log p_v = x_v - \mathrm{lse}(x), \qquad
# \mathrm{lse}(x) = \log \sum_v e^{x_v} .$$
#
# As $q$ sums to one, this becomes $\mathrm{lse}(x)$ minus a few terms that are linear in $x$: no array of
# probabilities is needed, and with the maximum taken out of the exponential nothing overflows. The derivative of
# $\mathrm{lse}$ is a function that you know. Rows whose target is `ignore_index` (padding, or the prompt in front of
# an answer) have loss and gradient zero; note that -100 as an index would silently mean "the hundredth from the end",
# or fail.
#
# **Holes.** `cross_entropy_forward` (which also returns lse, for the backward pass) and `cross_entropy_backward` in
# `kernels/cross_entropy/reference.py`.

# %%
logits, target = np.array([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]]), np.array([0, 2, -100])
loss, lse = cross_entropy.cross_entropy_forward(logits, target, -100, 0.0)
print("losses:", np.round(loss, 4), " ln 3 =", np.round(np.log(3), 4))
dx = cross_entropy.cross_entropy_backward(np.ones(3), logits, target, lse, -100, 0.0)
print(np.round(dx, 4))
print("each row sums to", np.round(dx.sum(-1), 12))
assert np.allclose(dx.sum(-1), 0) and not dx[2].any()

# %% [markdown]
# ## 1.6 Embedding with repeated ids
# The forward pass looks rows up: `weight[ids]`. In a batch of text, the word "the" is looked up many times: its row is
# *copied* many times. You know from 1.1 what that means for the gradient. NumPy has a trap here; look at what this
# prints before you begin.

# %%
counts = np.zeros(3)
counts[[1, 1, 1]] += 1
print("three times plus one at index 1:", counts)

# %% [markdown]
# **Hole.** `embedding_backward` in `kernels/embedding/reference.py`.

# %%
dw = embedding.embedding_backward(np.ones((6, 2)), np.array([1, 0, 1, 3, 1, 1]), 4)
print(dw)
assert dw[:, 0].tolist() == [1, 4, 0, 1]

# %% [markdown]
# **Question 1** (3 points). A weight may be *tied*: the tiny GPT uses the same matrix to look tokens up and to score
# the next token. What is the gradient of this matrix, in terms of the gradients of its two uses, and which three of
# this assignment's tasks rest on the same principle? Which row of the embedding gets a gradient through the lookup,
# and which rows through the scores?
#
# BEGIN SOLUTION(question="a1.q1")
# The gradient is the sum of those of the two uses: what is used (copied) several times gets the sum of what its
# copies get (1 point). The same holds for an expanded bias (1.1), a repeated id (1.6), and a tensor with several
# consumers in the engine (1.7); the weights of a norm, used by every row, may be named too (1 point for three of
# them). Through the lookup only the rows of ids that occur in the batch get one; through the scores every row does,
# since the softmax raises or lowers the score of each token at each position (1 point).
# END SOLUTION

# %% [markdown]
# **Question 2** (3 points). Someone checks a new softmax with `softmax(x).sum().backward()` and compares `x.grad`
# with nudges of each element. Name two different wrong backward rules that pass, explain why, and say what to ask
# instead.
#
# BEGIN SOLUTION(question="a1.q2")
# Summing the output is a cotangent of ones, and the outputs of a softmax always sum to one: the right gradient is
# then exactly zero (1 point). So a rule that returns zeros passes, and so does every rule that is a multiple of the
# right one: the wrong sign, a forgotten factor (1 point for two). In general, a cotangent of ones cannot see what is
# exchanged between outputs, nor a rule that ignores or squares the incoming gradient. Ask with a random cotangent u:
# is <backward(u), v> the derivative of <u, f(x + h v)> (1 point)?
# END SOLUTION

# %% [markdown]
# ## 1.7 The backward engine
# Every tensor that an operation made knows its *node*, `tensor.grad_fn`: the operation, what it saved, and the tensors
# that it came from, `node.inputs` (`None` for an input that needs no gradient). A *leaf*, such as a parameter, has no
# node. Any other tensor is in the graph as its `output`, which has the tensor's node, shape and dtype, but not its
# array (so that an array goes as soon as no rule needs it). The engine has two parts.
#
# **The order** (`topological_order`). A tensor may hand its gradient on only when everything that was computed from
# it has handed in its part. In $y = \sin(x) \cdot x$ the tensor $x$ has two consumers, at different depths. A list in
# which every tensor comes *after* all that it was computed from, read backwards, does it. The list holds all tensors
# behind the root that require a gradient, leaves too, each once. A graph may be thousands of operations deep, so no
# function may call itself: keep a stack of your own. Call `_check_alive(node)` for each node, so that a graph which
# was already used (and freed) is refused before anything has changed.
#
# **The walk** (`backward`). Begin with `_initial_gradient(root, gradient)`, ones where no gradient was given. Keep the
# gradients of tensors in a dict by `id(tensor)`. When a tensor's turn comes, its gradient is complete:
#
# * a leaf adds it to its `.grad`, where there may be something from an earlier call (or `None`);
# * any other tensor runs its rule, `_input_gradients(node, g)`, which gives one gradient for each input (it may be
#   `None`: no influence), adds each to the input's entry, and frees what its node kept with `node.release()`. It gets
#   no `.grad`.
#
# An array that a rule returned may be shared (an addition returns its `g` twice), so it must not be added to in place.
#
# **Holes.** Both functions in `minitorch_peft/autograd/engine.py`.

# %%
x = mp.tensor(np.array([0.5, 2.0]), requires_grad=True)
y = F.sin(x) * x
(y * y).backward(gradient=np.ones(2))
by_hand = 2 * np.sin(x.data) * x.data * (np.cos(x.data) * x.data + np.sin(x.data))
print("dx =", x.grad, " by hand:", by_hand)
assert np.allclose(x.grad, by_hand)
deep = x
for _ in range(3000):
    deep = F.sin(deep)
deep.backward(gradient=np.ones(2))
print("3000 operations deep: no recursion")

# %% [markdown]
# **Question 3** (4 points). The engine visits each operation once, and each rule costs about as much as its forward.
# How does the cost of *all* derivatives of one loss by $n$ parameters depend on $n$? What would it cost by nudging
# each parameter, or by forward mode, and for which shape of function would forward mode be the better choice? What is
# the price of reverse mode?
#
# BEGIN SOLUTION(question="a1.q3")
# Reverse mode costs a small constant times the forward pass (about two more: one product for each input of a matrix
# product), whatever n is (1 point). Nudging costs n + 1 (or 2 n) forward passes, forward mode one pass for each input
# direction: both grow with n (1 point). Forward mode is better for few inputs and many outputs (1 point). The price
# is memory: what the rules need (activations) is kept from the forward pass until its turn comes (1 point).
# END SOLUTION

# %% [markdown]
# **Question 4** (3 points). In this course the base model is frozen, and a method adds few parameters. Take a linear
# layer $Y = X W^\top$ in the middle of a frozen model whose *first* layers carry an adapter. Which of the two
# products of 1.2 does the backward pass still compute at this layer, and which not? Which arrays need not be kept? So
# what does lightweight fine-tuning save in the backward pass, and what does it not save?
#
# BEGIN SOLUTION(question="a1.q4")
# The gradient of X is still computed, as the adapter lies before this layer and its gradient must pass through; the
# gradient of W is not (1 point). X need not be kept for it, only W, which is there anyway (1 point). Saved are the
# weight gradients (about a third of the whole work of a step), their memory, the optimizer's state for them, and
# activations kept for them alone; not saved is the backward pass through the base, from the loss down to the lowest
# adapted layer (1 point). A side network on detached activations would avoid that too.
# END SOLUTION

# %% [markdown]
# ## 1.8 The gradient checker
# Is a rule right? For any cotangent $u$ and any direction $v$, a right rule satisfies
#
# $$\langle \mathrm{backward}(u),\, v \rangle = \varphi'(0), \qquad \varphi(h) = \langle u,\, f(x + h v) \rangle .$$
#
# The left side is *claimed*, the right side can be *measured* with central differences,
#
# $$D(h) = \frac{\varphi(h) - \varphi(-h)}{2 h} = \varphi'(0) + \frac{h^2}{6} \varphi'''(0) + O(h^4) .$$
#
# One number on each side tells about all elements at once, if $u$ and $v$ are random. Three pieces are yours, in
# `minitorch_peft/autograd/difference.py`; around them there is the decision, which repeats the measurement at
# several step sizes.
#
# **`random_cotangent`** draws $u$ (and, scaled, $v$) from the generator that it is given: every element with a random
# sign and a random size in $[1/2, 1]$. Why not ones, you know from question 2. Why not normal numbers?
#
# **`_difference`** returns three numbers: $D(h)$; what the gradients say that $D(h)$ is; and the norm of $u \odot f$,
# from which the rounding is estimated. `problem.value(arrays)` evaluates $f$ at a list of arrays, one for each input.
# `directions` has $v$ for each input, or `None` for one that stays where it is; `gradients` has what the rule
# returned, or `None`, which stands for zeros. Use `change(a, b)` for $a - b$, as masked scores are $-\infty$ on both
# sides, and `_norm`.
#
# **`_extrapolated`**: `near` holds the three numbers for the step $h$ and `far` those for $2h$. Both $D$ are off by
# about the same constant times the square of their step. Find the combination $a D(h) + b D(2h)$ in which this error
# cancels (Richardson), and use it for both the measured and the claimed pair. Your part sets five names that the rest
# of the function uses: `numeric` and `analytic` (the two combinations), `residual` (measured minus claimed), `scale`
# and `allowed`, the tolerance. The docstring of `compare` says what may remain: `size` is its ‖g v‖,
# `near[2] + reach` is the bracket that it multiplies by `ROUNDINGS` and ε (`EPSILON`), `step` its h, and `tol` has
# `rtol` and `atol`.


# %%
class LazySoftmax(mp.Function):
    """The rule that question 2 is about."""

    @staticmethod
    def forward(ctx, x):
        e = np.exp(x)
        return e / e.sum(-1, keepdims=True)

    @staticmethod
    def backward(ctx, g):
        return np.zeros_like(g)


x = mp.tensor(rng.standard_normal((3, 4)), requires_grad=True)
try:
    mp.gradcheck(LazySoftmax.apply, (x,))
except mp.GradcheckError as error:
    print("\n".join(str(error).splitlines()[:3]))
else:
    raise AssertionError("the lazy rule was not caught")

# %% [markdown]
# And now your own rules, checked by your own checker through your own engine:

# %%
w = mp.tensor(rng.standard_normal(4), requires_grad=True)
table = mp.tensor(rng.standard_normal((5, 4)), requires_grad=True)
ids, labels = np.array([1, 4, 1]), np.array([0, 3, 1])
assert mp.gradcheck(lambda x: F.softmax(x, dim=-1), (x,))
assert mp.gradcheck(lambda x, w: F.layer_norm(x, (4,), w) + F.rms_norm(x, (4,), w), (x, w))
assert mp.gradcheck(lambda x: F.cross_entropy(x, labels, label_smoothing=0.1), (x,))
assert mp.gradcheck(lambda t, w: (F.embedding(ids, t) * w).mean(0), (table, w))
assert mp.gradcheck(lambda x, t: x @ t.mT, (x, table))
print("five of your rules pass")

# %% [markdown]
# ## The V: how small a step?
# Take $f(x) = e^{\sin x}$, element by element, whose derivative we know, and let the step go from $10^{-12}$ to 1. The
# error of $D(h)$ falls with the step, as $h^2$, until rounding takes over; the extrapolated one falls as $h^4$.


# %%
class Known:
    """exp(sin x), with its right gradient."""

    names = ("x",)

    def __init__(self, x):
        self.arrays = [x]

    def value(self, arrays):
        return np.exp(np.sin(arrays[0]))

    def gradients(self, u):
        return [u * np.cos(self.arrays[0]) * np.exp(np.sin(self.arrays[0]))]


problem = Known(rng.uniform(-2, 2, 50))
u, v = (difference.random_cotangent((50,), rng) for _ in range(2))
claim = problem.gradients(u)
true = float(np.vdot(claim[0], v))
steps = 10.0 ** np.arange(-12, 0.01, 0.125)
plain, better = [], []
for h in steps:
    near, far = (difference._difference(problem, u, claim, [v], step) for step in (h, 2 * h))
    estimate, _ = difference._extrapolated(near, far, 1.0, 1.0, h, difference.Tolerance())
    plain.append(abs(near[0] - near[1]) / abs(true))
    better.append(abs(estimate.residual) / abs(true))
plain, better = np.array(plain), np.array(better)

fig, ax = plt.subplots(figsize=(7, 4))
ax.loglog(steps, plain + 1e-17, ".-", label="central difference $D(h)$")
ax.loglog(steps, better + 1e-17, ".-", label="extrapolated from $D(h)$ and $D(2h)$")
ax.loglog(steps, 1e-16 / steps, color="grey", linestyle=":", label="$10^{-16} / h$")
ax.axvline(difference.Tolerance().eps, color="grey", linewidth=0.8)
ax.text(difference.Tolerance().eps * 1.1, 1e-4, "the checker's\nfirst step", fontsize=8)
ax.set(
    xlabel="step h",
    ylabel="relative error",
    title="Too large a step truncates, too small a step rounds",
    ylim=(1e-16, 10),
)
ax.legend()
plt.show()
coarse = (steps > 0.02) & (steps < 0.2)
slopes = [float(np.polyfit(np.log(steps[coarse]), np.log(error[coarse]), 1)[0]) for error in (plain, better)]
print(f"on the right the errors fall as h^{slopes[0]:.1f} and h^{slopes[1]:.1f}")
for label, errors in (("D(h)", plain), ("extrapolated", better)):
    print(f"best error of {label}: {errors.min():.0e} at h = {steps[errors.argmin()]:.0e}")
at = np.argmin(np.abs(steps - 1e-3))
print(f"at the checker's first step: {plain[at]:.0e} and {better[at]:.0e}")
assert 1.8 < slopes[0] < 2.2 and 3.6 < slopes[1] < 4.4
assert better[at] < 1e-9 < plain[at]

# %% [markdown]
# **Question 5** (4 points). Explain both arms of the V. Where is the best step for $D(h)$, as a power of the machine
# precision ε, and where for the extrapolated difference? Why do gradient checks need float64?
#
# BEGIN SOLUTION(question="a1.q5")
# Right arm: Taylor's series is cut; the error is c h² for D(h), c' h⁴ for the combination (1 point). Left arm: each
# value of f is rounded, an error of about ε |f|, and the difference divides it by h: ε / h (1 point). The sum is
# smallest where both are about equal: h² = ε / h gives h = ε^(1/3), about 1e-5, with an error of ε^(2/3); h⁴ = ε / h
# gives ε^(1/5), about 1e-3, with an error of ε^(4/5) (1 point). In float32, ε = 1e-7, the best that D(h) can do is
# about 1e-5 to 1e-4, which cannot tell a forgotten eps or a small wrong term (1 point).
# END SOLUTION

# %% [markdown]
# ## Closing experiment: a GPT that learns with your rules, and three that learn with wrong ones
# A GPT of two blocks reads English letter by letter, beginning with random weights. Each step goes through your
# embedding, your layer norms, your cross-entropy and your engine. Then the same again, from the same start on the same
# text, each time with *one* wrong rule in place of yours. All four use the NumPy kernels. Before you run the cell,
# guess: which of the wrong ones will fail to learn?

# %%
texts = {split: "\n".join(load_corpus("web").split(split).texts[:6000]) for split in ("train", "held_out")}
letters = sorted(set(texts["train"]))
codes = {split: np.array([letters.index(c) for c in text if c in letters]) for split, text in texts.items()}
config = GPTConfig(vocab_size=len(letters), n_positions=64, n_embd=64, n_layer=2, n_head=4, tie_word_embeddings=False)
STEPS = 200


def letters_at(split, step, rows):
    """``rows`` pieces of 64 letters, drawn anew for each step."""
    starts = np.random.default_rng([0, step]).integers(0, len(codes[split]) - 64, rows)
    return codes[split][starts[:, None] + np.arange(64)]


def learn():
    """The model after training, its losses, and how many bits it needs for a letter of books that it has not read."""
    model = GPT(config, seed=0)
    optimizer = AdamW(list(model.named_parameters()), lr=1e-2, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        batch = letters_at("train", step, 8)
        loss = model(batch, labels=batch).loss
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 15) * (1 - step / STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with mp.no_grad():
        batch = letters_at("held_out", 0, 128)
        return model, losses, model(batch, labels=batch).loss.item() / np.log(2)


def norm_of_constants(grad, x, weight, mean, rstd, needs=(True, True, True)):
    """Wrong: takes the mean and the deviation for constants."""
    _, dweight, dbias = right_norm(grad, x, weight, mean, rstd, needs)
    return grad * weight * rstd[..., None], dweight, dbias


def last_use_only(grad, ids, num_embeddings):
    """Wrong: a letter that occurs several times gets the gradient of one of them."""
    table = np.zeros((num_embeddings, grad.shape[-1]), dtype=grad.dtype)
    table[ids] = grad
    return table


def own_scale(grad, *arguments):
    """Wrong: ignores the incoming gradient, so the mean over positions becomes a sum."""
    return right_loss(np.ones_like(grad), *arguments)


right_norm, right_loss = norm.layer_norm_backward, cross_entropy.cross_entropy_backward
runs, bits = {}, {}
with use_backend("reference"):
    model, runs["your rules"], bits["your rules"] = learn()
for label, module, name, wrong in (
    ("layer norm: statistics taken for constants", norm, "layer_norm_backward", norm_of_constants),
    ("embedding: only one use of each letter counts", embedding, "embedding_backward", last_use_only),
    ("cross-entropy: ignores the incoming gradient", cross_entropy, "cross_entropy_backward", own_scale),
):
    with patch.object(module, name, wrong), use_backend("reference"):
        _, runs[label], bits[label] = learn()

fig, ax = plt.subplots(figsize=(8, 4.2))
for label, losses in runs.items():
    smooth = np.convolve(losses, np.ones(10) / 10, "valid")
    width = 5 if label == "your rules" else 1.2
    ax.plot(
        np.arange(len(smooth)) + 9,
        smooth,
        linewidth=width,
        alpha=0.4 if width > 2 else 1,
        label=f"{label} ({bits[label]:.2f} bits per letter, held out)",
    )
ax.axhline(np.log(len(letters)), color="grey", linestyle=":", label="a uniform guess")
ax.set(xlabel="step", ylabel="loss (mean of 10 steps)", title="Does a falling loss prove that the gradients are right?")
ax.legend(fontsize=8)
plt.show()
for label, value in bits.items():
    print(f"{value:.3f} bits per letter  {label}")

# %% [markdown]
# What it writes after a few seconds of reading: not English yet, but spelled like it.

# %%
prompt = np.array([[letters.index(c) for c in "And "]])
with use_backend("reference"):
    out = model.generate(prompt, max_new_tokens=60, do_sample=True, temperature=0.7, seed=0)
print("".join(letters[i] for i in out[0]))

# %% [markdown]
# And what the checker says of the three, in a moment:

# %%
x64 = mp.tensor(rng.standard_normal((3, 4)), requires_grad=True)
weight = mp.tensor(np.ones(4), requires_grad=True)
questions = (
    (
        norm,
        "layer_norm_backward",
        norm_of_constants,
        lambda: mp.gradcheck(lambda x: F.layer_norm(x, (4,), weight), (x64,)),
    ),
    (embedding, "embedding_backward", last_use_only, lambda: mp.gradcheck(lambda t: F.embedding(ids, t), (table,))),
    (
        cross_entropy,
        "cross_entropy_backward",
        own_scale,
        lambda: mp.gradcheck(lambda x: F.cross_entropy(x, labels), (x64,)),
    ),
)
caught = 0
for module, name, wrong, question in questions:
    with patch.object(module, name, wrong), use_backend("reference"):
        try:
            question()
        except mp.GradcheckError as error:
            caught += 1
            print(str(error).splitlines()[0])
assert caught == 3
guess = np.log(len(letters))
assert all(np.mean(losses[-10:]) < 0.75 * guess for losses in runs.values()), "the wrong ones learn too"
assert bits["layer norm: statistics taken for constants"] > bits["your rules"] + 0.2, "one of them much less"
assert abs(bits["cross-entropy: ignores the incoming gradient"] - bits["your rules"]) < 0.1, "one of them as well"

# %% [markdown]
# **Discuss.** All of these losses fall. AdamW divides each gradient by its own size, so a wrong *scale* is nearly
# invisible; a wrong direction that still points somewhat downhill learns, only less. Which of the curves would you have
# noticed without the others to compare with?
#
# **Question 6** (3 points). Use the experiment: why is a falling loss no proof that a gradient is right? Which of the
# three mistakes does AdamW hide, why, and would plain gradient descent show it? What should come first when you
# implement an adaptation method by hand, the training run or the gradient check?
#
# BEGIN SOLUTION(question="a1.q6")
# Any update with a positive inner product with the true gradient lowers the loss, at small rates; a wrong gradient
# often has one (1 point). AdamW hides the cross-entropy that ignores the incoming gradient: there all gradients are
# larger by the same factor (the number of positions), and Adam divides by the running size of the gradient, so a
# constant factor cancels (but for eps, and clipping by norm if it is used); plain gradient descent would take steps
# that are hundreds of times too large and diverge (1 point). The check comes first: it takes a moment, in float64 on
# small shapes, and tells right from wrong with certainty, while a run of hours tells only that something was learned
# (1 point).
# END SOLUTION

# %% [markdown]
# **Question 7** (3 points). Adaptation in general: given a pretrained model with parameters $\theta$ and examples of
# a task, we look for $\gamma$ that minimises the mean loss $\ell(\gamma, \theta, x, y)$. Name the three ways to adapt
# by *what trains*, say what $\gamma$ is in each, and how much of the backward pass each needs.
#
# BEGIN SOLUTION(question="a1.q7")
# Probing: $\gamma$ is a head on frozen representations; the backward pass ends at the head, nothing goes through the
# model. Full fine-tuning: $\gamma$ starts from $\theta$ and is all of it; the whole backward pass, with a gradient
# for every weight. Lightweight fine-tuning: $\gamma$ is less than about one per cent, some of $\theta$ (biases, top
# layers) or new parameters (LoRA, prefixes, adapters); gradients of $\gamma$ only, but the backward pass goes through
# the frozen model down to the lowest of them. (1 point each: name, $\gamma$ and backward pass.)
# END SOLUTION

# %% [markdown]
# **Question 8** (4 points). GPT-3 has 175 billion parameters. In float32, how much memory do the weights, their
# gradients and AdamW's two running means take in full fine-tuning? How much is to be *stored* for each of 100 tasks?
# Redo both for a method that trains 0.1 % of the parameters. Which of the numbers does the method hardly change?
#
# BEGIN SOLUTION(question="a1.q8")
# Weights 4 bytes each: 700 GB; gradients 700 GB; two means 1,400 GB: 2.8 TB, without activations (1 point). To store:
# 700 GB for each task, 70 TB for a hundred (1 point). With 0.1 % trained: weights 700 GB still, gradients 0.7 GB,
# means 1.4 GB, so about 702 GB; stored are 0.7 GB for each task, 70 GB for a hundred, and one base (1 point). The
# weights of the base in memory, and the activations of the backward pass through it, hardly change: what a 4-bit base
# is for (1 point).
# END SOLUTION
