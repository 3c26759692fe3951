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
# # 7. Changing the input: prompts, prefixes and gists
#
# **What will be built.** Five methods that leave every weight and every layer as they are, and put something in front
# of the text: prompt tuning by hand, with three starts and its price; prefix tuning, and how much attention the prefix
# gets; the networks of P-tuning that make a prompt; prompts at every layer with a head, for classification; gist
# tokens, which compress a prompt; and one batch in which every row belongs to another user.
#
# **Time:** about 50 minutes to read, half a minute to run. **Needs:** `pip install minitorch-peft[data]`.

# %%
import math
import tempfile
from collections.abc import Collection
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.analysis.gist import gist_report, share_kept
from minitorch_peft.data import Corpus, LabelledVerses, PackedText, Pairs, Tokenizer, load_corpus
from minitorch_peft.formats.files import read_arrays, write_arrays
from minitorch_peft.models import GPT, SequenceClassifier
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import (
    GistConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PTuningV2Config,
    get_peft_model,
)
from minitorch_peft.peft.input.gist import compress, with_gists
from minitorch_peft.training import TrainConfig, train

rng = np.random.default_rng(0)
tokenizer = Tokenizer.shipped()


def part_of(name: str, split: str, verses: int) -> Corpus:
    """The first ``verses`` of a split: enough for the few steps taken here."""
    corpus = load_corpus(name).split(split)
    return Corpus(name, dict(islice(corpus.verses.items(), verses)))


texts = {
    (name, split): PackedText.from_corpus(part_of(name, split, verses), tokenizer)
    for name in ("kjv", "wyc", "ylt")
    for split, verses in (("train", 3000), ("held_out", 900))
}

# %% [markdown]
# ## The idea
# A language model does what the text before tells it to. A written prompt is such a text; but it must be made of words,
# and the right words must be found by trying. The methods of this walkthrough *learn* what stands before the text, by
# gradients, while the model is frozen. They differ in what it is and in where it stands:
#
# | method | what is learned | where |
# |---|---|---|
# | prompt tuning | $k$ vectors | before the first layer |
# | P-tuning (v1) | a network that makes these $k$ vectors | before the first layer |
# | prefix tuning | $k$ keys and values for each layer | in every attention |
# | P-tuning v2 | the same, and a head for classes | in every attention |
# | gist tokens | $k$ new words, and how to write a prompt into them | in the text |

# %%
GPT_NAME, STEPS = "tiny", range(0, 21, 5)
base = GPT.from_pretrained(GPT_NAME)
C, LAYERS, POSITIONS = base.config.n_embd, base.config.n_layer, base.config.n_positions
print(f"C = {C} channels, {LAYERS} layers, {base.config.n_head} heads, {POSITIONS} positions")


def adapt(model, batch, lr: float, steps: int = 20) -> list[float]:
    """The losses of ``steps`` updates with AdamW, the rate falling to zero."""
    optimizer = AdamW([(n, p) for n, p in model.named_parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps):
        loss = model(**batch(step)).loss
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 5) * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def old_english(step: int):
    """8 x 48 tokens of the translation of 1395."""
    return texts["wyc", "train"].batch(step, batch_size=8, length=48)


def bits_per_byte(model, name: str = "wyc", **options) -> float:
    """On 16 windows of held-out books, the first token of each left out: the base has nothing to predict it from."""
    text, losses = texts[name, "held_out"], []
    with mp.no_grad():
        for batch in text.windows(batch_size=16, length=64, limit=16):
            batch["labels"][:, 0] = -100
            losses.append(model(**batch, **options).loss.item())
    return text.bits_per_byte(float(np.mean(losses)))


before = bits_per_byte(base)
print(f"the base: {before:.2f} bits per byte on the English of 1395")

# %% [markdown]
# ## Prompt tuning
# A matrix $P \in \mathbb{R}^{k \times C}$ stands before the vectors of the words (Lester et al. 2021):
#
# $$\Pr(Y \mid [P; X]), \qquad [P; X] \in \mathbb{R}^{(k + T) \times C} .$$
#
# That is $k\,C$ parameters. The model reads $P$ as words that no vocabulary has. By hand it is one concatenation,
# *before* the positions are added: the prompt has the positions $0 \dots k - 1$, the text goes on from $k$.

# %%
k = 16
ids = np.array([[tokenizer.eos_token_id, *tokenizer.encode("And God said, Let there be light")]])
T = ids.shape[1]
P = rng.standard_normal((k, C)).astype(np.float32)
with mp.no_grad():
    X = base.embed.tokens(ids)
    by_hand = base(inputs_embeds=F.cat([mp.tensor(P[None]), X], dim=1)).logits.data

