"""config.json of a Hugging Face directory: to the fields of a ``GPTConfig``, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitorch_peft.formats.families import FAMILIES, GPT2, LLAMA, REQUIRED, Family, Fields, sizes
from minitorch_peft.formats.files import FileFormatError

CONFIG = "config.json"
ALIASES = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}  # other names for the same function


def read_config(config: Mapping[str, Any], path: str | Path = CONFIG) -> tuple[Family, dict[str, Any]]:
    """The family of a config, and its fields as a GPTConfig has them."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        known = " or ".join(FAMILIES)
        raise FileFormatError(path, f"model_type is {config.get('model_type')!r}", f"expected {known}")
    for key in (key for key, (_, default) in family.keys.items() if default is REQUIRED):
        if not isinstance(config.get(key), int) or config[key] < 1:
            problem = f"{key} is {config.get(key, 'missing')!r}"
            raise FileFormatError(path, problem, "expected the positive number that the model was built with")
    for key, value in family.demanded.items():
        if config.get(key, value) != value:
            raise FileFormatError(path, f"{key} is {config[key]!r}", f"only {key}={value!r} is supported")
    fields = {ours: config.get(key, default) for key, (ours, default) in family.keys.items()}
    fields |= family.implied
    fields["activation_function"] = ALIASES.get(fields["activation_function"], fields["activation_function"])
    if family is LLAMA:
        fields["rope_theta"] = _rope_theta(config, path)
        _check_head_dim(config, path)
    return family, fields


def _rope_theta(config: Mapping[str, Any], path: str | Path) -> float:
    """transformers 5 keeps it in rope_parameters; before, it stood in the config, beside rope_scaling."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    if kind != "default" or partial != 1.0:
        problem = f"rotary positions are special (rope_type {kind!r}, partial_rotary_factor {partial})"
        raise FileFormatError(path, problem, "only plain ones are supported (rope_type 'default')")
    return float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))


def _check_head_dim(config: Mapping[str, Any], path: str | Path) -> None:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if (config.get("head_dim") or hidden // heads) * heads != hidden:
        problem = f"head_dim is {config.get('head_dim')} with hidden_size {hidden} and {heads} heads"
        raise FileFormatError(path, problem, "only head_dim = hidden_size / num_attention_heads is supported")


def write_config(family: Family, fields: Fields) -> dict[str, Any]:
    """The inverse of :func:`read_config`: what goes into config.json."""
    config = {key: fields[ours] for key, (ours, _) in family.keys.items()} | dict(family.demanded)
    config |= {"model_type": family.model_type, "architectures": [family.architecture], "dtype": "float32"}
    # left out, these two would be the ids of the original models
    config |= {"bos_token_id": None, "eos_token_id": None}
    if family is LLAMA:
        config["num_key_value_heads"] = fields["num_key_value_heads"] or fields["n_head"]
        config["intermediate_size"] = sizes(fields)["F"]
        config["head_dim"] = fields["n_embd"] // fields["n_head"]
        config["rope_theta"] = fields["rope_theta"]
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": fields["rope_theta"]}
    return config


def choose_family(fields: Fields, format: str | None = None) -> Family:
    """The family called ``format``, or the one that the fields fit; ValueError where none does."""
    if format is not None and format not in FAMILIES:
        raise ValueError(f"unknown format {format!r}: expected {' or '.join(FAMILIES)}, or None to choose")
    candidates = list(FAMILIES.values()) if format is None else [FAMILIES[format]]
    reasons = {family.model_type: misfits(family, fields) for family in candidates}
    fitting = [family for family in candidates if not reasons[family.model_type]]
    if not fitting:
        listed = "; ".join(f"{name} cannot hold {', '.join(why)}" for name, why in reasons.items())
        raise ValueError(f"this model has no Hugging Face format: {listed}")
    return fitting[0]


def misfits(family: Family, fields: Fields) -> list[str]:
    """The fields, with their values, that a family's files cannot express."""
    wrong = [f"{name}={fields[name]!r}" for name, value in family.implied.items() if fields[name] != value]
    if family is GPT2 and sizes(fields)["K"] != sizes(fields)["C"]:
        wrong.append(f"num_key_value_heads={fields['num_key_value_heads']}")
    return wrong
