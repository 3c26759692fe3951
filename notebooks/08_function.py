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
# # 8. Methods that change the function
#
# **What will be built.** The methods that put small modules in, around or beside the frozen blocks, one after the other
# on one task: bottleneck adapters in four forms, with their backward by hand; MAM; a task adapter that stands on a
# dialect adapter; AdapterFusion; IA3; LoReFT; a ladder beside the whole model; mixtures of experts. Each has its
# equation, a check that the library computes just that, a short training, and a look at what was learned.
#
# **Time:** about an hour to read, half a minute to run. **Needs:** `pip install minitorch-peft[data]`.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.analysis.ledger import measure
from minitorch_peft.analysis.memory import peak_memory
from minitorch_peft.analysis.texts import Texts, pack_split
from minitorch_peft.data import Corpus, Pairs, Tokenizer, load_corpus
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import ForwardContext
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import (
    METHODS,
    AdapterFusionConfig,
    DoubleSeqBnConfig,
    IA3Config,
    LadderConfig,
    LoraConfig,
    LoReftConfig,
    MAMConfig,
    MoEConfig,
    MoELoraConfig,
    ParBnConfig,
    PeftModel,
    SeqBnConfig,
    expert_load,
    fusion_weights,
    get_peft_model,
)
from minitorch_peft.peft.function.bottleneck_function import bottleneck
from minitorch_peft.training import TrainConfig, train

rng = np.random.default_rng(0)
BLOCKS = range(4)

# %% [markdown]
# ## The task
# As in the third walkthrough: a tiny GPT that has read modern English learns the English of 1395, and books that it
# never trains on judge it, in bits per byte. Another translation, of 1525, comes in later. The steps are few: the
# numbers show how the methods work; they are no contest. (The library's training loop is used, since some methods act
# on training itself: by a penalty, or by a correction after each step.)

# %%
tokenizer = Tokenizer.shipped()
YEARS = {"1395": "wyc", "1525": "tyn"}
learned = {year: pack_split(name, "train", tokenizer) for year, name in YEARS.items()}
held_out = {year: pack_split(name, "held_out", tokenizer) for year, name in YEARS.items()}
texts = {year: Texts(learned[year], held_out, batch_size=4, length=128) for year in YEARS}
base = GPT.from_pretrained("tiny")
untouched = texts["1395"].bits_per_byte(base, "1395", limit=20)
print(f"the base: {untouched:.2f} bits per byte on the English of 1395; {base.num_parameters():,} parameters")
bits, sizes = {}, {}


def adapt(name, config, lr, watch=None):
    """The tiny GPT after 20 steps of 4 x 128 tokens; ``watch(adapter)`` is called after each of them."""
    model = get_peft_model(GPT.from_pretrained("tiny"), config)
    progress = None if watch is None else lambda report: watch(model.adapters["default"])
    train(model, texts["1395"].batches(seed=0), TrainConfig(steps=20, lr=lr, warmup=3), progress=progress)
    bits[name], sizes[name] = texts["1395"].bits_per_byte(model, "1395", limit=20), count(model)
    print(f"{name:18s} {sizes[name]:9,} trainable parameters, {bits[name]:.2f} bits per byte")
    assert bits[name] < untouched - 0.2, "it learns"
    assert not model.changed_since_wrapped(), "and the base is what it was"
    return model.eval()


def count(model) -> int:
    return model.get_nb_trainable_parameters()[0]


def gradients_hold(config) -> bool:
    """Is the gradient of every trainable parameter right? In float64, at a random place, held against differences."""
    small = GPT(GPTConfig(vocab_size=23, n_positions=12, n_embd=16, n_layer=1, n_head=2)).astype(np.float64)
    model = get_peft_model(small, config).eval()
    for p in model.trainable_parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape)
    ids = rng.integers(0, 23, (2, 6))
    return mp.gradcheck(lambda: model(ids).logits, (), parameters=model.trainable_parameters())


# %% [markdown]
# ## The bottleneck
# An adapter (Houlsby et al. 2019) is a small network with a waist of width $w$, far below the width $C$ of the model,
# and a connection that skips it:
#
# $$y = h + s\,(W_\text{up}\, f(W_\text{down} z + b_\text{down}) + b_\text{up}), \qquad
# W_\text{down} \in \mathbb{R}^{w \times C},\; W_\text{up} \in \mathbb{R}^{C \times w} .$$
#
# $h$ is what leaves a sub-layer (the attention, or the feed-forward). Where $z = h$, the adapter is *sequential*; where
# $z = x$ is what went into the sub-layer, it is *parallel*. Here is its backward. With $u = W_\text{down} z +
# b_\text{down}$, $a = f(u)$ and the incoming gradient $G$,
#
# $$\bar W_\text{up} = s\, G^\top a, \quad \bar u = (s\, G W_\text{up}) \odot f'(u), \quad
# \bar W_\text{down} = \bar u^\top z, \quad \bar z = \bar u W_\text{down}, \quad \bar h = G,$$
#
# and each bias gets the sum over the rows. Only $u$, which is narrow, has to be kept beside $z$: $a$ is made again.


