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
# # Assignment A4: Kernels and QLoRA
#
# **What you will build.** QLoRA (Dettmers et al. 2023) keeps the frozen weights in four bits and trains LoRA's factors
# on top of them. You build what it stands on: the sixteen values of NF4, quantization and the way back, the double
# quantization of its statistics. Then you make such things fast: a loop that the compiler turns into vector
# instructions, a backward pass that never holds the weight in full, and the LoRA layer as a kernel for the GPU. At
# the end a small GPT in four bits learns the English of 1395, and you see what four bits cost.
#
# **Where.** Each task is a hole in the library, between a line `# BEGIN SOLUTION(task="4.1a")` and a line
# `# END SOLUTION`. Write between these marks only, and leave them in place; imports that you need go there too.
#
# | check | command |
# |---|---|
# | everything | `minitorch-peft course check` |
# | one task | `minitorch-peft course check 4.1` |
# | a hint (`--hint --hint`: one more) | `minitorch-peft course check 4.1 --hint` |
#
# | task | | points | minutes |
# |---|---|---|---|
# | 4.1 | Where the sixteen values come from | 10 | 25 |
# | 4.2 | Quantize | 15 | 35 |
# | 4.3 | Dequantize | 8 | 15 |
# | 4.4 | Double quantization | 15 | 30 |
# | 4.5 | A loop that the compiler makes fast | 18 | 40 |
# | 4.6 | The backward pass over a weight in four bits | 16 | 35 |
# | 4.7 | A Triton kernel | 18 | 30 |
#
# 4.4 needs 4.2, and 4.6 needs 4.3; for the rest any order will do. (The cells below also need 4.1.) The written
# questions are marked by a person, and their points come on top of the 100 points of the tasks. **Time:** three and a
# half hours, and the questions. **Needs:** the installation in the README; Linux for 4.7, as Triton is for Linux.

# %%
import os
import time
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: no GPU is needed

from minitorch_peft.kernels.four_bit.codes import boundaries, code_table
from minitorch_peft.kernels.four_bit.reference import dequantize_4bit, dequantized_absmax, quantize_4bit

from minitorch_peft.course.assignments.a4 import figures, gpu, kernel, tiles
from minitorch_peft.data import PackedText, Tokenizer, load_corpus
from minitorch_peft.models import GPT
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import LoraConfig, get_peft_model
from minitorch_peft.quant import bits_per_parameter, quantize_model
from minitorch_peft.training.evaluate import evaluate

rng = np.random.default_rng(0)

# %% [markdown]
# ## 4.1 Where the sixteen values come from
#
# Four bits are sixteen codes, and each stands for one number in $[-1, 1]$; a block of weights is scaled into that
# interval. Which sixteen numbers? Trained weights are about normally distributed. *NormalFloat* takes **quantiles** of
# the normal distribution, so that the codes are used about equally often. Zero must be one of them (a weight that is
# exactly zero has to stay zero), and so must $-1$ and $1$ (the largest weight of a block). With eight values from the
# right half, seven from the left and one zero between them, that is
#
# $$ \Phi^{-1}(p) \text{ for 8 values of } p \text{ from } p_{\max} \text{ down towards } \tfrac12, \qquad
# -\Phi^{-1}(p) \text{ for 7 of them}, \qquad 0, $$
#
# all divided by the largest. $\Phi^{-1}$ is the quantile function of the normal distribution, each half is spaced
# evenly from $p_{\max}$ to $\tfrac12$, and the $\tfrac12$ itself is the zero that both halves share. $p_{\max} = 1$
# would be infinite, so the question is where to stop.
#
# The paper does not say it. Everyone's table was made with $p_{\max} = 0.9677083$, and people have asked ever since
# where that number comes from. Here it is: cut the normal distribution into $m$ pieces that are equally likely. The
# middle of the last piece (half of its probability to the left, half to the right) lies at some quantile. Take that
# quantile for $m = 16$ and for $m = 15$. The number is the mean of the two, cut after seven digits.
#
# **Two holes.** `code_table` in `kernels/four_bit/codes.py`: the NF4 values, from `NF4_OFFSET` (the checks change it,
# so typing the table in is no use). `largest_quantile` in `minitorch_peft/course/assignments/a4/figures.py`: the
# number itself, with all of its digits, for any number of bits.
#
# **To the bit.** A table that differs in the last bit gives other weights for every model that was ever stored, so the
# order of the roundings is part of the definition: the spacing is that of `float32_linspace` (which is in the file
# already; NumPy's rounds differently), $\Phi^{-1}$ is taken in float64 (`statistics.NormalDist`, or SciPy), all values
# are sorted and rounded to float32, and the division by the largest is one in float32. `frozen` makes an array
# read-only.

