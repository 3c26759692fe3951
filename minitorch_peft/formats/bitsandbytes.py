"""4-bit tensors as bitsandbytes writes them into a state dict: what ``transformers`` saves and loads.

Beside NAME, the packed codes as uint8 (n / 2, 1), stand NAME.absmax, NAME.quant_map (the sixteen values), with double
quantization NAME.nested_absmax and NAME.nested_quant_map, and NAME.quant_state.bitsandbytes__nf4 (or fp4): JSON, as
its UTF-8 bytes, with everything that is not a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from minitorch_peft.kernels.four_bit.layout import DTYPES, Nested, Quantized, check_quantized
from minitorch_peft.kernels.four_bit.reference import code_table

QUANT_TYPES = ("nf4", "fp4")
_STATE = ".quant_state.bitsandbytes__"
_PLAIN = {"quant_type": str, "blocksize": int, "dtype": str, "shape": list}
_NESTED = {"nested_blocksize": int, "nested_dtype": str, "nested_offset": (int, float)}


def to_tensors(name: str, q: Quantized, dtype: str = "float32") -> dict[str, np.ndarray]:
    """The arrays of the parameter ``name``, under bitsandbytes' keys and byte for byte as it would write them.

    ``dtype`` ("float32", "float16", "bfloat16") is what the tensor was, and what bitsandbytes makes of it again.
    Raises ValueError for a type that it lacks (int4) or parts that do not fit each other.

    >>> from minitorch_peft.kernels.four_bit.reference import quantize_4bit
    >>> tensors = to_tensors("weight", quantize_4bit(np.ones((2, 64))))
    >>> {key: array.shape for key, array in tensors.items()}
    {'weight': (64, 1), 'weight.absmax': (2,), 'weight.quant_map': (16,), 'weight.quant_state.bitsandbytes__nf4': (76,)}
    """
    check_quantized(f"to_tensors({name!r})", q)
    if q.quant_type not in QUANT_TYPES:
        raise ValueError(f"{name}: bitsandbytes stores {' and '.join(QUANT_TYPES)}, not {q.quant_type}")
    if dtype not in DTYPES:
        raise ValueError(f"{name}: dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    state: dict[str, Any] = {
        "quant_type": q.quant_type, "blocksize": q.blocksize, "dtype": dtype, "shape": list(q.shape),
    }  # fmt: skip
    tensors = {name: q.packed[:, None], f"{name}.absmax": q.absmax, f"{name}.quant_map": code_table(q.quant_type)}
    if q.nested is not None:
        offset, blocksize = float(np.float32(q.nested.offset)), q.nested.blocksize
        state |= {"nested_blocksize": blocksize, "nested_dtype": "float32", "nested_offset": offset}
        tensors |= {f"{name}.nested_absmax": q.nested.absmax, f"{name}.nested_quant_map": q.nested.code}
    tensors[f"{name}{_STATE}{q.quant_type}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return tensors


def from_tensors(name: str, tensors: Mapping[str, np.ndarray]) -> Quantized:
    """The 4-bit parameter ``name``, from arrays that bitsandbytes or ``to_tensors`` has written.

    Other parameters may stand beside it. Raises KeyError for missing arrays; ValueError (TypeError for a dtype) where
    the arrays contradict each other or hold something else than this format: the message names the key.
    """
    state = quant_state(name, tensors)
    parts = {"absmax", "quant_map"} | ({"nested_absmax", "nested_quant_map"} if "nested_blocksize" in state else set())
    _check_keys(name, tensors, parts)
    quant_type, packed = state["quant_type"], tensors[name]
    if packed.dtype != np.uint8:
        raise TypeError(f"{name} is stored as {packed.dtype}: only bnb_4bit_quant_storage='uint8' can be read")
    if not np.array_equal(tensors[f"{name}.quant_map"], code_table(quant_type)):
        raise ValueError(f"{name}.quant_map does not hold the sixteen values of {quant_type}")
    nested = None
    if "nested_blocksize" in state:
        code, absmax = tensors[f"{name}.nested_quant_map"], tensors[f"{name}.nested_absmax"]
        nested = Nested(code, absmax, float(np.float32(state["nested_offset"])), state["nested_blocksize"])
    scales = tensors[f"{name}.absmax"]
    q = Quantized(packed.reshape(-1), scales, tuple(state["shape"]), state["blocksize"], quant_type, nested)
    check_quantized(name, q)
    for key, array in ((f"{name}.absmax", scales), (f"{name}.nested_absmax", nested.absmax if nested else scales)):
        if not np.isfinite(array).all():
            raise ValueError(f"{key} holds NaN or infinity: the file is damaged")
    return q


def quantized_names(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the 4-bit parameters among the arrays.

    >>> quantized_names({"w": 0, "w.absmax": 0, "w.quant_state.bitsandbytes__nf4": 0, "norm.weight": 0})
    ['w']
    """
    return [key.rpartition(_STATE)[0] for key in tensors if _STATE in key]


