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
# # Assignment A3: LoRA
#
# **What you will build.** LoRA (Hu et al. 2021) in seven steps: how its two factors start, the fused layer, the
# backward pass that you derive for it, a merge into the base's weights that can be taken back bit for bit, the
# parameter count, the scaling with and without rsLoRA. Then you use it: you choose targets, rank and rate for a small
# GPT that has read modern English and is to read the English of 1395, and held-out text judges your choice.
#
# **Where.** Each task is a hole in the library, between a line `# BEGIN SOLUTION(task="3.1")` and a line
# `# END SOLUTION`. Write between these marks only, and leave them in place; imports that you need go there too.
#
# | check | command |
# |---|---|
# | everything | `minitorch-peft course check` |
# | one task | `minitorch-peft course check 3.1` |
# | a hint (`--hint --hint`: one more) | `minitorch-peft course check 3.1 --hint` |
#
# You can solve the tasks in any order, except for the last one, which trains a model and so needs 3.1, 3.2, 3.3 and
# 3.6. The cells below use your solutions: run them as you go. The written questions are marked by a person, and their
# points come on top of the 100 points of the tasks.
#
# **Time:** about three hours. **Needs:** the installation in the README.
#
# ## Notation
# A linear layer has a weight $W$ $(N, K)$, stored as (out, in), and perhaps a bias $b$ $(N)$. For input rows $x$ $(R,
# K)$ it gives $y = x W^\top + b$. LoRA adds a change of rank $r$ to it, of two factors $A$ $(r, K)$ and $B$ $(N, r)$,
# and a number $s$:
#
# $$ y = x W^\top + b + s\, (x A^\top) B^\top . $$
#
# $W$ and $b$ are frozen; $A$ and $B$ are trained.

# %%
import math
import time

import matplotlib.pyplot as plt
import numpy as np
from minitorch_peft.kernels.lora.reference import lora_linear_forward

import minitorch_peft as mp
from minitorch_peft.course.assignments.a3 import adaptation
from minitorch_peft.course.assignments.a3.choice import choose
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import FullConfig, LoraConfig, get_peft_model
from minitorch_peft.peft.inject import base_parameters
from minitorch_peft.peft.parameter.lora import LoraLinear, lora_count

rng = np.random.default_rng(0)

# %% [markdown]
# ## 3.1 How the two factors start
#
# Training should start from the model as it is: the product $BA$ must be zero at the start. There are three ways to
# have that: $A$ is zero, $B$ is zero, or both. Before you choose, work out what the gradients of $A$ and of $B$ are
# proportional to, and what happens to each of them in the three cases.
#
# The library starts as `peft` does. For a **linear layer** $A$ is the random one; it is drawn as `torch.nn.Linear`
# draws its weight: `kaiming_uniform` with its default $a = \sqrt 5$, which is uniform between $\pm 1/\sqrt K$. An
# **embedding** is a linear layer whose input is a one-hot vector, so its $A$ $(r, V)$ is never multiplied, only
# looked up: column $i$ belongs to token $i$. A token that does not occur in the training text should stay as it was,
# also when the factor that all tokens share has moved. So which of the two must start at zero there? The other one is
# drawn from a normal distribution with standard deviation 1.
#
# Two layers must not start alike, and the same seed must give the same values again. `adapter.new_parameter(name,
# shape, start)` sees to it: a value depends on the seed and on the name, and on nothing else.
#
# **The hole** is in `minitorch_peft/peft/parameter/lora.py`, in `LoraLayer.__init__`: make `self.lora_A` and
# `self.lora_B` for the rank `r`. `base.takes_ids` is true for an embedding.

# %%
small = GPTConfig(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4)
model = get_peft_model(GPT(small), LoraConfig(r=4, target_modules=["q_proj", "embed.tokens"]))
for path, layer in model.adapters["default"].wrappers.items():
    A, B = layer.lora_A.data, layer.lora_B.data
    print(f"{path:22s} A {A.shape!s:9s} |A| <= {np.abs(A).max():.3f}   B {B.shape!s:9s} |B| <= {np.abs(B).max():.3f}")
    assert not (B @ A).any()