# %%
class Bottleneck(mp.Function):
    """h, z (N, C), W_down (w, C), b_down (w), W_up (C, w), b_up (C) to (N, C); f is tanh."""

    @staticmethod
    def forward(ctx, h, z, W_down, b_down, W_up, b_up, *, s):
        u = z @ W_down.T + b_down
        ctx.s = s
        ctx.save_for_backward(z, u, W_down, W_up)
        return h + s * (np.tanh(u) @ W_up.T + b_up)

    @staticmethod
    def backward(ctx, G):
        z, u, W_down, W_up = ctx.saved
        a, sG = np.tanh(u), ctx.s * G
        du = (sG @ W_up) * (1 - a * a)
        return G, du @ W_down, du.T @ z, du.sum(0), sG.T @ a, sG.sum(0)


shapes = ((7, 6), (7, 6), (2, 6), (2,), (6, 2), (6,))
h, z, W_down, b_down, W_up, b_up = pieces = [mp.tensor(rng.standard_normal(n), requires_grad=True) for n in shapes]
assert mp.gradcheck(lambda *pieces: Bottleneck.apply(*pieces, s=4.0), pieces)
library = bottleneck(h, z, (W_down, b_down), (W_up, b_up), "tanh", 4.0)
assert np.allclose(Bottleneck.apply(*pieces, s=4.0).data, library.data), "the library's is the same function"

# %% [markdown]
# ## Four forms
# | | where | reads | $s$ |
# |---|---|---|---|
# | Houlsby et al. 2019 | after the attention, and after the feed-forward | $h$ | 1 |
# | Pfeiffer et al. 2021 | after the feed-forward | $h$ | 1 |
# | parallel (He et al. 2022) | beside the feed-forward | $x$ | 1 |
# | scaled parallel (He et al. 2022) | beside the feed-forward | $x$ | 4 |
#
# Each place takes $2Cw + w + C$ parameters. So that the four are equally large (but for the biases), Houlsby's, which
# stands at twice as many places, gets half of the width.

# %%
FORMS = {
    "Houlsby": DoubleSeqBnConfig(bottleneck_size=8, non_linearity="relu"),
    "Pfeiffer": SeqBnConfig(bottleneck_size=16),
    "parallel": ParBnConfig(bottleneck_size=16, scaling=1.0),
    "scaled parallel": ParBnConfig(bottleneck_size=16, scaling=4.0),
}
C = base.config.n_embd
models = {}
for name, config in FORMS.items():
    models[name] = adapt(name, config, lr=1e-2)
    wrappers, w = models[name].adapters["default"].wrappers, config.bottleneck_size
    assert sizes[name] == len(wrappers) * (2 * C * w + w + C)
    layer = wrappers["blocks.1.mlp"]
    with mp.no_grad():
        x = mp.tensor(rng.standard_normal((1, 5, C), np.float32))
        h = layer.base(x, ForwardContext())
        read = x if name in ("parallel", "scaled parallel") else h
        u = F.relu(F.linear(read, layer.adapter_down.weight, layer.adapter_down.bias))
        by_hand = h + config.scaling * F.linear(u, layer.adapter_up.weight, layer.adapter_up.bias)
        assert np.allclose(layer(x, ForwardContext()).data, by_hand.data, atol=1e-4)
for kind in (DoubleSeqBnConfig, SeqBnConfig, ParBnConfig):
    assert gradients_hold(kind(bottleneck_size=3, non_linearity="gelu"))

# %% [markdown]
# How large is what each adapter adds, beside the hidden state that it is added to?

# %%
ids = next(texts["1395"].windows("1395"))["input_ids"]


def added(model, part) -> list[float]:
    """|change| / |h| at the "attn" or "mlp" of each block, or nothing where there is no adapter."""
    layers = [layer for path, layer in model.adapters["default"].wrappers.items() if path.endswith(part)]
    found = []

    def noting(layer):
        def after(y, x, context):
            changed = type(layer).after(layer, y, x, context)
            found.append(np.linalg.norm(changed.data - y.data) / np.linalg.norm(y.data))
            return changed

        return after

    for layer in layers:
        layer.after = noting(layer)
    with mp.no_grad():
        model(ids)
    for layer in layers:
        del layer.after
    return found


