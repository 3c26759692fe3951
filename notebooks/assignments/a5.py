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
# # Assignment A5: Adapters, prompts, prefixes
#
# **What you will build.** A3 changed weights. Here the weights stay as they are, and a small trainable thing is put
# beside them: a function between the layers (a bottleneck adapter, with the backward pass that you derive for it),
# vectors before the input (a prompt), keys and values in every layer (a prefix, with which the cache starts), the
# biases alone (BitFit), or a gate on every single weight that learns to close (diff pruning). At the end you show
# that a prefix *is* an adapter, with a gate, and let all of them read the English of 1395.
#
# **Where.** Each task is a hole in the library, between a line `# BEGIN SOLUTION(task="5.1a")` and a line
# `# END SOLUTION`. Write between these marks only, and leave them in place; imports that you need go there too.
#
# | check | command |
# |---|---|
# | everything | `minitorch-peft course check` |
# | one task | `minitorch-peft course check 5.1` |
# | a hint (`--hint --hint`: one more) | `minitorch-peft course check 5.1 --hint` |
#
# | task | | points | minutes |
# |---|---|---|---|
# | 5.1 | A bottleneck adapter | 10 | 20 |
# | 5.2 | The adapter's backward pass, derived by hand | 18 | 40 |
# | 5.3 | A prompt before the embeddings | 10 | 20 |
# | 5.4 | From a table to keys and values | 12 | 20 |
# | 5.5 | Where the cache starts | 14 | 25 |
# | 5.6 | BitFit: which biases, and how many | 8 | 10 |
# | 5.7 | A gate that learns to close | 16 | 30 |
# | 5.8 | A prefix is an adapter with a gate | 12 | 25 |
#
# You can solve the tasks in any order. (Of the cells below, that of 5.2 also needs 5.1, that of 5.5 needs 5.4, that
# of 5.8 needs 5.4 and 5.5, and the closing experiment needs them all but 5.7 and 5.8.) The written questions are
# marked by a person, and their points come on top of the 100 points of the tasks.
#
# **Time:** about three hours, and the questions. **Needs:** the installation in the README.
#
# ## Notation
# $B$ rows of a batch, $T$ tokens, $C$ channels, $L$ layers; $H$ heads of $D$ channels, of which keys and values may
# have fewer (`kv_heads`); $k$ vectors of a prompt or a prefix. A linear layer has a weight $W$ (out, in) and computes
# $x W^\top + b$.

# %%
import math
import time
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numba
import numpy as np
from threadpoolctl import threadpool_limits

import minitorch_peft as mp
from minitorch_peft.analysis.unified_view import prefix_as_gated_adapter, rewritten
from minitorch_peft.data import PackedText, Tokenizer, load_corpus
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import (
    BitFitConfig,
    DoubleSeqBnConfig,
    FullConfig,
    ParBnConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    get_peft_model,
)
from minitorch_peft.peft.function.bottleneck_function import bottleneck
from minitorch_peft.peft.inject import eject, inject
from minitorch_peft.peft.parameter.bitfit import bitfit_count
from minitorch_peft.peft.parameter.hard_concrete import LEFT, RIGHT, hard_concrete, open_probability
from minitorch_peft.peft.shapes import Tokens
from minitorch_peft.training import TrainConfig, Trainer, evaluate

rng = np.random.default_rng(0)
MODEL = "tiny-0.25m"
tokenizer = Tokenizer.shipped()
ids = rng.integers(0, 1024, (2, 12))

# %% [markdown]
# ## 5.1 A bottleneck adapter
#
# An adapter is a small network beside a sub-layer of the GPT (its attention or its feed-forward). It goes down from
# $C$ channels to $w$, through a non-linearity, and up again; what comes out is added to the sub-layer's output $h$:
#
# $$ u = z W_{\text{down}}^\top + b_{\text{down}}, \qquad a = f(u), \qquad
# y = h + s \odot \bigl(a W_{\text{up}}^\top + b_{\text{up}}\bigr). $$
#
# A *sequential* adapter (Houlsby et al. 2019, Pfeiffer et al. 2021) works on the sub-layer's output, $z = h$; a
# *parallel* one (He et al. 2022) on its input, $z = x$. The factor $s$ is a constant (4 in He et al.'s), or one
# learned number, or one for each channel. $W_{\text{up}}$ and the biases start at zero, so that the model starts as
# the base.
#
# **The first hole** is in `peft/function/bottleneck_function.py`, in `Bottleneck.forward`: compute `u` $(\dots, w)$
# and `y` $(\dots, C)$. Given are `linear(x, W, b)` for $x W^\top + b$; `f.forward(Context(f.__name__, (False,)), u)`
# for $f(u)$; and `factor`, an array of one number or of $C$. The change is added to `h`, or to `z` where `to_z` is
# true (which saves an operation), or to nothing (where `h` is `None`). `u` is kept for the backward pass, so it has
# to stay as it is, and no array that came in is written to.
#
# **The second hole** is in `peft/function/bottleneck.py`, in `BottleneckLayer.reads`: what does the adapter take in,
# of the sub-layer's output `y` and its input `x`?

