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
# # 5. NF4 and QLoRA: adapt a model that is stored in four bits
#
# **What will be built.** The sixteen values of NF4, derived; quantization in blocks, by hand, to the bit of the
# library; what it loses beside FP4 and plain integers; double quantization, and the 4.127 bits that a weight takes with
# it; a product with a weight that is never unpacked as a whole; QLoRA on the tiny GPT, what four bits cost and what the
# adapter gives back; an optimizer whose state is larger than its memory; and why merging into four bits is not free.
#
# **Time:** about 40 minutes to read, half a minute to run. **Needs:** `pip install minitorch-peft[data]`.

# %%
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
from minitorch_peft.kernels import get
from minitorch_peft.kernels.eight_bit.codes import create_dynamic_map
from minitorch_peft.kernels.four_bit.codes import code_table
from minitorch_peft.kernels.four_bit.reference import dequantized_absmax

import minitorch_peft as mp
from minitorch_peft.data import PackedText, Tokenizer, load_corpus
from minitorch_peft.models import GPT
from minitorch_peft.optim import AdamW, PagedAdamW
from minitorch_peft.peft import LoraConfig, get_peft_model
from minitorch_peft.quant import bits_per_parameter, quantize_model, quantized_layers

rng = np.random.default_rng(0)
float32 = np.dtype("float32")
quantize, dequantize = get("quantize_4bit", float32), get("dequantize_4bit", float32)

# %% [markdown]
# ## Where the sixteen values come from
# A trained weight matrix looks normal: many small entries, few large ones. Sixteen values spaced evenly would spend
# half of their codes where hardly any weight is. NF4 (Dettmers et al. 2023) puts them at *quantiles*: between two
# neighbours lies the same share of a normal distribution. One of them must be exactly zero, so the two halves are made
# apart: eight values on the right from the quantile 1/2 to $q$, seven more on the left, all divided by the largest.
#
# What is $q$? The value at quantile 1 is infinite. Sixteen equally likely pieces have the middle of the last one at
# $1 - \frac{1}{2 \cdot 16}$, fifteen at $1 - \frac{1}{2 \cdot 15}$, and $q$ is the mean of the two: 0.9677083.

# %%
q = np.mean([1 - 1 / (2 * 15), 1 - 1 / (2 * 16)])
print(f"q = {q:.9f}; everyone uses its first seven digits")
quantile = np.vectorize(NormalDist().inv_cdf)
right = quantile(np.linspace(0.9677083, 0.5, 9)[:-1])
left = -quantile(np.linspace(0.9677083, 0.5, 8)[:-1])
mine = np.sort(np.concatenate([left, [0], right])) / right.max()
nf4 = code_table("nf4")
print(np.round(mine, 4))
assert abs(q - 0.9677083) < 1e-7 and np.abs(mine - nf4).max() < 1e-6

# %% [markdown]
# (To the last bit the quantiles must be spaced in float32, as they were the first time: `code_table` does that.)

# %%
model = GPT.from_pretrained("tiny")
up = model.get("blocks.1.mlp.up_proj").weight.data
scaled = up.reshape(-1, 64) / np.abs(up.reshape(-1, 64)).max(1, keepdims=True)
fig, ax = plt.subplots(figsize=(8, 3.4))
ax.hist(
    scaled.ravel(),
    bins=160,
    density=True,
    color="lightgrey",
    label="a matrix of the tiny GPT, each block / its largest",
)
for height, (name, colour) in enumerate((("nf4", "tab:blue"), ("fp4", "tab:orange"), ("int4", "tab:green"))):
    values = code_table(name)[1:] if name == "int4" else code_table(name)
    ax.plot(
        values,
        np.full(len(values), -0.08 - 0.1 * height),
        "|",
        color=colour,
        markersize=12,
        markeredgewidth=2,
        label=name,
    )
ax.set(xlabel="value", yticks=[], ylim=(-0.4, 1.6), title="Where the codes are, and where the weights are")
ax.legend(fontsize=8, loc="upper center", ncols=4)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Quantization, by hand
# The matrix is cut into blocks of 64 numbers, row after row. Each block is divided by its largest magnitude (`absmax`),
# so it lies in $[-1, 1]$; each number gets the code of the nearest value; two codes share a byte, the first in the
# upper half. Going back is a look into the table and one multiplication.


# %%
def quantize_by_hand(x):
    blocks = x.reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    scaled = blocks * (np.float32(1) / absmax)[:, None]
    middles = (nf4[1:] + nf4[:-1]) * np.float32(0.5)
    codes = np.searchsorted(middles, scaled).astype(np.uint8).reshape(-1)  # a tie goes to the lower code
    return codes[::2] << 4 | codes[1::2], absmax


packed, absmax = quantize_by_hand(up)
library = quantize(up)
assert (packed == library.packed).all() and (absmax == library.absmax).all(), "the same bytes"
codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1, 64)
back = (nf4[codes] * absmax[:, None]).reshape(up.shape)
assert (back == dequantize(library)).all()
stored = packed.nbytes + absmax.nbytes
print(f"{up.nbytes:,} bytes become {stored:,}: {8 * stored / up.size} bits a weight")

