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
# # 9. One view of all methods
#
# **What will be built.** The unified view of He et al. (2022), as a table and as code: prefix tuning *is* a gated
# parallel adapter, LoRA *is* a linear parallel adapter, IA3, BitFit and LoReFT are adapters too, and each sentence is
# checked, outputs and gradients, on a trained method. Then what the view invites to: two methods at once, and many
# users of different methods in one batch. At the end the ledger: what the methods save in a training step, and what
# they do not.
#
# **Time:** about 40 minutes to read, half a minute to run. **Needs:** `pip install minitorch-peft[data]`.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minitorch_peft as mp
from minitorch_peft.analysis.ledger import ledger, measure
from minitorch_peft.analysis.texts import Texts, pack_split
from minitorch_peft.analysis.unified_view import (
    VIEW,
    Modified,
    bitfit_as_constant_adapter,
    bottleneck_as_adapter,
    ia3_as_diagonal_adapter,
    identity_adapter_as_lora,
    lora_as_parallel_adapter,
    loreft_as_sequential_adapter,
    prefix_as_gated_adapter,
    print_view,
    rewritten,
)
from minitorch_peft.data import Tokenizer
from minitorch_peft.models import GPT
from minitorch_peft.peft import (
    METHODS,
    BitFitConfig,
    FullConfig,
    IA3Config,
    LadderConfig,
    LoraConfig,
    LoReftConfig,
    ParBnConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    get_peft_model,
)
from minitorch_peft.training import TrainConfig, train

rng = np.random.default_rng(0)

# %% [markdown]
# ## Four dials
# Adapters add a small network, prefixes add keys and values, LoRA adds to a weight: three ideas, it seems. He et al.
# look at what happens to a hidden state $h$ instead. All three change it to
#
# $$h' = h + \Delta h \qquad\text{or, gated,}\qquad h' = (1 - \lambda)\, h + \lambda\, \Delta h,$$
#
# and differ in four dials only: the **form** of $\Delta h$ as a function of some $z$; its **insertion** (parallel: $z$
# is the module's input; sequential: its output); its **position** (which module's output $h$ is); the **composition**
# of $h$ and $\Delta h$. Here are the three on the paper's page, and then all methods of this library.

# %%
print_view({name: VIEW[name] for name in ("seq_bn", "prefix_tuning", "lora")})
print_view()
assert VIEW.keys() == METHODS.keys(), "no method without its dials"

# %% [markdown]
# As code, the plain composition is one small wrapper, whose form is any function:
#
# ```python
# class Modified(Wrapper):
#     def forward(self, x, context=None):
#         h = self.base_layer(x, context)
#         return h + self.form(x if self.parallel else h)
# ```
#
# A method is *rewritten* by taking it off the model and putting such wrappers in its place, which hold the very same
# parameters. Equal logits and equal gradients then say that the two are the same function. The check is made after
# training, since at the start most methods do nothing at all, and in float64.

# %%
tokenizer = Tokenizer.shipped()
held_out = {name: pack_split(name, "held_out", tokenizer) for name in ("web", "wyc")}
texts = Texts(pack_split("wyc", "train", tokenizer), held_out, batch_size=4, length=128)
SMALL = "tiny-0.25m"
ids = next(texts.windows("wyc"))["input_ids"][:, :48]


def trained(config, lr, base=SMALL, steps=10):
    """A base that has read modern English, after some steps of 4 x 128 tokens of that of 1395."""
    model = get_peft_model(GPT.from_pretrained(base), config)
    before = texts.bits_per_byte(model, "wyc", limit=8)
    train(model, texts.batches(seed=0), TrainConfig(steps=steps, lr=lr, warmup=2))
    after = texts.bits_per_byte(model, "wyc", limit=8)
    print(f"{type(config).__name__}: {before:.2f} bits per byte before, {after:.2f} after {steps} steps")
    assert after < before
    return model


def outputs_and_gradients(run, parameters):
    """The logits, and the gradient of their product with fixed random numbers, by parameter."""
    logits = run().logits
    logits.backward(gradient=np.random.default_rng(0).standard_normal(logits.shape))
    gradients = {name: p.grad.copy() for name, p in parameters.items() if p.grad is not None}
    for p in parameters.values():
        p.grad = None
    return logits.data, gradients


