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
# # 6. Methods that change parameters
#
# **What will be built.** Every method that moves the weights of a frozen model, one after the other, on one task: full
# and partial fine-tuning, BitFit, LoRA, DoRA, PiSSA, LoRA+, VeRA, AdaLoRA and diff pruning. Each has its equation, a
# check that the library computes just that, a short training, and a look at what it did to the weights.
#
# **Time:** about an hour to read, half a minute to run. **Needs:** `pip install minitorch-peft[data]`.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minitorch_peft as mp
from minitorch_peft.analysis.texts import Texts, pack_split
from minitorch_peft.data import Tokenizer
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import (
    METHODS,
    AdaLoraConfig,
    BitFitConfig,
    DiffPruningConfig,
    FullConfig,
    LoraConfig,
    LoraPlusConfig,
    PartialConfig,
    RandomMaskConfig,
    VeraConfig,
    get_peft_model,
)
from minitorch_peft.peft.parameter.adalora import NonOrthonormality
from minitorch_peft.peft.parameter.dora import DoraNorm
from minitorch_peft.peft.parameter.hard_concrete import HardConcrete, hard_concrete, logistic, open_probability
from minitorch_peft.training import TrainConfig, train

rng = np.random.default_rng(0)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
BLOCKS = range(4)

# %% [markdown]
# ## The task, and two checks for all
# As in the third walkthrough: a tiny GPT that has read modern English learns the English of 1395, and books that it
# never trains on judge it, in bits per byte. Several methods act on training itself (a penalty, rates of their own, a
# choice after each step), so the library's training loop is used: it calls them. The steps are few and each method's
# rate was found by trying a few. The numbers show how the methods work; they are no contest.

# %%
tokenizer = Tokenizer.shipped()
train_text, held_out = (pack_split("wyc", split, tokenizer) for split in ("train", "held_out"))
texts = Texts(train_text, {"wyc": held_out}, batch_size=4, length=128)
base = GPT.from_pretrained("tiny")
weights = {name: p.data.copy() for name, p in base.named_parameters()}
untouched = texts.bits_per_byte(base, "wyc", limit=32)
print(f"the base: {untouched:.2f} bits per byte on the English of 1395; {base.num_parameters():,} parameters")
bits, sizes, losses = {}, {}, {}


def adapt(name, config, lr, watch=None):
    """The tiny GPT after 20 steps of 4 x 128 tokens; ``watch(adapter, step)`` is called after each of them."""
    model = get_peft_model(GPT.from_pretrained("tiny"), config)
    progress = None if watch is None else lambda report: watch(model.adapters["default"], report.step)
    plan = TrainConfig(steps=20, lr=lr, warmup=3)
    losses[name] = train(model, texts.batches(seed=0), plan, progress=progress).losses
    bits[name], sizes[name] = texts.bits_per_byte(model, "wyc", limit=32), model.get_nb_trainable_parameters()[0]
    print(f"{name:22s} {sizes[name]:9,} trainable parameters, {bits[name]:.2f} bits per byte")
    assert bits[name] < untouched - 0.4, "it learns"
    return model


# %% [markdown]
# The first check: the gradient of every trainable parameter is right. It takes a small GPT in float64, moves what
# trains to a random place (many methods start where half of their gradients are zero) and holds the gradients against
# differences. The second: every method of this chapter is a change of weights, so it merges. The adapted model and a
# plain GPT with the changed weights must say the same.


# %%
def gradients_hold(config) -> bool:
    small = GPT(GPTConfig(vocab_size=23, n_positions=8, n_embd=16, n_layer=1, n_head=2)).astype(np.float64)
    model = get_peft_model(small, config).eval()
    for p in model.trainable_parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape)
    ids = rng.integers(0, 23, (2, 6))
    return mp.gradcheck(lambda: model(ids).logits, (), parameters=model.trainable_parameters())


def merged(model) -> dict:
    """The weights of a plain GPT that does what ``model`` does."""
    certificate = model.merge_adapter()
    assert certificate.logit_difference < 1e-3 and certificate.restores_base
    return {path: p.data.copy() for path, p in model.merge_and_unload().named_parameters()}


def weight(of: dict, block: int, kind: str) -> np.ndarray:
    return of[f"blocks.{block}.{'mlp' if kind in LINEAR[4:] else 'attn'}.{kind}.weight"]


def change(of: dict, block: int, kind: str) -> np.ndarray:
    """ΔW (out, in) of one linear layer."""
    return weight(of, block, kind) - weight(weights, block, kind)


tuned = {}

