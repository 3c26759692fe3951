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
# # 3. LoRA: a small change of a frozen weight
#
# **What will be built.** The low-rank layer by hand, with its backward; why one factor starts at zero and the other
# does not; the parameter count; the tiny GPT adapted from modern English to that of 1395 with seven per cent of its
# parameters; what the change looks like; and a merge that can be taken back bit for bit.
#
# **Time:** about 40 minutes to read, half a minute to run. **Needs:** `pip install minitorch-peft[data]`.

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import minitorch_peft as mp
from minitorch_peft.data import PackedText, Tokenizer, load_corpus
from minitorch_peft.models import GPT
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import FullConfig, LoraConfig, PeftModel, get_peft_model

rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
# Fine-tuning moves a weight $W$ by some $\Delta W$ of the same size. LoRA (Hu et al. 2021) allows only changes of
# rank $r$:
#
# $$y = x W^\top + s\,(x A^\top) B^\top, \qquad A \in \mathbb{R}^{r \times k},\; B \in \mathbb{R}^{d \times r},\;
# s = \alpha / r .$$
#
# $W$ is frozen. For $d = k = 4096$ and $r = 8$ that is 65 thousand numbers instead of 16.8 million.

# %%
d = k = 4096
r = 8
print(f"full {d * k:,}, LoRA {r * (d + k):,}: {d * k / (r * (d + k)):.0f} times fewer")

# %% [markdown]
# ## Its backward, by hand
# With $u = x A^\top$ and the incoming gradient $G = \partial L / \partial y$, the chain rule gives
#
# $$\bar B = s\, G^\top u, \qquad \bar A = (s\, G B)^\top x, \qquad \bar x = G W + (s\, G B) A .$$
#
# There is no $\bar W$: a frozen weight costs no gradient. But $\bar x$ still passes through $W$: LoRA saves the
# gradients and the optimizer's memory of the base, not the backward pass through it.


# %%
class LowRank(mp.Function):
    """x (N, k), W (d, k), A (r, k), B (d, r) to (N, d)."""

    @staticmethod
    def forward(ctx, x, W, A, B, *, s):
        u = x @ A.T
        ctx.s = s
        ctx.save_for_backward(x, u, W, A, B)
        return x @ W.T + s * (u @ B.T)

    @staticmethod
    def backward(ctx, G):
        x, u, W, A, B = ctx.saved
        back = ctx.s * (G @ B)
        return G @ W + back @ A, None, back.T @ x, ctx.s * (G.T @ u)


x, A, B = (mp.tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((7, 6), (2, 6), (5, 2)))
W = mp.tensor(rng.standard_normal((5, 6)))
assert mp.gradcheck(lambda x, A, B: LowRank.apply(x, W, A, B, s=0.5), (x, A, B))

# %% [markdown]
# ## Why B is zero, and A is not
# With $B = 0$ the adapted model starts as the base, to the bit. With *both* at zero it would stay there for ever:
# $\bar A$ has a factor $B$ and $\bar B$ a factor $A$.

# %%
for a_start, b_start in ((rng.standard_normal((2, 6)), np.zeros((5, 2))), (np.zeros((2, 6)), np.zeros((5, 2)))):
    A, B = mp.tensor(a_start, requires_grad=True), mp.tensor(b_start, requires_grad=True)
    (LowRank.apply(x.detach(), W, A, B, s=0.5) ** 2).sum().backward()
    print(f"|dA| = {np.abs(A.grad).max():.2f}, |dB| = {np.abs(B.grad).max():.2f}")
assert (A.grad == 0).all() and (B.grad == 0).all()

# %% [markdown]
# ## On a real model
# The tiny GPT has read modern English. It is to learn the English of 1395, from the training books of a translation
# of that year; books that it never trains on judge it.

# %%
tokenizer = Tokenizer.shipped()
texts = {
    (name, split): PackedText.from_corpus(load_corpus(name).split(split), tokenizer)
    for name in ("web", "wyc")
    for split in ("train", "held_out")
}


def bits_per_byte(model, name: str) -> float:
    """On 32 windows of the held-out books."""
    text = texts[name, "held_out"]
    losses = []
    with mp.no_grad():
        for batch in text.windows(batch_size=16, length=128, limit=32):
            losses.append(model(**batch).loss.item())
    return text.bits_per_byte(float(np.mean(losses)))