def same_function(model, rewrite, **options):
    """Check that the adapter and its rewriting agree; returns by how much the adapter changes the logits."""
    model = model.astype(np.float64).eval()
    adapter = model.adapters["default"]
    parameters = adapter.named_parameters()
    logits, gradients = outputs_and_gradients(lambda: model(ids), parameters)
    with rewritten(model, rewrite(adapter)) as base:
        others, other_gradients = outputs_and_gradients(lambda: base(ids, **options), parameters)
    assert gradients and gradients.keys() == other_gradients.keys()
    worst = max(np.abs(gradients[n] - other_gradients[n]).max() / np.abs(gradients[n]).max() for n in gradients)
    with model.disable_adapter():
        effect = np.abs(model(ids).logits.data - logits).max()
    difference = np.abs(logits - others).max()
    print(f"the logits differ by {difference:.0e} (the adapter changes them by {effect:.1f}), gradients by {worst:.0e}")
    assert difference < 1e-9 * effect and worst < 1e-8
    return model


# %% [markdown]
# ## LoRA is a parallel adapter without its activation
# $\Delta h = s\, B A x$ is a bottleneck $W_\text{up} f(W_\text{down} x)$ whose $f$ is the identity and whose biases are
# zero, beside one linear layer.

# %%
lora = same_function(trained(LoraConfig(r=4, target_modules="all-linear"), lr=1e-2), lora_as_parallel_adapter)

# %% [markdown]
# And the other way round: a scaled parallel adapter with $f$ the identity and without biases is LoRA, $A =
# W_\text{down}$ and $B = W_\text{up}$, of a whole feed-forward: not of one weight. There is no $W$ that it could be
# merged into, since the feed-forward itself is not linear. (Its biases are frozen at zero here.)

# %%
config = ParBnConfig(bottleneck_size=4, non_linearity="identity", scaling=4.0)
linear = get_peft_model(GPT.from_pretrained(SMALL), config)
for name, p in linear.adapters["default"].named_parameters().items():
    p.requires_grad_(not name.endswith("bias"))
train(linear, texts.batches(seed=0), TrainConfig(steps=10, lr=1e-2, warmup=2))
linear = same_function(linear, identity_adapter_as_lora)
assert not METHODS["par_bn"].mergeable

# %% [markdown]
# With an activation they are the view's first case, sequential or parallel:

# %%
for config in (SeqBnConfig(bottleneck_size=4), ParBnConfig(bottleneck_size=4)):
    same_function(trained(config, lr=1e-2), bottleneck_as_adapter)

# %% [markdown]
# ## Prefix tuning is a gated parallel adapter
# This one takes a line of algebra. A softmax over the keys $[P_K; K]$ splits into one over the prefix and one over the
# text, weighed by what each gets of the sum:
#
# $$\text{softmax}\big(q [P_K; K]^\top\big) [P_V; V] = (1 - \lambda)\, \underbrace{\text{softmax}(q K^\top) V}_h
# + \lambda\, \underbrace{\text{softmax}(q P_K^\top) P_V}_{\Delta h}, \qquad
# \lambda = \frac{\sum_i e^{q \cdot P_{K,i}}}{\sum_i e^{q \cdot P_{K,i}} + \sum_j e^{q \cdot K_j}} .$$
#
# (All scores are divided by $\sqrt D$.) So $h$ is attention without a prefix, and $\Delta h$ a small network of the
# query: $P_K^\top$ goes down to a "waist" of $k$, softmax is the activation, $P_V$ goes up. Nothing of a prefix is
# left, but for positions: the text's begin after the prefix's.

# %%
k = 5
prefix = trained(PrefixTuningConfig(num_virtual_tokens=k), lr=3e-2, steps=20)
prefix = same_function(prefix, prefix_as_gated_adapter, position_ids=k + np.arange(ids.shape[1])[None])

# %% [markdown]
# Unlike the other methods' $\Delta h$, this one is not added but *replaces* a share $\lambda$ of $h$, and how large
# that share is depends on the text: the longer it is, the more keys compete with those of the prefix. Here is $\lambda$
# for each head and position, the mean of four rows.