# %%
base = GPT.from_pretrained(MODEL)
expected = base(ids).logits.data
for config in (SeqBnConfig(), DoubleSeqBnConfig(), ParBnConfig()):
    model = get_peft_model(base, config)
    layers = model.adapters["default"].wrappers
    count = model.get_nb_trainable_parameters()[0]
    start = base(ids).logits.data  # the base, with the adapters in it
    assert (start == expected).all(), "at its start an adapter changes nothing"
    for layer in layers.values():
        layer.adapter_up.weight.data[...] = 0.1 * rng.standard_normal(layer.adapter_up.weight.shape)
    moved = np.abs(base(ids).logits.data - expected).max()
    print(f"{type(config).__name__:18s} {len(layers)} places, {count:6,} parameters; logits move by {moved:.2f}")
    assert moved > 0
    base = model.unload()
assert (base(ids).logits.data == expected).all(), "what is taken out leaves nothing behind"

# %% [markdown]
# ## 5.2 The adapter's backward pass, derived by hand
#
# Let $G = \partial L / \partial y$ be the gradient that comes in. The graph, from left to right:
#
# $$ z \;\xrightarrow{\;W_{\text{down}},\, b_{\text{down}}\;}\; u \;\xrightarrow{\;f\;}\; a
# \;\xrightarrow{\;W_{\text{up}},\, b_{\text{up}}\;}\; v \;\xrightarrow{\;s\;}\; s \odot v
# \;\xrightarrow{\;+\,h\;}\; y . $$
#
# Derive the gradients of all seven inputs on paper: $h$, $z$, $W_{\text{down}}$, $b_{\text{down}}$, $W_{\text{up}}$,
# $b_{\text{up}}$, and $s$ where it is learned. Go from right to left. Three checks of what you have got:
#
# - **Shapes.** A gradient has the shape of what it belongs to. What is one number for all rows gets a sum over rows.
# - **Counting $s$.** Everything that lies to the left of $s$ has the factor $s$ exactly once. Is $s$ itself there?
# - **What was kept.** $v$ was not kept, and $a$ neither: $a$ is made again from $u$, which is narrow. That is what an
#   adapter costs in memory. Can the gradient of $s$ be had without making $v$, which is wide?
#
# **The hole** is in `Bottleneck.backward`. Given are `a`; `ctx.f.backward(inner, g)`, which multiplies `g` $(\dots,
# w)$ by $f'(u)$; `backward(g, x, W, needs)`, the three gradients (of `x`, `W`, `b`) of a linear layer, `None` where
# `needs` is false; and `s`, an array of one number or of $C$. Return seven gradients in the order of the inputs,
# `None` where none is needed: `need_h`, `need_z`, `need_down`, `need_down_bias` say so for the first four, and
# `above` for the last three, of which $s$ has one only where `ctx.learned`. With `ctx.to_z` the change was added to
# $z$. `z` is `None` where $W_{\text{down}}$ does not train. (While this task is checked, the engine is not there to
# do it for you.)

# %%
shapes = {"h": (2, 3, 4), "z": (2, 3, 4), "down": (2, 4), "b_down": (2,), "up": (4, 2), "b_up": (4,), "s": (4,)}
leaves = [mp.tensor(rng.standard_normal(shape), requires_grad=True) for shape in shapes.values()]
for f in ("tanh", "swish", "gelu"):
    assert mp.gradcheck(
        lambda h, z, down, b_down, up, b_up, s, f=f: bottleneck(h, z, (down, b_down), (up, b_up), f, s), leaves
    )
print("your gradients agree with central differences")

x = mp.tensor(rng.standard_normal((5, 4)))
for start in ("random", "zero"):
    down, up = (mp.tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((2, 4), (4, 2)))
    up.data[...] *= start == "random"
    none = [mp.tensor(np.zeros(n)) for n in (2, 4)]
    (bottleneck(x, x, (down, none[0]), (up, none[1]), "tanh") ** 2).sum().backward()
    sizes = [np.abs(t.grad).max() for t in (down, up)]
    print(f"W_up {start:6s}: |dW_down| up to {sizes[0]:6.2f}, |dW_up| up to {sizes[1]:6.2f}")

