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
# # 4. Kernels: from naive to fast, and how to know where the end is
#
# **What will be built.** The two speeds of this machine, measured; GELU in five steps from a compiled loop to one that
# keeps up with memory; an exponential that a compiler can vectorise; a matrix product in five steps; the roofline that
# says how fast a kernel *can* be, with measured points under it; and the bytes that fusing LoRA's products saves.
#
# **Time:** about 40 minutes to read, half a minute to run. **Needs:** `pip install minitorch-peft[data]`.

# %%
import textwrap
from itertools import pairwise

import matplotlib.pyplot as plt
import numba
import numpy as np
from minitorch_peft.kernels import get
from minitorch_peft.kernels.examples import SIZES, Draw, examples
from minitorch_peft.kernels.ladder import versions
from minitorch_peft.kernels.timing import best_times, bytes_moved
from minitorch_peft.kernels.verify import first_disagreement

float32 = np.dtype("float32")
draw = Draw(0)  # arrays of normal numbers, from a seed

# %% [markdown]
# ## Two speeds
# A program moves numbers and combines them. How fast this machine does either at best is measured, not looked up:
# copying an array larger than its caches (every byte is read and written), and a large matrix product.


# %%
@numba.njit(parallel=True)
def copy(source, target):
    for i in numba.prange(source.size):
        target[i] = source[i]


source, target = np.ones(1 << 24, np.float32), np.zeros(1 << 24, np.float32)  # 64 MiB each
square = draw.array(1536, 1536)
product = get("linear_forward", float32)
copy(source, target)
product(square, square, None)
seconds = best_times([lambda: copy(source, target), lambda: product(square, square, None)], 0.5)
bandwidth, peak = 2 * source.nbytes / seconds[0], 2 * 1536**3 / seconds[1]
print(f"copies {bandwidth / 1e9:.0f} GB/s, multiplies and adds {peak / 1e9:.0f} GFLOP/s")
print(f"in the time for one float from memory: {peak / bandwidth * 4:.0f} operations")

# %% [markdown]
# ## GELU, step by step
# GPT-2's activation reads a number and writes one: 8 bytes of memory traffic for each element, whatever happens in
# between. The library keeps the steps of the way from naive to fast: `python -m minitorch_peft.kernels
# gelu_tanh_forward` shows them at any time. Each is held against the NumPy definition in float64 first, on small ragged
# arrays; only then is it timed.


# %%
def climb(kernel, *args, budget=0.15):
    """Verify and time every version; a table of its time, and of why it is faster than the one before."""
    steps = versions(kernel)
    for step in steps:
        assert first_disagreement(kernel, step.function, draws=3) is None
        result = step.function(*args)
    times = best_times([lambda step=step: step.function(*args) for step in steps], budget)
    moved = bytes_moved(args, result)
    for step, t in zip(steps, times, strict=True):
        print(f"{step.name:12s} {1e3 * t:9.3f} ms {moved / t / 1e9:6.1f} GB/s")
        print(textwrap.indent(textwrap.fill(step.why, 100), "    "))
    return {step.name: t for step, t in zip(steps, times, strict=True)}


x = draw.array(1 << 20)
gelu = climb("gelu_tanh_forward", x)

# %% [markdown]
# Where do the steps come from? Not from doing less: the arithmetic of the last version is more than that of the first.
# They come from what the compiler may do with the loop. It works on 8 or 16 numbers with one instruction if every step
# of the loop is an instruction; a call of `tanh` is not one.
#
# ## An exponential that a compiler can see
# $e^x = 2^k e^r$ with $k = \lfloor x / \ln 2 + \tfrac12 \rfloor$ leaves $|r| \le \tfrac12 \ln 2 \approx 0.35$, where
# few terms of Taylor's series are enough. $2^k$ costs no arithmetic at all: $k + 127$ is put where a float keeps its
# exponent.


# %%
def exponential(x, degree):
    k = np.floor(x * np.float32(1 / np.log(2)) + np.float32(0.5))
    r = x - k * np.float32(0.693359375) - k * np.float32(-2.12194440e-4)  # k times the first is exact
    p, factorial = np.zeros_like(x), np.cumprod([1.0, *range(1, degree + 1)])
    for n in range(degree, -1, -1):
        p = p * r + np.float32(1 / factorial[n])
    return p * ((k.astype(np.int32) + 127) << 23).view(np.float32)


