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
# # A2. A GPT and fine-tuning it
#
# **What you will build.** The parts that stand between a stack of linear layers and a language model that learns a new
# task: attention and its gradient, the cache that makes writing fast, the loss that counts the answer and not the
# prompt, the optimizer, the way tokens are drawn, and freezing. At the end a small GPT that has read modern English
# learns the English of 1395 from a hundred verses, once with all of its weights and once with its lower layers frozen.
#
# **Why.** *Full fine-tuning* is what every efficient method is measured against: it starts from the pretrained
# weights $\phi_0$ and moves all of them to $\phi_0 + \Delta\phi$. To see what the efficient methods save, one has to
# know what it does. This assignment also answers a question that is often answered wrongly: what does a frozen weight
# save, and what does it not save?
#
# **How to work.** Each section leads up to one task and says which file holds the hole, between
# `# BEGIN SOLUTION` and `# END SOLUTION`. Only what stands between the marks is graded. The cells below each task are
# small experiments; they run once the task (and the ones before it) are done.
#
# ```
# minitorch-peft course check              # all tasks
# minitorch-peft course check 2.1          # one task
# minitorch-peft course check 2.1 --hint   # a hint; ask again for more
# ```
#
# | task | | points | minutes |
# |---|---|---|---|
# | 2.1 | Causal attention | 20 | 35 |
# | 2.2 | The gradient of attention | 20 | 45 |
# | 2.3 | The cache of keys and values | 12 | 20 |
# | 2.4 | The loss of the answer, given the prompt | 14 | 25 |
# | 2.5 | AdamW | 12 | 20 |
# | 2.6 | Top-k and top-p sampling | 12 | 30 |
# | 2.7 | Freezing | 10 | 25 |
#
# You can solve the tasks in any order, except that 2.2 needs 2.1. The written questions are marked by a person, and
# their points come on top of the 100 points of the tasks. **Time:** about four hours with the questions.
# **Needs:** the installation in the README.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft import kernels
from minitorch_peft.data import Corpus, PackedText, Pairs, Tokenizer, load_corpus
from minitorch_peft.models import GPT
from minitorch_peft.models.generation import probabilities, sample
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import FullConfig, PartialConfig, PeftModel, get_peft_model

rng = np.random.default_rng(0)
tokenizer = Tokenizer.shipped()
model = GPT.from_pretrained("tiny-0.25m")

# %% [markdown]
# ## 2.1 Causal attention
# A query $q_i$ is compared with every key it may see. The scores, an additive mask $M$ and the output are
#
# $$S = s\,Q K^\top + M, \qquad P_{ij} = \frac{e^{S_{ij}}}{\sum_{j'} e^{S_{ij'}}}, \qquad O = P V .$$
#
# Four things make this more than one line.
#
# - **Causality, from the right.** There are $T$ queries and $S$ keys; often $S > T$, because a cache or a prefix stands
#   in front. The *last* query sees the *last* key, the query before it one key fewer, and so on. With $T = S$ that is
#   the usual triangle. Queries may also outnumber keys: then the first $T - S$ queries see nothing. Draw both $T = 2$,
#   $S = 5$ and $T = 5$, $S = 2$ before you write code.
# - **Masks** come in two kinds: bool (true: the key may be seen) and float (added to the scores, $-\infty$ to hide).
#   Either kind broadcasts, and either may be combined with causality.
# - **Grouped heads.** Keys and values may have fewer heads than queries; several query heads in a row read the same
#   one. The helper `_repeat` shows which.
# - **Numbers.** $e^{S_{ij}}$ overflows for scores of a few hundred. And a row in which nothing may be seen (a pad at
#   the start of a row, say) would be $0/0$: its output shall be zeros.
#
# Besides the output, the kernel returns $\ell_i = \log \sum_j e^{S_{ij}}$, the log-sum-exp of each row. It is one
# number for each query, where $P$ has $S$ of them, and 2.2 shows that the gradient needs to keep no more than that.
#
# **Write** `_scores` and `attention_forward` in `kernels/attention/reference.py`.