# %%
def gates(model) -> np.ndarray:
    """λ (layers, heads, positions), mean over the rows: what attention gives to the prefix."""
    found = []
    pairs = model.adapters["default"].prefix()
    with mp.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        for i, (keys, _) in enumerate(pairs):
            block = model.base_model.blocks[i]
            attn, x = block.attn, block.ln_1(states[i])
            q, own = attn.heads(attn.q_proj(x)).data, attn.heads(attn.k_proj(x)).data
            D = q.shape[-1]
            text = np.where(np.tri(ids.shape[1], dtype=bool), np.exp(q @ own.swapaxes(2, 3) / np.sqrt(D)), 0).sum(-1)
            on_prefix = np.exp(q @ keys.data.swapaxes(1, 2) / np.sqrt(D)).sum(-1)
            found.append((on_prefix / (on_prefix + text)).mean(0))
    return np.stack(found)


share = gates(prefix)
n_layer, heads, length = share.shape
fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), gridspec_kw={"width_ratios": [1.5, 1]})
picture = axes[0].imshow(share.reshape(-1, length), aspect="auto", cmap="viridis", vmin=0, vmax=1)
names = [f"block {i}, head {h}" for i in range(n_layer) for h in range(heads)]
axes[0].set_yticks(range(n_layer * heads), names, fontsize=8)
axes[0].set(xlabel="position in the text", title="The gate λ")
fig.colorbar(picture, ax=axes[0])
even = k / (k + np.arange(1, length + 1))
axes[1].plot(share.mean((0, 1)), label="mean of all heads")
axes[1].plot(even, "--", color="grey", label="if all keys got the same")
axes[1].set(xlabel="position in the text", ylabel="λ", title="It shrinks as the text grows", ylim=(0, 1))
axes[1].legend(fontsize=8)
plt.tight_layout()
plt.show()
early, late = share[..., 0].mean(), share[..., -1].mean()
print(f"at the first token {early:.2f}, at the last {late:.2f} of the attention goes to the prefix")
assert late < early and share.mean() > even.mean(), "more than five keys' fair share"

# %% [markdown]
# ## IA3, BitFit and LoReFT
# Three more, each a form of its own:
#
# | | $\Delta h$ | insertion |
# |---|---|---|
# | IA3 | $(l - 1) \odot h$: a diagonal matrix | sequential |
# | BitFit, of linear layers | $\Delta b$: a constant | either |
# | LoReFT, of every token | $R^\top (W h + b - R h)$: linear, up is $R^\top$ | sequential |

# %%
same_function(trained(IA3Config(), lr=0.1), ia3_as_diagonal_adapter)
biases = BitFitConfig(target_parameters=["q_proj.bias", "v_proj.bias", "o_proj.bias", "up_proj.bias"])
same_function(trained(biases, lr=0.1), bitfit_as_constant_adapter)
same_function(trained(LoReftConfig(prefix_positions=None, dropout=0.0), lr=1e-2), loreft_as_sequential_adapter)

# %% [markdown]
# ## A form of one's own
# The view is also a box of parts. What if LoRA's form stood *after* a feed-forward instead of beside it? That is a new
# method, and with `Modified` it takes a line.

# %%
base = GPT.from_pretrained(SMALL)
C = base.config.n_embd
for p in base.parameters():
    p.requires_grad_(False)
A, B = (mp.tensor(a, requires_grad=True) for a in (0.1 * rng.standard_normal((4, C)), np.zeros((C, 4))))
A, B = (mp.tensor(t.data.astype(np.float32), requires_grad=True) for t in (A, B))
sequential = {"blocks.1.mlp": (Modified, (lambda z: (z @ A.transpose(0, 1)) @ B.transpose(0, 1), "sequential"))}
losses = []
with rewritten(base, sequential):
    for _ in range(8):
        loss = base(**texts.batches(seed=0)(0)).loss
        loss.backward()
        for t in (A, B):
            t.data -= 2.0 * t.grad
            t.grad = None
        losses.append(loss.item())
print("the loss on one batch:", " ".join(f"{loss:.3f}" for loss in losses))
assert losses[-1] < losses[0]