# %%
nf4 = code_table("nf4")
print(nf4.round(4).tolist())
print("the largest quantile for 4 bits:", figures.largest_quantile(4), "and for 8:", figures.largest_quantile(8))
assert nf4[7] == 0 and abs(nf4).max() == 1
draws = rng.standard_normal((10_000, 64))
scaled = draws / np.abs(draws).max(1, keepdims=True)
for name in ("nf4", "int4"):
    used = np.bincount(np.searchsorted(boundaries(name), scaled.ravel()), minlength=16) / scaled.size
    entropy = -np.sum(used[used > 0] * np.log2(used[used > 0]))
    print(f"{name:4s} in blocks of 64: {entropy:.2f} of 4 bits of information, shares from {used.min():.1%}", end=" ")
    print(f"to {used.max():.1%}")

# %% [markdown]
# More equally than evenly spaced values, though not quite: $p_{\max}$ is the quantile of 1.85 standard deviations,
# while what becomes $\pm 1$ is the largest of 64 numbers, which is about 2.5 of them.

# %% [markdown]
# ## 4.2 Quantize
#
# A tensor is flattened in row-major order and cut into blocks of `blocksize` elements, wherever its rows end; the last
# block may be partial. For each block one float32, `absmax`, the largest magnitude; for each element one code. The
# result must equal, to the bit, what `bitsandbytes` computes on a GPU:
#
# - **Scaling.** In float32, and in this order: $r = 1 / \text{absmax}$, then $x \cdot r$. (A division would differ in
#   the last bit of some numbers, and so in the code of a few.) A block of zeros stays zero. If absmax is so tiny that
#   $r$ is infinite, divide instead.
# - **Codes.** Between two neighbouring values lies a boundary, their middle in float32: `boundaries(quant_type)` gives
#   the fifteen of them. The interval of $x$ is the number of boundaries *below* $x$, so a number exactly in the middle
#   belongs to the lower one. `order(quant_type)[interval]` is its code. (For NF4 the code is the number of the
#   interval itself; FP4 is stored in another order.)
# - **Packing.** Two codes a byte: the element with the even index in the **high** four bits, the next in the low. An
#   odd number of elements is filled up with the code of zero, `ZERO_CODE[quant_type]`.
#
# **Two holes.** `scaled_blocks` in `kernels/eight_bit/reference.py` (the eight-bit type scales in the same way), and
# in `kernels/four_bit/reference.py` the middle of `quantize_4bit`, which ends with a `Quantized` called `q`.

# %%
x = np.array([[0.5, -2.0, 1.0], [0.1, -0.1, 0.0]])
q = quantize_4bit(x)
print(q)
assert q.packed.size == 3 and q.absmax.tolist() == [2.0]
weights = rng.standard_normal((96, 40)).astype(np.float32)
for blocksize in (32, 64, 256, 4096):
    q = quantize_4bit(weights, blocksize)
    print(f"blocks of {blocksize:4d}: {q.packed.size} bytes of codes, {q.absmax.size:3d} statistics")

# %% [markdown]
# ## 4.3 Dequantize
#
# The way back has no choices: take each byte apart, look the code up in the table, multiply by the absmax of the
# block. It runs in every forward and every backward pass of every layer, so this is the operation that has to be fast;
# here it has to be right first. For float16 and bfloat16 the product is computed in float32 and rounded at the end (the
# code after the marks does that).
#
# **The hole** is in `dequantize_4bit`, in `kernels/four_bit/reference.py`: make `values`, flat, float32, as many as
# the tensor has elements. `dequantized_absmax(q)` gives the absmax of every block.

# %%
for quant_type in ("nf4", "fp4", "int4"):
    q = quantize_4bit(weights, 64, quant_type)
    error = dequantize_4bit(q) - weights
    print(f"{quant_type:5s} root mean square error {np.sqrt((error**2).mean()):.4f} for weights of size 1")