# %% [markdown]
# ## Full and partial fine-tuning
# Everything trains, $\theta' = \theta + \Delta\theta$ with $\Delta\theta$ as large as the model; or only the top
# layers do: lower ones hold what all texts have in common. (The head shares its weight with the embedding here, so it
# belongs to both ends, and stays frozen.) The library puts a trainable *copy* in each chosen parameter's place: the
# base itself does not move.

# %%
assert gradients_hold(FullConfig()) and gradients_hold(PartialConfig(target_parameters=["ln_1.**", "v_proj.*"]))
tuned["full"] = merged(adapt("full", FullConfig(), lr=3e-3))
top = merged(adapt("top layer", PartialConfig(top_layers=1), lr=1e-2))
moved = {path for path in top if not np.array_equal(top[path], weights[path])}
assert moved == {path for path in top if path.startswith(("blocks.3.", "ln_f."))}
assert bits["full"] < bits["top layer"]

# %% [markdown]
# What does $\Delta W$ look like when nothing holds it back? Here are the singular values of all 24 of them, each
# divided by its largest one.


# %%
def spectrum(delta):
    return np.linalg.svd(delta, compute_uv=False)


colours = plt.colormaps["viridis"](np.linspace(0, 0.9, len(BLOCKS)))
fig, axes = plt.subplots(2, 3, figsize=(10, 5), sharex=True, sharey=True)
shares = []
for ax, kind in zip(axes.flat, LINEAR, strict=True):
    for block in BLOCKS:
        values = spectrum(change(tuned["full"], block, kind))
        shares.append((values[:8] ** 2).sum() / (values**2).sum())
        ax.semilogy(np.arange(1, 129), values / values[0], color=colours[block], label=f"block {block}")
    ax.set(title=f"{kind}: {min(shares[-4:]):.0%} to {max(shares[-4:]):.0%} in 8", ylim=(3e-3, 1.3))
    ax.axvline(8, color="grey", linewidth=0.8, linestyle=":")
axes[0, 0].legend(fontsize=8)
for ax in axes[1]:
    ax.set_xlabel("direction")
for ax in axes[:, 0]:
    ax.set_ylabel("singular value / largest")
fig.suptitle("Full fine-tuning: the spectrum of ΔW (the share of its squared size in 8 of 128 directions)")
plt.tight_layout()
plt.show()
print(f"8 of 128 directions carry {min(shares):.0%} to {max(shares):.0%}; an even spread would give {8 / 128:.0%}")
assert min(shares) > 3 * 8 / 128

# %% [markdown]
# ## BitFit
# Only the biases train (Ben Zaken et al. 2021): $y = x W^\top + b + \Delta b$. Is there something in biases, or would
# any parameters do, if there are as many? The paper's control is a mask drawn at random,
# $\theta' = \theta + S\delta$, where $S$ puts the $N$ numbers of $\delta$ at $N$ places of the whole model.

# %%
count = METHODS["bitfit"].count(base, BitFitConfig())
assert count == 4 * (4 * 128 + 2 * 128 + 512 + 128) + 128  # q, k, v, o; two norms; up and down; the last norm
assert gradients_hold(BitFitConfig()) and gradients_hold(RandomMaskConfig(num_parameters=40))
biased = merged(adapt("BitFit", BitFitConfig(), lr=0.04))
masked = merged(adapt("random mask", RandomMaskConfig(num_parameters=count), lr=0.08))
differing = sum(int((masked[path] != weights[path]).sum()) for path in weights)
print(f"of {count:,} scalars {differing:,} have moved")
assert sizes["random mask"] == count >= differing > 0.9 * count
assert bits["BitFit"] < bits["random mask"], "the biases do better than as many parameters drawn at random"
assert all(np.array_equal(biased[path], weights[path]) for path in weights if not path.endswith(".bias"))

# %% [markdown]
# The picture below shows by how much each bias changed (the root of the mean square), by kind and block. As in the
# paper, the query's bias and that of the MLP's first layer change most, and the key's hardly at all. For the key
# there is a proof: $q \cdot (k_j + b) = q \cdot k_j + q \cdot b$ adds the same to the score of every position $j$,
# and softmax takes that out again. So its gradient is zero but for rounding. (Adam divides by the gradient's own size
# and makes small steps even of rounding: that is the little that is seen. Put back, nothing is lost.)