fig, axes = plt.subplots(1, 2, figsize=(10, 3.6))
for i, name in enumerate(FORMS):
    axes[0].plot(BLOCKS, added(models[name], "mlp"), "o-", color=f"C{i}", label=name)
axes[0].plot(BLOCKS, added(models["Houlsby"], "attn"), "s:", color="C0", label="Houlsby, attention")
axes[0].set(xlabel="block", xticks=BLOCKS, ylabel="|change| / |h|", title="What the adapters add", ylim=(0, 3.2))
axes[0].legend(fontsize=8, ncols=2, loc="upper center")
bars = axes[1].bar(list(FORMS), [bits[name] for name in FORMS], color=[f"C{i}" for i in range(4)])
axes[1].bar_label(bars, fmt="%.2f")
axes[1].axhline(untouched, color="grey", linestyle="--", label="the base")
axes[1].set(ylabel="bits per byte, held out", title="After 20 steps", ylim=(0, 1.25 * untouched))
axes[1].tick_params(axis="x", labelrotation=15)
axes[1].legend(fontsize=8)
plt.tight_layout()
plt.show()
assert bits["scaled parallel"] < min(bits["Houlsby"], bits["Pfeiffer"]), "as He et al. found"

# %% [markdown]
# ## The start: near the identity
# The skip connection lets an adapter start as nothing at all. With $W_\text{up} = 0$ the adapted model is the base, bit
# for bit; a small random start is near it. A large one breaks a trained model before it learns anything:

# %%
fresh = get_peft_model(GPT.from_pretrained("tiny"), SeqBnConfig())
assert np.array_equal(fresh(ids).logits.data, base(ids).logits.data)

spreads = (0.01, 0.1, 0.3, 1.0)
started, ended = [], []
for spread in spreads:
    model = get_peft_model(GPT.from_pretrained("tiny"), SeqBnConfig(bottleneck_size=16))
    for name, p in model.trainable_parameters().items():
        if ".weight" in name:
            p.data[...] = spread * rng.standard_normal(p.shape)
    started.append(texts["1395"].bits_per_byte(model, "1395", limit=20))
    train(model, texts["1395"].batches(seed=0), TrainConfig(steps=20, lr=1e-2, warmup=3))
    ended.append(texts["1395"].bits_per_byte(model, "1395", limit=20))
fig, ax = plt.subplots(figsize=(6.4, 3.4))
ax.semilogx(spreads, started, "o--", label="before training")
ax.semilogx(spreads, ended, "o-", label="after 20 steps")
ax.axhline(untouched, color="grey", linestyle=":", label="the base")
ax.set(xlabel="standard deviation of the start of both matrices", ylabel="bits per byte", title="A start too far away")
ax.set_ylim(2.8, 5.4)
ax.legend()
plt.tight_layout()
plt.show()
assert ended[-1] > ended[0] + 0.2 and started[-1] > started[0] + 0.3
assert abs(ended[1] - ended[0]) < 0.1, "below 0.1 it does not matter"

# %% [markdown]
# ## MAM: mix and match
# He et al. find that the attention is best changed by few parameters, a prefix of learned keys and values, and the
# feed-forward by many, the scaled parallel adapter. Both at once they call MAM:
#
# $$\text{head} = \text{softmax}\big(q [P_K; K]^\top / \sqrt{D}\big)\,[P_V; V], \qquad
# \text{MLP}(x) + s\,(W_\text{up}\, f(W_\text{down} x)) .$$

# %%
MAM = MAMConfig(num_virtual_tokens=8, prefix_projection=False, bottleneck_size=16)
assert gradients_hold(MAMConfig(num_virtual_tokens=3, prefix_projection=False, bottleneck_size=3, non_linearity="gelu"))
noise = texts["1395"].bits_per_byte(get_peft_model(GPT.from_pretrained("tiny"), MAM), "1395", limit=20)
print(f"before training: {noise:.2f} bits per byte, the base {untouched:.2f}: a prefix starts as noise")
mam = adapt("MAM", MAM, lr=1e-2)
assert sizes["MAM"] == sizes["scaled parallel"] + 4 * 2 * 8 * C, "a key and a value of C numbers: 8 for each block"
assert len(mam.adapters["default"].prefix()) == 4