# %% [markdown]
# ## 3.2 The forward pass
#
# Matrix products are associative: $x (A^\top B^\top) = (x A^\top) B^\top$. They are not equally fast. Count the
# multiplications of both for $R$ rows, and the numbers that have to be stored on the way.
#
# **The hole** is in `kernels/lora/reference.py`, in `lora_linear_forward`. It returns $y$ and $x A^\top$, which the
# backward pass will need. The input may have any number of axes in front, the bias may be missing (`None`), the
# result has the dtype of the input, and no array that came in is changed.

# %%
K = N = 1024
R, r, s = 16, 8, 2.0
x, W, b, A, B = (rng.standard_normal(shape) for shape in ((R, K), (N, K), (N,), (r, K), (N, r)))
started = time.perf_counter()
y, xa = lora_linear_forward(x, W, b, A, B, s)
fused = time.perf_counter() - started
started = time.perf_counter()
expected = x @ (W + s * (B @ A)).T + b
formed = time.perf_counter() - started
print(f"(x Aᵀ) Bᵀ: {fused * 1e3:.1f} ms; with W + s B A formed: {formed * 1e3:.1f} ms")
print(f"multiplications of the low-rank part: {R * r * (K + N):,} against {N * r * K + R * N * K:,}")
np.testing.assert_allclose(y, expected, rtol=1e-8, atol=1e-8)
assert xa.shape == (R, r)

# %% [markdown]
# ## 3.3 The backward pass, derived by hand
#
# Let $L$ be the loss, and $G = \partial L / \partial y$ $(R, N)$ the gradient that comes in. The graph has two
# branches that meet in a sum:
#
# $$ x \;\longrightarrow\; x W^\top + b \qquad\qquad x \;\xrightarrow{\;A\;}\; u = x A^\top \;\xrightarrow{\;B\;}\;
# s\, u B^\top . $$
#
# Derive the gradients of $x$, $W$, $b$, $A$ and $B$ on paper, element by element. It helps to write $y_{ij} = \dots +
# s \sum_k u_{ik} B_{jk}$ and to ask: in which $y_{ij}$ does $B_{pq}$ occur, and with which factor? Then do the same
# for $u_{pq}$, and go on to $A$ from there. Two checks of what you have got:
#
# - **Shapes.** Each gradient has the shape of what it belongs to. This leaves few ways to order and transpose.
# - **Counting $s$.** Each term that went through the low-rank branch has the factor $s$ exactly once.
#
# Think about cost, too. $W$ is frozen: what does its gradient cost, and who needs it? Does $x$ still need a pass
# through $W$? This is what LoRA saves in training, and what it does not.
#
# **The hole** is in `kernels/lora/reference.py`, in `lora_linear_backward`. `needs` says which of (dx, dweight,
# dbias, da, db) are wanted; the others are `None` and cost nothing. Any number of axes may stand in front of the last
# one: `rows_of` makes rows of them, and dx gets them back. (While this task is checked, the library's engine is not
# there to do it for you.)

# %%
leaf = {
    name: mp.tensor(rng.standard_normal(shape), requires_grad=name in "xAB")
    for name, shape in {"x": (2, 3, 6), "W": (5, 6), "b": (5,), "A": (2, 6), "B": (5, 2)}.items()
}
assert mp.gradcheck(lambda x, A, B: LoraLinear.apply(x, leaf["W"], leaf["b"], A, B, s=0.5), [leaf[n] for n in "xAB"])
print("your gradients agree with central differences")

for a_start, b_start in (("random", "zero"), ("zero", "zero")):
    A = mp.tensor(rng.standard_normal((2, 6)) * (a_start == "random"), requires_grad=True)
    B = mp.tensor(rng.standard_normal((5, 2)) * (b_start == "random"), requires_grad=True)
    (LoraLinear.apply(leaf["x"].detach(), leaf["W"], leaf["b"], A, B, s=0.5) ** 2).sum().backward()
    print(f"A {a_start}, B {b_start}: |dA| = {np.abs(A.grad).max():.2f}, |dB| = {np.abs(B.grad).max():.2f}")