model = get_peft_model(base, PromptTuningConfig(num_virtual_tokens=k))
model.print_trainable_parameters()
assert model.get_nb_trainable_parameters()[0] == k * C
(table,) = model.trainable_parameters().values()
table.data[...] = P
assert np.allclose(model(ids).logits.data, by_hand[:, k:], atol=1e-4)

# %% [markdown]
# **The first token counts.** A model alone has nothing to predict the first token from: $T$ tokens give $T - 1$
# targets. After a prompt there is something before it, the last vector of $P$, and its prediction is in the loss.

# %%
loss_by_hand = F.cross_entropy(mp.tensor(by_hand[0, k - 1 : -1]), ids[0])
out = model(ids, labels=ids)
assert out.num_targets == T and abs(out.loss.item() - loss_by_hand.item()) < 1e-4
with model.disable_adapter():
    assert model(ids, labels=ids).num_targets == T - 1

# %% [markdown]
# **The price is paid at every use.** LoRA can be merged into the weights, and then costs nothing. A prompt cannot: the
# model runs over $L' = L + k$ vectors, the cache holds $k$ keys and values more, and $k$ positions are gone. With short
# texts that is much.

# %%
cache = model(ids, use_cache=True).past_key_values
assert cache.length == T + k == cache.next_position
for length in (T, 64, POSITIONS - k):
    print(f"{length:4d} tokens of text: {(length + k) / length:.2f} times the work in every linear layer")
model.unload()

# %% [markdown]
# **Three starts.** `RANDOM` draws from a normal distribution of standard deviation 1, as `peft` does. `SAMPLE_VOCAB`
# takes the vectors of words that the seed draws. `TEXT` takes the vectors of words that you give: names of the task or
# of its classes, repeated until $k$ are there. A prompt of words starts as exactly these words before the text:

# %%
LABEL = "old words"
vocabulary = base.embed.tokens.weight.data
prompts = {
    "RANDOM": PromptTuningConfig(k),
    "SAMPLE_VOCAB": PromptTuningConfig(k, "SAMPLE_VOCAB"),
    "TEXT": PromptTuningConfig(k, "TEXT", prompt_tuning_init_text=LABEL),
}
adapted, curves, quality = {}, {}, {}
for name, config in prompts.items():
    model = adapted[name] = get_peft_model(GPT.from_pretrained(GPT_NAME), config, seed=0)
    (table,) = model.trainable_parameters().values()
    print(f"{name:13s} starts with standard deviation {table.data.std():.2f}, words have {vocabulary.std():.2f}")
    if name == "TEXT":
        words = model.adapters["default"].config.prompt_tuning_init_ids
        start = table.data.copy()
        before_text = np.concatenate([[words], ids], axis=1)
        assert np.allclose(model(ids).logits.data, base(before_text).logits.data[:, k:], atol=1e-4)
    curves[name] = adapt(model, old_english, lr=0.1)
    quality[name] = bits_per_byte(model)

fig, ax = plt.subplots(figsize=(6.4, 3.4))
for name, losses in curves.items():
    ax.plot(losses, label=f"{name}: {quality[name]:.2f} bits per byte, held out")
ax.set(
    xlabel="step",
    xticks=STEPS,
    ylabel="training loss",
    title=f"Prompt tuning, k = {k}, from {before:.2f} bits per byte",
)
ax.legend(fontsize=8)
plt.tight_layout()
plt.show()
assert all(value < before for value in quality.values()), "every start learns"
assert max(quality, key=quality.get) == "RANDOM", "the start that is far from all words learns most slowly"

# %% [markdown]
# What has it become? Not another text: its vectors have gone far from where they started, and no word lies near them.
# A learned prompt cannot be read.

# %%
(table,) = adapted["TEXT"].trainable_parameters().values()
moved = np.linalg.norm(table.data - start, axis=1) / np.linalg.norm(start, axis=1)
unit = vocabulary / np.linalg.norm(vocabulary, axis=1, keepdims=True)
cosines = (table.data / np.linalg.norm(table.data, axis=1, keepdims=True)) @ unit.T
nearest = cosines.argmax(1)
print("start  ", [tokenizer.decode([i]) for i in words])
print("nearest", [tokenizer.decode([i]) for i in nearest.tolist()])
print(f"cosine to the nearest word {cosines.max(1).mean():.2f}; moved by {moved.mean():.1f} times their length")
assert cosines.max(1).mean() < 0.5 and moved.min() > 1