# %% [markdown]
# ## A task that stands on a dialect
# What an adapter learned can be put below another one. Two dialect adapters read the English of 1395 and of 1525; then
# a task adapter learns to put the scrambled words of a verse in order, on the English of 1395, *on top of* its frozen
# dialect adapter (MAD-X, Pfeiffer et al. 2020). For the other English the lower one is exchanged; the task's is not
# trained again.
#
# First the dialects.

# %%
stack = PeftModel(GPT.from_pretrained("tiny"))
for seed, year in enumerate(YEARS):
    stack.add_adapter(f"dialect_{year}", DoubleSeqBnConfig(bottleneck_size=16), seed=seed)
    stack.set_adapter(f"dialect_{year}")
    train(stack, texts[year].batches(seed=0), TrainConfig(steps=30, lr=1e-2, warmup=5))
reading = {}
for lower in YEARS:
    stack.set_adapter(f"dialect_{lower}", train=())
    for here in YEARS:
        reading[here, lower] = texts[here].bits_per_byte(stack, here, limit=20)
        print(f"the adapter of {lower} reads the English of {here}: {reading[here, lower]:.2f} bits per byte")
assert reading["1395", "1395"] < reading["1395", "1525"] and reading["1525", "1525"] < reading["1525", "1395"]

# %% [markdown]
# Then the task, with `train="task"`: both act, one trains.


# %%
def scrambled(corpus):
    """Each verse with its words in an order that its number draws."""
    order = {verse: np.random.default_rng(verse).permutation(text.split()) for verse, text in corpus.verses.items()}
    return Corpus(f"{corpus.name}-scrambled", {verse: " ".join(words) for verse, words in order.items()})


def pairs(year, split):
    corpus = load_corpus(YEARS[year]).split(split)
    corpus = Corpus(corpus.name, dict(list(corpus.comparable().verses.items())[:2000]))
    return Pairs.from_corpora(scrambled(corpus), corpus, tokenizer, 64)


def frozen(model, name) -> dict:
    return {path: p.data.tobytes() for path, p in model.adapters[name].named_parameters().items()}


def unscrambling(model, year) -> float:
    """The loss on the words in order, in nats per token."""
    with mp.no_grad():
        return float(np.mean([model(**held[year].batch(i, 16)).loss.item() for i in range(8)]))


tasks, held = pairs("1395", "train"), {year: pairs(year, "held_out") for year in YEARS}
print("to be put in order:", tokenizer.decode(tasks.prompts[0][1:-1]), "->", tokenizer.decode(tasks.answers[0][:-1]))
stack.add_adapter("task", SeqBnConfig(bottleneck_size=16), seed=2)
stack.set_adapter(["dialect_1395", "task"], train="task")
before = [frozen(stack, f"dialect_{year}") for year in YEARS]
assert {p.owner for p in stack.trainable_parameters().values()} == {"task"}
train(stack, lambda i: tasks.batch(i, 16), TrainConfig(steps=40, lr=1e-2, warmup=5))
assert [frozen(stack, f"dialect_{year}") for year in YEARS] == before, "the dialects are what they were"

# %%
stack.eval()
lost = {}
alone = {}
for lower in YEARS:
    stack.set_adapter(f"dialect_{lower}", train=())
    alone[lower] = unscrambling(stack, lower)
for lower in (*YEARS, None):
    stack.set_adapter([f"dialect_{lower}", "task"] if lower else "task", train=())
    for here in YEARS:
        lost[here, lower] = unscrambling(stack, here)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
labels = ["under it: 1395", "under it: 1525", "nothing under it"]
for ax, (title, unit, values) in zip(
    axes, (("Reading", "bits per byte", reading), ("Putting words in order", "nats per token", lost)), strict=True
):
    lowers = [y for y in (*YEARS, None) if ("1395", y) in values]
    for i, lower in enumerate(lowers):
        bars = ax.bar(np.arange(2) + 0.26 * i, [values[here, lower] for here in YEARS], 0.24, label=labels[i])
        ax.bar_label(bars, fmt="%.2f", fontsize=8)
    ax.set(title=title, ylabel=unit, ylim=(0, 1.45 * max(values.values())))
    ax.set_xticks(np.arange(2) + 0.13 * (len(lowers) - 1), [f"English of {y}" for y in YEARS])
axes[0].legend(["the adapter of 1395", "the adapter of 1525"], fontsize=8, loc="upper right")
axes[1].legend(fontsize=8, loc="upper right")
plt.tight_layout()
plt.show()
for year in YEARS:
    print(f"the English of {year}: {lost[year, year]:.2f} with the task adapter, {alone[year]:.2f} without")
    assert lost[year, year] < alone[year] - 0.1