# %%
exact = get_peft_model(GPT.from_pretrained("tiny").astype(np.float64), BitFitConfig())
exact(**texts.batches(seed=0)(0)).loss.backward()
gradient = {
    kind: np.sqrt(
        np.mean([exact.trainable_parameters()[f"blocks.{b}.attn.{kind}.bias.default"].grad ** 2 for b in BLOCKS])
    )
    for kind in ("q_proj", "k_proj", "v_proj")
}
print({kind: f"{value:.1e}" for kind, value in gradient.items()})
assert gradient["k_proj"] < 1e-12 * gradient["q_proj"]

no_keys = {path: weights[path] if path.endswith("k_proj.bias") else array for path, array in biased.items()}
model = GPT.from_pretrained("tiny")
for path, p in model.named_parameters():
    p.data[...] = no_keys[path]
assert abs(texts.bits_per_byte(model, "wyc", limit=32) - bits["BitFit"]) < 1e-4, (
    "without the keys' changes it is as good"
)

kinds = ["ln_1", *(f"attn.{kind}" for kind in LINEAR[:4]), "ln_2", *(f"mlp.{kind}" for kind in LINEAR[4:])]


def rms(path):
    return float(np.sqrt(np.mean((biased[path] - weights[path]) ** 2)))


heat = np.array([[rms(f"blocks.{block}.{kind}.bias") for block in BLOCKS] for kind in kinds])
fig, ax = plt.subplots(figsize=(6, 4))
by_size = sorted(kinds, key=lambda kind: -heat[kinds.index(kind)].mean())
assert set(by_size[:2]) == {"attn.q_proj", "mlp.up_proj"} and by_size[-1] == "attn.k_proj"
image = ax.imshow(heat, cmap="viridis", aspect="auto")
for (row, column), value in np.ndenumerate(heat):
    ax.text(
        column, row, f"{value:.3f}", ha="center", va="center", color="w" if value < heat.mean() else "k", fontsize=8
    )
ax.set(xticks=list(BLOCKS), xticklabels=[f"block {b}" for b in BLOCKS], yticks=range(len(kinds)), yticklabels=kinds,
       title="BitFit: the change of each bias (rms)")  # fmt: skip
fig.colorbar(image)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## LoRA, in one line
# $W' = W + s B A$ with $A\,(r, \text{in})$, $B\,(\text{out}, r)$, $s = \alpha / r$ and $B = 0$ at the start: the
# third walkthrough builds it. The next methods all change one thing about it, so they get the same rank, $\alpha$ and
# targets.

# %%
SAME = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
tuned["LoRA"] = merged(adapt("LoRA", LoraConfig(**SAME), lr=1e-2))

# %% [markdown]
# ## DoRA: direction and length apart
# DoRA (Liu et al. 2024) writes each row of the weight as a length $m_i$ times a direction, and lets LoRA change the
# directions only:
#
# $$W' = m \; \frac{W + s B A}{\lVert W + s B A \rVert}, \qquad m_0 = \lVert W \rVert, \text{ row by row.}$$
#
# The norm seems to need the whole matrix $W + s B A$, in every pass. It does not. For row $i$, with $b_i$ the row of
# $B$,
#
# $$n_i^2 = \lVert w_i \rVert^2 + 2 s\, b_i \cdot (W A^\top)_i + s^2\, b_i (A A^\top) b_i^\top ,$$
#
# and the largest array there is $W A^\top$ with $r$ columns; $\lVert w_i \rVert^2$ is computed once.

# %%
W, A, B = (rng.standard_normal(shape) for shape in ((6, 10), (2, 10), (6, 2)))
s = 0.5
formed = np.linalg.norm(W + s * B @ A, axis=1)
identity = np.sqrt((W**2).sum(1) + 2 * s * (B * (W @ A.T)).sum(1) + s**2 * np.einsum("ir,rq,iq->i", B, A @ A.T, B))
print("the matrix formed:", np.round(formed, 6))
print("by the identity:  ", np.round(identity, 6))
assert np.allclose(formed, identity, rtol=1e-12)
A, B = (mp.tensor(array, requires_grad=True) for array in (A, B))
frozen = mp.tensor(W)
assert mp.gradcheck(lambda A, B: DoraNorm.apply(frozen, A, B, s=s, q=None, squares=(W**2).sum(1)), (A, B))
assert gradients_hold(LoraConfig(r=2, use_dora=True))

dora = adapt("DoRA", LoraConfig(use_dora=True, **SAME), lr=1e-2)
layer = dora.base_model.get("blocks.1.mlp.up_proj")
m, V = (
    layer.lora_magnitude_vector.data,
    layer.base.dense_weight() + layer.scaling * layer.lora_B.data @ layer.lora_A.data,
)
by_hand = m[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True)
tuned["DoRA"] = merged(dora)
assert np.allclose(by_hand, tuned["DoRA"]["blocks.1.mlp.up_proj.weight"], atol=1e-6)
assert np.allclose(np.linalg.norm(by_hand, axis=1), m, rtol=1e-5), "m is the length of each row"
assert sizes["DoRA"] - sizes["LoRA"] == 4 * (5 * 128 + 512), "one more number for each output"