# %%
attention_forward = kernels.get("attention_forward", np.dtype("float64"))  # the NumPy reference
T, S = 3, 5
zeros, one_hot = np.zeros((1, 1, T, S)), np.eye(S).reshape(1, 1, S, S)
weights, lse = attention_forward(
    zeros, np.zeros((1, 1, S, S)), one_hot, None, True, 1.0
)  # values that show the weights
print(np.round(weights[0, 0], 2))
print("keys that each query sees:", np.exp(lse[0, 0]).round(6).tolist())
assert (weights[0, 0, -1] == 1 / S).all()

# %% [markdown]
# With attention done, the whole GPT runs. At every position it guesses the next token:

# %%
verse = "In the beginning, God created the heavens and the earth."
ids = np.array([[tokenizer.eos_token_id, *tokenizer.encode(verse)]])
with mp.no_grad():
    logits = model(ids).logits.data[0]
guesses = logits.argmax(-1)
print("text: ", [tokenizer.decode([int(i)]) for i in ids[0, 1:12]])
print("guess:", [tokenizer.decode([int(i)]) for i in guesses[:11]])
print(f"{(guesses[:-1] == ids[0, 1:]).mean():.0%} of the tokens guessed")

# %% [markdown]
# ## 2.2 The gradient of attention
# Given $G = \partial L / \partial O$, find $\partial L/\partial Q$, $\partial L/\partial K$ and
# $\partial L/\partial V$. Go back through the three steps one at a time:
#
# 1. $O = P V$ is a matrix product in $P$ and in $V$.
# 2. Each row of $P$ is a softmax of a row of scores, with the Jacobian
#    $\partial P_{ij} / \partial S_{ik} = P_{ij}\,([j = k] - P_{ik})$. Multiply it with the gradient of that row of $P$;
#    the result has a sum over the keys in it.
# 3. $S = s\,Q K^\top + M$ is a matrix product again. The scale belongs to it; the mask is a constant.
#
# The forward pass did *not* keep $P$. It kept $O$ and $\ell$. So:
#
# - $P$ must be built again, from the scores and $\ell$ alone. How?
# - The sum over the keys in step 2 can be had from $G$ and $O$, without $P$. Show it: write the sum out and put
#   $O_i = \sum_j P_{ij} V_j$ in.
#
# This is the idea behind FlashAttention (Dao et al. 2022): work that is done twice costs less than memory that is
# written and read. A key head that several query heads read gets a gradient from each of them. And where nobody needs
# a gradient (`needs`), nothing is computed: return `None`.
#
# **Write** `attention_backward` and `_sum_groups` in `kernels/attention/reference.py`. (While they are checked, the
# library's engine is not there to do it for you.)

# %%
q, k, v = (mp.tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((1, 4, 3, 5), *[(1, 2, 6, 5)] * 2))
assert mp.gradcheck(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), (q, k, v))

for T in (128, 1024, 8192):
    kept, instead = 4 * T * 64 + T, T * T  # q, k, v, out and lse against P
    print(f"T = {T:5d}: {kept * 4 / 1e6:7.2f} MB a head kept, {instead * 4 / 1e6:8.2f} MB if P were kept too")

# %% [markdown]
# ## 2.3 The cache of keys and values
# When a text grows by one token, the keys and values of the tokens before it do not change: no earlier position sees
# the new one. So they are kept, and each step computes one position instead of all.
#
# `Cache.update(layer, key, value, past_length)` is called by every layer in every pass. `past_length` is the number of
# keys that the cache held *before this pass*. Why is it an argument, when the cache could count for itself? Because a
# block may be computed **twice in one pass**: to save memory, training can drop a block's activations and compute them
# again in the backward pass. The second call must *replace* what the first one stored, not stand behind it.
#
# The entries are Tensors and stay part of the graph: a *prefix* (learned keys and values that a cache starts with) is
# trained through it. `select` drops keys; the next token's position goes on where it was, which is why
# `next_position` is kept apart from the length.
#
# **Write** `Cache.update` and `Cache.select` in `minitorch_peft/models/cache.py`.

# %%
prompt = np.array([[tokenizer.eos_token_id, *tokenizer.encode("And Jesus said")]])
seconds, texts = {}, {}
for use_cache in (True, False):
    start = time.perf_counter()
    texts[use_cache] = model.generate(prompt, max_new_tokens=200, use_cache=use_cache)
    seconds[use_cache] = time.perf_counter() - start