# %% [markdown]
# Two properties hold for any matrix, so they are worth checking on random ones: no number moves by more than half of
# the widest gap, times its block's absmax; and quantizing what came back changes nothing any more.

# %%
widest = np.diff(nf4).max() / 2
for _ in range(20):
    x = rng.standard_normal((rng.integers(1, 9), 64), np.float32) * np.float32(10 ** rng.uniform(-3, 3))
    y = dequantize(quantize(x))
    assert (np.abs(x - y) <= 1.0001 * widest * np.abs(x).max(1, keepdims=True)).all()
    assert (dequantize(quantize(y)) == y).all()

# %% [markdown]
# ## What is lost
# One outlier in a block makes its absmax large, and the other 63 numbers share the few codes near zero: the larger the
# blocks, the likelier that is. For normal numbers NF4 loses less than FP4 or integers at every size.

# %%
normal = rng.standard_normal((512, 1024), np.float32)
sizes = [32, 64, 128, 256, 512, 1024, 2048, 4096]


def loss(x, kind, blocksize):
    return np.sqrt(np.mean((dequantize(quantize(x, blocksize, kind)) - x) ** 2) / np.mean(x**2))


fig, ax = plt.subplots(figsize=(6.4, 3.4))
lost = {kind: [loss(normal, kind, size) for size in sizes] for kind in ("nf4", "fp4", "int4")}
for kind, values in lost.items():
    ax.semilogx(sizes, [100 * v for v in values], "o-", base=2, label=kind)
    print(f"{kind:5s} {100 * values[1]:.1f} % in blocks of 64, {100 * values[-1]:.1f} % in blocks of 4096")
ax.set(xlabel="blocksize", ylabel="% of the weights (rms)", title="What rounding to four bits changes: normal numbers")
ax.legend()
plt.tight_layout()
plt.show()
assert all(n < min(f, i) for n, f, i in zip(*lost.values(), strict=True)), "NF4 loses least"
uniform = rng.uniform(-1, 1, normal.shape).astype(np.float32)
assert loss(uniform, "int4", 64) < loss(uniform, "nf4", 64), "where numbers are spread evenly, even codes win"

# %% [markdown]
# ## Double quantization
# A float32 for every 64 weights is half a bit for each. But the absmax are numbers too, all positive and much alike:
# less their mean, they are quantized to eight bits in blocks of 256 (with a code of their own, dense near zero).
#
# $$4 + \frac{32}{64} = 4.5 \quad\longrightarrow\quad 4 + \frac{8}{64} + \frac{32}{64 \cdot 256} = 4.127 \text{ bits}$$

# %%
double = quantize(normal, compress_statistics=True)
stored = double.packed.nbytes + double.absmax.nbytes + double.nested.absmax.nbytes + 4
print(f"{8 * stored / normal.size:.3f} bits a weight; of 65 billion weights that saves {65 * (4.5 - 4.127) / 8:.1f} GB")
assert abs(8 * stored / normal.size - 4.127) < 1e-3
single = quantize(normal)
change = np.abs(dequantized_absmax(double) / single.absmax - 1)
print(f"the absmax change by {100 * change.mean():.2f} % on average")
error = {name: np.sqrt(np.mean((dequantize(w) - normal) ** 2)) for name, w in (("single", single), ("double", double))}
assert error["double"] < 1.001 * error["single"], "it costs next to nothing"
gaps = np.diff(create_dynamic_map())
assert gaps[127] < gaps[0] / 1000, "the 8-bit code is a thousand times finer near zero than at its end"

# %% [markdown]
# ## Multiply without unpacking
# `Linear4bit` keeps the bytes. Its product decodes a tile of the weight, multiplies by it and forgets it, so the matrix
# in 32 bits, eight times as large, is never there. The gradient to $x$ needs $W$ again: $\bar x = G W$, from the same
# bytes. The weight itself has no gradient: four bits cannot move by a thousandth.

# %%
layer = quantize_model(GPT.from_pretrained("tiny")).get("blocks.1.mlp.up_proj")
x = mp.tensor(rng.standard_normal((5, 128), np.float32), requires_grad=True)
y = layer(x)
assert np.allclose(y.data, x.data @ layer.dense_weight().T + layer.bias.data, atol=1e-5)
g = rng.standard_normal(y.shape, np.float32)
y.backward(g)
assert np.allclose(x.grad, g @ layer.dense_weight(), atol=1e-5)
print(layer, "stores", sum(array.nbytes for _, array in layer.named_buffers()), "bytes instead of", up.nbytes)

# %% [markdown]
# ## QLoRA
# The base in four bits, frozen; LoRA on top in 32. Here is what that costs and what it gives back, on the task of the
# third walkthrough: the tiny GPT reads the English of 1395.

# %%
tokenizer = Tokenizer.shipped()
texts = {
    (name, split): PackedText.from_corpus(load_corpus(name).split(split), tokenizer)
    for name, split in (("web", "held_out"), ("wyc", "train"), ("wyc", "held_out"))
}