# %% [markdown]
# ## 5.3 A prompt before the embeddings
#
# Prompt tuning (Lester et al. 2021) trains $k$ vectors $P$ $(k, C)$ and nothing else. They stand before the vectors
# of the tokens, and the model reads them as words that no vocabulary has: a text of $T$ tokens becomes $[P; x]$, which
# is $k + T$ vectors, and positions are added after that.
#
# A model that generates reads its input once; then it is fed one token at a time, and the keys and values of all
# before it are in the cache. So when must the prompt be put there? The pass says it: `context.prompt_length` is the
# number of vectors that adapters put before the input *in this pass*; it is 0 in later ones. And where rows of a
# batch have prompts of different adapters, one layer places them all and sets `context.prompts_placed`: the others
# find it true and must not add theirs. A layer that is called without a context (`None`) is in a first pass.
#
# **The two holes** are in `peft/shapes.py`, in class `Tokens`, which stands around the GPT's `embed`. In `forward`:
# either hand `x` on to the wrapped module alone (`self.base_layer(x, context)`), or leave it to `super().forward(x,
# context)`, which looks whose rows these are, and calls `before` and the wrapped module. In `before`: give $[P; x]$
# for every row, from `self.prompt()` $(k, C)$ and `x` $(B, T, C)$, so that gradients reach both.

# %%
words = tokenizer.encode("In the beginning")
table = base.embed.tokens(np.asarray(words)[None]).data[0]


class Words(Tokens):
    """A prompt that says what the words say."""

    def __init__(self, base_layer):
        super().__init__(base_layer, SimpleNamespace(name="words", rows=lambda context: True))

    def prompt(self):
        return mp.tensor(table)


spelled_out = base(np.concatenate([np.tile(words, (2, 1)), ids], axis=1)).logits.data[:, len(words) :]
prompted = inject(base, ["embed"], lambda module, path: Words(module))
as_prompt = base(ids, context=ForwardContext(prompt_length=len(words))).logits.data
later = base(ids, context=ForwardContext(prompt_length=0)).logits.data
eject(base, prompted)
print(f"a prompt of {len(words)} words against the words: {np.abs(as_prompt - spelled_out).max():.1e}")
np.testing.assert_allclose(as_prompt, spelled_out, atol=1e-4)
np.testing.assert_array_equal(later, base(ids).logits.data)

# %% [markdown]
# ## 5.4 From a table to keys and values
#
# Prefix tuning (Li and Liang 2021) goes further: every layer gets $k$ trainable keys and values, to which all
# positions attend, $K' = [P_K; K]$, $V' = [P_V; V]$. They are trained as one table with a row for each of the $k$
# places, and a file has to say which column is what. The order is that of `peft`; columns count, from the slowest to
# the fastest:
#
# $$ \text{layer } (L), \quad \text{key, then value } (2), \quad \text{head (kv\_heads)}, \quad \text{channel } (D).
# $$
#
# **The hole** is in `peft/input/prefix_tuning.py`, in `PrefixTuning.prefix`: from `table` $(k, 2 L \cdot
# \text{kv\_heads} \cdot D)$ make a list with a pair (key, value) for each layer, each of shape (kv_heads, $k$, $D$).
# `c` is the model's config: `c.n_layer`, `c.kv_heads`, `c.head_dim`. Queries may have more heads than keys. Use the
# tensor's own operations (`reshape`, `permute`, `transpose`, indices), so that the gradient finds its way back. A
# `reshape` alone gives arrays of the right shape with the wrong numbers in them.

# %%
text = "In the beginning God created the heavens"
start = tokenizer.encode(text)
config = PrefixTuningConfig(num_virtual_tokens=len(start), init_weights="text", init_text=text)
adapter = get_peft_model(GPT.from_pretrained(MODEL), config).adapters["default"]
held = base(np.asarray(start)[None], use_cache=True).past_key_values
for layer, (key, value) in enumerate(adapter.prefix()):
    own_key, own_value = held.entries[layer]
    np.testing.assert_array_equal(key.data, own_key.data[0])
    np.testing.assert_array_equal(value.data, own_value.data[0])
print(f"{len(start)} words: the prefix holds what the base's cache holds of them, {key.shape} in each layer")

# %% [markdown]
# ## 5.5 Where the cache starts
#
# A prefix needs no code in the attention: it is a cache to start from. Three things have to be right. *When*: in the
# first pass of a sequence only, as later passes find it in the cache. *Where positions go on*: `cache.next_position`
# is the position of the next token; a text after a prefix of $k$ begins at position $k$. *In whose hands*: a caller
# who gave a cache will give it again in the next pass, so that very object must hold the prefix; where none was
# given, one is made.
#
# **The four holes:**
#
# 1. `Cache.from_prefix` (`models/cache.py`): let `cache.entries` (a dict from a layer's number to its pair) hold the
#    pairs, and set `cache.next_position`.
# 2. `begin` (`peft/passes.py`), called before each pass: in a first pass, announce the prompts of the `acting`
#    adapters (`context.prompt_length` and `context.prompt_keep` are what `places(context, lengths)` gives, `lengths`
#    being a dict from an adapter's name to its `prompt_length`), and put their prefixes into the cache
#    (`with_prefixes(context, acting, batch, cache)`, with as many rows as `ids` has). A first pass is one without a
#    cache, or with an empty one.
# 3. The end of `with_prefixes`: `layers` has the pairs, with a batch axis; `real` says which keys are no padding (it
#    is `None` where all are). Give back the cache with entries, `next_position` and `real`.
# 4. `in_line`: join the keys (or values) of several prefixes along the axis of $k$, the first one first, and give
#    them a batch axis. All rows share one prefix: what happens to its gradient?