assert (texts[True] == texts[False]).all()
new, first = 200, prompt.shape[1]
computed = {True: first + new - 1, False: sum(first + i for i in range(new))}
for use_cache, label in ((True, "with the cache"), (False, "without")):
    print(f"{label:14s} {computed[use_cache]:5d} positions computed, {seconds[use_cache]:.2f} s, the same text")
print(tokenizer.decode(texts[True][0, 1:30].tolist()), "...")

# %% [markdown]
# ## 2.4 The loss of the answer, given the prompt
# Fine-tuning on pairs (source $x$, target $y$) maximises the *conditional* likelihood
#
# $$\max_\phi \sum_{(x, y)} \sum_t \log P_\phi(y_t \mid x, y_{<t}) .$$
#
# The model reads $x$ and $y$ as one row. Every position predicts the next token, but only predictions of tokens of $y$
# count; those of the prompt and of the pads do not. What does not count has the label $-100$.
#
# Two places share the work. `Pairs._rows` builds the rectangle: ids, labels and mask, filled up on the right (for
# training) or on the left (so that texts end together and can go on). Its labels stand *under their own tokens*.
# `shifted_labels` then moves them to the positions that predict them. Where a position stands before the input (the
# last vector of a soft prompt), it predicts the first token, and there is one position more than tokens.
#
# Be careful with pads: some tokenizers pad with a token that also occurs in the text.
#
# **Write** `Pairs._rows` in `minitorch_peft/data/pairs.py` and the end of `shifted_labels` in
# `minitorch_peft/models/inputs.py`.

# %%
prompts = [[5, 11, 12, 2], [5, 13, 2]]
answers = [[21, 22, 5], [23, 5]]
small = Pairs((0, 1), tuple(prompts), tuple(answers), ("", ""), ("", ""), 0, pad=1)
for side in ("right", "left"):
    (batch,) = small.batches(2, side)
    print(f"padded on the {side}:", *(f"{name} {batch[name].tolist()}" for name in batch), sep="\n  ")


# %% [markdown]
# On real pairs: the same verse in modern English and in that of 1395. The model has not learned the task yet. How much
# does the prompt tell it about the answer?


# %%
def first_verses(name: str, split: str, count: int) -> Corpus:
    return Corpus(name, dict(list(load_corpus(name).split(split).verses.items())[:count]))


pairs = Pairs.from_corpora(*(first_verses(name, "held_out", 60) for name in ("web", "wyc")), tokenizer, max_length=160)
(batch,) = pairs.batches(len(pairs))
with mp.no_grad():
    answer_only = model(**batch).loss.item()
    everything = model(
        **{**batch, "labels": np.where(batch["attention_mask"] == 1, batch["input_ids"], -100)}
    ).loss.item()
counted = int((batch["labels"] != -100).sum())
print(f"{counted} of {int(batch['attention_mask'].sum())} tokens count")
print(f"loss of the answers {answer_only:.2f} nats a token; of the whole rows {everything:.2f}")
assert answer_only > everything, "the sources are modern English, which the model knows"

# %% [markdown]
# ## 2.5 AdamW
# A single rate cannot suit all parameters: their gradients differ by orders of magnitude. Adam (Kingma and Ba 2015)
# keeps two running means for every parameter, of the gradient and of its square,
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2,$$
#
# and steps by their ratio: about one rate's length, whatever the gradient's size. Two things are left to you:
#
# - **The start.** $m$ and $v$ are zero at first, so they are too small for a while. If every gradient were the same
#   $g$, what would $m$ be after $t$ steps? Divide by that factor. Do the same for $v$, *before* the root.
# - **The decay.** $L_2$ regularisation adds $\lambda p$ to the gradient; in Adam the ratio then undoes most of it.
#   AdamW (Loshchilov and Hutter 2019) takes it out of the gradient: the parameter itself shrinks by the share
#   $\text{lr} \cdot \lambda$, beside the step. $\epsilon$ is added to the root, outside of it.
#
# The arrays are changed **in place**: the model holds the same arrays.
#
# **Write** `adamw_step` in `kernels/optimizer/reference.py`.