back = dequantize_4bit(quantize_4bit(weights))
assert (dequantize_4bit(quantize_4bit(back)) == back).all(), "what is in four bits already stays as it is"

# %% [markdown]
# ## 4.4 Double quantization
#
# One float32 for 64 elements is half a bit for each: a tenth of all that is stored. These statistics are numbers like
# others, so they can be quantized too (Dettmers et al. 2023, section 3):
#
# 1. They are all positive, and close to one another; a symmetric table would use half of its codes for nothing. So
#    their **mean** is taken away first (in float32), and kept: the `offset`.
# 2. What is left is quantized in blocks of `NESTED_BLOCKSIZE` = 256, to **eight bits** with the dynamic map
#    (`create_dynamic_map()`), which has most of its 256 values near zero.
# 3. Each of those blocks has an absmax of its own, in float32: the second level.
#
# The eight-bit step works like 4.2: scale, then the number of boundaries below. (`boundaries` of `eight_bit/codes.py`
# puts ties where the GPU's search puts them; use it as it is.)
#
# **Five holes**, one to four lines each: `quantize_blockwise` and `dequantize_blockwise` in
# `kernels/eight_bit/reference.py`; `compressed` (quantize the statistics of `q`; an empty tensor has the offset 0) and
# `dequantized_absmax` (and back) in `kernels/four_bit/reference.py`; `stored_bits` in
# `minitorch_peft/course/assignments/a4/figures.py`: how many bits all that takes, exactly, with every rounding up to
# a whole byte or block.

# %%
many = rng.standard_normal((512, 512)).astype(np.float32)
plain, double = quantize_4bit(many), quantize_4bit(many, compress_statistics=True)
for name, q in (("float32 absmax", plain), ("double quantization", double)):
    bits = figures.stored_bits(many.size, 64, q.nested is not None)
    error = np.sqrt(((dequantize_4bit(q) - many) ** 2).mean())
    print(f"{name:20s} {bits / many.size:.4f} bits an element, error {error:.5f}")
worst = np.abs(dequantized_absmax(double) / plain.absmax - 1).max()
print(f"the statistics are off by {worst:.1%} at most")
assert figures.stored_bits(many.size, 64, True) / many.size < 4.13

# %% [markdown]
# ## 4.5 A loop that the compiler makes fast
#
# NumPy computes 4.2 in a dozen passes over memory, each with a new array. A compiled loop reads each element once.
# `minitorch_peft/course/assignments/a4/kernel.py` has such a loop, `quantize_slowly`, compiled by Numba: right, and
# not fast. Your task is `quantize_blocks`: the same result to the bit, at least **3 times** as fast. (The library's
# has 7 to 19 times; the machine that grades is another than yours, so do not stop at 3.)
#
# What makes a loop fast on one core?
#
# - **Vectors.** A processor has registers of 4, 8 or 16 float32, and compares all of them with something in one
#   instruction. The compiler uses them only for a loop that does *the same* to neighbours in memory. Whatever breaks
#   the rule, breaks it for the whole loop: a decision that depends on the data, a result that the next round needs, a
#   function call that is not inlined, bounds or indices that it cannot understand.
# - **No branches on data.** Half of the searches through fifteen boundaries go another way than the processor guessed,
#   and each wrong guess costs some fifteen cycles. Fifteen comparisons without a branch cost less, and they vectorise.
# - **Hoisting.** What is the same for a block is computed once a block, not once an element.
# - **Widths.** A register holds 8 numbers of 32 bits or 4 of 64. Numba's integers have 64 bits unless you say so.
# - **Nothing allocated.** Slices cost nothing; `np.empty` or an expression of arrays inside a kernel costs memory.
#
# **The hole** is the body of `quantize_blocks`; you may call what is in that file, and `quantize_slowly` as well.
# `packed` and `absmax` are there to be written; `blocksize` is even. Two notes. The compiler's options are set above
# the function: they allow it to ignore NaN, which it must to vectorise a maximum. And the codes must be the same to
# the bit in blocks of tiny numbers too; find a way to treat those once a block.


# %%
def best(run, repeats: int = 20) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