# %% [markdown]
# The paper looks at every layer in a plane: how much the lengths of the rows changed, and how much their directions
# (one minus the cosine). With LoRA it finds the two tied together, a large change of one with a large change of the
# other; full fine-tuning and DoRA can do much of one and little of the other. After twenty steps on a tiny model that
# is hardly to be seen: they go together with all three, closest with LoRA and least with DoRA.


# %%
def lengths_and_directions(name):
    """For each layer: how much its rows' lengths changed, relative to what they were, and how much their directions."""
    points = []
    for block in BLOCKS:
        for kind in LINEAR:
            old, new = weight(weights, block, kind), weight(tuned[name], block, kind)
            before, after = np.linalg.norm(old, axis=1), np.linalg.norm(new, axis=1)
            cosine = (old * new).sum(1) / (before * after)
            points.append((np.abs(after / before - 1).mean(), (1 - cosine).mean()))
    return np.array(points).T


fig, ax = plt.subplots(figsize=(6, 3.6))
planes = {name: lengths_and_directions(name) for name in ("full", "LoRA", "DoRA")}
tied = {}
for (name, (length, direction)), marker in zip(planes.items(), "osx", strict=True):
    tie = tied[name] = np.corrcoef(np.log(length), np.log(direction))[0, 1]
    ax.loglog(direction, length, marker, label=f"{name} (correlation of the logarithms {tie:.2f})", alpha=0.8)
ax.set(xlabel="change of direction (1 - cosine)", ylabel="relative change of length",
       title="Each of the 24 layers: lengths and directions")  # fmt: skip
ax.legend(fontsize=8)
plt.tight_layout()
plt.show()
assert tied["LoRA"] > tied["full"] > tied["DoRA"] > 0.8

# %% [markdown]
# ## PiSSA: start from the principal part
# LoRA starts with a random $A$ and with $B = 0$: at first only $B$ has a gradient. PiSSA (Meng et al. 2024) starts
# from the weight itself. With $W = U S V^\top$ and the $r$ largest singular values,
#
# $$A_0 = \sqrt{S_r}\, V_r^\top / \sqrt{s}, \quad B_0 = U_r \sqrt{S_r} / \sqrt{s}, \qquad W' = W - s B_0 A_0 + s B A .$$
#
# Both factors have a gradient from the first step, along the directions that matter most to $W$. Here the base is not
# touched: $A_0$ and $B_0$ are kept beside it, and the change $B A - B_0 A_0$ is a LoRA of rank $2 r$ which starts at
# zero.

# %%
PISSA = LoraConfig(init_lora_weights="pissa", **SAME)
assert gradients_hold(LoraConfig(r=2, init_lora_weights="pissa"))
model = get_peft_model(GPT.from_pretrained("tiny"), PISSA)
layer = model.base_model.get("blocks.1.mlp.up_proj")
W = layer.base.dense_weight()
principal = layer.scaling * layer.lora_B.data @ layer.lora_A.data
S = spectrum(W)
print(f"the principal part of rank 8 holds {(S[:8] ** 2).sum() / (S**2).sum():.0%} of the weight's squared size")
assert np.isclose(np.linalg.norm(W - principal), np.sqrt((S[8:] ** 2).sum()), rtol=1e-4), "none of rank 8 is closer"
ids = texts.batches(seed=0)(0)["input_ids"]
assert np.array_equal(model(ids).logits.data, base(ids).logits.data), "it starts as the base, bit for bit"

pissa = adapt("PiSSA", PISSA, lr=1e-2)
assert not pissa.changed_since_wrapped(), "the base is as it was"
tuned["PiSSA"] = merged(pissa)
values = spectrum(change(tuned["PiSSA"], 1, "up_proj"))
assert values[16] < 1e-3 * values[0] < values[8], "a change of rank 16"

# %% [markdown]
# ## LoRA+: two rates
# $A$ sums over many inputs, $B$ over few ranks, so one rate cannot suit both in a wide layer. LoRA+ (Hayou et al. 2024)
# trains $B$ with $\lambda$ times $A$'s rate:
#
# $$A \leftarrow A - \eta\, g_A, \qquad B \leftarrow B - \lambda \eta\, g_B .$$
#
# Nothing else differs: with $\lambda = 1$ it *is* LoRA, loss by loss.

