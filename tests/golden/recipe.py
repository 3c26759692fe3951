"""Models without random numbers: every weight is a sine of its index (read by make.py and by the tests).

The k-th tensor, in the order of the names, holds s · sin(0.7310585786 i + 1.37 k) at flat index i, with s =
0.02 for biases, 0.1 for norms (and 1 added to their weights) and 0.08 elsewhere. The names are those of
``transformers``: GPT-2's without "transformer.", Llama's whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

CONFIGS = {
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4,
    },
    "llama": {
        "model_type": "llama", "vocab_size": 64, "max_position_embeddings": 32, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    },
}  # fmt: skip
IDS = np.arange(1, 9)[None]
PROMPT = np.array([[5, 6, 7]])
STEPS, LEARNING_RATE, WEIGHT_DECAY = 10, 3e-3, 0.1


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Name to float32 array, for names to shapes."""
    return {name: wave(k, shapes[name], name) for k, name in enumerate(sorted(shapes))}


def wave(k: int, shape: tuple[int, ...], name: str) -> np.ndarray:
    norm = "ln" in name or "norm" in name
    scale = 0.02 if "bias" in name else 0.1 if norm else 0.08
    i = np.arange(np.prod(shape))
    flat = np.sin(0.7310585786 * i + 1.37 * k) * scale + (norm and "bias" not in name)
    return flat.reshape(shape).astype(np.float32)


def batch(step: int) -> np.ndarray:
    """int (4, 12): the batch of one training step."""
    return np.arange(48).reshape(4, 12) * (step + 3) ** 2 // 7 % 64