# %% [markdown]
# ## 3.4 Merge, and take it back bit for bit
#
# After training, the change can be added to the weight once and for all. What is left is a plain linear layer. This
# task has three holes:
#
# 1. `LoraLayer.effective` (`peft/parameter/lora.py`): the weight that the layer amounts to, in the dtype of the
#    `weight` that comes in. Merging asks for it in float64, so that only the last step rounds; the factors are
#    float32.
# 2. `Merger._write` (`peft/merge.py`): `weight` is the exact sum in float64 and `stored` the same in the dtype of the
#    base, checked to be finite. Keep in `self.before[path]` what unmerging needs, put `stored` into the layer
#    (`leaf`), and let `self.rounding` be the largest difference between `stored` and `weight` that any path had.
# 3. `Merger.unmerge`: put everything back, bit for bit. There is more than weights to put back: look at
#    `_untie_if_touched` and at `_forget`.
#
# To switch from one task to the next, one would subtract $s BA$ and add $s' B'A'$. In real numbers that is right.
# Floats do not work like that:

# %%
w, change = np.float32(0.1), np.float32(1234.5)
print(f"(0.1 + 1234.5) - 1234.5 = {(w + change) - change} in float32")
drifted = rng.standard_normal(1000).astype(np.float32)
start, deltas = drifted.copy(), rng.standard_normal((100, 1000)).astype(np.float32)
for delta in deltas:
    drifted = (drifted + delta) - delta
print(f"after 100 tasks {np.mean(drifted != start):.0%} of the weights have other bits")

# %%
base = GPT.from_pretrained("tiny-0.25m")
before = {path: p.data.copy() for path, p in base_parameters(base)}
model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
for p in model.trainable_parameters().values():
    p.data[...] += 0.05 * rng.standard_normal(p.shape)  # as if it had been trained
ids = rng.integers(0, base.config.vocab_size, (2, 16))
for _ in range(3):
    certificate = model.merge_adapter(ids)
    model.unmerge_adapter()
print(certificate)
assert certificate.restores_base and certificate.logit_difference < 1e-3
assert all((p.data == before[path]).all() for path, p in base_parameters(base)), "not the same bits"

# %% [markdown]
# ## 3.5 How many parameters
#
# What does LoRA train? For each target a factor $A$ and a factor $B$. Write the number down for one target of
# `in_features` and `out_features`, then add over all targets. A target may have a rank of its own (`rank_pattern`).
#
# **The hole** is `lora_count` in `peft/parameter/lora.py`. A formula is enough; no adapter has to be made.

# %%
gpt = GPT(GPTConfig(vocab_size=1000, n_positions=64, n_embd=256, n_layer=4, n_head=4))
full = sum(p.data.size for p in gpt.parameters())
settings = {
    "q_proj and v_proj, r = 8": LoraConfig(r=8, target_modules=["q_proj", "v_proj"]),
    "every linear layer, r = 8": LoraConfig(r=8, target_modules="all-linear"),
    "the same, but r = 1 for the MLP": LoraConfig(
        r=8, target_modules="all-linear", rank_pattern={"up_proj": 1, "down_proj": 1}
    ),
    "the embedding, r = 8": LoraConfig(r=8, target_modules=["embed.tokens"]),
}
for name, config in settings.items():
    count = lora_count(gpt, config)
    print(f"{name:34s} {count:8,} ({count / full:.2%} of {full:,})")
    assert count == get_peft_model(gpt, config).get_nb_trainable_parameters()[0]
    gpt = GPT(gpt.config)

# %% [markdown]
# ## 3.6 The scaling, and rsLoRA
#
# LoRA's factor is $s = \alpha / r$. It was meant to spare a search: change $r$, keep $\alpha$ and the rate. It does
# that badly for large ranks. Look at $B A x$ as a sum of $r$ terms, one for each direction: column $k$ of $B$ times
# the number $(Ax)_k$. Suppose that the terms are about independent and of one size, with mean zero. How does the size
# of the sum grow with $r$? With which power of $r$ must one divide, so that it stays the same? This is the factor of
# rsLoRA (Kalajdzievski 2023).
#
# **The hole** is `LowRankConfig.scaling` in `peft/config.py`. Rank and alpha are those of the target at `path`:
# `rank_pattern` and `alpha_pattern` give some targets values of their own. `self.rank(path)` reads the first of them;
# `by_path` reads either.