# %%
assert gradients_hold(LoraPlusConfig(r=2))
plan, first = TrainConfig(steps=3, lr=2e-3), []
for config in (LoraConfig(**SAME), LoraPlusConfig(loraplus_lr_ratio=1, **SAME)):
    first.append(train(get_peft_model(GPT.from_pretrained("tiny"), config), texts.batches(seed=0), plan).losses)
assert first[0] == first[1]
plus = adapt("LoRA+", LoraPlusConfig(loraplus_lr_ratio=16, **SAME), lr=2e-3)
for group in plus.param_groups():
    print(f"{group['lr_scale']:4.0f} times the rate: {len(group['params'])} tensors, {group['params'][0]}, ...")

# %%
fig, ax = plt.subplots(figsize=(6.4, 3.6))
for name in ("LoRA", "DoRA", "LoRA+", "PiSSA"):
    ax.plot(range(1, 21), losses[name], label=f"{name}: {bits[name]:.2f} bits per byte at the end")
ax.set(xticks=range(2, 21, 2), xlabel="step", ylabel="loss (nats per token)", title="Four ways to train LoRA's factors")
ax.legend(fontsize=8)
plt.tight_layout()
plt.show()
early = {name: np.mean(losses[name][1:3]) for name in ("LoRA", "LoRA+", "PiSSA")}
print({name: f"{value:.2f}" for name, value in early.items()}, "mean loss of steps 2 and 3")
assert early["PiSSA"] < early["LoRA+"] - 0.1 < early["LoRA"] - 0.3, "both start faster"
level = [bits[name] for name in ("LoRA", "DoRA", "PiSSA")]
assert max(level) - min(level) < 0.1 and bits["LoRA+"] > min(level)

# %% [markdown]
# Both start faster than LoRA: PiSSA since both factors learn at once, LoRA+ since $B$, which starts at zero, grows
# faster. (The peaks come when the rate has risen to its highest, which is near what each can bear.) In the end LoRA,
# DoRA and PiSSA are level, and LoRA+ is not ahead: a width of 128 is not what it was made for.

# %% [markdown]
# ## VeRA: only two vectors
# What if $A$ and $B$ do not train at all? VeRA (Kopiczko et al. 2024) draws them once, *for all layers together*, and
# trains what each rank and each output is multiplied by:
#
# $$y = x W^\top + b + \lambda_b \circ \big( (\lambda_d \circ (x A^\top)) B^\top \big) .$$
#
# A layer has $r + \text{out}$ parameters instead of $r (\text{in} + \text{out})$, and a file could hold a seed in
# place of $A$ and $B$. The rank is large, since it is nearly free; $\lambda_b$ starts at zero.

# %%
d, r = 4096, 256
print(f"a layer of {d} x {d}: VeRA r={r} {r + d:,}, LoRA r=8 {8 * 2 * d:,} parameters")
assert gradients_hold(VeraConfig(r=12))
vera = adapt("VeRA", VeraConfig(r=128, target_modules=list(LINEAR[:4])), lr=0.2)
assert sizes["VeRA"] == 4 * 4 * (128 + 128)
one, other = (vera.base_model.get(f"blocks.{block}.attn.v_proj") for block in (0, 3))
assert np.shares_memory(one.A.data, other.A.data) and np.shares_memory(one.B.data, other.B.data), "one A and B for all"
A, B, lambda_d, lambda_b = (t.data for t in (other.A, other.B, other.vera_lambda_d, other.vera_lambda_b))
tuned["VeRA"] = merged(vera)
assert np.allclose(change(tuned["VeRA"], 3, "v_proj"), np.diag(lambda_b) @ B @ np.diag(lambda_d) @ A, atol=1e-5)

# %% [markdown]
# ## AdaLoRA: ranks go where they matter
# Why should every layer have the same rank? AdaLoRA (Zhang et al. 2023) writes the change like a singular value
# decomposition, $W' = W + s\, B\, \mathrm{diag}(E)\, A$, and a penalty keeps the rows of $A$ and the columns of $B$
# near orthonormal, so that $E_i$ says how large the $i$-th part is:
#
# $$\lVert A A^\top - I \rVert_F + \lVert B^\top B - I \rVert_F \;.$$
#
# A weight's *sensitivity* is $|w\, \partial L / \partial w|$: by how much the loss would change, to first order,
# without it. Its moving average times that of its own fluctuation is the weight's score; a rank scores what its $E_i$
# and, on average, its row of $A$ and column of $B$ do. All ranks of all layers compete; after each step the worst get
# $E_i = 0$, and the number of those that stay falls by a cubic schedule to the budget.