points = np.linspace(-80, 80, 200_001, dtype=np.float32)
exact = np.exp(points.astype(np.float64))
degrees = range(2, 9)
errors = [np.abs(exponential(points, n) / exact - 1).max() for n in degrees]
fig, ax = plt.subplots(figsize=(6, 3.2))
ax.semilogy(degrees, errors, "o-", label="largest relative error")
ax.axhline(2**-24, color="grey", linestyle="--", label="rounding of a float32")
ax.set(xlabel="degree of the polynomial", title="Seven terms after the first are enough for float32")
ax.legend()
plt.tight_layout()
plt.show()
assert errors[0] > 1e-3 and errors[-2] < 4 * 2**-24, "degree 7 is as exact as the type"
assert all(b < a for a, b in pairwise(errors[:5])), "each term helps, until rounding is all that is left"

# %% [markdown]
# (On a GPU none of this is needed: it has an instruction for $2^x$. On a CPU it is worth a factor of six.)
#
# ## A sum is a chain
# A compiler that keeps Python's promises adds one number after the other, for the order changes the last digit: each
# addition waits for the one before it. `fastmath` says that the order does not matter. The source is the same:

# %%
rows = draw.array(1024, 384)
norm = climb("layer_norm_forward", rows, draw.array(384), draw.array(384), 1e-5)

# %% [markdown]
# Does it matter? The reordered sum is even closer to the truth: 64 short chains round less than one long one.

# %%
values = (draw.array(1 << 18) + 1).astype(np.float32)
true = values.astype(np.float64).sum()
chain, lanes = np.cumsum(values)[-1], values.reshape(-1, 64).cumsum(0)[-1].cumsum()[-1]
print(f"one chain is off by {abs(chain - true) / true:.0e}, 64 chains by {abs(lanes - true) / true:.0e}")
assert abs(lanes - true) < abs(chain - true)

# %% [markdown]
# ## A product: use a number again while it is there
# A product of $(R, K)$ by $(N, K)$ takes $2RNK$ operations on $4(RK + NK + RN)$ bytes: each number *could* be used many
# times. The three loops use it once for each time they load it.

# %%
wide, weight = draw.array(512, 384), draw.array(512, 384)
linear = climb("linear_forward", wide, weight, None)
flops = 2 * 512 * 512 * 384
rates = {name: flops / t / 1e9 for name, t in linear.items()}
fig, ax = plt.subplots(figsize=(6.4, 2.8))
ax.barh(list(rates), list(rates.values()), color="tab:blue")
for i, rate in enumerate(rates.values()):
    ax.annotate(f"{rate:.0f}", (rate, i), xytext=(4, 0), textcoords="offset points", va="center")
ax.set(xscale="log", xlabel="GFLOP/s", title="(512, 384) by (512, 384)")
ax.set_xlim(right=3 * max(rates.values()))
ax.invert_yaxis()
plt.tight_layout()
plt.show()

# %% [markdown]
# ## The roofline
# A kernel that does $F$ operations on $Q$ bytes needs at least $\max(F / \text{peak}, Q / \text{bandwidth})$ seconds.
# With its *intensity* $F / Q$ that is a roof over its rate: a slope where memory is the bound, flat where arithmetic
# is, with a ridge between them (Williams et al. 2009). The same layer passes under the slope and the flat part: with
# few rows (writing one token at a time) it reads a whole weight for little work; with many (training) it uses each
# number often.

# %%
matrix = draw.array(6144, 2048, spread=2048**-0.5)  # 48 MiB: does not stay in a cache
counts = (1, 2, 4, 8, 16, 32, 64, 256)
inputs = [draw.array(rows, 2048) for rows in counts]
tiles = {step.name: step.function for step in versions("linear_forward")}["tiles"]
for few in inputs:
    assert np.allclose(product(few, matrix, None), tiles(few, matrix, None), atol=1e-3)
times = best_times([lambda few=few: product(few, matrix, None) for few in inputs], 0.3)
by_tiles = best_times([lambda few=few: tiles(few, matrix, None) for few in inputs[:6]], 0.3)
work = np.array([2 * rows * matrix.size for rows in counts])
moved = np.array([4 * (rows * 2048 + matrix.size + rows * 6144) for rows in counts])