# %% [markdown]
# ## Prefix tuning
# A prompt enters at the first layer; what the layers above make of it is fixed. A prefix (Li and Liang 2021) is $k$
# keys and values in *every* attention, each learned:
#
# $$\text{head} = \text{softmax}\!\left(\frac{q\,[P_K; K]^\top}{\sqrt{D}}\right) [P_V; V], \qquad 2\,k\,L\,C
# \text{ parameters.}$$
#
# A softmax over two groups of keys is a mean of the two softmaxes. With $\lambda$ the share of attention on the prefix
#
# $$\text{head} = (1 - \lambda)\,\text{Attn}(q, K, V) + \lambda\,\text{Attn}(q, P_K, P_V),$$
#
# so a prefix does to a head's output what an adapter does: it adds something, more or less of it (He et al. 2022).

# %%
q, K, V, P_K, P_V = (rng.standard_normal(shape) for shape in ((1, 8), (5, 8), (5, 8), (3, 8), (3, 8)))


def attend(q, K, V):
    scores = np.exp(q @ K.T / math.sqrt(q.shape[1]))
    return scores @ V / scores.sum(), scores.sum()


whole, _ = attend(q, np.concatenate([P_K, K]), np.concatenate([P_V, V]))
(text, text_sum), (prefix, prefix_sum) = attend(q, K, V), attend(q, P_K, P_V)
share = prefix_sum / (prefix_sum + text_sum)
assert np.allclose(whole, (1 - share) * text + share * prefix)

# %% [markdown]
# **A prefix of real words is these words.** Let the base read some words and keep their keys and values: that is a
# prefix, and the text after it is read as if the words stood there. `init_weights="text"` starts there (the words
# repeated until $k$ are there). A prefix has no queries of its own: it costs $k$ keys, but not $k$ passes through the
# layers.

# %%
LINE = "And Jhesus seide to hem, Y am the breed of lijf"
TEXT = PrefixTuningConfig(k, init_weights="text", init_text=LINE)
model = get_peft_model(base, TEXT)
model.print_trainable_parameters()
assert model.get_nb_trainable_parameters()[0] == 2 * k * LAYERS * C
words = model.adapters["default"].config.init_ids
before_text = np.concatenate([[words], ids], axis=1)
together = model(ids).logits.data
generated = model.generate(ids, max_new_tokens=10)
assert model(ids, use_cache=True).past_key_values.length == T + k
base = model.unload()
assert np.allclose(together, base(before_text).logits.data[:, k:], atol=1e-4)
assert (generated == base.generate(before_text, max_new_tokens=10)[:, k:]).all()

# %% [markdown]
# **With a network behind it.** The paper found training the table itself unstable, and lets a small network make it
# from a smaller table $E$ (the network is thrown away afterwards):
#
# $$P = \tanh(E W_1^\top + b_1)\, W_2^\top + b_2, \qquad E \in \mathbb{R}^{k \times C} .$$

# %%
prefixes = {
    "table, random": (PrefixTuningConfig(k), 0.3),
    "table, text": (TEXT, 0.3),
    "network": (PrefixTuningConfig(k, prefix_projection=True), 0.01),
}
fig, ax = plt.subplots(figsize=(6.4, 3.4))
for name, (config, lr) in prefixes.items():
    model = adapted[name] = get_peft_model(GPT.from_pretrained(GPT_NAME), config)
    if name == "table, text":
        start = {path: p.data.copy() for path, p in model.trainable_parameters().items()}
    losses = adapt(model, old_english, lr)
    quality[name] = bits_per_byte(model)
    trained = model.get_nb_trainable_parameters()[0]
    ax.plot(losses, label=f"{name}: {trained:,} trained, rate {lr}: {quality[name]:.2f} bits per byte")
ax.plot(curves["SAMPLE_VOCAB"], ":", color="grey", label=f"prompt tuning: {quality['SAMPLE_VOCAB']:.2f} bits per byte")
ax.set(xlabel="step", xticks=STEPS, ylabel="training loss", title=f"Prefix tuning, k = {k}")
ax.legend(fontsize=8)
plt.tight_layout()
plt.show()
assert max(quality[name] for name in prefixes) < min(quality[name] for name in prompts), "prefixes learn more here"

# %% [markdown]
# **Who attends to it?** $\lambda$ of each layer and head, averaged over a text: the queries come from the hidden
# states, the keys from the cache, where the prefix stands first.


