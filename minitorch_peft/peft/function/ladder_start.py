"""The start of a ladder's side network: the base's rows and columns of largest norm (Sung et al. 2022, section 3.3).

The side network has the base's blocks, but fewer of everything: channels of the residual stream, heads and their
channels, neurons of the MLP. Chosen are those whose weights have the largest norm, and what is left out is cut from
both sides of them (structural pruning). The paper sums |w| or Fisher information over the same groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import Module
from minitorch_peft.peft.inject import base_module

Named = Iterator[tuple[str, np.ndarray]]


def side_config(base: GPTConfig, reduction_factor: int) -> GPTConfig:
    """The side network's shape: width and MLP ``reduction_factor`` times smaller, as few heads as are no wider.

    >>> side = side_config(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4), 8)
    >>> side.n_embd, side.n_head, side.inner
    (8, 1, 32)
    """
    C, f = base.n_embd, reduction_factor
    if C % f:
        valid = ", ".join(str(d) for d in range(2, C + 1) if C % d == 0)
        raise ValueError(f"reduction_factor={f} does not divide the width {C}: {valid} do")
    width, step = C // f, 2 if base.position_embedding == "rotary" else 1
    heads = [h for h in range(math.ceil(base.n_head / f), width + 1) if width % (h * step) == 0]
    if not heads:
        raise ValueError(f"reduction_factor={f} leaves a width of {width}, and rotary positions need an even one")
    return replace(
        base, n_embd=width, n_head=heads[0], num_key_value_heads=None, n_inner=max(1, base.inner // f),
        embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip


def largest(scores: np.ndarray, n: int) -> np.ndarray:
    """The places of the n largest scores, in order of place; of equals the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:n])


def kept_channels(model: GPT, width: int) -> np.ndarray:
    """The channels of the residual stream of largest norm in the token embedding."""
    return largest(np.square(base_module(model, "embed.tokens").dense_weight()).sum(axis=1), width)


def pruned_block(model: GPT, layer: int, side: GPTConfig, channels: np.ndarray) -> Named:
    """(name, array) of every parameter of the side network's block ``layer``."""
    path = f"blocks.{layer}"
    for norm in ("ln_1", "ln_2"):
        for name, p in base_module(model, f"{path}.{norm}").named_parameters():
            yield f"{norm}.{name}", p.data[channels]
    queries, keys = kept_rows(model, f"{path}.attn", side, channels)
    for leaf, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield from cut(model, f"{path}.attn.{leaf}", f"attn.{leaf}", rows, channels)
    yield from cut(model, f"{path}.attn.o_proj", "attn.o_proj", channels, queries)
    into = [name for name, _ in base_module(model, f"{path}.mlp").named_children() if name in ("gate_proj", "up_proj")]
    down = weight(model, f"{path}.mlp.down_proj")[channels]
    score = sum(np.square(weight(model, f"{path}.mlp.{n}")[:, channels]).sum(axis=1) for n in into)
    neurons = largest(score + np.square(down).sum(axis=0), side.inner)
    for name in into:
        yield from cut(model, f"{path}.mlp.{name}", f"mlp.{name}", neurons, channels)
    yield from cut(model, f"{path}.mlp.down_proj", "mlp.down_proj", channels, neurons)


def kept_rows(model: GPT, path: str, side: GPTConfig, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of q (and columns of o) of the kept heads, and those of k and v, copied to all heads of a group."""
    base = model.config
    H, D, group = base.n_head, base.head_dim, base.n_head // base.kv_heads
    heads = np.arange(H * D).reshape(H, D)
    of_key = heads[np.arange(H) // group]
    score = np.square(weight(model, f"{path}.o_proj")[channels]).sum(axis=0)[heads]
    for leaf, rows in (("q_proj", heads), ("k_proj", of_key), ("v_proj", of_key)):
        score = score + np.square(weight(model, f"{path}.{leaf}")[:, channels]).sum(axis=1)[rows]
    kept = [(h, largest(score[h], side.head_dim)) for h in largest(score.sum(axis=1), side.n_head)]
    return np.concatenate([heads[h, d] for h, d in kept]), np.concatenate([of_key[h, d] for h, d in kept])


def cut(model: GPT, path: str, name: str, rows: np.ndarray, columns: np.ndarray) -> Named:
    """(name, array) of a linear layer's weight and bias, of these rows and columns."""
    yield f"{name}.weight", weight(model, path)[np.ix_(rows, columns)]
    bias = base_module(model, path).bias
    if bias is not None:
        yield f"{name}.bias", bias.data[rows]


def weight(model: GPT, path: str) -> np.ndarray:
    return base_module(model, path).dense_weight()


def start(module: Module, arrays: Named) -> None:
    """Put arrays into the parameters of these names; each must have one."""
    left = dict(module.named_parameters())
    for name, array in arrays:
        left.pop(name).data[...] = array
    assert not left, f"no start for {sorted(left)}"