assert lost["1525", "1525"] < lost["1525", "1395"] - 0.1, "the task was learned on the other English"
assert all(lost[year, year] < lost[year, None] - 0.1 for year in YEARS), "the dialect below helps"

# %% [markdown]
# ## AdapterFusion: attention over adapters
# What if a text is a mixture, or nobody says what it is? AdapterFusion (Pfeiffer et al. 2021) asks all adapters and
# learns whom to listen to, token by token. $\Delta_i$ is what the frozen adapter $i$ would add:
#
# $$p = \text{softmax}_i\big((W_Q z + b_Q) \cdot W_K \Delta_i\big), \qquad y = h + W_V \sum_i p_i \Delta_i .$$
#
# It stands where the adapters stand, which do not act themselves. At the start $p$ is about $1/n$ and $W_V$ about the
# identity: the mean of the adapters. Here the two dialect adapters are fused, and the fusion is trained on both texts
# in turn.

# %%
stack.add_adapter("fusion", AdapterFusionConfig([f"dialect_{year}" for year in YEARS]))
stack.set_adapter("fusion")
assert count(stack) == 8 * (3 * C * C + C), "at 8 places: W_Q, W_K, W_V, and one bias"
mean = {year: texts[year].bits_per_byte(stack, year, limit=20) for year in YEARS}
batches = [texts[year].batches(seed=1) for year in YEARS]
train(stack, lambda i: batches[i % 2](i // 2), TrainConfig(steps=40, lr=3e-3, warmup=5))
assert [frozen(stack, f"dialect_{year}") for year in YEARS] == before
stack.eval()
fused = {year: texts[year].bits_per_byte(stack, year, limit=20) for year in YEARS}
for year in YEARS:
    print(
        f"the English of {year}: its own adapter {reading[year, year]:.2f}, the mean of both {mean[year]:.2f}, "
        f"the fusion {fused[year]:.2f} bits per byte"
    )
    assert fused[year] < mean[year]

# %%
chosen = {}
for year in YEARS:
    rows = next(texts[year].windows(year, limit=4))["input_ids"]
    weights = fusion_weights(stack, rows, "fusion")
    assert all(np.allclose(p.sum(-1), 1, atol=1e-5) for p in weights.values())
    chosen[year] = {path: p[..., 0] for path, p in weights.items()}
lean = {path: chosen["1395"][path].mean() - chosen["1525"][path].mean() for path in chosen["1395"]}
sharpest = max(lean, key=lean.get)
fig, axes = plt.subplots(1, 2, figsize=(12, 3.8), gridspec_kw={"width_ratios": [1, 1.5]})
at = np.arange(len(lean))
for i, year in enumerate(YEARS):
    axes[0].bar(at + 0.4 * i, [p.mean() for p in chosen[year].values()], 0.38, label=f"text of {year}")
axes[0].axhline(0.5, color="grey", linestyle=":")
axes[0].set_xticks(at + 0.2, [path.removeprefix("blocks.") for path in lean], rotation=45)
axes[0].set(ylim=(0, 1.25), ylabel="weight of the adapter of 1395", title="By place")
axes[0].legend(fontsize=8, ncols=2)
width = 22
grid, words = [], []
for year in YEARS:
    rows = next(texts[year].windows(year, limit=4))["input_ids"]
    grid.append(chosen[year][sharpest][1, 1 : width + 1])
    words.append([tokenizer.decode([t]) for t in rows[1, 1 : width + 1]])
picture = axes[1].imshow(grid, cmap="coolwarm", vmin=0, vmax=1, aspect="auto", alpha=0.7)
for row in range(2):
    for column in range(width):
        axes[1].text(column, row, words[row][column], rotation=90, ha="center", va="center", fontsize=9)
axes[1].set_yticks(range(2), [f"text of {year}" for year in YEARS])
axes[1].set(xticks=[], title=f"By token, at {sharpest}")
fig.colorbar(picture, ax=axes[1], label="weight of the adapter of 1395")
plt.tight_layout()
plt.show()
print(f"at {sharpest} the adapter of 1395 gets {lean[sharpest]:.0%} more on its own text than on the other")
assert lean[sharpest] > 0.05 and np.mean(list(lean.values())) > 0.02

# %% [markdown]
# On average each text leans to its own adapter, but the choice is made token by token: most of it is about the word
# that stands there. (That the fusion reads better than either adapter alone is not all choice: it has more parameters
# than both, and its $W_V$ learns too.)

# %%
own = 8 * (3 * C * C + C)
assert own > sum(p.data.size for year in YEARS for p in stack.adapters[f"dialect_{year}"].named_parameters().values())
within = np.mean([p.std() for p in (chosen["1395"][sharpest], chosen["1525"][sharpest])])
print(f"within a text the weight varies by {within:.2f} from token to token, between the texts by {lean[sharpest]:.2f}")
assert within > lean[sharpest]

# %% [markdown]
# ## IA3: gates for keys, values and neurons
# IA3 (Liu et al. 2022) learns one number for each channel of the keys, the values and the inner activation of the
# feed-forward, and multiplies by it:
#
# $$\text{softmax}\big(Q (l_k \odot K)^\top / \sqrt{d}\big)(l_v \odot V), \qquad (l_{ff} \odot f(W_1 x))\, W_2 .$$
#
# All start at one. It is a change of the function that is a change of weights too (of rows or columns of $W$), so it
# can be merged.

# %%
assert gradients_hold(IA3Config())
ia3 = adapt("IA3", IA3Config(), lr=0.1)
assert sizes["IA3"] == 4 * (C + C + 4 * C)
layer = ia3.adapters["default"].wrappers["blocks.1.attn.v_proj"]
x = mp.tensor(rng.standard_normal((1, 5, C), np.float32))
with mp.no_grad():
    assert np.allclose(layer(x).data, layer.base(x).data * layer.ia3_l.data[:, 0], atol=1e-5)
certificate = ia3.merge_adapter()
assert certificate.logit_difference < 1e-3 and certificate.restores_base
ia3.unmerge_adapter()

gates = {
    kind: [ia3.adapters["default"].wrappers[f"blocks.{i}.{path}"].ia3_l.data.ravel() for i in BLOCKS]
    for kind, path in (
        ("keys $l_k$", "attn.k_proj"),
        ("values $l_v$", "attn.v_proj"),
        ("neurons $l_{ff}$", "mlp.down_proj"),
    )
}
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True)
for ax, (kind, values) in zip(axes, gates.items(), strict=True):
    parts = ax.violinplot(values, BLOCKS, showmedians=True, widths=0.8)
    ax.axhline(1, color="grey", linestyle=":")
    ax.set(title=kind, xlabel="block", xticks=BLOCKS)
axes[0].set_ylabel("gate")
plt.tight_layout()
plt.show()
spread = {kind: float(np.std(np.concatenate(values))) for kind, values in gates.items()}
assert min(spread.values()) > 0.1, "all three kinds are used"
print("spread of the gates:", ", ".join(f"{kind} {value:.2f}" for kind, value in spread.items()))

# %% [markdown]
# ## LoReFT: an edit in a few directions
# ReFT (Wu et al. 2024) edits the hidden states themselves. In the $r$ directions that the rows of $R$ span, what $h$
# says is replaced by what $Wh + b$ says; in all others $h$ stays as it is:
#
# $$h + R^\top (W h + b - R h), \qquad R R^\top = I .$$
#
# That $R$ is orthonormal makes the second half of the sentence true: $R h' = W h + b$ exactly. AdamW knows nothing of
# that, so after each step the nearest orthonormal matrix takes the place of $R$.

# %%
furthest = []


def watch(adapter):
    for layer in adapter.wrappers.values():
        R = layer.edit.R.data
        furthest.append(np.abs(R @ R.T - np.eye(len(R))).max())


assert gradients_hold(LoReftConfig(prefix_positions=None, dropout=0.0))
loreft = adapt("LoReFT", LoReftConfig(prefix_positions=None, r=8, dropout=0.0), lr=1e-2, watch=watch)
assert sizes["LoReFT"] == 4 * 8 * (2 * C + 1)
print(f"{len(furthest)} looks at R: never further than {max(furthest):.0e} from orthonormal")
assert max(furthest) < 1e-5
edit = loreft.adapters["default"].wrappers["blocks.1"].edit
h = rng.standard_normal((5, C)).astype(np.float32)
R, W, b = edit.R.data, edit.W.data, edit.b.data
edited = h + (h @ W.T + b - h @ R.T) @ R
assert np.allclose(edited @ R.T, h @ W.T + b, atol=1e-4), "replaced in the directions of R"
outside = np.eye(C) - R.T @ R
assert np.allclose(edited @ outside, h @ outside, atol=1e-4), "and nowhere else"

# %% [markdown]
# *Where* in a text the edits are made is a setting: all tokens above; by default the first three of each row. The other
# tokens notice only through the attention, in the blocks above. Here one block is edited, the second, at the first
# three and the last two tokens of two rows, one of which is padded on the left.

# %%
placed = get_peft_model(
    GPT.from_pretrained("tiny"), LoReftConfig(layers=[1], prefix_positions=3, suffix_positions=2, dropout=0.0)
).eval()
rows = ids[:2, :14]
mask = np.ones((2, 14), bool)
mask[1, :4] = False
with mp.no_grad():
    with_edit = placed(rows, attention_mask=mask, output_hidden_states=True).hidden_states
    with placed.disable_adapter():
        without = placed(rows, attention_mask=mask, output_hidden_states=True).hidden_states
moved = np.stack([np.linalg.norm(a.data - b.data, axis=-1) for a, b in zip(with_edit, without, strict=True)])
fig, axes = plt.subplots(1, 2, figsize=(10, 2.8), sharey=True)
for row, ax in enumerate(axes):
    shown = np.where(mask[row], moved[1:, row], np.nan)
    picture = ax.imshow(shown, cmap="viridis", vmin=0, vmax=np.nanmax(moved[1:] * mask), aspect="auto")
    ax.set(
        xlabel="token",
        xticks=range(0, 14, 2),
        yticks=range(len(moved) - 1),
        title=("a full row", "padded on the left (white)")[row],
    )
    ax.set_yticklabels([f"after block {i}" for i in range(len(moved) - 1)])
fig.colorbar(picture, ax=axes, label="|change of h|")
plt.show()
expected = np.zeros((2, 14), bool)
expected[0, [0, 1, 2, 12, 13]] = expected[1, [4, 5, 6, 12, 13]] = True
assert np.array_equal((moved[2] > 0) & mask, expected) and not (moved[1] * mask).any()

# %% [markdown]
# ## A ladder beside the model
# All methods so far save weight gradients and the optimizer's state of the base, but the backward pass still goes
# *through* the base, because something that trains stands below. A ladder (Sung et al. 2022) is a small network beside
# the frozen one; it takes each block's output by a rung $D_i$, mixed by a gate $\mu_i$, and gives its result back at
# the top only:
#
# $$s_i = \text{block}_i\big(\mu_i s_{i-1} + (1 - \mu_i) D_i h_i\big), \quad \mu_i = \sigma(a_i / T), \qquad
# h + U\,\text{norm}(s_n) .$$

# %%
assert gradients_hold(LadderConfig(reduction_factor=4))
ladder = adapt("ladder", LadderConfig(reduction_factor=4), lr=1e-2)
lora = adapt("LoRA", LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), lr=1e-2)
passing = {}
for name, model in (("LoRA", lora), ("ladder", ladder)):
    states = model(ids, output_hidden_states=True).hidden_states
    passing[name] = [h.requires_grad for h in states[:4]]
    print(f"{name}: which states that enter a block need a gradient? {passing[name]}")