flat, middles = rng.standard_normal(1 << 18, np.float32), boundaries("nf4")
packed, absmax = np.empty(flat.size // 2, np.uint8), np.empty(flat.size // 64, np.float32)
expected = quantize_4bit(flat)
seconds = {"NumPy, quantize_4bit": best(lambda: quantize_4bit(flat), 3)}
for function in (kernel.quantize_slowly, kernel.quantize_blocks):
    function(flat, middles, 64, packed, absmax)  # compiled now
    assert (packed == expected.packed).all() and (absmax == expected.absmax).all()
    seconds[function.__name__] = best(lambda f=function: f(flat, middles, 64, packed, absmax))
for name, taken in seconds.items():
    print(f"{name:22s} {taken / flat.size * 1e9:6.2f} ns an element")
print(f"{seconds['quantize_slowly'] / seconds['quantize_blocks']:.1f} times as fast as one element at a time")

# %% [markdown]
# ## 4.6 The backward pass over a weight in four bits
#
# $W$ is stored in four bits and never trained. So nobody needs its gradient, but gradients go *through* it: with $u =
# x A^\top$ and $G = \partial L / \partial y$ of $y = x W^\top + s\, u B^\top$,
#
# $$ dB = s\, G^\top u, \qquad dA = (s\, G B)^\top x, \qquad dx = G W + (s\, G B) A. $$
#
# (You derived this in A3.) Only $dx$ needs $W$. `dequantize_4bit(q)` followed by `G @ W` is right, and holds the whole
# weight in float32: eight times what four bits were to save. But $G W = \sum_n G_{:n} W_{n:}$ is a sum over rows of
# $W$. Dequantize `TILE` rows, use them, forget them.
#
# The one difficulty is that blocks do not end where rows do. With rows of 40 elements and blocks of 64, row 1 begins
# in the middle of block 0. A stretch of *whole blocks*, on the other hand, is a small quantized tensor of its own: some
# bytes of `packed`, some numbers of `absmax`.
#
# **Two holes** in `minitorch_peft/course/assignments/a4/tiles.py`: `weight_rows`, which dequantizes some rows and no
# more than that (but for parts of blocks at both ends), and `lora_backward`, in which at most `TILE` rows of $W$ are
# held at a time. The checks trace memory. (While this task is checked, the library's engine is not there.)

# %%
N, K, r, rows = 1024, 1000, 8, 64
W = quantize_4bit(rng.standard_normal((N, K)).astype(np.float32))
G, X = (rng.standard_normal((rows, n)).astype(np.float32) for n in (N, K))
A, B = rng.standard_normal((r, K)).astype(np.float32), rng.standard_normal((N, r)).astype(np.float32)


def in_full() -> np.ndarray:
    return G @ dequantize_4bit(W) + (2.0 * G @ B) @ A


def peak(run) -> float:
    """The most memory that is held while it runs, in MB."""
    tracemalloc.start()
    run()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 1e6


dx, da, db = tiles.lora_backward(G, X, X @ A.T, W, A, B, 2.0)
assert np.allclose(dx, in_full(), rtol=1e-3, atol=1e-3) and da.shape == A.shape and db.shape == B.shape
print(f"W in four bits: {W.packed.nbytes / 1e6:.1f} MB, in float32 {4 * N * K / 1e6:.1f} MB")
print(f"dequantized in full: {peak(in_full):.1f} MB held at once; ", end="")
print(f"in tiles of {tiles.TILE} rows: {peak(lambda: tiles.lora_backward(G, X, X @ A.T, W, A, B, 2.0)):.1f} MB")

# %% [markdown]
# ## 4.7 A Triton kernel
#
# On a GPU thousands of *programs* run at once, and each computes one tile of the result. A Triton kernel is the text of
# one such program: it works on blocks of numbers, loads them from addresses, computes, and stores them. You write the
# LoRA layer
#
# $$ y = x W^\top + s\, u B^\top, \qquad u = x A^\top \text{ given}, $$
#
# in one kernel. Without fusion $x W^\top$ is written to memory, read again, and the low-rank part added; here the
# accumulator of the tile *begins* as the low-rank part, stays in registers while it runs along $K$, and is written
# once.
#
# | what | how |
# |---|---|
# | which program am I | `tl.program_id(0)` (rows), `tl.program_id(1)` (columns) |
# | indices | `tl.arange(0, BLOCK)`; `[:, None]` makes a column, `[None, :]` a row |
# | load a tile | `tl.load(pointer + offsets, mask=inside, other=0.0)`: where the mask is false nothing is read |
# | multiply tiles | `tl.dot(a, b)`, or `tl.dot(a, b, total)`, which adds to `total`; sums are float32 |
# | store | `tl.store(pointer + offsets, values, mask=inside)` |
#
# **Ragged edges.** Sizes are rarely multiples of blocks, so the last tile of rows, of columns, of $K$ and of the rank
# reaches beyond the arrays. Each load needs a mask on *both* of its axes. What is loaded in place of the rest must be
# zero where it is summed over. On a GPU, reading beyond an array gives garbage or stops everything; here the checks
# watch every address.
#
# **The hole** is the body of `lora_tile` in `minitorch_peft/course/assignments/a4/gpu.py`. Triton's interpreter runs
# it, on NumPy arrays: slowly, line by line, so that `print` works too. (On a GPU the same text is compiled. There,
# float32 products are rounded to TF32 unless one says otherwise, and the blocks are larger.)

# %%
R, N, K, r = 21, 37, 50, 3
x, W, A, B = (rng.standard_normal(shape).astype(np.float32) for shape in ((R, K), (N, K), (r, K), (N, r)))
y = gpu.lora_forward(x, W, x @ A.T, B, 0.5)
expected = x @ W.T + 0.5 * (x @ A.T) @ B.T
print(f"{-(-R // 16)} x {-(-N // 16)} programs, the largest difference {np.abs(y - expected).max():.1e}")
assert np.allclose(y, expected, atol=1e-4)

# %% [markdown]
# How much memory traffic does fusion save? Count what a layer of $4096 \times 4096$ with $r = 16$ reads and writes for
# 4096 rows in 16 bits, once with separate operations and once in your kernel (each array once, as if caches were
# perfect):

# %%
n, rank, width = 4096, 16, 2
activations, small, weight = n * n * width, n * rank * width, n * n * width
separate = {
    "x Wᵀ": activations + weight + activations,
    "u = x Aᵀ": activations + small + small,
    "u Bᵀ": small + small + activations,
    "times s": 2 * activations,
    "sum": 3 * activations,
}
fused = {"u = x Aᵀ": activations + small + small, "the rest": activations + weight + 2 * small + activations}
print(f"separate {sum(separate.values()) / 1e6:.0f} MB, fused {sum(fused.values()) / 1e6:.0f} MB")

# %% [markdown]
# ## Closing experiment: what do four bits cost?
#
# A GPT that has read modern English (`tiny-0.25m`), in float32 and in four bits of three types. How much worse does it
# read (bits per byte on chapters that it has never seen)? Then each of them learns the English of 1395 by LoRA, with
# 40 steps: does training make up for the rounding? At the end the adapter is merged, in two ways. All of this runs on
# your `quantize_4bit` and `dequantize_4bit`.

# %%
tokenizer = Tokenizer.shipped()
LENGTH, STEPS, RATE = 64, 40, 1.5e-2


def held_out(name: str) -> PackedText:
    return PackedText.from_corpus(load_corpus(name).split("held_out"), tokenizer)


texts = {name: held_out(name) for name in ("web", "wyc")}
lessons = PackedText.from_corpus(load_corpus("wyc").split("train"), tokenizer)


def bits_per_byte(model, name: str) -> float:
    return texts[name].bits_per_byte(evaluate(model, texts[name].windows(32, LENGTH, limit=96)).loss)


def learn(base, seed: int = 0):
    """The base with a LoRA adapter, after 40 steps on the English of 1395."""
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), seed=seed)
    optimizer = AdamW(list(model.trainable_parameters().items()), lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        model(**lessons.batch(step, batch_size=8, length=LENGTH, seed=seed)).loss.backward()
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 5) * (1 - step / STEPS)
        optimizer.step()
        optimizer.zero_grad()
    return model