def bits_per_byte(model, name):
    """On 32 windows of the held-out books."""
    text = texts[name, "held_out"]
    with mp.no_grad():
        losses = [model(**batch).loss.item() for batch in text.windows(batch_size=16, length=128, limit=32)]
    return text.bits_per_byte(float(np.mean(losses)))


def adapt(model, steps=30, lr=1e-2, optimizer=AdamW, **settings):
    """The losses of ``steps`` updates of 8 x 128 tokens, the rate falling to zero."""
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = optimizer(trainable, lr=lr, weight_decay=0.0, **settings)
    losses = []
    for step in range(steps):
        loss = model(**texts["wyc", "train"].batch(step, batch_size=8, length=128)).loss
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 5) * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


bases = {"float32": GPT.from_pretrained("tiny")}
for kind in ("nf4", "fp4", "int4"):
    bases[kind] = quantize_model(GPT.from_pretrained("tiny"), kind)
before = {name: bits_per_byte(base, "web") for name, base in bases.items()}
for name, value in before.items():
    print(f"{name:8s} {value:.3f} bits per byte on modern English")
assert before["float32"] < before["nf4"] < min(before["fp4"], before["int4"]) + 0.01
print(f"bits a weight: {bits_per_parameter(bases['nf4']):.3f}")

# %%
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
after = {}
for name in ("float32", "nf4"):
    adapted = get_peft_model(bases[name], LORA)
    frozen = {path: m.packed.copy() for path, m in quantized_layers(adapted).items()}
    adapt(adapted)
    after[name] = bits_per_byte(adapted, "wyc")
    assert all((m.packed == frozen[path]).all() for path, m in quantized_layers(adapted).items()), "the base is frozen"
qlora = adapted
untouched = bits_per_byte(GPT.from_pretrained("tiny"), "wyc")
print(f"the English of 1395: untouched {untouched:.2f}, LoRA {after['float32']:.3f}, QLoRA {after['nf4']:.3f}")
assert after["nf4"] < untouched - 0.5, "QLoRA learns"
assert abs(after["nf4"] - after["float32"]) < 0.1, "and ends where LoRA does"

fig, ax = plt.subplots(figsize=(6, 3))
bars = ax.bar(
    ["untouched", "LoRA", "QLoRA"],
    [untouched, after["float32"], after["nf4"]],
    color=["grey", "tab:blue", "tab:orange"],
)
ax.bar_label(bars, fmt="%.2f")
ax.set(ylabel="bits per byte, held out", title="30 steps on a base of 32 bits, and of 4.13", ylim=(0, 1.15 * untouched))
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Paging: an optimizer larger than its memory
# AdamW keeps two numbers for each that trains. QLoRA's *paged* optimizer lets them wander between memory and a larger,
# slower place in pages, the least recently used one first. Here that place is a file, and the bits are the same as
# without:

# %%
losses = {}
for name, optimizer, settings in (
    ("in memory", AdamW, {}),
    ("paged", PagedAdamW, {"budget": 64 << 10, "page_bytes": 16 << 10}),
):
    fresh = get_peft_model(quantize_model(GPT.from_pretrained("tiny")), LORA, seed=0)
    losses[name] = adapt(fresh, steps=5, optimizer=optimizer, **settings)
state = 2 * 4 * fresh.get_nb_trainable_parameters()[0]
print(f"{state >> 10} KiB of state under a budget of 64 KiB")
assert losses["paged"] == losses["in memory"], "the same losses, to the last bit"

# %% [markdown]
# ## Merging is not free here
# LoRA's change can be added to a dense weight. Added to a weight in four bits and rounded to four bits again, it comes
# out with an error of the size of the first rounding: the base's weights lie exactly on the grid of codes, so that
# whatever was learned that is smaller than half a gap between two codes is rounded away. So the library merges
# into the *dequantized* weight (a dense model, exact up to float32's rounding) and rounds again only when asked, saying
# in the certificate what that cost.

# %%
wrapped = qlora.base_model.get("blocks.1.mlp.up_proj")
weight, delta = wrapped.base_layer.dense_weight(), wrapped.scaling * wrapped.lora_B.data @ wrapped.lora_A.data
again = dequantize(quantize(weight + delta))
share = np.linalg.norm(again - (weight + delta)) / np.linalg.norm(delta)
print(f"the error of rounding again is {share:.0%} of all that was learned")
merged = {}
for requantize in (False, True):
    certificate = qlora.merge_adapter(requantize=requantize)
    merged[requantize] = bits_per_byte(qlora, "wyc")
    qlora.unmerge_adapter()
    print(certificate)
    assert certificate.restores_base and (certificate.relative_logit_difference > 1e-3) == requantize
print(
    f"unmerged {after['nf4']:.3f}, merged {merged[False]:.3f}, merged into four bits {merged[True]:.3f} bits per byte"
)
assert abs(merged[False] - after["nf4"]) < 1e-3 < merged[True] - after["nf4"]

# %% [markdown]
# **Try it yourself.** Quantize `embed` by hand too and see what it costs: which part of the model is most sensitive?
# Then take `quant_type="fp4"` as QLoRA's base: how much of its larger error does the adapter give back?
