"""Small models, batches and a training loop for the tests of this folder."""

from __future__ import annotations

import numpy as np

from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import ForwardContext
from minitorch_peft.optim import AdamW
from minitorch_peft.peft.inject import base_buffers, base_parameters
from minitorch_peft.quant import quantize_model

SIZES = {"vocab_size": 29, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
CONFIGS = {
    "gpt2": GPTConfig(**SIZES),
    "llama": GPTConfig.llama(**SIZES, num_key_value_heads=2, n_inner=40),
}
BASES = {  # of random models of transformers, for the tests of parity
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 64, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "llama": {
        "model_type": "llama", "vocab_size": 64, "max_position_embeddings": 40, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    },
}  # fmt: skip
IDS = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (3, 8))
MASK = np.arange(8) >= np.array([0, 3, 6])[:, None]  # rows padded on the left
TIGHT = {"rtol": 1e-5, "atol": 2e-5}


def gpt(family: str, dtype=np.float32) -> GPT:
    """Weights far from zero, so that every path through the model matters to its output; dropout off.

    ``-4bit`` at the end of the family's name: its linear layers are in four bits, double quantization included.
    """
    name = family.removesuffix("-4bit")
    model = GPT(CONFIGS[name])
    stir(dict(model.named_parameters()), seed=5, scale=0.2)
    if name != family:
        quantize_model(model)
    return model.astype(dtype).eval()


def stir(parameters, seed=7, scale=0.1):
    """Move every parameter by random numbers that depend on its name alone."""
    for name, p in parameters.items():
        rng = np.random.default_rng([seed, *name.encode()])
        p.data[...] += scale * rng.standard_normal(p.shape)


def stirred(peft_model, name="default", scale=0.1):
    """The model, with an adapter that matters."""
    stir(peft_model.adapters[name].named_parameters(), scale=scale)
    return peft_model


def logits(model, ids=IDS, **options):
    with no_grad():
        return model(ids, **options).logits.data


def loss(model, ids=IDS, **options):
    with no_grad():
        return model(ids, labels=ids, **options).loss.item()


def snapshot(model):
    """Path to (shape, dtype, bytes) of every parameter that stands in a base, and of every buffer."""
    arrays = {path: p.data for path, p in base_parameters(model)} | dict(base_buffers(model))
    return {path: (a.shape, a.dtype, a.tobytes()) for path, a in arrays.items()}


def originals(peft_model):
    """The same of the base's own parameters, those that a copy stands in for included."""
    own = {name: p.data for name, p in peft_model.named_parameters() if p.owner == "base"}
    own |= dict(base_buffers(peft_model.base_model))
    return {path: (a.shape, a.dtype, a.tobytes()) for path, a in own.items()}


def optimizer_of(model, lr=1e-2):
    return AdamW({n: p for n, p in model.named_parameters() if p.requires_grad}, lr=lr, weight_decay=0.01)


def train(model, optimizer, steps, ids=IDS):
    """Steps (a range) of AdamW on ``ids``, calling the hooks as the trainer does."""
    model.train()
    for step in steps:
        out = model(ids, labels=ids, context=ForwardContext(seed=0, step=step))
        penalty = model.penalty()
        (out.loss if penalty is None else out.loss + penalty).backward()
        model.after_backward(step, 10)
        optimizer.step()
        model.after_step(step)
        optimizer.zero_grad()
    model.eval()