assert passing["LoRA"] == [False, True, True, True] and passing["ladder"] == [False] * 4

# %% [markdown]
# So no block of the base is part of the backward pass, and of its activations only the rungs are kept. What that saves
# is measured, in bytes that are alive at the worst moment of a training step:


# %%
def prepare(config):
    model = get_peft_model(GPT.from_pretrained("tiny"), config)
    optimizer = AdamW([(n, p) for n, p in model.named_parameters() if p.requires_grad], lr=1e-3)
    batch = texts["1395"].batches(seed=0)(0)

    def step():
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


compared = {"LoRA": LoraConfig(r=8, target_modules="all-linear"), "ladder": LadderConfig(reduction_factor=4)}
peaks = {name: peak_memory(lambda config=config: prepare(config)) for name, config in compared.items()}
ledgers = {name: measure(GPT.from_pretrained("tiny"), config, batch=(4, 128)) for name, config in compared.items()}
weights = {name: sum(account.weights.values()) for name, account in ledgers.items()}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
megabytes = {
    "weights": [weights[n] / 1e6 for n in compared],
    "activations": [ledgers[n].activation_bytes / 1e6 for n in compared],
}
bottom = np.zeros(2)
for part, values in megabytes.items():
    bars = axes[0].bar(list(compared), values, 0.5, bottom=bottom, label=part)
    axes[0].bar_label(bars, fmt="%.1f", label_type="center", color="white")
    bottom += values