# %% [markdown]
# ## Two methods at once
# Methods at different positions do not get in each other's way, so they compose; MAM of the last walkthrough is such a
# pair. Here LoRA for the attention acts with a parallel adapter for the feed-forward, both trained at once, and both
# saved into one folder and loaded from it, each in its own file.

# %%
pair = PeftModel(GPT.from_pretrained(SMALL))
pair.add_adapter("attention", LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
pair.add_adapter("mlp", ParBnConfig(bottleneck_size=8))
pair.set_adapter(["attention", "mlp"])
parts = {name: sum(p.data.size for p in a.named_parameters().values()) for name, a in pair.adapters.items()}
assert pair.get_nb_trainable_parameters()[0] == sum(parts.values())
train(pair, texts.batches(seed=0), TrainConfig(steps=20, lr=1e-2, warmup=3))
pair.eval()
quality = {}
for name, acting in (("both", ["attention", "mlp"]), ("LoRA alone", "attention"), ("the adapter alone", "mlp")):
    pair.set_adapter(acting, train=())
    quality[name] = texts.bits_per_byte(pair, "wyc", limit=16)
with pair.disable_adapter():
    quality["neither"] = texts.bits_per_byte(pair, "wyc", limit=16)
print(", ".join(f"{name} {value:.2f}" for name, value in quality.items()), "bits per byte")
assert quality["both"] == min(quality.values())

pair.set_adapter(["attention", "mlp"], train=())
with tempfile.TemporaryDirectory() as folder:
    pair.save_pretrained(folder, ["attention", "mlp"])
    print("saved:", ", ".join(sorted(str(f.relative_to(folder)) for f in Path(folder).rglob("*.*") if f.is_file())))
    again = PeftModel.from_pretrained(GPT.from_pretrained(SMALL), folder).eval()
assert again.active_adapters == ("attention", "mlp")
assert np.array_equal(again(ids).logits.data, pair(ids).logits.data), "bit for bit"

# %% [markdown]
# ## Many users in one batch
# A server has one base and an adapter for each user. One batch may mix users, even users of different methods: every
# row is run under its own adapter, the base's products are shared. Each row must say what it would say alone.
# (After so few steps, do not expect sense.)

# %%
server = PeftModel(GPT.from_pretrained("tiny"))
USERS = {
    "ann": LoraConfig(r=4, target_modules="all-linear"),
    "bo": PrefixTuningConfig(num_virtual_tokens=k),
    "cy": IA3Config(),
    "di": SeqBnConfig(bottleneck_size=4),
}
for i, (user, config) in enumerate(USERS.items()):
    server.add_adapter(user, config, seed=i)
    server.set_adapter(user)
    train(server, texts.batches(seed=i), TrainConfig(steps=15, lr={"bo": 3e-2, "cy": 0.1}.get(user, 1e-2), warmup=3))
server.eval()
names = [*USERS, "__base__"]
prompt = ids[[0] * len(names), :12]
with mp.no_grad():
    together = server(prompt, adapter_names=names).logits.data
    for row, user in enumerate(USERS):
        server.set_adapter(user, train=())
        assert np.allclose(server(prompt[:1]).logits.data, together[row : row + 1], atol=1e-4), user
    with server.disable_adapter():
        assert np.allclose(server(prompt[:1]).logits.data, together[-1:], atol=1e-4)
said = server.generate(prompt, max_new_tokens=12, adapter_names=names)
print(f"{'':9s}", tokenizer.decode(prompt[0].tolist()), "...")
for name, row in zip(names, said, strict=True):
    print(f"{name:9s} ...", tokenizer.decode(row[12:].tolist()))

# %% [markdown]
# ## The ledger: what is saved, and what is not
# A training step keeps four kinds of bytes: weights; a gradient for each number that trains; the optimizer's state, two
# more for each with AdamW; and the activations that the backward pass will need. The library's ledger counts them
# without running the step, from a few small ones; on one method it is held against a real step.

# %%
METHOD = {
    "full": FullConfig(),
    "LoRA": LoraConfig(r=8, target_modules="all-linear"),
    "adapter": SeqBnConfig(bottleneck_size=16),
    "prompt": PromptTuningConfig(num_virtual_tokens=20),
    "ladder": LadderConfig(reduction_factor=4),
}
tiny, batch = GPT.from_pretrained("tiny"), (8, 128)
accounts = {name: ledger(tiny, config, batch) for name, config in METHOD.items()}
real = measure(tiny, METHOD["LoRA"], batch).totals()
for part, predicted in accounts["LoRA"].totals().items():
    assert abs(predicted / real[part] - 1) < 0.1, part

parts = {
    "weights of the base": [a.weights["base"] for a in accounts.values()],
    "of the method": [a.weights["method"] for a in accounts.values()],
    "gradients": [a.gradients for a in accounts.values()],
    "optimizer state": [a.optimizer for a in accounts.values()],
    "activations": [a.activation_bytes for a in accounts.values()],
}
fig, axes = plt.subplots(1, 2, figsize=(11, 3.8))
bottom = np.zeros(len(METHOD))
for part, values in parts.items():
    values = np.array(values) / 1e6
    bars = axes[0].bar(list(METHOD), values, 0.6, bottom=bottom, label=part)
    axes[0].bar_label(
        bars, [f"{v:.1f}" if v > 1.5 else "" for v in values], label_type="center", fontsize=8, color="white"
    )
    bottom += values
axes[0].set(ylabel="megabytes", title="Bytes of a step: 8 rows of 128 tokens", ylim=(0, 1.4 * bottom.max()))
axes[0].legend(fontsize=8, ncols=2)
forward = np.array([a.forward.total for a in accounts.values()]) / 1e9
backward = np.array([a.backward.total for a in accounts.values()]) / 1e9
axes[1].bar(list(METHOD), forward, 0.6, label="forward")
axes[1].bar(list(METHOD), backward, 0.6, bottom=forward, label="backward")
axes[1].set(ylabel="billions of operations", title="Work of a step", ylim=(0, 1.35 * (forward + backward).max()))
axes[1].legend(fontsize=8, ncols=2)
plt.tight_layout()
plt.show()

# %% [markdown]
# (Full fine-tuning trains a copy here and keeps the original, so its weights count twice.) What the picture says:
#
# - The small methods save nearly all gradients and optimizer state. The base's weights are all there still.
# - Of the activations LoRA, adapter and prompt save little or nothing. The gradient still goes *through* the base, and
#   what nonlinear operations need for that must be kept. LoRA of all linear layers needs every layer's input for the
#   gradient of its $A$; a prompt makes every row longer.
# - Of the work they save about a third at most: that half of the backward pass which makes the gradients of the
#   weights. The gradients of the activations, the other half, are still needed.
# - The ladder alone saves activations and most of the backward pass; what is left of it is the head's, and its own.

# %%
full, small = accounts["full"], {name: a for name, a in accounts.items() if name != "full"}
saved = {}
for name, a in small.items():
    held = (a.gradients + a.optimizer) / (full.gradients + full.optimizer)
    kept = a.activation_bytes / full.activation_bytes
    work = (a.forward.total + a.backward.total) / (full.forward.total + full.backward.total)
    saved[name] = held, kept, work
    print(
        f"{name:8s} of full's gradients and state {held:5.1%}, of its activations {kept:4.0%}, of its work {work:4.0%}"
    )
    assert held < 0.1 and a.weights["base"] == full.weights["base"]
for name in ("LoRA", "adapter", "prompt"):
    _, kept, work = saved[name]
    assert kept > 0.8 and 0.6 < work < 0.9
assert [METHODS[name].mergeable for name in ("lora", "seq_bn", "prompt_tuning", "ladder")] == [
    True,
    False,
    False,
    False,
]
assert sum(m.rowwise for m in METHODS.values()) > len(METHODS) / 2
assert saved["ladder"][1] < 0.6 and accounts["ladder"].backward.total < 0.25 * full.backward.total

# %% [markdown]
# So "efficient" has several meanings, and no method has them all: a small file for each task and a small optimizer (all
# four), little memory for activations (the ladder), no latency once it is merged (LoRA, and others that change
# weights), many users in one batch (most methods of the library).
#
# **Try it yourself.** Make rows of 32 and of 256 tokens in the ledger: which of the four kinds of bytes grow? Then put
# LoRA on the top block alone (`layers_to_transform=[3]`): why does *that* save activations?