# %%
def attention_on_prefix(model, batch) -> np.ndarray:
    """The mean share of attention on the first k keys: (layers, heads)."""
    with mp.no_grad():
        out = model(batch, use_cache=True, output_hidden_states=True)
        shares = []
        for layer, block in enumerate(model.base_model.blocks):
            x = block.ln_1(out.hidden_states[layer], None)
            q = block.attn.heads(block.attn.q_proj(x, None)).data  # (B, H, T, D)
            keys = out.past_key_values.entries[layer][0].data  # (B, H, k + T, D)
            scores = q @ keys.swapaxes(2, 3) / math.sqrt(q.shape[3])
            new, seen = scores.shape[2:]
            scores = np.where(np.arange(seen) <= np.arange(new)[:, None] + seen - new, scores, -np.inf)
            weights = np.exp(scores - scores.max(3, keepdims=True))
            shares.append((weights[..., : seen - new].sum(3) / weights.sum(3)).mean((0, 2)))
    return np.array(shares)


window = next(texts["wyc", "held_out"].windows(batch_size=8, length=64))["input_ids"]
trained = adapted["table, text"]
shares = {"after training": attention_on_prefix(trained, window)}
kept = {path: p.data.copy() for path, p in trained.trainable_parameters().items()}
for path, p in trained.trainable_parameters().items():
    p.data[...] = start[path]
shares = {"at the start (real words)": attention_on_prefix(trained, window), **shares}
for path, p in trained.trainable_parameters().items():
    p.data[...] = kept[path]
fig, axes = plt.subplots(1, 2, figsize=(7.6, 3.4), layout="constrained")
for ax, (name, share) in zip(axes, shares.items(), strict=True):
    picture = ax.imshow(share, vmin=0, vmax=1, cmap="viridis")
    for (layer, head), value in np.ndenumerate(share):
        ax.text(head, layer, f"{value:.0%}", ha="center", va="center", color="black" if value > 0.6 else "white")
    ax.set(title=f"{name}: {share.mean():.0%}", xlabel="head", ylabel="layer",
           xticks=range(share.shape[1]), yticks=range(share.shape[0]))  # fmt: skip
fig.colorbar(picture, ax=axes, label="attention on the prefix")
plt.show()
uniform = np.mean([k / (k + t) for t in range(1, 65)])
print(f"spread evenly over all keys it would be {uniform:.0%}")
assert shares["after training"].mean() > shares["at the start (real words)"].mean(), "it has learned to be looked at"

# %% [markdown]
# ## P-tuning: a network makes the prompt
# The vectors of a prompt are learned each for itself. P-tuning (Liu et al. 2021) makes them depend on one another: a
# small table $E$ is read by a network, which says the prompt. `MLP` is the default in `peft`, `LSTM` the paper's:
#
# $$P_i = W_3\,\text{relu}(W_2\,\text{relu}(W_1 E_i)) \qquad\text{or}\qquad
# P_i = W_2\,\text{relu}(W_1 [\overrightarrow{h}_i; \overleftarrow{h}_i]), \quad
# \overrightarrow{h}, \overleftarrow{h} = \text{LSTM}(E) .$$
#
# The LSTM walks over $E$, forwards and backwards. Its gates $i, f, o$ are the sigmoids of three parts of $z$:
#
# $$z_t = W E_t + U h_{t-1} + b, \qquad c_t = f\, c_{t-1} + i \tanh z_g, \qquad h_t = o \tanh c_t .$$
#
# Its gradient walks the other way: what reaches $c_t$ is $\bar h_t\, o\, (1 - \tanh^2 c_t) + f_{t+1}\, \bar c_{t+1}$.
# The library has it by hand; in float64 it is what differences say, in both directions:

# %%
shapes = ((1, 5, 3), (8, 3), (8, 2), (8,), (8,))  # E (1, k, C), W (4h, C), U (4h, h), two biases (4h): h = 2
arguments = tuple(mp.tensor(rng.standard_normal(shape), requires_grad=True) for shape in shapes)
for reverse in (False, True):
    assert mp.gradcheck(lambda *a, reverse=reverse: F.lstm_layer(*a, reverse=reverse), arguments)