# %%
model = get_peft_model(GPT.from_pretrained(MODEL), config)
spelled_out = base(np.concatenate([np.tile(start, (2, 1)), ids], axis=1)).logits.data[:, len(start) :]
prefixed = model(ids).logits.data
print(f"a prefix of {len(start)} words against the words: {np.abs(prefixed - spelled_out).max():.1e}")
np.testing.assert_allclose(prefixed, spelled_out, atol=1e-4)

first = model(ids[:, :5], use_cache=True)
parts = [first.logits.data, model(ids[:, 5:], past_key_values=first.past_key_values, use_cache=True).logits.data]
np.testing.assert_allclose(np.concatenate(parts, axis=1), prefixed, atol=1e-4)
print(f"in two passes the same; the cache holds {first.past_key_values.length} keys for {ids.shape[1]} tokens")

# %% [markdown]
# Many users, many prefixes, one model: each row of a batch runs under its own. Shorter ones are filled up, and what
# fills them up is masked.

# %%
model.add_adapter("short", PrefixTuningConfig(num_virtual_tokens=2), seed=1)
mixed = model(ids[[0, 0, 0]], adapter_names=["default", "short", "__base__"]).logits.data
np.testing.assert_allclose(mixed[0], prefixed[0], atol=1e-4)
np.testing.assert_allclose(mixed[2], base(ids).logits.data[0], atol=1e-4)
model.set_adapter("short")
np.testing.assert_allclose(mixed[1], model(ids).logits.data[0], atol=1e-4)
print("three rows, three models, one pass")

# %% [markdown]
# ## 5.6 BitFit: which biases, and how many
#
# The smallest change of parameters is BitFit (Ben Zaken et al. 2021): train the bias vectors, all others stay. A
# model's config may also ask for some kinds only, by the name of the module that a bias belongs to.
#
# **The three holes** are in `peft/parameter/bitfit.py`. In `bitfit_targets`: `biases`, a dict from the path of every
# bias of the base to its size; `base_parameters(model)` gives path and parameter of everything that belongs to the
# base, whatever adapters are attached to it. At the end of `of_kinds`: the `paths` whose module, `kind[path]`, is one
# of `kinds`, in order. And `bitfit_count`, the number of parameters that train.

# %%
total = sum(p.data.size for p in base.parameters())
for kinds in (None, ["q_proj"], ["q_proj", "up_proj"], ["ln_1", "ln_2", "ln_f"]):
    config = BitFitConfig(bias_kinds=kinds)
    count = bitfit_count(base, config)
    print(f"{', '.join(kinds or ['all']):18s} {count:6,} of {total:,} ({count / total:.2%})")
    model = get_peft_model(base, config)
    assert count == model.get_nb_trainable_parameters()[0]
    base = model.unload()

# %% [markdown]
# ## 5.7 A gate that learns to close
#
# Diff pruning (Guo et al. 2021) learns a difference $z \odot w$ for *every* weight, and wants most of the $z_i$ to be
# zero, exactly. Counting what is not zero has no gradient. The hard-concrete gate (Louizos et al. 2018) gets around
# that with noise: with $u$ uniform in $(0, 1)$ and $\varepsilon = \log u - \log(1 - u)$,
#
# $$ s = \sigma(\varepsilon + \alpha), \qquad z = \min(1, \max(0, s\,(r - l) + l)), \qquad l < 0,\; r > 1 . $$
#
# The sigmoid is stretched beyond 0 and 1 and cut off there, so both ends come up with a probability of their own. The
# *expected* number of open gates, $\sum_i P(z_i > 0)$, is a smooth function of $\alpha$, and that is the penalty.
#
# **The three holes** are in `peft/parameter/hard_concrete.py`; `LEFT` and `RIGHT` are $l$ and $r$.
#
# 1. `hard_concrete`: $z$ of `alpha` and `noise` ($\varepsilon$). $\alpha$ may be far out: no overflow, exactly 0 and
#    1 at the ends, and `alpha`'s dtype.
# 2. `HardConcrete.backward`: the gradient of $\alpha$ for `G`. What is the slope of $z$ between the ends, and what at
#    the ends? Only `z` was kept; $s$ has to be read off it.
# 3. `open_probability`: $P(z > 0)$ as a differentiable function of the tensor `alpha`. For which $s$ is $z > 0$, and
#    so for which $\varepsilon$? What is $P(\varepsilon \le t)$? (With the $l$ and $r$ of diff pruning, $-1.5$ and
#    $1.5$, an important term happens to be zero. The checks use others too.)