axes[0].plot(list(compared), [peaks[n] / 1e6 for n in compared], "kD", label="measured peak of the step")
axes[0].set(ylabel="megabytes", title="4 rows of 128 tokens", ylim=(0, 1.35 * max(peaks.values()) / 1e6))
axes[0].legend(fontsize=8)
layer = ladder.adapters["default"].wrappers["blocks"]
mu = 1 / (1 + np.exp(-layer.gate.data / layer.temperature))
axes[1].bar(BLOCKS, mu, 0.6)
axes[1].axhline(0.5, color="grey", linestyle=":", label="at the start")
axes[1].set(xlabel="block", xticks=BLOCKS, ylabel="μ: share of the side network", title="Gates", ylim=(0, 1))
axes[1].legend(fontsize=8)
plt.tight_layout()
plt.show()
print(f"the ladder's peak is {peaks['ladder'] / peaks['LoRA']:.0%} of LoRA's")
assert peaks["ladder"] < 0.75 * peaks["LoRA"]
assert ledgers["ladder"].activation_bytes < 0.6 * ledgers["LoRA"].activation_bytes

# %% [markdown]
# ## Mixtures of experts
# A mixture sends every token to $k$ of $N$ small networks only (Shazeer et al. 2017): many parameters, few of them at
# work at a time. Beside a frozen feed-forward:
#
# $$y = \text{MLP}(x) + \sum_{j \in \text{top } k} g_j E_j(x), \qquad g = \text{softmax of the } k \text{ largest of } z
# = W x .$$
#
# A router left alone may send everything to a few experts, and the others never learn. So the loss gets
# $N \sum_i f_i P_i$ for each layer ($f_i$: the share of the choices that fell on expert $i$, $P_i$: its mean
# probability), which is 1 where all share evenly and $N$ where one gets everything (Fedus et al. 2022). Experts may be
# small MLPs, or LoRA's $B_j A_j$ (Dou et al. 2023).