# %%
x = rng.standard_normal((200, 256))
print("size of s (x Aᵀ) Bᵀ:    r = " + "".join(f"{r:9d}" for r in (1, 4, 16, 64, 256)))
sizes = {}
for use_rslora in (False, True):
    row = []
    for r in (1, 4, 16, 64, 256):
        s = LoraConfig(r=r, lora_alpha=8, use_rslora=use_rslora).scaling("blocks.0.attn.q_proj")
        A = rng.uniform(-1, 1, (r, 256)) / 16
        B = 0.01 * rng.choice([-1.0, 1.0], (128, r))  # one step of Adam: the rate times the sign of the gradient
        row.append((s * (x @ A.T) @ B.T).std())
    sizes[use_rslora] = row
    print(f"{'rsLoRA' if use_rslora else 'LoRA':28s}" + "".join(f"{size:9.4f}" for size in row))
assert max(sizes[True]) < 1.5 * min(sizes[True]), "rsLoRA: about the same for all ranks"
assert sizes[False][0] > 8 * sizes[False][-1], "LoRA: the larger the rank, the smaller the step"

# %% [markdown]
# ## 3.7 Choose targets and rank
#
# Now you use what you built. The model is `tiny-0.25m`: four blocks, width 64, 1,024 tokens; it has read modern
# English. It is to read the English of 1395, with 40 steps of 8 x 64 tokens (AdamW, the rate rising for 5 steps and
# then falling to zero: `course/assignments/a3/adaptation.py`). **The budget is 10,000 trainable parameters.**
# Chapters of John, which it has never seen in any dialect, judge it: the *gain* is the number of bits per byte that
# by which it does better than the base. **The goal is a gain of 1.0**, as a mean over two seeds.
#
# **The hole** is `choose` in `minitorch_peft/course/assignments/a3/choice.py`: return the settings as a dict (`lr`,
# `r`, `lora_alpha`, `target_modules`, and if you like `rank_pattern`, `alpha_pattern`, `layers_to_transform`,
# `use_rslora`). Training and the measuring are not yours to change. The hidden checks use other seeds and other
# chapters.
#
# One run takes a second or two, so experiment: change one thing at a time. Here is a start, far from the goal.


# %%
def measured(choice: dict) -> tuple[int, float]:
    """Trainable parameters, and the gain in bits per byte: the mean of two seeds, as in the public check."""
    adapted = [adaptation.adapt(choice, seed) for seed in (0, 1)]
    return adapted[0].get_nb_trainable_parameters()[0], float(np.mean([adaptation.gain(model) for model in adapted]))


usual = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
for lr in (2e-4, 2e-3):
    count, gained = measured({**usual, "lr": lr})
    print(f"q_proj and v_proj, lr = {lr:g}: {count:,} parameters, gain {gained:.2f}")

mine = choose()
count, gained = measured(mine)
print(f"my choice: {count:,} parameters, gain {gained:.2f} bits per byte")
assert count <= adaptation.BUDGET and gained >= 1.0

# %% [markdown]
# ## Closing experiment: what does a parameter buy?
#
# The same 40 steps for several ranks and targets, and for all parameters of the model. For each: the gain on held-out
# text of 1395, and what the model forgets, that is by how many bits per byte it got *worse* on the same chapters in
# modern English. LoRA runs with the rate of your choice and $s = 2$, so solve 3.7 first; full fine-tuning has a rate
# that suits it.

# %%
every = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
rate = mine["lr"] * adaptation.settings_of(mine)[0].scaling("blocks.0.attn.q_proj") / 2


def low_rank(r: int, targets: list[str], **ranks: int) -> dict:
    """Settings with s = 2 everywhere; ``ranks`` are of targets that have one of their own."""
    alphas = {name: 2 * rank for name, rank in ranks.items()}
    shared = {"r": r, "lora_alpha": 2 * r, "target_modules": targets, "lr": rate}
    return {**shared, "rank_pattern": ranks, "alpha_pattern": alphas}


runs = {
    "q, v": [low_rank(r, ["q_proj", "v_proj"]) for r in (2, 8, 32)],
    "all linear layers": [low_rank(r, every) for r in (1, 2, 8)],
    "head": [low_rank(r, ["lm_head"]) for r in (2, 8, 32)],
    "all and head": [low_rank(r, [*every, "lm_head"], lm_head=4 * r) for r in (1, 4)],
}
modern = adaptation.of_the_base("first", "web")
points = {}
for family, choices in runs.items():
    for choice in choices:
        adapted = adaptation.adapt(choice)
        row = (
            adapted.get_nb_trainable_parameters()[0],
            adaptation.gain(adapted),
            adaptation.bits_per_byte(adapted, "first", "web") - modern,
        )
        points.setdefault(family, []).append(row)
        print(f"{family:18s} r = {choice['r']:2d} {row[0]:8,} parameters: gain {row[1]:.2f}, forgotten {row[2]:.2f}")