# %%
TYPES = ("float32", "nf4", "fp4", "int4")
before, after, adapted = {}, {}, {}
for name in TYPES:
    base = GPT.from_pretrained("tiny-0.25m")
    bits = 32.0
    if name != "float32":
        quantize_model(base, name)
        bits = bits_per_parameter(base)
    before[name] = bits_per_byte(base, "web")
    adapted[name] = learn(base)
    after[name] = bits_per_byte(adapted[name], "wyc")
    print(f"{name:8s} {bits:6.3f} bits a weight: modern English {before[name]:.3f}, then 1395 {after[name]:.3f}")
assert before["float32"] < before["nf4"] < min(before["fp4"], before["int4"])

# %% [markdown]
# **Merging.** Into the dequantized weight nothing is lost, but the weights are float32 again. Rounded to four bits once
# more, the small change has to survive a grid that is coarser than it is:

# %%
model = adapted["nf4"]
merged = {}
for label, requantize in (("dequantized", False), ("four bits again", True)):
    certificate = model.merge_adapter(requantize=requantize)
    merged[label] = bits_per_byte(model, "wyc")
    change = certificate.relative_logit_difference
    print(f"merged, {label:16s} {merged[label]:.3f} bits per byte; logits change by {change:.1e} of their size")
    model.unmerge_adapter()