# %%
assert gradients_hold(MoEConfig(num_experts=3, expert_size=4)) and gradients_hold(MoELoraConfig(num_experts=3, r=2))
rows = np.concatenate([batch["input_ids"] for batch in texts["1395"].windows("1395", limit=16)])
SETTINGS = {"num_experts": 4, "top_k": 1}
loads = {"at the start": expert_load(get_peft_model(GPT.from_pretrained("tiny"), MoEConfig(**SETTINGS)), rows)}
for name, coefficient in (("not balanced", 0.0), ("balanced", 0.05)):
    model = adapt(f"MoE, {name}", MoEConfig(**SETTINGS, aux_loss_coef=coefficient), lr=1e-2)
    loads[name] = expert_load(model, rows)
config = MoELoraConfig(**SETTINGS, target_modules=["mlp"], r=8, aux_loss_coef=0.05)
lora_experts = adapt("LoRA experts", config, lr=1e-2)
loads["LoRA experts, balanced"] = expert_load(lora_experts, rows)
assert sizes["LoRA experts"] == METHODS["moe_lora"].count(base, config)
assert all(np.isclose(share.sum(), 1) for load in loads.values() for share in load.values())

# %%
fig, axes = plt.subplots(1, 4, figsize=(11, 3.2), sharey=True)
worst = {}
for ax, (name, load) in zip(axes, loads.items(), strict=True):
    shares = np.stack(list(load.values()))  # (layers, experts)
    worst[name] = 4 * shares.max(axis=1).mean()
    bottom = np.zeros(len(shares))
    for expert in range(4):
        ax.bar(BLOCKS, shares[:, expert], 0.8, bottom=bottom, label=f"expert {expert}")
        bottom += shares[:, expert]
    ax.set(title=name, xlabel="block", xticks=BLOCKS)
axes[0].set_ylabel("share of the tokens")
axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.tight_layout()
plt.show()
for name, value in worst.items():
    print(f"{name}: the busiest expert of a layer has {value:.1f} times its fair share")
assert worst["balanced"] < worst["not balanced"], "balancing balances"

# %% [markdown]
# Balance is no aim in itself, and twenty steps are too few to show what it is good for: compare the bits per byte that
# were printed above. It keeps the parameters of all experts in use, and lets each work at the same pace on a machine of
# its own.

# %% [markdown]
# ## All of them
# Bits per byte against trainable parameters. They got the same 20 steps, each at a rate that suits it.

# %%
fig, ax = plt.subplots(figsize=(8.4, 4.2))
for i, name in enumerate(bits):
    ax.semilogx(sizes[name], bits[name], "os^D"[i // 5], color=f"C{i % 5}", markersize=8, label=name)
ax.axhline(untouched, color="grey", linestyle="--", label="the base")
ax.set(xlabel="trainable parameters", ylabel="bits per byte, held out", title="20 steps of 512 tokens")
ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.tight_layout()
plt.show()

# %% [markdown]
# **Try it yourself.** Put the dialect adapter *on top of* the task's, by `set_adapter(["task", "dialect_1395"])`: what
# is lost? Then stack a third adapter, and give `leave_out=[0, 1]` to it: which blocks does a task need?