# %%
P = mp.tensor(rng.standard_normal((3, 7)), requires_grad=True)
assert mp.gradcheck(NonOrthonormality.apply, (P,))
Q = np.linalg.qr(rng.standard_normal((7, 3)))[0].T
assert NonOrthonormality.apply(mp.tensor(Q)).item() < 1e-12, "zero for orthonormal rows"
assert gradients_hold(AdaLoraConfig(init_r=4, target_r=2))

ADALORA = AdaLoraConfig(init_r=8, target_r=3, lora_alpha=32, target_modules="all-linear", tinit=4, tfinal=4)
history, scores = [], {}


def watch(adapter, step):
    history.append(list(adapter.ranks().values()))
    if step == 13:
        scores.update(adapter.allocator.scores())


ada = adapt("AdaLoRA", ADALORA, lr=0.03, watch=watch)
allocator, layers = ada.adapters["default"].allocator, ada.adapters["default"].wrappers
ranks = np.array(history).T  # (24 layers, 20 steps)
assert (ranks[:, :5] == 8).all() and ranks[:, -1].sum() == 3 * 24, "eight each, then three on average"
assert [ranks[:, step].sum() for step in range(20)] == [allocator.budget(step) for step in range(20)]
for path, layer in layers.items():
    assert np.count_nonzero(layer.lora_E.data) == ranks[list(layers).index(path), -1], "the others' E is zero"
path, layer = next(iter(item for item in layers.items() if "up_proj" in item[0]))
A, E, B = (p.data for p in (layer.lora_A, layer.lora_E, layer.lora_B))
tuned["AdaLoRA"] = merged(ada)
assert np.allclose(change(tuned["AdaLoRA"], 0, "up_proj"), layer.scaling * B @ np.diag(E[:, 0]) @ A, atol=1e-6)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2), width_ratios=(1.3, 1))
image = left.imshow(ranks, aspect="auto", cmap="viridis", vmin=0, vmax=8, extent=(0.5, 20.5, 23.5, -0.5))
left.set(yticks=range(24), xticks=range(2, 21, 3), xlabel="after step", title="How many ranks each layer has left")
left.set_yticklabels([path.removeprefix("blocks.") for path in layers], fontsize=7)
fig.colorbar(image, ax=left)
ordered = np.sort(np.concatenate(list(scores.values())))[::-1]
kept = ranks[:, 12].sum()
right.semilogy(np.arange(1, kept + 1), ordered[:kept], ".", label=f"{kept} that stay")
right.semilogy(np.arange(kept + 1, len(ordered) + 1), ordered[kept:], ".", color="tab:red", label="set to zero")
right.set(xlabel="rank, the best first", ylabel="score", title="The score of every rank at step 13")
right.legend()
plt.tight_layout()
plt.show()
final = dict(zip(layers, ranks[:, -1].tolist(), strict=True))
print("the most:", sorted(final.items(), key=lambda item: -item[1])[:4])
print("the fewest:", sorted(final.items(), key=lambda item: item[1])[:4])
by_kind = {kind: sum(left for path, left in final.items() if path.endswith(kind)) for kind in LINEAR}
print("in all four blocks:", by_kind)
assert max(by_kind["q_proj"], by_kind["k_proj"]) <= 2 and min(by_kind[kind] for kind in LINEAR[2:]) >= 12

# %% [markdown]
# Queries and keys lose nearly all of their ranks; values, outputs and the MLP share them. It is as if another English
# changed what is said, and hardly where to look.
#
# ## Diff pruning: learn where to differ
# LoRA's change is small because its rank is. Diff pruning (Guo et al. 2021) wants a change that is *zero* almost
# everywhere, and learns the places: $\theta' = \theta + z \circ w$, where each $z_i \in [0, 1]$ is a gate. Whether a
# gate is open is a yes or no, which has no gradient, so it is a random number that is often exactly 0 or exactly 1:
#
# $$s = \sigma(\varepsilon + a), \quad z = \min(1, \max(0, 3 s - 1.5)), \quad \varepsilon = \log u - \log(1 - u), \; u
# \text{ uniform.}$$
#
# This *hard concrete* gate has a gradient in $a$ between its ends, and the chance that it is open is a formula, so that
# the number of open gates, the L0 norm, can be a penalty: $\lambda \sum_i P(z_i > 0)$, $P(z_i > 0) = \sigma(a_i)$ here.

