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
# # 2. A tiny GPT: what is in it, what it has read, how it writes
#
# **What will be built.** Attention by hand, held against the library's; the parameters of a GPT counted and found; a
# pretrained model of one million parameters read from the package, looked into (what does a head attend to?), asked
# to write, greedily and by chance, with a cache that changes nothing but the time; and what "bits per byte" means.
#
# **Time:** about 40 minutes to read, half a minute to run. **Needs:** `pip install minitorch-peft[data]`.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.data import Tokenizer, load_corpus
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.models.generation import probabilities

rng = np.random.default_rng(0)

# %% [markdown]
# ## Attention by hand
# Each position asks a question $q$, every earlier position (and itself) offers a key $k$ and a value $v$:
#
# $$\mathrm{Attn}(Q, K, V) = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt{D}} + \text{mask}\right) V .$$

# %%
T, D = 6, 8
q, k, v = (mp.tensor(rng.standard_normal((1, 1, T, D))) for _ in range(3))
scores = q @ k.transpose(-1, -2) / np.sqrt(D)
future = ~np.tri(T, dtype=bool)
weights = F.softmax(F.masked_fill(scores, mp.tensor(future), -np.inf), dim=-1)
by_hand = weights @ v
fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
assert np.allclose(by_hand.data, fused.data)
print(np.round(weights.data[0, 0], 2))

# %% [markdown]
# The rows sum to one and the upper triangle is zero: no position sees the future. Its gradient passes the check:

# %%
for t in (q, k, v):
    t.requires_grad_()
assert mp.gradcheck(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v))

# %% [markdown]
# ## Where the parameters are
# Token vectors, positions, and in every block four projections of attention and two of the MLP. The head shares the
# token vectors, so it has none of its own.

# %%
model = GPT.from_pretrained("tiny")
config = model.config
C, V, P, L = config.n_embd, config.vocab_size, config.n_positions, config.n_layer
formula = V * C + P * C + L * (4 * (C * C + C) + 2 * 4 * C * C + 4 * C + C + 4 * C) + 2 * C
print(f"{model.num_parameters():,} parameters; by the formula {formula:,}")
assert model.num_parameters() == formula

sizes: dict[str, int] = {}
for name, p in model.named_parameters():
    part = (
        "attention" if ".attn." in name else "MLP" if ".mlp." in name else "embedding" if "embed" in name else "norms"
    )
    sizes[part] = sizes.get(part, 0) + p.numel()
fig, ax = plt.subplots(figsize=(6, 1.6))
left = 0
for part, size in sizes.items():
    ax.barh(0, size, left=left, label=f"{part} {size / formula:.0%}")
    left += size
ax.set(yticks=[], xlabel="parameters")
ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.6), ncols=4, frameon=False)
plt.show()

# %% [markdown]
# ## What it has read
# The model was pretrained on modern English (a translation of the Bible in the public domain). Text becomes tokens by
# a byte-level vocabulary of 1,024 pieces, learned from the same books. Each verse starts with the token
# `<|endoftext|>`.

# %%
tokenizer = Tokenizer.shipped()


def ids_of(text: str) -> np.ndarray:
    return np.array([[tokenizer.eos_token_id, *tokenizer.encode(text)]])


verse = "In the beginning, God created the heavens and the earth."
ids = ids_of(verse)
print([tokenizer.decode([i]) for i in ids[0, 1:]])


def bits_per_byte(text: str) -> float:
    """How many bits the model needs for each byte of this text: its mean surprise, whatever the tokenizer."""
    ids = ids_of(text)
    with mp.no_grad():
        nats = model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    return nats / np.log(2) / len(text.encode())


modern, old = (" ".join(load_corpus(name).split("held_out").texts[:2])[:200] for name in ("web", "wyc"))
noise = "".join(rng.permutation(list(modern)))
print(modern[:100], "...\n" + old[:100], "...\n" + noise[:100], "...")
bits = {"modern": bits_per_byte(modern), "1395": bits_per_byte(old), "shuffled letters": bits_per_byte(noise)}
for label, value in bits.items():
    print(f"{label:16s} {value:.2f} bits per byte")
assert bits["modern"] < bits["1395"] < bits["shuffled letters"]

# %% [markdown]
# These are the first verses of the book of Ruth, which the model has never seen, in modern English and in that of 1395,
# and the same letters shuffled. A byte has eight bits; a model that knew nothing would need close to that. The gap
# between the first two is what the next walkthrough closes with LoRA.

# %% [markdown]
# ## A look inside: what does a head attend to?
# The blocks are plain named modules, so a hidden state can be taken out and the projections applied again by hand.