# %%
alphas = np.array([-3.0, -1.0, 0.0, 1.0, 5.0])
noise = rng.logistic(size=(100_000, 1))
drawn = hard_concrete(np.broadcast_to(alphas, (100_000, 5)), noise)
share, predicted = (drawn > 0).mean(axis=0), open_probability(mp.tensor(alphas)).data
for alpha, counted, p in zip(alphas, share, predicted, strict=True):
    print(f"alpha = {alpha:4.1f}: open in {counted:.3f} of the draws, P(z > 0) = {p:.3f}")
np.testing.assert_allclose(share, predicted, atol=0.01)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
line = np.linspace(-5, 5, 400)
left.plot(line, hard_concrete(line))
left.set(xlabel="alpha + noise", ylabel="z", title=f"the gate, l = {LEFT:g}, r = {RIGHT:g}")
for index in (1, 2, 3):
    right.hist(drawn[:, index], bins=25, histtype="step", label=f"alpha = {alphas[index]:g}")
right.set(xlabel="z", ylabel="draws", title="both ends have a probability of their own")
right.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# ## 5.8 A prefix is an adapter with a gate
#
# He et al. 2022 found that adapters, prefixes and LoRA all do one thing: they change a hidden state $h$, by another
# function, at another place. For prefix tuning this is not obvious. Take one head and one query $q$; the scores are
# $q K^\top / \sqrt D$. With a prefix, attention gives a mean of the values of both, $[P_V; V]$. Show that this mean
# is
#
# $$ (1 - \lambda)\; \underbrace{\operatorname{softmax}\bigl(q K^\top / \sqrt D\bigr) V}_{h}
# \;+\; \lambda\; \underbrace{\operatorname{softmax}\bigl(q P_K^\top / \sqrt D\bigr) P_V}_{\Delta h} $$
#
# and find $\lambda$, a number between 0 and 1 for each query and head. Read it off the common denominator of the
# softmax. The second term knows nothing of the other tokens: it is a function of $q$ alone, with a "down-projection"
# $P_K$ to $k$ numbers, a non-linearity, and an "up-projection" $P_V$. A parallel adapter of width $k$.
#
# **The hole** is in `analysis/unified_view.py`, in `GatedAttention.forward`, which does attention without any prefix.
# Given are `scores` $(B, H, T, T)$ of the text (hidden keys have $-10^{30}$), `on_prefix` $(B, H, T, k)$, the values
# `v` and `self.values`, of which head `kv_head[i]` is that of query head `i` (index with `[:, kv_head]` and
# `[kv_head]`). Compute `y` $(B, H, T, D)$. Scores may be large: nothing may overflow, and gradients must reach the
# prefix's keys as well, through $\lambda$ too.

# %%
model = get_peft_model(GPT.from_pretrained(MODEL), PrefixTuningConfig(num_virtual_tokens=4), seed=3)
with_prefix = model(ids).logits.data
gated = prefix_as_gated_adapter(model.adapters["default"])
with rewritten(model, gated) as plain:
    without = plain(ids, position_ids=4 + np.arange(ids.shape[1])[None]).logits.data
print(f"a prefix in the cache against a gated adapter in every head: {np.abs(with_prefix - without).max():.1e}")
np.testing.assert_allclose(without, with_prefix, atol=1e-4)

# %% [markdown]
# ## Closing experiment: where does a parameter do most?
#
# `tiny-0.25m` has read modern English. Each method gets 60 steps of 8 x 56 tokens of the English of 1395, in three
# sizes, at a rate that suits it (prompts and prefixes need rates a hundred times as large as weights do). For each:
# the gain on held-out text in bits per byte, against the number of trainable parameters. Then the same with a base
# that has read nothing: the GPT as it is drawn.

# %%
old = PackedText.from_corpus(load_corpus("wyc").split("train"), tokenizer)
held_out = PackedText.from_corpus(load_corpus("wyc").split("held_out"), tokenizer)
untrained = GPT.from_pretrained(MODEL).config
numba.set_num_threads(1)  # these matrices are small: more threads would wait for one another


def new_base(pretrained: bool = True) -> GPT:
    return GPT.from_pretrained(MODEL) if pretrained else GPT(untrained, seed=0)


def bits(model) -> float:
    return held_out.bits_per_byte(evaluate(model, held_out.windows(batch_size=32, length=56, limit=64)).loss)


before = {pretrained: bits(new_base(pretrained)) for pretrained in (True, False)}


def measured(config, lr: float, pretrained: bool = True) -> tuple[int, float]:
    """Trainable parameters, and the gain in bits per byte."""
    model = get_peft_model(new_base(pretrained), config)
    batches = lambda i: old.batch(i, batch_size=8, length=56, seed=0)  # noqa: E731
    with threadpool_limits(1):
        Trainer(model, batches, TrainConfig(steps=60, lr=lr, warmup=5)).run()
        return model.get_nb_trainable_parameters()[0], before[pretrained] - bits(model)