# %%
noise = logistic((0, "draws"), (20_000,))
alphas = (-2.0, 0.0, 2.0)
fig, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True)
for ax, a in zip(axes, alphas, strict=True):
    z = hard_concrete(np.float64(a), noise)
    opened, certain = 1 / (1 + np.exp(-a)), 1 / (1 + 5 * np.exp(-a))
    assert np.isclose(opened, open_probability(mp.tensor(np.float64(a))).item())
    assert abs(np.mean(z > 0) - opened) < 0.01 and abs(np.mean(z == 1) - certain) < 0.01
    ax.hist(z, bins=25, weights=np.full(len(z), 1 / len(z)))
    ax.set(title=f"a = {a:g}: shut {np.mean(z == 0):.0%}, fully open {np.mean(z == 1):.0%}", xlabel="z")
axes[0].set_ylabel("share of draws")
plt.tight_layout()
plt.show()
a = mp.tensor(rng.standard_normal(50), requires_grad=True)
eps = logistic((1, "draws"), (50,))
assert mp.gradcheck(lambda a: HardConcrete.apply(a, noise=eps), (a,))
assert gradients_hold(DiffPruningConfig(target_parameters=["ln_1.**", "v_proj.*"], alpha_init=0.5))
model = get_peft_model(GPT.from_pretrained("tiny"), DiffPruningConfig(target_parameters=["ln_1.**"], l0_penalty=1e-3))
assert np.isclose(model.penalty().item(), 1e-3 * (4 * 2 * 128) / (1 + np.exp(-5))), "λ times the sum, each a at 5"

# %% [markdown]
# Gates make training *larger*, not smaller: $w$ and $a$ are each as large as the model. The gain comes at the end.
# After a part of the steps the mask is fixed: the entries with the largest $|z \circ w|$ stay (here 5 % of the
# attention's), all others are zero for good, and only they train on. What a task stores is their places and values.
# Three variants:
#
# - *additive*, as above;
# - *magnitude*: no gates, $w$ is pruned by $|w|$ alone;
# - *masked*: $\theta' = z \circ \theta + z \circ w$, so that the model itself becomes sparse,
#   $\theta \circ b + \varphi$. Here half of the weights stay.

# %%
FIX = 10
SPARSE = {"target_parameters": ["attn.**"], "fixmask_after": FIX / 20, "l0_penalty": 1e-4, "alpha_lr": 1.0}
opened = {}


def watch_gates(adapter, step):
    if step == FIX - 1:
        alphas = [p.data.ravel() for name, p in adapter.named_parameters().items() if name.endswith(".alpha")]
        opened["share"] = 1 / (1 + np.exp(-np.concatenate(alphas)))


files = {}
for variant, sparsity in (("additive", 0.05), ("magnitude", 0.05), ("masked", 0.5)):
    config = DiffPruningConfig(variant=variant, sparsity=sparsity, **SPARSE)
    watch = watch_gates if variant == "additive" else None
    model = adapt(f"diff pruning, {variant}", config, lr=1e-2, watch=watch)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        files[variant] = (Path(folder) / "adapter_model.safetensors").stat().st_size
    tuned[variant] = merged(model)
places = sum(a.size for path, a in weights.items() if ".attn." in path)
for variant in ("additive", "magnitude"):
    differing = sum(int((tuned[variant][path] != weights[path]).sum()) for path in weights)
    print(f"{variant}: {differing:,} of {places:,} entries differ, {files[variant]:,} bytes stored")
    assert 0.99 * round(0.05 * places) < differing <= round(0.05 * places)
    assert 8 * differing < files[variant] < 10 * differing, "a place and a value, four bytes each"
zeros = sum(int((tuned["masked"][path] == 0).sum()) for path in weights if ".attn." in path)
print(f"masked: {zeros:,} of {places:,} weights of the result are zero")
assert abs(zeros / places - 0.5) < 0.01
print(f"{files['additive'] / differing:.1f} bytes for each entry that differs: a place costs as much as a value")

adapt("random mask of 5 %", RandomMaskConfig(fraction=0.05, target_parameters=["attn.**"]), lr=0.06)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
left.hist(opened["share"], bins=60, weights=np.full(places, 1 / places))
left.set(xlabel="P(z > 0)", ylabel="share of gates", title=f"The gates after {FIX - 1} steps (all began at 99 %)")
for name in ("diff pruning, additive", "diff pruning, magnitude", "diff pruning, masked", "random mask of 5 %"):
    right.plot(range(1, 21), losses[name], label=f"{name}: {bits[name]:.2f}")