def quant_state(name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What is stored beside the arrays of the 4-bit parameter: quant_type, blocksize, dtype, shape, and nested_*."""
    keys = [key for key in tensors if key.startswith(name + _STATE)]
    if len(keys) != 1 or keys[0].removeprefix(name + _STATE) not in QUANT_TYPES:
        expected = " or ".join(f"{name}{_STATE}{kind}" for kind in QUANT_TYPES)
        raise KeyError(f"expected exactly one of {expected}, found {keys or 'none'}")
    (key,) = keys
    try:
        state = json.loads(tensors[key].astype(np.uint8).tobytes())
    except ValueError as error:
        raise ValueError(f"{key} is not JSON ({error})") from error
    _check_state(key, state)
    if state["quant_type"] != key.removeprefix(name + _STATE):
        raise ValueError(f"{key} says quant_type {state['quant_type']!r}")
    return state


def _check_state(key: str, state: Any) -> None:
    fields: dict[str, Any] = _PLAIN
    if isinstance(state, dict) and any(field in state for field in _NESTED):
        fields = _PLAIN | _NESTED
    if not isinstance(state, dict) or state.keys() != fields.keys():
        raise ValueError(f"{key} must hold exactly {', '.join(fields)}; got {state}")
    for field, kind in fields.items():
        if not isinstance(state[field], kind) or isinstance(state[field], bool):
            raise ValueError(f"{key}: {field} cannot be {state[field]!r}")
    if not all(isinstance(size, int) and size >= 0 for size in state["shape"]):
        raise ValueError(f"{key}: shape cannot be {state['shape']}")
    if state["dtype"] not in DTYPES or state.get("nested_dtype", "float32") != "float32":
        raise ValueError(f"{key}: dtype must be one of {', '.join(DTYPES)}, nested_dtype float32; got {state}")
    with np.errstate(over="ignore"):
        offset = np.float32(state.get("nested_offset", 0.0))  # the precision that it is used in
    if state.get("nested_blocksize", 1) < 1 or not np.isfinite(offset):
        raise ValueError(f"{key}: a nested_blocksize of at least 1 and a finite nested_offset are needed; got {state}")


def _check_keys(name: str, tensors: Mapping[str, np.ndarray], parts: set[str]) -> None:
    """Exactly these parts are there, besides the packed codes and the state."""
    found = {key.removeprefix(f"{name}.") for key in tensors if key.startswith(f"{name}.") and _STATE not in key}
    missing = [key for key in (name, *(f"{name}.{part}" for part in sorted(parts))) if key not in tensors]
    if missing:
        raise KeyError(f"the 4-bit parameter {name!r} lacks {', '.join(missing)}")
    if odd := sorted(found - parts):
        raise ValueError(f"{name}: beside {', '.join(sorted(parts))} stands {', '.join(odd)}: not a 4-bit parameter's")