def adapt(model, lr: float, steps: int = 30) -> list[float]:
    """``steps`` updates of 8 x 128 tokens with AdamW, the rate falling to zero."""
    optimizer = AdamW([(n, p) for n, p in model.named_parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
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


base = GPT.from_pretrained("tiny")
before = {name: bits_per_byte(base, name) for name in ("web", "wyc")}
print(f"the base: {before['web']:.2f} bits per byte on modern English, {before['wyc']:.2f} on that of 1395")

# %%
model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
model.print_trainable_parameters()
per_block = 2 * 8 * 128 * 4 + 2 * 8 * (128 + 512)  # q, k, v, o; up and down
assert model.get_nb_trainable_parameters()[0] == 4 * per_block

frozen = {name: p.data.copy() for name, p in model.named_parameters() if not p.requires_grad}
losses = adapt(model, lr=1e-2)
assert all((p.data == frozen[name]).all() for name, p in model.named_parameters() if name in frozen)
after = {name: bits_per_byte(model, name) for name in ("web", "wyc")}
print(f"after LoRA: {after['web']:.2f} on modern English, {after['wyc']:.2f} on that of 1395")
assert after["wyc"] < before["wyc"] - 0.5
with model.disable_adapter():
    assert bits_per_byte(model, "web") == before["web"], "without the adapter, the base is what it was"

prompt = np.array([[tokenizer.eos_token_id, *tokenizer.encode("And Jesus")]])
for label, m in (("adapted", model), ("base", None)):
    if m is None:
        with model.disable_adapter():
            out = model.generate(prompt, max_new_tokens=24)
    else:
        out = m.generate(prompt, max_new_tokens=24)
    print(f"{label:8s}", tokenizer.decode(out[0, 1:].tolist()))

# %% [markdown]
# ## What the change looks like
# Fine-tune fully, and look at the singular values of every $\Delta W$: a few directions carry most of it. That is the
# bet of LoRA. (LoRA's own $\Delta W$ has exactly $r$ of them.)

# %%
full = get_peft_model(GPT.from_pretrained("tiny"), FullConfig())
start = {name: p.data.copy() for name, p in full.named_parameters()}
adapt(full, lr=2e-3)
fig, ax = plt.subplots(figsize=(7, 3.6))
shares = []
for path in ("blocks.0.attn.v_proj", "blocks.1.mlp.up_proj", "blocks.3.mlp.down_proj"):
    tuned = dict(full.named_parameters())[f"{path}.weight.default"].data
    values = np.linalg.svd(tuned - start[f"{path}.weight"], compute_uv=False)
    shares.append((values[:8] ** 2).sum() / (values**2).sum())
    (line,) = ax.semilogy(values / values[0], label=f"{path}: {shares[-1]:.0%} in 8 of {len(values)}")
    layer = model.base_model.get(path)
    values = np.linalg.svd(layer.scaling * layer.lora_B.data @ layer.lora_A.data, compute_uv=False)
    ax.semilogy(values[:8] / values[0], "o", color=line.get_color(), markersize=3)
ax.set(xlabel="direction", ylabel="singular value / largest", ylim=(1e-3, 1.2),
       title="ΔW of full fine-tuning (lines) and of LoRA r=8 (dots)")  # fmt: skip
ax.legend(fontsize=8)
plt.show()
assert min(shares) > 2 * 8 / 128, "eight directions carry more than their share"

# %% [markdown]
# ## How much rank is enough?

# %%
ranks = (1, 2, 4, 8, 16)
quality, parameters = [], []
for rank in ranks:
    m = get_peft_model(
        GPT.from_pretrained("tiny"), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    )
    adapt(m, lr=1e-2)
    quality.append(bits_per_byte(m, "wyc"))
    parameters.append(m.get_nb_trainable_parameters()[0])
fig, ax = plt.subplots(figsize=(6, 3.4))
ax.semilogx(parameters, quality, "o-")
for rank, p, q in zip(ranks, parameters, quality, strict=True):
    ax.annotate(f"r={rank}", (p, q), textcoords="offset points", xytext=(4, 5))
full_quality = bits_per_byte(full, "wyc")
ax.axhline(
    full_quality, color="grey", linestyle="--", label=f"full fine-tuning, {full.get_nb_trainable_parameters()[0]:,}"
)
ax.set(xlabel="trainable parameters", ylabel="bits per byte, held out", title=f"30 steps from {before['wyc']:.2f}")
ax.legend()
plt.show()
assert quality[0] < before["wyc"] - 0.4, "even rank 1 learns"
assert min(quality) == min(quality[2:]), "more rank is better here"

# %% [markdown]
# ## Merging, and taking it back
# Since the change is a matrix, it can be added to $W$ once and for all: no latency at all at inference. Adding rounds,
# so the merged model is not the same to the last bit; the certificate says how far it is. Unmerging by subtracting
# would round again, and drift. Here the weights from before are kept and put back, bit for bit.

# %%
certificate = model.merge_adapter()
print(certificate)
assert certificate.logit_difference < 1e-3 and certificate.restores_base
model.unmerge_adapter()
assert all((p.data == frozen[name]).all() for name, p in model.named_parameters() if name in frozen)

# %% [markdown]
# ## Small to store
# One file for each task: the base is stored once. The file is the one that `peft` reads and writes.

# %%
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    again = PeftModel.from_pretrained(GPT.from_pretrained("tiny"), folder)
    assert np.allclose(again(prompt).logits.data, model(prompt).logits.data, atol=1e-4)

# %% [markdown]
# **Try it yourself.** Which targets matter? Give `target_modules=["q_proj", "v_proj"]` (the paper's choice) the same
# number of parameters as `"all-linear"` and compare. Then double `lora_alpha` and halve the rate: what changes, and
# what does not?