right.axvline(FIX + 0.5, color="grey", linestyle=":")
right.set(
    xticks=range(2, 21, 2), xlabel="step", ylabel="loss (nats per token)", title="The mask is fixed at the dotted line"
)
right.legend(fontsize=8, title="bits per byte at the end", title_fontsize=8)
plt.tight_layout()
plt.show()
jump = {v: losses[f"diff pruning, {v}"][FIX] - losses[f"diff pruning, {v}"][FIX - 1] for v in ("additive", "magnitude")}
magnitude = losses["diff pruning, magnitude"]
assert 0.35 < jump["magnitude"] / (magnitude[0] - magnitude[FIX - 1]) < 0.75, "about half"
assert (
    0 < jump["additive"] < jump["magnitude"] - 0.2
    and bits["diff pruning, additive"] < bits["diff pruning, magnitude"] - 0.2
)
assert np.median(opened["share"]) < 0.5 and (opened["share"] > 0.9).mean() > 0.05
assert abs(bits["diff pruning, additive"] - bits["random mask of 5 %"]) < 0.06

# %% [markdown]
# The penalty has shut most gates more often than not, and the loss holds some of them open: those that count. Without
# gates, Adam moves every entry by about the same amount at first, so that $|w|$ says little, and cutting 95 % of it
# costs about half of what was learned. With gates the model has been used to many of them being shut. But twenty
# steps are few to find places in (the paper takes thousands): a mask drawn at random, which trains its places from
# the first step on, does as well here.
#
# ## All of them, side by side
# First the spectrum of every $\Delta W$ of the values' projection and of the MLP's first layer: the rank is written
# into the method. LoRA has 8 directions and PiSSA 16; AdaLoRA's differ from layer to layer; DoRA adds to a change of
# rank 8 a new length for each row, which has every direction in it; VeRA has many directions, few numbers.

# %%
fig, axes = plt.subplots(2, 3, figsize=(10, 5), sharex=True, sharey=True)
names = ("full", "LoRA", "DoRA", "PiSSA", "AdaLoRA", "VeRA")
for ax, name in zip(axes.flat, names, strict=True):
    for kind, style in (("v_proj", "-"), ("up_proj", "--")):
        for block in BLOCKS:
            values = spectrum(change(tuned[name], block, kind))
            if values[0] > 0:
                label = kind if block == 3 else None
                ax.semilogy(np.arange(1, 129), values / values[0], style, color=colours[block], label=label)
    ax.set(title=name, ylim=(1e-4, 1.3), xlim=(0, 129))
axes[0, 0].legend(fontsize=8)
for ax in axes[1]:
    ax.set_xlabel("direction")
for ax in axes[:, 0]:
    ax.set_ylabel("singular value / largest")
fig.suptitle("The spectrum of ΔW (colours: blocks, dark is the lowest)")
plt.tight_layout()
plt.show()


def rank_of(name, block, kind):
    values = spectrum(change(tuned[name], block, kind))
    return int((values > 1e-4 * values[0]).sum()) if values[0] > 0 else 0


assert all(rank_of("LoRA", block, "up_proj") == 8 for block in BLOCKS)
assert all(rank_of("PiSSA", block, "up_proj") == 16 for block in BLOCKS)
assert all(rank_of("AdaLoRA", block, "up_proj") == final[f"blocks.{block}.mlp.up_proj"] for block in BLOCKS)
assert min(rank_of("DoRA", block, "up_proj") for block in BLOCKS) > 100

# %%
order = sorted(bits, key=lambda name: -sizes[name])
fig, ax = plt.subplots(figsize=(8, 4.4))
ax.plot([bits[name] for name in order], [f"{name} ({sizes[name]:,})" for name in order], "o")
for row, name in enumerate(order):
    ax.annotate(f"{bits[name]:.2f}", (bits[name], row), textcoords="offset points", xytext=(7, -3), fontsize=8)
ax.grid(axis="y", alpha=0.4)
ax.axvline(untouched, color="grey", linestyle="--", label="untouched")
ax.invert_yaxis()
ax.set(xlim=(2.5, 4.1), xlabel="bits per byte, held out (lower is better)", title="20 steps (in brackets: what trains)")
ax.legend(loc="lower right")
plt.tight_layout()
plt.show()
assert min(bits.values()) == bits["full"]

# %% [markdown]
# **Try it yourself.** Give LoRA $r=1$ on VeRA's targets: it then has exactly as many parameters. Which does better, and
# which at $r=512$? Then let AdaLoRA choose with `target_r=1`, and give plain LoRA the ranks that it found
# (`rank_pattern`; leave out the layers that have none): is it the ranks that help, or how they were found?