# %%
encoders = {
    "MLP": (PromptEncoderConfig(k, "MLP"), 0.01),
    "LSTM": (PromptEncoderConfig(k, "LSTM", encoder_hidden_size=64), 0.01),
}
fig, ax = plt.subplots(figsize=(6.4, 3.4))
for name, (config, lr) in encoders.items():
    model = adapted[name] = get_peft_model(GPT.from_pretrained(GPT_NAME), config)
    losses = adapt(model, old_english, lr)
    quality[name] = bits_per_byte(model)
    trained = model.get_nb_trainable_parameters()[0]
    ax.plot(losses, label=f"{name}: {trained:,} trained, {k * C:,} read: {quality[name]:.2f} bits per byte")
ax.plot(curves["RANDOM"], ":", color="grey", label=f"prompt tuning, RANDOM: {quality['RANDOM']:.2f} bits per byte")
ax.set(xlabel="step", xticks=STEPS, ylabel="training loss", title=f"P-tuning, k = {k}")
ax.legend(fontsize=8)
plt.tight_layout()
plt.show()
assert max(quality["MLP"], quality["LSTM"]) < quality["RANDOM"], "a network is a better start than a random table"

# %% [markdown]
# **Keep the network, or throw it away.** All that the model reads is $P$, so `peft` keeps $P$ alone: such a file can be
# used, but not trained further *as it was*. Here the network stands beside $P$ in the same file, and training goes
# on from it with the same bits.

# %%
lstm = adapted["LSTM"]
with tempfile.TemporaryDirectory() as folder:
    lstm.save_pretrained(folder)
    path = Path(folder) / "adapter_model.safetensors"
    arrays = read_arrays(path)
    again = PeftModel.from_pretrained(GPT.from_pretrained(GPT_NAME), folder, is_trainable=True)
    write_arrays(path, {"prompt_embeddings": arrays["prompt_embeddings"]})  # as peft writes it
    alone = PeftModel.from_pretrained(GPT.from_pretrained(GPT_NAME), folder, is_trainable=True)
assert np.allclose(alone(ids).logits.data, lstm(ids).logits.data, atol=1e-4)
assert alone.get_nb_trainable_parameters()[0] == k * C == arrays["prompt_embeddings"].size
assert adapt(again, old_english, 1e-3, steps=3) == adapt(lstm, old_english, 1e-3, steps=3), "the same, to the last bit"
resumed, kept = again.trainable_parameters(), lstm.trainable_parameters()
assert all((p.data == kept[name].data).all() for name, p in resumed.items())

# %% [markdown]
# ## What does it buy?
# The number of parameters that have to be *kept* for a task, and what they reach in these few steps. LoRA stands beside
# them: as many parameters as the prefix, nothing to pay at inference.

# %%
lora = get_peft_model(GPT.from_pretrained(GPT_NAME), LoraConfig(r=8, lora_alpha=16))
adapt(lora, old_english, 0.01)
quality["LoRA, r=8"] = bits_per_byte(lora)
stored = dict.fromkeys(quality, k * C) | dict.fromkeys(prefixes, 2 * k * LAYERS * C)
stored["LoRA, r=8"] = lora.get_nb_trainable_parameters()[0]
assert stored["LoRA, r=8"] == stored["network"]
fig, ax = plt.subplots(figsize=(6.8, 3.6))
names = sorted(quality, key=quality.get, reverse=True)
methods = dict.fromkeys(prompts, "prompt") | dict.fromkeys(prefixes, "prefix") | dict.fromkeys(encoders, "P-tuning")
labels = [f"{methods[name]}: {name}" if name in methods else name for name in names]
colours = {k * C: "tab:blue", 2 * k * LAYERS * C: "tab:orange"}
bars = ax.barh(labels, [before - quality[name] for name in names], color=[colours[stored[name]] for name in names])
ax.bar_label(bars, labels=[f"{before - quality[name]:.2f}" for name in names], padding=3, fontsize=8)
for size, colour in colours.items():
    ax.barh(labels[:1], [0], color=colour, label=f"{size:,} parameters kept")
ax.set(xlabel="bits per byte won, held out", title=f"20 steps, from {before:.2f} bits per byte",
       xlim=(0, 1.15 * (before - min(quality.values()))))  # fmt: skip
ax.legend(loc="lower right", fontsize=8)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## P-tuning v2: a prompt at every layer, and a head
# For classification a language model would have to *say* the class. P-tuning v2 (Liu et al. 2022) reads it from the
# last hidden state, and trains prefix and head together:
#
# $$y = \text{argmax}\; W_c\, h_{\text{last}}, \qquad W_c \in \mathbb{R}^{\text{classes} \times C} .$$
#
# The task: *which translation is this verse?* Five of them, the same verses in each, so what a verse is about does not
# tell; chance is 20 %. Beside it a **probe**: the head alone, on the frozen model. Both are judged on other verses of
# the books that they train on, and on other books.

