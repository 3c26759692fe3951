"""How a model is to be quantized, under the names that ``transformers`` has for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

QUANT_TYPES = ("nf4", "fp4")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class BitsAndBytesConfig:
    """The settings of ``transformers``' class of this name that concern four bits, with its defaults.

    These are not what the QLoRA paper uses: that is ``QLORA``, NF4 with double quantization. ``bnb_4bit_compute_dtype``
    is what a GPU multiplies in; it is kept for files, while the CPU computes in the dtype of the activations.
    ``llm_int8_skip_modules``: the layers to leave alone, by name or dotted suffix; None: the head.

    >>> BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4").bnb_4bit_use_double_quant
    False
    """

    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: str = "float32"
    llm_int8_skip_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("load_in_4bit", "bnb_4bit_use_double_quant"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.bnb_4bit_quant_type not in QUANT_TYPES:
            known = " or ".join(map(repr, QUANT_TYPES))
            raise ValueError(f"bnb_4bit_quant_type must be {known}, got {self.bnb_4bit_quant_type!r}")
        if self.bnb_4bit_compute_dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise ValueError(f"bnb_4bit_compute_dtype must be one of {known}, got {self.bnb_4bit_compute_dtype!r}")
        if isinstance(self.llm_int8_skip_modules, str):
            raise ValueError(f"llm_int8_skip_modules must be a list of names, got {self.llm_int8_skip_modules!r}")
        if self.llm_int8_skip_modules is not None:
            object.__setattr__(self, "llm_int8_skip_modules", tuple(self.llm_int8_skip_modules))

    def arguments(self) -> dict[str, Any]:
        """What ``quantize_model`` takes."""
        return {
            "quant_type": self.bnb_4bit_quant_type,
            "compress_statistics": self.bnb_4bit_use_double_quant,
            "skip": ("lm_head",) if self.llm_int8_skip_modules is None else self.llm_int8_skip_modules,
        }

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; the inverse of :meth:`from_dict`."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """ValueError for a name that it does not have."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(settings.keys() - set(known)):
            raise ValueError(f"BitsAndBytesConfig has no {', '.join(unknown)}; it has: {', '.join(known)}")
        return cls(**settings)


QLORA = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
"""The QLoRA paper's base (Dettmers et al. 2023, section 3): NF4, its absmax in eight bits in turn."""