# %%
text = "The king of Babylon spoke to the king, and the king of Babylon"
ids = ids_of(text)
with mp.no_grad():
    hidden = model(ids, output_hidden_states=True).hidden_states
    maps = []
    for layer in range(L):
        block = model.get(f"blocks.{layer}")
        h = block.ln_1(hidden[layer])
        q, k = (block.attn.heads(block.attn.get(name)(h)) for name in ("q_proj", "k_proj"))
        scores = (q @ k.transpose(-1, -2)).data[0] / np.sqrt(config.head_dim)
        scores = np.where(np.tri(ids.shape[1], dtype=bool), scores, -np.inf)
        e = np.exp(scores - scores.max(-1, keepdims=True))
        maps.append(e / e.sum(-1, keepdims=True))
maps = np.stack(maps)  # (L, H, T, T)

previous = np.stack([np.diagonal(m, -1, axis1=1, axis2=2).mean(-1) for m in maps])  # attention to the token before
layer, head = np.unravel_index(previous.argmax(), previous.shape)
tokens = ["⏎", *(tokenizer.decode([i]) for i in ids[0, 1:])]
fig, axes = plt.subplots(1, 2, figsize=(10, 4.6), gridspec_kw={"width_ratios": [1, 1.5]})
axes[0].imshow(previous, cmap="viridis", vmin=0)
axes[0].set(xlabel="head", ylabel="block", title="attention to the token before")
axes[0].set_xticks(range(config.n_head))
axes[0].set_yticks(range(L))
axes[1].imshow(maps[layer, head], cmap="magma")
axes[1].set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
axes[1].set_yticks(range(len(tokens)), tokens, fontsize=7)
axes[1].set(title=f"block {layer}, head {head}: who looks at whom")
plt.tight_layout()
plt.show()
print(f"block {layer}, head {head} gives {previous[layer, head]:.0%} of its attention to the token before")
assert previous[layer, head] > 2 * previous.mean()

# %% [markdown]
# ## Writing
# The model gives a distribution over the next token. Greedy decoding takes its top; sampling draws from it, and
# temperature, top-k and top-p decide how much of the tail may be drawn.

# %%
prompt = ids_of("And Jesus said")
with mp.no_grad():
    logits = model(ids_of("They went to the")).logits.data[:, -1]
settings = {
    "as it is": (1.0, None, None), "temperature 0.7": (0.7, None, None), "top-k 20": (1.0, 20, None),
    "top-p 0.9": (1.0, None, 0.9),
}  # fmt: skip
order = np.argsort(-logits[0])[:60]
fig, ax = plt.subplots(figsize=(7, 3))
for label, (temperature, top_k, top_p) in settings.items():
    ax.plot(np.sort(probabilities(logits, temperature, top_k, top_p)[0][order])[::-1], label=label)
ax.set(
    yscale="log",
    ylim=(1e-4, 1),
    xlabel="rank of the token",
    ylabel="probability",
    title="They went to the ...: what may be drawn",
)
ax.legend()
plt.show()

stop = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
greedy = model.generate(prompt, max_new_tokens=30, **stop)
print("greedy: ", tokenizer.decode(greedy[0, 1:].tolist()))
for seed in range(2):
    drawn = model.generate(prompt, max_new_tokens=30, do_sample=True, top_p=0.9, temperature=0.8, seed=seed, **stop)
    print("sampled:", tokenizer.decode(drawn[0, 1:].tolist()))
again = model.generate(prompt, max_new_tokens=30, do_sample=True, top_p=0.9, temperature=0.8, seed=1, **stop)
assert (again == drawn).all(), "the same seed writes the same text"

# %% [markdown]
# ## The cache
# Keys and values of the past do not change when a token is added, so they are kept. The text is the same, the time is
# not: without the cache every step computes all positions again.

# %%
seconds = {}
for use_cache in (True, False):
    start = time.perf_counter()
    out = model.generate(prompt, max_new_tokens=120, use_cache=use_cache)
    seconds[use_cache] = time.perf_counter() - start
    texts = out if use_cache else (texts, out)  # noqa: F821
assert (texts[0] == texts[1]).all()
print(f"120 tokens: {seconds[True]:.2f} s with the cache, {seconds[False]:.2f} s without")

# %% [markdown]
# ## Two families, one file
# The same class is a GPT-2 and a Llama: another norm, rotated instead of added positions, a gated MLP, fewer heads for
# keys and values. Both start at the loss of a uniform guess, $\ln V$.

# %%
shape = {"vocab_size": 97, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
random_ids = rng.integers(0, 97, (8, 32))
for family in (GPT(GPTConfig(**shape)), GPT(GPTConfig.llama(**shape, num_key_value_heads=2))):
    loss = family(random_ids, labels=random_ids).loss.item()
    print(
        f"{family.config.norm} norm, {family.config.position_embedding} positions: loss {loss:.3f}, "
        f"ln V = {np.log(97):.3f}"
    )
    assert abs(loss - np.log(97)) < 0.05

# %% [markdown]
# **Try it yourself.** Put a wrapper around `blocks.2.mlp` that returns zeros (`model.set(path, module)`) and see how
# many bits per byte each MLP is worth. Then try the heads: zero one head's slice of `o_proj`.