# %%
NAMES = ("web", "kjv", "tyn", "wyc", "ylt")


def labelled(split: str, count: int, after: int = 0, unlike: Collection[str] = ()) -> LabelledVerses:
    """``count`` verses that all five have, spread evenly (or those ``after`` them), without the texts ``unlike``."""
    corpora = [load_corpus(name).split(split) for name in NAMES]
    shared = [verse for verse in corpora[0].verses if all(verse in c.verses for c in corpora)]
    chosen = [shared[i + after] for i in np.linspace(0, len(shared) - 2, count).astype(int)]
    chosen = [verse for verse in chosen if not any(c.verses[verse] in unlike for c in corpora)]
    parts = [Corpus(c.name, {verse: c.verses[verse] for verse in chosen}) for c in corpora]
    return LabelledVerses.from_corpora(parts, tokenizer, max_length=56)


to_train_on = labelled("train", 600)
known = set(to_train_on.texts)
judges = {"new verses": labelled("train", 200, after=1, unlike=known), "new books": labelled("held_out", 120)}
for text, label in list(zip(judges["new books"].texts, judges["new books"].labels, strict=True))[:5]:
    print(f"{NAMES[label]}  {text[:90]}")


def confusion(classifier, verses: LabelledVerses) -> np.ndarray:
    """The share of each translation (rows) that is said to be each (columns)."""
    counts = np.zeros((5, 5), int)
    with mp.no_grad():
        for batch in verses.batches(50):
            said = classifier(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.data.argmax(-1)
            np.add.at(counts, (batch["labels"], said), 1)
    return counts / counts.sum(1, keepdims=True)


small = GPT.from_pretrained("tiny-0.25m")
V2 = PTuningV2Config(num_virtual_tokens=k, init_weights="text", init_text="modern or old")
models = {
    "probe": (PeftModel(small), 0.1),
    "P-tuning v2": (get_peft_model(GPT.from_pretrained("tiny-0.25m"), V2), 0.15),
}
tables, right = {}, {}
for name, (model, lr) in models.items():
    classifier = SequenceClassifier(model, num_labels=5)
    trained = sum(p.data.size for _, p in classifier.named_parameters() if p.requires_grad)
    head, prefix = 5 * small.config.n_embd, 2 * k * small.config.n_layer * small.config.n_embd
    assert trained == head + (prefix if name == "P-tuning v2" else 0)
    config = TrainConfig(steps=100, lr=lr, warmup=5)
    train(classifier, lambda step: to_train_on.batch(step, batch_size=20), config)
    of_judge = {judge: confusion(classifier, verses) for judge, verses in judges.items()}
    tables[name] = of_judge["new verses"]
    right[name] = {judge: np.trace(table) / 5 for judge, table in of_judge.items()}
    print(
        f"{name:12s} {trained:6,} parameters, right:", {judge: f"{share:.0%}" for judge, share in right[name].items()}
    )
fig, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
for ax, (name, table) in zip(axes, tables.items(), strict=True):
    picture = ax.imshow(table, vmin=0, vmax=1, cmap="Blues")
    for (row, column), value in np.ndenumerate(table):
        ax.text(column, row, f"{value:.0%}", ha="center", va="center", color="white" if value > 0.6 else "black")
    ax.set(title=f"{name}: {right[name]['new verses']:.0%} right", xlabel="said", ylabel="is",
           xticks=range(5), xticklabels=NAMES, yticks=range(5), yticklabels=NAMES)  # fmt: skip
fig.colorbar(picture, ax=axes, label="share of the translation's new verses")
plt.show()
lead = {judge: right["P-tuning v2"][judge] - right["probe"][judge] for judge in judges}
assert right["probe"]["new verses"] > 0.3 and lead["new verses"] > 0, "the model looks for what the head needs"

# %% [markdown]
# ## Gist tokens: compress a prompt
# A prompt that is used often is read again at every use. Gist tokens (Mu et al. 2023) are $k$ new words after the
# prompt $t$, into which the model learns to write it:
#
# $$p(y \mid t, g_1 \dots g_k) \approx p(y \mid G(t)), \qquad G(t) = \text{keys and values of } g_1 \dots g_k .$$
#
# All the learning comes from a mask: the gist tokens see the prompt; what comes after sees the gist tokens, and no
# longer the prompt. The loss is the usual one. Two controls say what that is worth: one hides nothing, one hides
# the gist too.

# %%
CONDITIONS = {"gist": "gist", "pos_control": "nothing is hidden", "neg_control": "all is hidden"}


def gist_model(condition: str):
    config = GistConfig(num_gist_tokens=2, gist_condition=condition, r=8, lora_alpha=16, target_modules="all-linear")
    return get_peft_model(GPT.from_pretrained("tiny-0.25m"), config)


models = {condition: gist_model(condition) for condition in CONDITIONS}
GISTS = models["gist"].adapters["default"].config.ids
row = np.array([[tokenizer.eos_token_id, *tokenizer.encode("God is love"), *GISTS, *tokenizer.encode("love him")]])
names = ["g1" if i == GISTS[0] else "g2" if i == GISTS[1] else tokenizer.decode([i]).strip() for i in row[0].tolist()]
names[0] = "(end)"
fig, axes = plt.subplots(1, 3, figsize=(9, 3.6), sharey=True)
seen = {}
for ax, (condition, title) in zip(axes, CONDITIONS.items(), strict=True):
    hidden = models[condition].adapters["default"].hidden(row, row.shape[1])[0]
    seen[condition] = ~hidden & np.tri(len(names), dtype=bool)
    ax.imshow(seen[condition], cmap="Greys", vmax=2)
    ax.set(title=title, xlabel="may be seen (grey)", xticks=range(len(names)), yticks=range(len(names)))
    ax.set_xticklabels(names, rotation=90)
    ax.set_yticklabels(names)
axes[0].set(title="gist", ylabel="token")
plt.tight_layout()
plt.show()
g = names.index("g2")
assert not seen["gist"][g + 1 :, : g - 1].any() and seen["gist"][g + 1 :, g - 1 : g + 1].all()

# %% [markdown]
# The new words and LoRA are trained together, on real text: two verses are the prompt, the next one is what is to
# be predicted. Each of the three adapters learns under its own mask.


# %%
def passages(corpus: Corpus, before: int = 2, longest: int = 120) -> Pairs:
    """Some verses of a chapter, and the one after them."""
    verses, end = list(corpus.verses.items()), tokenizer.eos_token_id
    encoded, rows = tokenizer.encode_batch(corpus.texts), []
    for i in range(before, len(verses), before + 1):
        prompt = [token for n in range(i - before, i) for token in (end, *encoded[n])] + [end]
        together = verses[i - before][0] // 1000 == verses[i][0] // 1000
        if together and len(prompt) + len(encoded[i]) + 1 <= longest:
            source = " ".join(text for _, text in verses[i - before : i])
            rows.append((verses[i][0], prompt, [*encoded[i], end], source, verses[i][1]))
    return Pairs(*zip(*rows, strict=True), left_out=0, pad=tokenizer.pad_token_id)


train_pairs, held_out = passages(part_of("web", "train", 3000)), passages(part_of("web", "held_out", 400))
data = with_gists(train_pairs, GISTS)
reports = {}
for condition, model in models.items():
    adapt(model, lambda step: data.batch(step, batch_size=8), 0.01, steps=30)
    reports[condition] = gist_report(model, held_out)
    print(f"{condition:12s} {reports[condition].bits_per_byte['gist']:.3f} bits per byte")
kept = share_kept(*reports.values())
report = reports["gist"]
print(f"one key stands for {report.ratio:.0f}: {report.keys[0]:,} keys become {report.keys[1]:,}")
print(f"{report.bytes[0] >> 10:,} KiB of keys and values become {report.bytes[1] >> 10:,} KiB")
print(f"attention of what comes after: {report.flops[1] / report.flops[0]:.0%} of the work")
print(f"of what the prompt is worth, {kept:.0%} is kept, {1 - kept:.0%} is lost")
assert 0 < kept < 1, "worth more than no prompt, and less than the whole"

# %% [markdown]
# **Use it.** `compress` reads the prompt once and keeps the keys of the gist alone; the cache may be used as often as
# one likes. What is generated from it is what the model would write with the whole prompt in place, under the mask.

# %%
model = models["gist"]
prompt = held_out.prompts[8]
cache = compress(model, [prompt])
print(f"{len(prompt)} tokens become {cache.length}; the next position is {cache.next_position}")
print("prompt  ", held_out.source_texts[8])
for beginning in ("He", "They said"):
    first = np.array([tokenizer.encode(beginning)])
    whole = np.concatenate([[prompt], [GISTS], first], axis=1)
    short = model.generate(first, max_new_tokens=20, past_key_values=cache)
    assert (short == model.generate(whole, max_new_tokens=20)[:, -short.shape[1] :]).all()
    print("from gist", tokenizer.decode(short[0].tolist()))
assert cache.length == len(GISTS) and cache.next_position == len(prompt) + len(GISTS)

# %% [markdown]
# ## Many users, one batch
# A merged LoRA makes one model for one user. A prefix is only a start of the cache: each row of a batch can have its
# own. So $N$ users with $N$ prefixes are served by one model in one batch, and are *trained* in one batch too: the
# gradient of a row reaches its own prefix only.

# %%
USERS = ("kjv", "wyc", "ylt")
model = PeftModel(GPT.from_pretrained(GPT_NAME))
for user in USERS:
    model.add_adapter(user, PrefixTuningConfig(8, init_weights="text", init_text=LINE))
model.set_adapter(list(USERS))


def batch_of_all(step: int):
    """Four rows of each user."""
    batches = [texts[user, "train"].batch(step, batch_size=4, length=64) for user in USERS]
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in ("input_ids", "labels")}
    return {**rows, "adapter_names": [user for user in USERS for _ in range(4)]}