assert bits_per_byte(model, "wyc") == after["nf4"], "unmerging gives the four bits back as they were"

# %%
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4))
weight = GPT.from_pretrained("tiny-0.25m").get("blocks.1.mlp.up_proj").weight.data
scaled = (weight.reshape(-1, 64) / np.abs(weight.reshape(-1, 64)).max(1, keepdims=True)).ravel()
left.hist(scaled, 100, density=True, color="lightgrey")
for height, name in enumerate(TYPES[1:]):
    values = code_table(name)[int(name == "int4") :]  # its lowest code, -8/7, is never used
    left.plot(values, np.full(len(values), -0.1 - 0.12 * height), "|", markersize=12, label=name)
left.set(xlabel="weight / absmax of its block", title="Where the values are")
left.legend(fontsize=8, loc="upper right")

sizes = np.array([32, 64, 128, 256, 512, 1024, 2048, 4096])
for name in TYPES[1:]:
    errors, stored = [], []
    for blocksize in sizes:
        q = quantize_4bit(many, int(blocksize), name, compress_statistics=True)
        errors.append(np.sqrt(((dequantize_4bit(q) - many) ** 2).mean()))
        stored.append(figures.stored_bits(many.size, int(blocksize), True) / many.size)
    middle.plot(stored, errors, "o-", label=name)
middle.set(xlabel="bits an element", ylabel="error (standard normal weights)", title="Blocks of 4096 down to 32")
middle.legend(fontsize=8)

places = np.arange(3)
for shift, label, found in ((-0.2, "modern English, before", before), (0.2, "1395, after LoRA", after)):
    right.bar(places + shift, [found[name] - found["float32"] for name in TYPES[1:]], 0.4, label=label)
lost = merged["four bits again"] - after["float32"]
right.plot([0, 0.4], [lost, lost], "k--", label="1395, merged into four bits")
right.set_xticks(places, TYPES[1:])
right.set_ylim(top=1.45 * right.get_ylim()[1])  # room for the legend
right.set(ylabel="bits per byte lost against float32", title="What four bits cost")
right.legend(fontsize=8, loc="upper left")
fig.tight_layout()
plt.show()

# %% [markdown]
# **To discuss.** Which part of the damage does training repair, and why can it? FP4 and int4 have other values than
# NF4: at which weights do they lose? When would you accept the loss of merging into four bits?

# %% [markdown]
# ## Written questions
# Answer each in three to eight sentences, in your own words.

# %% [markdown]
# **Question 1** (4 points). NF4's values are quantiles. Why is it good that each code is used about equally often? Is
# a table of quantiles also the one with the smallest mean square error? For what kind of weights would int4 be better?
#
# BEGIN SOLUTION(question="a4.q1")
# A code that is never used is wasted: with equally likely codes the four bits carry the most information about the
# weight (entropy is largest for a uniform distribution). In blocks of 64 NF4 comes near that (3.9 of 4 bits), but not
# to it, since the largest of 64 weights is not the 97th percentile. It is not the table with the least mean square
# error: that one (Lloyd-Max) has more values where weights are rare, because rare large weights make large errors. NF4
# is near it too, and it has 0 and ±1 exactly. int4's evenly spaced values are right for weights that are spread evenly
# over the block's range.
#
# *Marking (4 points): 2 for equal use = most information, 1 for "not the least square error" with any reason, 1 for
# evenly spread weights.*
# END SOLUTION