# %%
scales = np.array([100.0, 1.0, 0.01])  # gradients of very different size
p = mp.tensor(np.ones(3), requires_grad=True)
optimizer = AdamW({"p": p}, lr=0.1, weight_decay=0.0)
path = [p.data.copy()]
for _ in range(40):
    (mp.tensor(scales) * p**2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    path.append(p.data.copy())
print("first step:", (path[0] - path[1]).round(4).tolist(), "whatever the gradient", (2 * scales).tolist())
print("after 40:  ", path[-1].round(3).tolist())
assert np.allclose(path[0] - path[1], 0.1, atol=1e-4)

# %% [markdown]
# ## 2.6 Top-k and top-p sampling
# The model gives a distribution over the next token. Its tail is long: thousands of tokens, each unlikely, together
# likely enough that one is drawn every few words, and one bad token spoils what follows.
#
# - **Temperature** divides the logits: below 1 the likely becomes likelier.
# - **Top-k** keeps the $k$ largest logits.
# - **Top-p** (Holtzman et al. 2020), of what top-k has left, keeps the smallest set of tokens whose probabilities
#   reach $p$. The token that crosses $p$ is in the set, so there is always one.
#
# They act in this order, and what is left is a distribution again. To draw from it, take a number $u$ in $[0, 1)$ and
# find where the cumulative sum first exceeds it. (Sums of floats may end a little below 1; and a token of probability
# zero must never be drawn.)
#
# **Write** `probabilities` and `sample` in `minitorch_peft/models/generation.py`.

# %%
contexts = ("and all the children of", "And he said to the")
with mp.no_grad():
    rows = [np.array([[tokenizer.eos_token_id, *tokenizer.encode(text)]]) for text in contexts]
    logits = np.concatenate([model(row).logits.data[:, -1] for row in rows])
for top_k, top_p in ((40, None), (None, 0.5), (None, 0.9), (40, 0.9)):
    p = probabilities(logits, 1.0, top_k, top_p)
    print(f"top_k={top_k}, top_p={top_p}: {(p > 0).sum(-1).tolist()} tokens may be drawn")
draws = [sample(probabilities(logits, 1.0, None, 0.5)[1], 0, 0, step) for step in range(8)]
print("drawn after the second:", [tokenizer.decode([i]) for i in draws])

# %% [markdown]
# Top-k keeps as many tokens where the model is sure as where it is not. Top-p adapts to it.

# %% [markdown]
# ## 2.7 Freezing
# *Partial* fine-tuning trains the top blocks, the final norm and the head; the lower blocks, which hold what is common
# to all texts, stay as they are (Howard and Ruder 2018). A head that shares the embedding's weight belongs to both ends
# of the model, so it stays frozen too.
#
# What is saved? A linear layer $Y = X W^\top + b$ has three gradients: of $X$, of $W$ and of $b$. Write down which of
# the three needs $X$, and which needs $W$. Then look at `Linear.forward`: it keeps $X$ only where $W$ is trained. In
# the backward pass a frozen weight must cost no gradient: not an array of zeros, but **no computation and `None`**. The
# gradient of $X$, though, must still be handed down if anything below learns.
#
# **Write** `is_above` and the choice in `partial_targets` (`minitorch_peft/peft/parameter/partial.py`), and
# `Linear.backward` (`minitorch_peft/ops/matmul.py`).


# %%
def step_time(model: PeftModel, repeats: int = 4) -> float:
    """Seconds of the fastest forward and backward pass of a batch."""
    ids = np.random.default_rng(0).integers(0, 1024, (4, 128))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model(ids, labels=ids).loss.backward()
        times.append(time.perf_counter() - start)
    return min(times)


configs = {"full": FullConfig(), **{f"top {n}": PartialConfig(top_layers=n) for n in (2, 1, 0)}}
times, trainable = {}, {}
for label, config in configs.items():
    adapted = get_peft_model(GPT.from_pretrained("tiny-0.25m"), config)
    trainable[label], total = adapted.get_nb_trainable_parameters()
    times[label] = step_time(adapted)
    print(f"{label:6s} {trainable[label]:7,} of {total:,} parameters train, {1e3 * times[label]:4.0f} ms a pass")
    frozen = [p for p in adapted.base_model.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen), "a frozen parameter has no gradient"
assert trainable["top 0"] == 2 * 64, "the final norm alone: this model's head is tied"

# %% [markdown]
# Freezing from the bottom saves the backward pass through the frozen blocks as well, for nothing below them learns.
# A method that has something to train in the *lowest* block saves less: see question 4.

# %% [markdown]
# ## Questions
# Answer in a few sentences each.

# %% [markdown]
# **Question 1** (4 points). A GPT-3 of 175 billion parameters is fine-tuned in full, for one task, with AdamW in
# float32. What must be held in memory besides the activations, and how much is it? Apart from memory during training,
# name three reasons why full fine-tuning became impractical for such models.
#
# BEGIN SOLUTION(question="a2.q1")
# *4 points.* Weights, gradients and AdamW's two means: four numbers a parameter (1 point), 16 bytes, so 175 · 10⁹ · 16
# = 2.8 TB (1 point; 12 bytes besides the weights, 2.1 TB, is right too if it is said so). Other reasons, 2 points for
# three of them, 1 for two: a full copy of the model must be *stored* for every task; it must be *served* for every
# task (a batch cannot mix tasks, and switching means loading hundreds of gigabytes); the energy and money of training
# concentrate it in rich organisations; with little data a model with this many free parameters overfits, and it
# forgets what it knew.
# END SOLUTION

# %% [markdown]
# **Question 2** (4 points). In-context learning also "learns" a task from examples. What changes in the model, and
# where does what was learned live? Why is it called *emergent*? Give two observations which suggest that it is not
# learning in the sense of this assignment.
#
# BEGIN SOLUTION(question="a2.q2")
# *4 points.* Nothing changes in the weights: there is no gradient (1 point). What was learned lives in the
# activations, namely in the keys and values of the examples that later positions attend to, and is gone with the cache
# (1 point). Emergent: it is nearly absent in small models and appears with scale, without having been trained for, as
# on unscrambling words (1 point). Observations (1 point for two): labels drawn at random can work nearly as well as
# right ones; the result depends on the order, the wording and the format of the examples; few-shot is not always
# better than zero-shot. Also accepted: the model recognises a task that it has seen in pretraining rather than
# acquires one.
# END SOLUTION

# %% [markdown]
# **Question 3** (4 points). Name the four downsides of prompting. For each, say whether fine-tuning removes it.
#
# BEGIN SOLUTION(question="a2.q3")
# *4 points, one for each downside with its verdict.* (1) Inefficiency: the prompt is processed again at every
# prediction; fine-tuning removes it, since what the examples say is in the weights (and pays once, in training). (2)
# Worse quality than fine-tuning on the same task: removed by definition, given enough data. (3) Sensitivity to
# wording, order and format: mostly removed, since the model is trained on the one format in which it is used; it stays
# brittle outside it. (4) It is unclear what is learned from the prompt (random labels can work): only shifted, for
# what fine-tuning writes into the weights is as hard to read; but it can be measured on held-out data, and stored.
# END SOLUTION

# %% [markdown]
# **Question 4** (4 points). A student writes: "LoRA trains less than a hundredth of the parameters, so its backward
# pass is a hundred times cheaper." Correct this with what you found in 2.7. Where in the model would a method have to
# put its parameters in order to save the backward pass of the base as well?
#
# BEGIN SOLUTION(question="a2.q4")
# *4 points.* Per frozen linear layer only one of the two large products is saved, that of the weight's gradient (1
# point); the gradient of the input must still be computed down to the lowest trained parameter (1 point). So forward
# and backward cost about two of the three large products of a layer, not a hundredth of them; what shrinks to a
# hundredth is the memory of gradients and of the optimizer's means, and the file (1 point). To save the rest, the
# trained parameters must stand above all that is frozen, as in probing or partial fine-tuning, or in a side network
# that reads detached activations (ladder side-tuning) (1 point).
# END SOLUTION

# %% [markdown]
# **Question 5** (4 points). The conditional objective leaves the prompt's tokens out of the loss. What would be
# learned if they counted too, and when might that help? Why must pads be left out of the loss *and* of attention, and
# why does right-padding get away without the latter in a causal model?
#
# BEGIN SOLUTION(question="a2.q5")
# *4 points.* With the prompt counted, the model also learns to write prompts: capacity and gradient go into modelling
# P(x), and where prompts are long they dominate the mean (1 point). It can help as extra language modelling of the
# domain where answers are very short or data is scarce (1 point). Pads in the loss teach the model to predict pads,
# and their number would change the mean; pads that are attended to change the result of a row with what stands beside
# it in the batch (1 point). A pad on the right comes after all real tokens, so causality hides it from them; the pads'
# own outputs are wrong but no one reads them. On the left it needs a mask, and positions that do not count it (1
# point).
# END SOLUTION

# %% [markdown]
# **Question 6** (3 points). Five-digit additions fail under plain few-shot prompts and succeed more often with a
# chain of thought. Explain this with what a causal model can compute for one token, and for many. What is *zero-shot*
# chain of thought, and how does it compare?
#
# BEGIN SOLUTION(question="a2.q6")
# *3 points.* For one token the model has a fixed amount of computation, as many steps in sequence as layers: carrying
# across five digits may not fit (1 point). Written-out steps become context: each new token is a function of all
# tokens before it, so intermediate results are stored in the text and read back by attention, and the computation
# grows with its length (1 point). Zero-shot: no examples, only a sentence such as "Let's think step by step."; better
# than plain zero-shot, worse than hand-written chains, and like them it emerges with scale (1 point).
# END SOLUTION

# %% [markdown]
# **Question 7** (4 points). Order probing, partial fine-tuning and full fine-tuning by what they may change. Which
# would you try first with 50 examples, and which with a million? What has early stopping in common with freezing?
#
# BEGIN SOLUTION(question="a2.q7")
# *4 points.* Probing trains a head on frozen representations, partial fine-tuning the top blocks too, full fine-tuning
# all (1 point). With 50 examples the bias of the frozen model protects: probing or a few top layers, small rates,
# augmentation, early stopping; with a million, full fine-tuning, for the limit is then what the frozen layers can
# express (1 point). Both early stopping and freezing keep the weights near the pretrained ones, one by limiting the
# number of steps, the other by limiting the directions: both are regularisers (1 point). Early stopping needs held-out
# data and lets all weights move; freezing needs a choice beforehand, and saves memory and time besides (1 point).
# END SOLUTION

# %% [markdown]
# ## Closing experiment: the English of 1395 from a hundred verses
# The model learned modern English. It now sees a hundred verses in the English of 1395, again and again (small data is
# where freezing is said to help). Books that it never trains on judge it, in bits per byte; the same books in modern
# English show what it forgets.


# %%
def packed(name: str, split: str, count: int) -> PackedText:
    return PackedText.from_corpus(first_verses(name, split, count), tokenizer)


lesson = packed("wyc", "train", 100)
held_out = {"1395": packed("wyc", "held_out", 300), "modern": packed("web", "held_out", 300)}


def bits_per_byte(model: GPT | PeftModel, text: PackedText) -> float:
    """On 16 windows of 128 tokens, spread over the text."""
    with mp.no_grad():
        losses = [model(b["input_ids"], labels=b["labels"]).loss.item() for b in text.windows(16, 128, limit=16)]
    return text.bits_per_byte(float(np.mean(losses)))


STEPS, EVERY = 80, 8


def adapt(model: PeftModel, lr: float) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Bits per byte every few steps, and the trained parameters where those of 1395 were lowest."""
    optimizer = AdamW([(n, p) for n, p in model.named_parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    curve: list[dict[str, float]] = []
    best: dict[str, np.ndarray] = {}
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            curve.append({name: bits_per_byte(model, text) for name, text in held_out.items()})
            if curve[-1]["1395"] == min(point["1395"] for point in curve):
                best = {n: p.data.copy() for n, p in model.named_parameters() if p.requires_grad}
        batch = lesson.batch(step, batch_size=8, length=128)
        model(batch["input_ids"], labels=batch["labels"]).loss.backward()
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 5)
        optimizer.step()
        optimizer.zero_grad()
    return curve, best


runs = {"full": (FullConfig(), 2e-3), "top 2 blocks": (PartialConfig(top_layers=2), 3e-3),
        "top block": (PartialConfig(top_layers=1), 3e-3)}  # fmt: skip
curves, models = {}, {}
for label, (config, lr) in runs.items():
    models[label] = get_peft_model(GPT.from_pretrained("tiny-0.25m"), config)
    curves[label], best = adapt(models[label], lr)
    parameters = dict(models[label].named_parameters())
    for name, array in best.items():
        parameters[name].data = array  # back to the best step: early stopping
    old = [point["1395"] for point in curves[label]]
    at, modern = int(np.argmin(old)), curves[label][-1]["modern"]
    print(f"{label} ({models[label].get_nb_trainable_parameters()[0]:,} parameters), bits per byte:")
    print(f"  1395: {old[0]:.2f} at first, {old[at]:.2f} at step {at * EVERY}, {old[-1]:.2f} at the end")
    print(f"  modern English: {curves[label][0]['modern']:.2f} at first, {modern:.2f} at the end")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), gridspec_kw={"width_ratios": [1.3, 1]})
steps = np.arange(0, STEPS + 1, EVERY)
for color, (label, curve) in zip(("C0", "C1", "C2"), curves.items(), strict=True):
    old, modern = ([point[name] for point in curve] for name in ("1395", "modern"))
    at = int(np.argmin(old))
    left.plot(steps, old, color=color, label=label)
    left.plot(steps, modern, color=color, linestyle=":")
    left.plot(steps[at], old[at], "o", color=color)
    right.plot(modern, old, ".-", color=color, label=label)
    right.plot(modern[at], old[at], "o", color=color)
left.set(xlabel="step", ylabel="bits per byte, held out", title="1395 (lines) and modern English (dotted)")
right.set(xlabel="modern English: what is forgotten", ylabel="1395: what is learned", title="the path of each run")
left.legend()
right.annotate("start", (modern[0], old[0]), textcoords="offset points", xytext=(8, -4))
fig.suptitle("a hundred verses of 1395; a dot marks where to stop")
fig.tight_layout()
plt.show()

best = {label: min(point["1395"] for point in curve) for label, curve in curves.items()}
last = {label: curve[-1] for label, curve in curves.items()}
assert best["full"] < best["top block"] - 0.1, "with early stopping, full fine-tuning learns more"
assert last["full"]["1395"] > best["full"] + 0.15, "without it, it overfits"
assert last["top block"]["1395"] < best["top block"] + 0.12, "frozen lower layers hardly do"
assert last["full"]["modern"] > last["top block"]["modern"] + 0.3, "and full fine-tuning forgets more"

# %% [markdown]
# **Discuss**, with your plot (half a page):
#
# 1. Why does the held-out curve of full fine-tuning turn, and why does it turn so much later, or hardly, for the top
#    block? Where would you stop, and with which data may you decide that?
# 2. Which run is better? Say for which purpose: one task only, or a model that must still read modern English.
# 3. The old spelling changes almost every word. Which parameters would have to change to learn spelling, and are they
#    among those of the partial runs? Would you expect the same picture for a new *topic* in modern English?
# 4. What would you change to make the comparison fair: the rates, the steps, the number of trained parameters?

# %% [markdown]
# Last, the adapted model writes. A small $p$ repeats itself, a large one loses the thread.

# %%
prompt = np.array([[tokenizer.eos_token_id, *tokenizer.encode("And Jhesus seide")]])
repeated = {}
for top_p in (0.1, 0.5, 0.9, 1.0):
    written = models["full"].generate(np.repeat(prompt, 8, 0), 48, do_sample=True, top_p=top_p, seed=1)[
        :, prompt.shape[1] :
    ]
    triples = [tuple(row[i : i + 3]) for row in written for i in range(46)]
    repeated[top_p] = 1 - len(set(triples)) / len(triples)
    text = tokenizer.decode([*prompt[0, 1:].tolist(), *written[0].tolist()])
    print(f"top_p={top_p}: {repeated[top_p]:.0%} of triples repeated; {text}")
assert repeated[0.1] > repeated[0.9] >= repeated[1.0]

# %% [markdown]
# **Try it yourself.** Give the model four hundred verses instead of a hundred: which of the four assertions fails
# first? Then fine-tune on `Pairs` with the conditional loss, and compare the bits per byte of the answers.