one = {**texts["kjv", "train"].batch(0, batch_size=2, length=64), "adapter_names": ["kjv", "kjv"]}
model(**one).loss.backward()
for name, p in model.trainable_parameters().items():
    assert (p.grad is not None and np.abs(p.grad).max() > 0) == name.endswith("kjv"), "the others get nothing"
    p.grad = None
adapt(model, batch_of_all, lr=0.1)

# %% [markdown]
# Mixed and separate runs are equal within rounding, for rows of different lengths, for prefixes of different lengths,
# beside a row with a LoRA and one with no adapter at all.

# %%
model.add_adapter("short", PrefixTuningConfig(3), seed=5)
model.add_adapter("lora", LoraConfig(r=4), seed=6)
for p in model.adapters["lora"].named_parameters().values():
    p.data[...] = 0.1 * rng.standard_normal(p.shape)
names = ["kjv", "wyc", "short", "lora", "__base__"]
lines = ("In the beginning", "And he seide to hem", "The word", "And it came to pass, when he", "Jesus wept")
rows = [[tokenizer.eos_token_id, *tokenizer.encode(line)] for line in lines]
longest = max(map(len, rows))
padded = np.array([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])
mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
mixed = model(padded, attention_mask=mask, adapter_names=names).logits.data
written = model.generate(padded, 8, attention_mask=mask, adapter_names=names)
for i, (name, row) in enumerate(zip(names, rows, strict=True)):
    if name == "__base__":
        alone = base(np.array([row])).logits.data
    else:
        model.set_adapter(name)
        alone = model(np.array([row])).logits.data
    assert np.allclose(mixed[i, -len(row) :], alone[0], atol=1e-3), name
    print(f"{name:9s}", tokenizer.decode(written[i, -len(row) - 7 :].tolist()))