hint = "In the old tongue"


def prompt(k: int):
    return PromptTuningConfig(num_virtual_tokens=k, prompt_tuning_init="TEXT", prompt_tuning_init_text=hint)


def prefix(k: int):
    return PrefixTuningConfig(num_virtual_tokens=k, init_weights="text", init_text=hint)


families = {
    "prompt": (0.1, [prompt(k) for k in (2, 8, 32)]),
    "prefix": (0.3, [prefix(k) for k in (2, 8, 32)]),
    "adapter (Pfeiffer)": (0.03, [SeqBnConfig(bottleneck_size=w) for w in (1, 4, 16)]),
    "adapter (parallel)": (0.01, [ParBnConfig(bottleneck_size=w) for w in (1, 4, 16)]),
    "BitFit": (0.1, [BitFitConfig(bias_kinds=kinds) for kinds in (["q_proj"], ["q_proj", "up_proj"], None)]),
    "all parameters": (0.003, [FullConfig()]),
}
started = time.perf_counter()
points = {name: [measured(config, lr) for config in configs] for name, (lr, configs) in families.items()}
for name, rows in points.items():
    print(f"{name:20s}" + "   ".join(f"{count:7,} parameters: {gain:.2f}" for count, gain in rows))

# %%
middle = {name: (lr, configs[len(configs) // 2]) for name, (lr, configs) in families.items()}
middle["BitFit"] = (0.1, BitFitConfig())
of_nothing = {name: measured(config, lr, pretrained=False)[1] for name, (lr, config) in middle.items()}
of_something = {name: points[name][len(points[name]) // 2][1] for name in middle} | {"BitFit": points["BitFit"][-1][1]}
print(f"{time.perf_counter() - started:.0f} seconds")

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for name, rows in points.items():
    counts, gains = zip(*rows, strict=True)
    left.semilogx(counts, gains, "k*" if len(rows) == 1 else "o-", label=name)
left.set(xlabel="trainable parameters", ylabel="gain (bits per byte)", title="The English of 1395, after 60 steps")
left.legend(fontsize=8)
places = np.arange(len(of_nothing))
right.bar(places - 0.2, list(of_something.values()), 0.4, label="a base that has read modern English")
right.bar(places + 0.2, list(of_nothing.values()), 0.4, label="a base that has read nothing")
right.set_xticks(places, [name.replace(" (", "\n(") for name in of_nothing], rotation=30, fontsize=8)
right.set(ylabel="gain (bits per byte)", title="What the base contributes")
right.legend(fontsize=8)
fig.tight_layout()
plt.show()

best = {name: max(gain for _, gain in rows) for name, rows in points.items()}
assert best["prefix"] > best["prompt"] + 0.2, "keys and values in every layer say more than vectors before the first"
assert best["adapter (parallel)"] > 0.5 * best["all parameters"], "3 % of the parameters, more than half of the gain"
assert of_nothing["prompt"] < 0.1 < 0.4 < of_something["prompt"], "a prompt can only call up what is there"
assert math.isfinite(sum(of_nothing.values()))

# %% [markdown]
# **To discuss.** At equal numbers of parameters, which method gains most here, and is the order that of the papers?
# Which curve flattens, and why (how many words can a prompt be)? Training only the biases of $W_q$ does almost
# nothing, though the paper names them among the most useful: what is different about this task? On the right: which
# methods lose most when the base has read nothing, and what does that say about where their power comes from? (The
# untrained base starts at fewer bits per byte than the other, because it expects nothing at all of the text; gains
# count from there.)

# %% [markdown]
# ## Written questions
# Answer each in three to eight sentences, in your own words.

# %% [markdown]
# **Question 1** (4 points). Why do $W_{\text{up}}$ and the biases of an adapter start at zero, and not
# $W_{\text{down}}$ as well? What does the skip connection contribute? Could one merge a trained adapter into the
# weights, as LoRA?
#
# BEGIN SOLUTION(question="a5.q1")
# With $W_{\text{up}} = 0$ and $b_{\text{up}} = 0$ the adapter adds nothing, so training starts at the pretrained
# model; a random function in every layer would destroy what the layers above expect. If $W_{\text{down}}$ were zero
# as well, then $a = f(b_{\text{down}})$ would be the same for every input, for relu and its like zero: the gradient
# of $W_{\text{up}}$ has the factor $a$, that of $W_{\text{down}}$ the factor $W_{\text{up}}$, and neither would move
# (only $b_{\text{up}}$ would). The skip connection makes "add nothing" the resting state: a useless adapter is an
# identity, and gradients pass it unhindered. It cannot be merged: between its two matrices stands a non-linearity, so
# what it adds is no linear function of its input. (With the identity for $f$, a parallel adapter around one linear
# layer is LoRA, and can.)
#
# *Marking (4 points): 1 for the start at the base, 1 for the two gradients' factors, 1 for the skip connection, 1 for
# the non-linearity as the reason.*
# END SOLUTION

# %% [markdown]
# **Question 2** (4 points). A GPT has $L = 24$ layers and $C = 1024$ channels, keys and values have as many heads as
# queries. How many parameters do these train: a prompt of 20, a prefix of 20, a Pfeiffer adapter with $w = 64$,
# BitFit? Which of them changes the length of what attention looks at, and what does that cost at inference?
#
# BEGIN SOLUTION(question="a5.q2")
# Prompt: $kC = 20{,}480$. Prefix: $2kLC = 983{,}040$, that is $2L = 48$ times as many. Adapter: $L(2Cw + w + C) = 24
# \cdot (131{,}072 + 64 + 1{,}024) = 3{,}171{,}840$. BitFit: in each layer $4C$ for the attention, $4C + C$ for the
# feed-forward, $2C$ for two norms, so $11C$; and $C$ for the last norm: $24 \cdot 11{,}264 + 1{,}024 = 271{,}360$.
# Prompt and prefix lengthen what attention looks at by $k$ keys: every query has $k$ more scores, the cache $k$ more
# entries in each layer, and $k$ positions of the context are gone. A prompt's vectors also pass through all layers
# once, in the first pass; a prefix's do not. Adapters add two small products to every token in every layer. BitFit
# costs nothing: a bias is a bias.
#
# *Marking (4 points): 2 for the four counts (1 for three of them), 1 for prompt and prefix, 1 for the cost, with the
# cache or the scores named.*
# END SOLUTION

# %% [markdown]
# **Question 3** (5 points). A prompt of $k$ words' own vectors is exactly these words (5.3), and a prefix of their
# keys and values is too (5.5). So what can a trained prompt do that words cannot, and a trained prefix that a prompt
# cannot? Why is a prompt said to work only at scale? What could either do with a base whose weights are all zero?
#
# BEGIN SOLUTION(question="a5.q3")
# A prompt's vectors need not be those of words: they may lie anywhere in $\mathbb R^C$, also between words and
# outside of them, and are found by the gradient instead of by wording. But what a layer sees of them is computed by
# the frozen layers below: the keys and values of a prompt at layer $l$ are outputs of the model. A prefix chooses the
# keys and values of every layer freely, also such as no input produces, so it can do all that a prompt does (up to
# what positions and causality change) and more. A prompt can only call up what the model can already do if addressed
# in the right way; the larger the model, the more there is, and the better it follows. With zero weights there is
# nothing to call up: whatever attention collects from the prompt or the prefix is multiplied by an output projection
# of zeros, and never arrives. The closing experiment shows much the same with an untrained base.
#
# *Marking (5 points): 1 for "any vectors, by gradient", 2 for "each layer freely, against computed by frozen layers",
# 1 for scale, 1 for zero weights, with a reason.*
# END SOLUTION

# %% [markdown]
# **Question 4** (4 points). A service has a thousand users, each with a small tuned model of their own, and wants to
# put users together in batches. Compare prefixes, adapters, LoRA (merged and unmerged) and BitFit. What must be
# masked when prefixes have different lengths, and what goes wrong without it?
#
# BEGIN SOLUTION(question="a5.q4")
# A prefix is data, not weights: each row of the batch starts with its own entries in the cache, and everything else
# is one model. Adapters and unmerged LoRA can be row-wise too: each row's change is computed with that row's matrices
# and added, which costs gathering and some small products. Merged LoRA is a different weight for each user, so rows
# cannot share a product: one user at a time, or a thousand copies. BitFit could add each row's own bias, as $b$
# enters additively, but not as it is implemented here, where the bias in the layer itself is replaced. Shorter
# prefixes are filled up to the longest; the filling keys must be masked, because a key of zeros has the score 0,
# hence the weight $e^0 = 1$ in the softmax, with a value of zero: it would take attention away from the real keys.
# Positions must not depend on neighbours in the batch either: a row counts its own keys only.
#
# *Marking (4 points): 2 for the comparison (row-wise or not, with reasons), 1 for the mask, 1 for what a key of zeros
# does.*
# END SOLUTION

# %% [markdown]
# **Question 5** (4 points). "Adapters train 3 % of the parameters, so training takes 3 % of the memory and of the
# time." Which parts of this are true? Use your backward pass of 5.2. What does ladder side-tuning do differently?
#
# BEGIN SOLUTION(question="a5.q5")
# True for what belongs to trainable parameters: their gradients and the optimizer's moments, and for the file at the
# end. Not for activations: the adapter's own are small ($u$, and $z$ for $dW_{\text{down}}$), but $dz$ and $dh$ have
# to go on *through* the frozen base to the adapters below, so norms, attention and non-linearities must keep what
# their backward passes need, in all layers above the lowest adapter. Not for time: the forward pass is the base's and
# a little more; of the backward pass one saves the products for the gradients of the frozen weights, about a third of
# a step, as $\partial L / \partial x$ is still needed in every layer. Ladder side-tuning reads the base's hidden
# states into a small network of its own and never sends a gradient back into the base: no backward pass through it,
# none of its activations kept.
#
# *Marking (4 points): 1 for optimizer and gradients, 1 for activations (through the base), 1 for time, 1 for
# ladders.*
# END SOLUTION

# %% [markdown]
# **Question 6** (5 points). Why can the number of non-zero differences not be penalised directly, and how does the
# hard-concrete gate get around it? A gate that is held at 0 has gradient 0 (5.7): does it stay closed for ever? What
# does diff pruning save: in training, in storage, at inference?
#
# BEGIN SOLUTION(question="a5.q6")
# The number of non-zeros is a step function: its gradient is zero almost everywhere and does not exist at the step.
# The gate makes it random and takes the expectation: $\sum_i P(z_i > 0)$ is smooth in $\alpha$, and by writing $z$ as
# a function of $\alpha$ and a fixed noise, the gradient of the task's loss reaches $\alpha$ through the sample, too.
# With a plain (unstretched) sigmoid $z$ would never be exactly 0. A gate held at 0 in one step has no gradient from
# the loss *in this step*; in the next one the noise is another, and it may lie between the ends; only where $\alpha$
# is far out is this rare. (The penalty's gradient is never zero, and always closes.) In training nothing is saved:
# $w$ and $\alpha$ are as many as all weights, so two to three times full fine-tuning. In storage much: the places and
# values of the half per cent that differ, for each task. At inference nothing: $\theta + z \odot w$ is a dense model
# like the base; it costs no more, and no less.
#
# *Marking (5 points): 1 for the step function, 1 for the expectation, 1 for the noise that comes anew, 2 for the
# three savings (1 for two of them).*
# END SOLUTION

# %% [markdown]
# **Question 7** (5 points). Describe LoRA, a parallel adapter and prefix tuning by the four dials of the unified view
# (form of the change, where its input comes from, which hidden state it changes, how the two are joined). What does
# the gate $\lambda$ do that "add it" does not? What happens to it as the text grows longer?
#
# BEGIN SOLUTION(question="a5.q7")
# *LoRA*: $s B A z$, no non-linearity; $z$ is the input of a linear layer (parallel); $h$ is this layer's output,
# often the queries or values; $h + \Delta h$. *Parallel adapter*: $W_{\text{up}} f(W_{\text{down}} z)$; $z$ is the
# sub-layer's input; $h$ is the output of the feed-forward (or the attention); $h + s \Delta h$. *Prefix*:
# $\operatorname{softmax}(q P_K^\top) P_V$, a softmax as non-linearity over $k$ units; its input is the query
# (parallel); $h$ is each head's output; $(1 - \lambda) h + \lambda \Delta h$. The gate makes the result a mean: the
# change replaces part of $h$ instead of being added to it, its size is bounded by the largest value vector, and how
# much is replaced depends on the query, separately for each head. As $\lambda = \sum_P e^{\text{score}} / (\sum_P +
# \sum_K)$, every further key adds to the denominator: the longer the text, the smaller the prefix's share, unless its
# scores are large. An adapter's change does not fade.
#
# *Marking (5 points): 1 for each method (all four dials), 1 for the gate, 1 for the length of the text.*
# END SOLUTION

# %% [markdown]
# **Question 8** (4 points). `peft` trains a prefix through a network (`prefix_projection=True`) and saves the table
# that comes out, not the network. What can one do with such a file, and what not? Users found that training which was
# resumed from it got worse. Explain, and say what must be in a checkpoint.
#
# BEGIN SOLUTION(question="a5.q8")
# The table is all that inference needs: keys and values are read off it, the network was a way to train it, and the
# file is small. But training moved the network's weights, not the table: with $P = \tanh(E W_1^\top + b_1) W_2^\top +
# b_2$ many networks give the same table, and none can be read off it. Who resumes gets a new, random network (and so
# another table: the training is lost), or trains the table itself (another parametrisation, with other gradients and
# no use of the old rate), in either case with an optimizer that has forgotten its moments. A checkpoint must hold
# what trains ($E$, $W_1$, $b_1$, $W_2$, $b_2$), the optimizer's state, the number of the step for the schedule, and
# what drives the randomness and the order of the data; the table beside it, for those who only want to use it.
#
# *Marking (4 points): 1 for what the table suffices for, 2 for why the network cannot be recovered and what happens
# then, 1 for the contents of a checkpoint (the network and the optimizer at least).*
# END SOLUTION
