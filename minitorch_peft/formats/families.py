"""What the families GPT-2 and Llama are called in Hugging Face's files: tables, read in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Fields = Mapping[str, Any]  # the fields of a GPTConfig


class Row(NamedTuple):
    """One tensor of a file and the parameters that it holds; ``*`` is the layer.

    ``shape`` gives the axes of each of our arrays, in letters (see :func:`sizes`). Several of ``ours`` are
    stacked along their first axis; then, where ``transposed`` (GPT-2's Conv1D is (in, out)), the whole is
    turned. ``when`` is the (field, value) under which the tensor exists.
    """

    theirs: str
    ours: tuple[str, ...]
    shape: str
    transposed: bool = False
    when: tuple[str, bool] | None = None


@dataclass(frozen=True)
class Family:
    """``keys``: a config.json key to (our field, its value where the key is absent; REQUIRED: no such value).
    ``implied``: fields that the family has no key for. ``demanded``: keys that must have this value.
    """

    model_type: str
    architecture: str
    prefix: str  # of every tensor but the head's; some files leave it out
    keys: Mapping[str, tuple[str, Any]]
    implied: Mapping[str, Any]
    demanded: Mapping[str, Any]
    rows: tuple[Row, ...]
    buffers: tuple[str, ...]  # endings of names that old files hold beside the parameters


REQUIRED = object()


def sizes(fields: Fields) -> dict[str, int]:
    """The length of each axis: V vocabulary, P positions, C channels, K those of keys, F those of the MLP."""
    C, H = fields["n_embd"], fields["n_head"]
    kv_heads, inner = fields.get("num_key_value_heads") or H, fields.get("n_inner") or 4 * C
    return {"V": fields["vocab_size"], "P": fields["n_positions"], "C": C, "K": C // H * kv_heads, "F": inner}


def expand(family: Family, fields: Fields) -> Iterator[Row]:
    """The rows that exist in a model of these fields, one for each layer."""
    for row in family.rows:
        if row.when is not None and fields[row.when[0]] != row.when[1]:
            continue
        for layer in range(fields["n_layer"]) if "*" in row.theirs else (0,):
            ours = tuple(name.replace("*", str(layer)) for name in row.ours)
            yield row._replace(theirs=row.theirs.replace("*", str(layer)), ours=ours)


def stored_shape(row: Row, axes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of the file's tensor."""
    first, *others = (axes[letter] for letter in row.shape)
    shape = (first * len(row.ours), *others)
    return shape[::-1] if row.transposed else shape


def join(row: Row, arrays: list[np.ndarray]) -> np.ndarray:
    """Our arrays to the file's one."""
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return whole.T if row.transposed else whole


def split(row: Row, array: np.ndarray) -> list[np.ndarray]:
    """The inverse of :func:`join`."""
    return np.split(array.T if row.transposed else array, len(row.ours))


def _module(theirs: str, *ours: str, shape: str, conv1d: bool = False, bias: str = "") -> tuple[Row, Row]:
    """The two tensors of one module; ``bias`` names the field that says whether there is a bias."""
    when = (bias, True) if bias else None
    return (
        Row(f"{theirs}.weight", tuple(f"{o}.weight" for o in ours), shape, conv1d),
        Row(f"{theirs}.bias", tuple(f"{o}.bias" for o in ours), shape[0], when=when),
    )


_HEAD = Row("lm_head.weight", ("lm_head.weight",), "VC", when=("tie_word_embeddings", False))
_Q, _K, _V, _O = (f"blocks.*.attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj"))

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    keys={
        "vocab_size": ("vocab_size", REQUIRED),
        "n_positions": ("n_positions", REQUIRED),
        "n_embd": ("n_embd", REQUIRED),
        "n_layer": ("n_layer", REQUIRED),
        "n_head": ("n_head", REQUIRED),
        "n_inner": ("n_inner", None),
        "activation_function": ("activation_function", "gelu_new"),
        "layer_norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "initializer_range": ("initializer_range", 0.02),
        "tie_word_embeddings": ("tie_word_embeddings", True),
        "embd_pdrop": ("embd_pdrop", 0.1),
        "resid_pdrop": ("resid_pdrop", 0.1),
        "attn_pdrop": ("attn_pdrop", 0.1),
    },
    implied={
        "norm": "layer", "position_embedding": "learned", "gated_mlp": False, "attention_bias": True,
        "mlp_bias": True,
    },
    demanded={
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    },
    rows=(
        Row("transformer.wte.weight", ("embed.tokens.weight",), "VC"),
        Row("transformer.wpe.weight", ("embed.positions.weight",), "PC"),
        *_module("transformer.h.*.ln_1", "blocks.*.ln_1", shape="C"),
        *_module("transformer.h.*.attn.c_attn", _Q, _K, _V, shape="CC", conv1d=True),
        *_module("transformer.h.*.attn.c_proj", _O, shape="CC", conv1d=True),
        *_module("transformer.h.*.ln_2", "blocks.*.ln_2", shape="C"),
        *_module("transformer.h.*.mlp.c_fc", "blocks.*.mlp.up_proj", shape="FC", conv1d=True),
        *_module("transformer.h.*.mlp.c_proj", "blocks.*.mlp.down_proj", shape="CF", conv1d=True),
        *_module("transformer.ln_f", "ln_f", shape="C"),
        _HEAD,
    ),
    buffers=(".attn.bias", ".attn.masked_bias"),
)  # fmt: skip

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    prefix="model.",
    keys={
        "vocab_size": ("vocab_size", REQUIRED),
        "max_position_embeddings": ("n_positions", 2048),
        "hidden_size": ("n_embd", REQUIRED),
        "num_hidden_layers": ("n_layer", REQUIRED),
        "num_attention_heads": ("n_head", REQUIRED),
        "num_key_value_heads": ("num_key_value_heads", None),
        "intermediate_size": ("n_inner", REQUIRED),
        "hidden_act": ("activation_function", "silu"),
        "rms_norm_eps": ("layer_norm_epsilon", 1e-6),
        "initializer_range": ("initializer_range", 0.02),
        "tie_word_embeddings": ("tie_word_embeddings", False),
        "attention_bias": ("attention_bias", False),
        "mlp_bias": ("mlp_bias", False),
        "attention_dropout": ("attn_pdrop", 0.0),
    },
    implied={
        "norm": "rms", "position_embedding": "rotary", "gated_mlp": True, "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
    demanded={},
    rows=(
        Row("model.embed_tokens.weight", ("embed.tokens.weight",), "VC"),
        Row("model.layers.*.input_layernorm.weight", ("blocks.*.ln_1.weight",), "C"),
        *_module("model.layers.*.self_attn.q_proj", _Q, shape="CC", bias="attention_bias"),
        *_module("model.layers.*.self_attn.k_proj", _K, shape="KC", bias="attention_bias"),
        *_module("model.layers.*.self_attn.v_proj", _V, shape="KC", bias="attention_bias"),
        *_module("model.layers.*.self_attn.o_proj", _O, shape="CC", bias="attention_bias"),
        Row("model.layers.*.post_attention_layernorm.weight", ("blocks.*.ln_2.weight",), "C"),
        *_module("model.layers.*.mlp.gate_proj", "blocks.*.mlp.gate_proj", shape="FC", bias="mlp_bias"),
        *_module("model.layers.*.mlp.up_proj", "blocks.*.mlp.up_proj", shape="FC", bias="mlp_bias"),
        *_module("model.layers.*.mlp.down_proj", "blocks.*.mlp.down_proj", shape="CF", bias="mlp_bias"),
        Row("model.norm.weight", ("ln_f.weight",), "C"),
        _HEAD,
    ),
    buffers=(".rotary_emb.inv_freq",),
)  # fmt: skip

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA)}