# %% [markdown]
# **Question 2** (4 points). Why must 0 be exactly one of the values, and how does the table pay for it? What would go
# wrong with $p_{\max} = 1 - 10^{-9}$, and what with $p_{\max} = 0.6$?
#
# BEGIN SOLUTION(question="a4.q2")
# Weights that are exactly zero (padding, pruned weights, unused rows) must stay zero, or everything they multiply is
# moved by the same error; and errors that are not centred add up over a row. An even number of values that is symmetric
# has no middle, so the halves have 7 and 8 values beside the zero: the table is not symmetric. The values are divided
# by the largest. With $p_{\max}$ near 1 that one is very large (about 6), so all others are pushed towards 0: the
# interval between 0.5 and 1 has one or two codes. With 0.6 the quantiles are nearly evenly spaced: the table is about
# int4, with few values near zero, where most weights are.
#
# *Marking (4 points): 1 for why zero, 1 for 7 and 8, 1 for each of the two extremes.*
# END SOLUTION

# %% [markdown]
# **Question 3** (4 points). Small blocks cost bits, large ones cost accuracy. Explain the second half with one outlier
# in a block. For blocks of 64 and of 4096: how many bits an element, with and without double quantization? Which
# combination would you choose, looking at the middle picture?
#
# BEGIN SOLUTION(question="a4.q3")
# The absmax of a block is set by its largest weight. One outlier, ten times the others, leaves the others with the
# codes near zero: their error grows tenfold, or they all become 0. In small blocks fewer elements suffer from it, and
# also without outliers the largest of 4096 normal numbers (about 3.7) is larger than that of 64 (about 2.5), so the
# grid is coarser. Bits: 64: $4 + 32/64 = 4.5$, double $4 + 8/64 + 32/(64 \cdot 256) = 4.127$; 4096: $4.0078$, double
# $4.002$. Double quantization makes small blocks cheap: 64, or even 32 with 4.25 bits, for nearly the same error as
# without it. With float32 statistics blocks of 128 are as dear as blocks of 32 with double quantization.
#
# *Marking (4 points): 1 for the outlier, 2 for the four numbers (1 for two or three), 1 for a reasoned choice.*
# END SOLUTION

# %% [markdown]
# **Question 4** (4 points). Why is the mean subtracted before the statistics are quantized, and why are eight bits
# with a second absmax for 256 statistics enough? How does an error of 1% in one absmax act on the weights of its block,
# compared with NF4's own rounding?
#
# BEGIN SOLUTION(question="a4.q4")
# Statistics are positive, and the map is symmetric: without subtracting, half of the codes would never be used, and the
# values would all lie at its coarse end near 1. With it they lie around zero, where the dynamic map is fine. Eight bits
# give a relative error of about a percent of the *spread* of the statistics, which itself is a fraction of their mean.
# An error of 1% in an absmax scales all 64 weights of the block by 1.01: each is off by at most 1% of its value.
# NF4's own rounding is up to half of the gap between two values, 4 to 15% of absmax. So it does not show.
#
# *Marking (4 points): 1 for the symmetric map, 1 for "small spread, fine near zero", 2 for the comparison (the error is
# relative, and small against half a gap).*
# END SOLUTION

# %% [markdown]
# **Question 5** (5 points). What does QLoRA save in training, and what does it cost? Go through weights, gradients,
# optimizer states, activations and computation. How often is each weight dequantized in one training step? Why can a
# 4-bit weight not be trained by gradients as it is?
#
# BEGIN SOLUTION(question="a4.q5")
# Weights: 4.127 bits instead of 16, about a quarter. Gradients and optimizer states exist for the adapter only, as in
# LoRA: no further saving (paging them guards against peaks). Activations: nothing is saved; $x$ and $u$ are kept as
# before. Computation: all of LoRA's, and each weight is dequantized at least twice a step, once in the forward and once
# in the backward pass (three times with recomputation of activations), so training is slower than LoRA on 16 bits.
# A 4-bit weight is piecewise constant in whatever it came from: its derivative is zero almost everywhere, and a step of
# the size of a rate is far smaller than the gap between two codes, so it would be rounded away. (Training through
# rounding needs a float copy and a straight-through estimate.) QLoRA needs none of it, as the base is frozen and only
# passes gradients on.
#
# *Marking (5 points): 1 for weights, 1 for "no further saving" in gradients and states, 1 for activations, 1 for twice
# a step, 1 for why it cannot be trained.*
# END SOLUTION