# %%
table = np.array(
    [[bits_per_byte(model, text, adapter_names=[who] * 16) for who in ("__base__", *USERS)] for text in USERS]
)
fig, ax = plt.subplots(figsize=(5.4, 3.4), layout="constrained")
change = table - table[:, :1]
picture = ax.imshow(change, cmap="RdBu_r", vmin=-np.abs(change).max(), vmax=np.abs(change).max())
for (row, column), value in np.ndenumerate(table):
    colour = "white" if abs(change[row, column]) > 0.7 * np.abs(change).max() else "black"
    ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
ax.set(xticks=range(4), xticklabels=["no prefix", *USERS], yticks=range(3), yticklabels=USERS,
       xlabel="the prefix of", ylabel="the text of", title="bits per byte: each prefix on each text")  # fmt: skip
fig.colorbar(picture, ax=ax, label="change")
plt.show()
assert (table.argmin(1) == [1, 2, 3]).all(), "each text is read best with its own prefix"
size = 2 * 8 * LAYERS * C * 4
weights = sum(p.data.nbytes for _, p in base.named_parameters())
print(f"a user's prefix takes {size >> 10} KiB, the model {weights >> 10:,} KiB")

# %% [markdown]
# **Try it yourself.** Attach a prompt to a GPT with random weights (`GPT(base.config)`) and train it: can it learn
# anything, and why not? Then double $k$ for prompt tuning and for prefix tuning: which of them makes use of it? Last,
# give the gist one token, then eight: how much of the prompt is kept?