everything = adaptation.train(get_peft_model(GPT.from_pretrained(adaptation.MODEL), FullConfig()), lr=3e-3)
full = (
    everything.get_nb_trainable_parameters()[0],
    adaptation.gain(everything),
    adaptation.bits_per_byte(everything, "first", "web") - modern,
)
print(f"{'all parameters':23s} {full[0]:8,} parameters: gain {full[1]:.2f}, forgotten {full[2]:.2f}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
for family, rows in points.items():
    counts, gains, forgotten = zip(*rows, strict=True)
    (line,) = left.semilogx(counts, gains, "o-", label=family)
    right.plot(forgotten, gains, "o-", color=line.get_color())
    below = 4 if family == "head" else -11
    for (count, gained, _), choice in zip(rows, runs[family], strict=True):
        left.annotate(f"r={choice['r']}", (count, gained), textcoords="offset points", xytext=(4, below), fontsize=8)
left.semilogx(full[0], full[1], "k*", markersize=11, label="all parameters")
right.plot(full[2], full[1], "k*", markersize=11)
left.axvline(adaptation.BUDGET, color="grey", linestyle=":", label="the budget of 3.7")
left.set(xlabel="trainable parameters", ylabel="gain on text of 1395 (bits per byte)", title="What a parameter buys")
right.set(xlabel="loss on modern English (bits per byte)", title="What is forgotten for it")
left.legend(fontsize=8)
fig.tight_layout()
plt.show()

within = max(gained for rows in points.values() for count, gained, _ in rows if count <= adaptation.BUDGET)
assert within > 0.8 * full[1], "3 % of the parameters reach most of what all of them reach"
assert points["q, v"][1][1] < points["all linear layers"][0][1], "half the parameters, better placed, reach more"

# %% [markdown]
# The best of them within the budget, merged: the same model without the adapter's layers, as fast as the base. (The
# head shares its weight with the embedding, so merging gives it a copy first, and says so.)

# %%
adapted = adaptation.adapt(runs["all and head"][0])
prompt = rng.integers(0, 1024, (4, 64))


def seconds(run) -> float:
    """The shortest of ten passes."""
    times = []
    with mp.no_grad():
        for _ in range(10):
            started = time.perf_counter()
            run(prompt)
            times.append(time.perf_counter() - started)
    return min(times)


apart, unmerged = seconds(adapted), adaptation.gain(adapted)
certificate = adapted.merge_adapter()
merged = adaptation.gain(adapted)
print(
    f"gain {unmerged:.6f} with layers of its own, {merged:.6f} merged; a forward pass takes {apart * 1e3:.1f} ms",
    end=" ",
)
print(f"and {seconds(adapted) * 1e3:.1f} ms")
assert math.isclose(merged, unmerged, abs_tol=1e-3) and certificate.restores_base

# %% [markdown]
# **To discuss.** Which matters more here, the rank or the targets? Why does the head help so much in this task, and
# would it in a task of another kind (say, answering questions in modern English)? The paper adapts $W_q$ and $W_v$ of
# a GPT of 175 billion parameters with $r = 1$ to $8$ and reaches full fine-tuning; here they fall short at every
# rank. What differs? Is what is forgotten the price of LoRA, or of learning the new text? What would you change to
# forget less?

# %% [markdown]
# ## Written questions
# Answer each in three to eight sentences, in your own words.

# %% [markdown]
# **Question 1** (4 points). $B$ starts at zero and $A$ does not. Why not both at zero? Why not both random? Would it
# do as well to start with $A$ at zero and $B$ random?
#
# BEGIN SOLUTION(question="a3.q1")
# With $B = 0$ the product $BA$ is zero, so training starts at the pretrained model, whatever $A$ is. The gradient of
# $B$ has the factor $xA^\top$, that of $A$ the factor $B$. If both are zero, both gradients are zero, and they stay
# zero for ever: a saddle point. If both are random, the model starts with a random change of its weights and first
# has to repair it. One of the two is enough: $A$ zero and $B$ random starts at the base as well, and then $A$ moves
# first. (The two starts are not quite the same in training: their gradients have other sizes, and so other rates suit
# them. For embeddings the library does it this way round.)
#
# *Marking (4 points): 1 for "the start must be the base"; 2 for the argument with the gradients' factors (only 1 for
# "there would be no gradient" without saying why); 1 for seeing that the other way round works too.*
# END SOLUTION

# %% [markdown]
# **Question 2** (4 points). A weight has $d = k = 4096$. How many parameters does LoRA train for $r = 8$, and how
# many does full fine-tuning? From which rank on does LoRA have *more* parameters than the weight? Does it then reach
# changes that full fine-tuning does not?
#
# BEGIN SOLUTION(question="a3.q2")
# LoRA: $r(d + k) = 8 \cdot 8192 = 65{,}536$. Full: $dk = 16{,}777{,}216$, 256 times as many. LoRA has more from $r(d
# + k) > dk$ on, that is for $r > dk/(d + k) = 2048$, half of the full rank. It reaches nothing new: every change that
# LoRA can make is a matrix of rank at most $r$, and full fine-tuning can make every matrix. From there on the factors
# only say the same in more numbers ($BA = (BM)(M^{-1}A)$ for every invertible $M$).
#
# *Marking (4 points): 1 for both counts, 1 for $r > 2048$ with its derivation, 2 for "nothing new", with a reason.*
# END SOLUTION

# %% [markdown]
# **Question 3** (4 points). Why does LoRA add no latency at inference, while adapters and prompts do? Name a
# situation in which one would *not* merge, although it costs time.
#
# BEGIN SOLUTION(question="a3.q3")
# LoRA's change is linear in $x$ and sits beside a linear layer, so it can be added to that layer's weight: $W + sBA$
# has the shape of $W$. After that the model has the same layers and the same number of operations as before. An
# adapter layer has a nonlinearity between its two matrices and comes after another layer, so no weight can take it
# up; it is computed at every token, in sequence. A prompt makes the input longer, and attention has to look at it.
# One does not merge if rows of one batch need different adapters (many users, one base in memory), if tasks change
# all the time, if the base is stored in 4 bits and merging would round again, or while one is still training.
#
# *Marking (4 points): 2 for linearity (the change is a matrix of $W$'s shape), 1 for why adapters or prompts cannot
# do that, 1 for a situation with its reason.*
# END SOLUTION

# %% [markdown]
# **Question 4** (5 points). What does $\alpha$ do? Compare doubling $\alpha$ with doubling the learning rate: at a
# finished adapter, in training with SGD, and in training with Adam. Begin at the start, where $B = 0$.
#
# BEGIN SOLUTION(question="a3.q4")
# At a finished adapter, $\alpha$ is the weight of the task's knowledge against the pretrained model's: the change
# $sBA$ is proportional to it ($\alpha = 0$ is the base, a large $\alpha$ overrules it). In training it acts like a
# rate. The gradient of $B$ has the factor $s$, and so has what $B$ does to the output. With SGD, doubling $\alpha$
# doubles the step of $B$ and its effect: the output moves four times as far, as with four times the rate. Adam
# divides the gradient by its size, so the step of $B$ does not depend on $s$, only its effect does: doubling $\alpha$
# is about the same as doubling the rate of $B$. (Not exactly: $A$'s own step becomes larger against $A$'s start if
# the rate is doubled, not if $\alpha$ is.) So one fixes $\alpha$ (often to $2r$) and tunes the rate.
#
# *Marking (5 points): 1 for the finished adapter, 2 for SGD (the factor enters twice), 2 for Adam (once). An answer
# that says "like a learning rate" without distinguishing gets 2 of 5.*
# END SOLUTION

# %% [markdown]
# **Question 5** (4 points). Rank 1 is often enough, and the gain hardly grows with $r$ beyond 8 or so. Explain how a
# change of rank 1 in each layer can do so much. Why, then, is pretraining not done with matrices of rank 8? Is LoRA
# with the full rank the same as full fine-tuning?
#
# BEGIN SOLUTION(question="a3.q5")
# The pretrained model has the features already; adapting mostly makes it use some more and others less, and for that
# few directions suffice: models are over-parameterised, and a task's intrinsic dimension is small. Rank 1 in every
# layer is not rank 1 of the whole: some dozens of layers with nonlinearities between them give many directions, and
# each direction is a choice of an input feature (a row of $A$) and of an effect (a column of $B$). Pretraining starts
# from nothing and has to write all features; the weight itself (not its change) is of full rank. With full rank LoRA
# can express every change, but it is trained in other coordinates: another start, other effective rates for $A$ and
# $B$, and an implicit preference for small and low-rank changes; its path is not that of full fine-tuning.
#
# *Marking (4 points): 2 for "the change is small, the features exist", 1 for pretraining, 1 for "the same set,
# another path".*
# END SOLUTION

# %% [markdown]
# **Question 6** (4 points). What does QLoRA add to LoRA, and what does it not replace? What happens to gradients at a
# 4-bit weight, and what must one think of when merging?
#
# BEGIN SOLUTION(question="a3.q6")
# QLoRA stores the frozen base in 4 bits (NormalFloat: levels that are quantiles of a normal distribution, which is
# how trained weights are distributed, with one scale for each small block), and uses paged optimizer states against
# peaks of memory. LoRA itself stays as it is: its factors are kept and trained in 16 or 32 bits. It makes the base
# smaller, not the adapter; it stacks with LoRA. Because the base is frozen, nobody needs a gradient of a 4-bit
# number; gradients go *through* the weight to $x$, for which it is dequantized block by block, in forward and in
# backward, which costs time. Merging has to dequantize, add, and either stay in 16 bits (and lose the small size) or
# quantize again, which rounds the sum and may swallow a small change.
#
# *Marking (4 points): 1 for the base in 4 bits, 1 for "LoRA stays, in higher precision", 1 for gradients through and
# not to the weight, 1 for merging.*
# END SOLUTION

# %% [markdown]
# **Question 7** (3 points). When would you fine-tune all parameters instead? Use the closing experiment as well.
#
# BEGIN SOLUTION(question="a3.q7")
# If there is much data and the task is far from pretraining (a new language, code, another domain): the change is
# then large and not of low rank. If quality counts more than cost, and there is one task only, so that a full copy is
# no burden. If the model is small, so that memory is no problem, as here: all parameters gain more than every adapter
# in the experiment (1.6 against 1.4 bits per byte at the budget). On the other side stand memory in training, one
# small file a task, and forgetting: the full run lost as much on modern English as any. With little data fewer
# parameters also overfit less. PEFT aims to come close for little; it is not always better.
#
# *Marking (3 points): 1 for each good reason with its explanation, of which one must refer to the experiment.*
# END SOLUTION

# %% [markdown]
# **Question 8** (6 points). In what sense is LoRA efficient, and in what sense is it not? Go through storage, memory
# in training (weights, gradients, optimizer states, activations), computation in training, and latency. Say which
# tensors your backward pass of 3.3 must keep.
#
# BEGIN SOLUTION(question="a3.q8")
# *Storage*: very efficient, one file of some thousand or million numbers for each task, the base once. *Weights in
# training*: no saving, the whole base is in memory (QLoRA helps). *Gradients and optimizer states*: very efficient,
# only those of $A$ and $B$: with Adam full fine-tuning keeps three further numbers for each weight (its gradient and
# two moments). *Activations*: hardly a saving. The backward pass of 3.3 needs $x$ (for $dA$) and $u = xA^\top$ (for
# $dB$), and all layers above the lowest adapted one must pass a gradient to their inputs, so nonlinearities, norms
# and attention keep what they need. Only a frozen layer without an adapter does not need to keep its $x$. With long
# sequences activations are the largest part. *Computation*: forward a little more than the base; backward saves
# $G^\top x$ for each frozen weight, that is about a third of a full step, but $GW$ is still needed at every layer.
# *Latency*: none once merged. Methods that avoid the backward pass through the base (side networks) or keep fewer
# activations (recomputation) act on what LoRA does not.
#
# *Marking (6 points): 1 each for storage, gradients and optimizer states, latency; 2 for activations, with $x$ and
# $u$ named; 1 for the computation ($dW$ saved, $dx$ not).*
# END SOLUTION