# %% [markdown]
# **Question 6** (5 points). For your kernel of 4.5: how many bytes does it read and write for each element? A core
# copies about 10 GB/s: what would be the fastest time for an element, and is your kernel bound by memory or by
# arithmetic? Name two things in `quantize_slowly` that kept the compiler from vectors, and say why a *binary* search,
# with 4 comparisons instead of 15, is slower if it branches.
#
# BEGIN SOLUTION(question="a4.q6")
# It reads 4 bytes (twice, but the second time from the first-level cache) and writes half a byte and $4/64$: about 4.6
# bytes. At 10 GB/s that is 0.46 ns. Measured are 0.7 to 3 ns, so it is bound by arithmetic (15 comparisons and sums an
# element, divided by the width of the vectors), except with the widest vectors, where both are near. In
# `quantize_slowly`: the decision whether `i` is even, and that the low half reads the byte that the element before
# wrote; the absmax that is computed inside of the loop and the branches in `scaled`; integers of 64 bits; divisions in
# the indices. A binary search takes another way for each element: its branches are as unpredictable as coin flips, four
# of them, each wrong half of the time at some 15 cycles, which is more than 15 comparisons that are done for 8 elements
# at once; and it does not vectorise.
#
# *Marking (5 points): 1 for the bytes, 1 for the time and the conclusion, 2 for two obstacles, 1 for the branches.*
# END SOLUTION

# %% [markdown]
# **Question 7** (5 points). Your kernel of 4.7 takes $u = x A^\top$ as given. Should it compute $u$ itself, in the same
# loop over $K$? Count the work for a grid of many columns of tiles. When does fusing the low-rank part pay most, and
# when hardly at all? Why are the partial sums float32 although inputs and outputs are float16?
#
# BEGIN SOLUTION(question="a4.q7")
# All tiles in one row of the grid need the same rows of $u$. If each computes it, the product with $A$ is done $N /
# \text{BLOCK\_N}$ times: for $N = 4096$ and blocks of 128 that is 32 times, $32 r$ columns of extra work, as much as
# an eighth of the base product for $r = 16$. Once, before, it costs one more read of $x$. For one or two tiles of
# columns, or tiny ranks, computing it in the loop is fine. Fusing pays where memory is the limit: $y$ is not written,
# read and written again, so with few rows or narrow layers it is a large part of the traffic; for large square products
# the base product is bound by arithmetic, and a few passes over $y$ are a small part. Sums of thousands of products in
# float16 lose small terms once the sum is 2048 times larger (11 bits), and overflow at 65504; tensor cores add in
# float32 anyway.
#
# *Marking (5 points): 2 for the repeated work, counted; 1 for when it pays and 1 for when not; 1 for the sums.*
# END SOLUTION

# %% [markdown]
# **Question 8** (4 points). A QLoRA adapter is to be shipped. Compare three ways: base in four bits and the adapter
# beside it; merged into 16 bits; merged and quantized again. What does each cost in memory, in latency and in quality,
# and what does the experiment say about the third?
#
# BEGIN SOLUTION(question="a4.q8")
# *Adapter beside it*: a quarter of the memory, exactly the model that was trained, adapters can be switched; the
# low-rank product is extra work in each layer, and weights are dequantized at each use. *Merged into 16 bits*: no extra
# layers and no dequantizing, so the fastest where memory suffices, but four times the memory; exact up to rounding (one
# must add to the *dequantized* weight, not to the original one, which the adapter has never seen). *Quantized again*:
# as small as the first and without extra layers, but the sum is rounded to the grid: a change smaller than half a gap
# may vanish or be doubled, and absmax may change. In the experiment the exact merge changed the logits by less than a
# millionth, the third way by 8 percent of their size, and it cost some thousandths of a bit per byte; how much depends
# on the size of the change. So it must be measured, never done silently.
#
# *Marking (4 points): 1 for each way with its costs, 1 for the numbers of the experiment and the conclusion.*
# END SOLUTION