OPERATIONS = {"gelu_tanh_forward": 26, "silu_forward": 20, "softmax_forward": 20, "layer_norm_forward": 8}
elementwise = {}
for name, operations in OPERATIONS.items():
    args = examples()[name].typical(draw, SIZES["large"])
    result = get(name, float32)(*args)
    (t,) = best_times([lambda name=name, args=args: get(name, float32)(*args)], 0.2)
    elementwise[name] = (operations * args[0].size, bytes_moved(args, result), t)

fig, ax = plt.subplots(figsize=(7.6, 4.2))
intensity = np.geomspace(0.2, 200, 100)
ax.loglog(intensity, np.minimum(peak, intensity * bandwidth) / 1e9, color="black", label="roof, measured")
ax.loglog(work / moved, work / np.array(times) / 1e9, "o-", color="tab:blue", label="linear layer, by rows")
ax.loglog(
    (work / moved)[:6], work[:6] / np.array(by_tiles) / 1e9, ".:", color="tab:green", label="our tiles, one thread"
)
for rows, i, t, f in zip(counts, work / moved, times, work, strict=True):
    ax.annotate(str(rows), (i, f / t / 1e9), xytext=(5, -11), textcoords="offset points", color="tab:blue", fontsize=8)
for (name, (f, q, t)), marker in zip(elementwise.items(), "svD^", strict=True):
    ax.loglog(f / q, f / t / 1e9, marker, color="tab:orange", label=name.removesuffix("_forward"))
ax.set(xlabel="operations for each byte moved", ylabel="GFLOP/s", title="Under the roof of this machine")
ax.legend(fontsize=8)
plt.tight_layout()
plt.show()

bound = np.maximum(work / peak, moved / bandwidth)
for rows, t, least, q in zip(counts, times, bound, moved, strict=True):
    side = "memory" if q / bandwidth == least else "arithmetic"
    print(f"{rows:4d} rows: {q / 1e6:5.1f} MB, at least {1e3 * least:6.2f} ms ({side}), measured {1e3 * t:6.2f} ms")

# %% [markdown]
# Points above the roof are no mistake: its slope is that of memory, and an array that still lies in a cache from the
# last call comes from there. Points far below it are work that was not counted, or work to do. A matrix product that
# first copies its operands into the order in which it reads them, as `gemm` does, adds nothing beside the work of 256
# rows; for one row the copy is most of the work. (The layers' own product has another way for few rows.)
#
# ## Counted bytes decide what to fuse
# LoRA computes $y = xW^\top + s\,(xA^\top)B^\top$. Written with four operators it makes four arrays of $y$'s size or
# $x$'s and reads them back. The fused kernel adds the low-rank term to each block of $y$ while it is in the cache.

# %%
model = SIZES["large"]._replace(batch=4)
x, weight, bias, a, b, s = examples()["lora_linear_forward"].typical(draw, model)
fused = get("lora_linear_forward", float32)


def unfused():
    xa = product(x, a, None)
    return product(x, weight, bias) + np.float32(s) * product(xa, b, None)


y, xa = fused(x, weight, bias, a, b, s)
assert np.allclose(y, unfused(), atol=1e-4)
both = best_times([lambda: fused(x, weight, bias, a, b, s), unfused], 1.0)
n_x, n_y = x.nbytes, y.nbytes
traffic = {
    "fused": 2 * n_x + n_y,  # x for W and for A; y out. x A^T is small
    "unfused": 2 * n_x + n_y + n_y + 2 * n_y + 3 * n_y,  # two products out; scaled (in, out); added (in, in, out)
}
for name, t in zip(traffic, both, strict=True):
    print(f"{name:8s} {1e3 * t:7.2f} ms, {traffic[name] / 1e6:5.1f} MB of activations")
print(f"{traffic['unfused'] / traffic['fused']:.1f} times the bytes, {both[1] / both[0]:.2f} times the time")
assert traffic["unfused"] > 3 * traffic["fused"]

# %% [markdown]
# The time shrinks by less than the bytes: most of it is the product with $W$, which both have. That, too, is in the
# count: fusing can save what the extra traffic costs and no more. On a GPU, where products are fast beside memory, the
# same count gives half of the product's time (`python -m benchmarks.roofline`).
#
# **Try it yourself.** Write SiLU's ladder: start from a loop with `math.exp`, and let `first_disagreement` judge each
# step before you time it. Then take `softmax_forward`'s, and say for each step which bytes or which waiting it removes.
