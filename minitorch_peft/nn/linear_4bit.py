"""Linear4bit: y = x Wᵀ + b with W in four bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, eq. 5).

The weight is no parameter: it is buffers, which are saved with the model and never trained. It is decoded in tiles
while it is multiplied by, so that no dense copy is ever held; gradients reach x and the bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.kernels.eight_bit.codes import create_dynamic_map
from minitorch_peft.kernels.four_bit.layout import NESTED_BLOCKSIZE, Nested, Quantized, check_quantized
from minitorch_peft.kernels.four_bit.reference import code_table
from minitorch_peft.nn.leaf import Leaf
from minitorch_peft.nn.linear import Linear
from minitorch_peft.nn.module import Parameter
from minitorch_peft.ops.linear_4bit import linear_4bit, lora_linear_4bit


class Linear4bit(Leaf):
    """``x`` (..., in_features) to (..., out_features); the buffers are those of a ``Quantized`` (out, in).

    >>> layer = Linear4bit(dispatch.get("quantize_4bit", np.float32)(np.ones((2, 64), np.float32)))
    >>> layer, layer.state_dict()["packed"].shape
    (Linear4bit(64, 2, bias=False, nf4 in blocks of 64), (64,))
    """

    def __init__(self, weight: Quantized, bias: Parameter | None = None) -> None:
        check_quantized("Linear4bit", weight)
        if len(weight.shape) != 2:
            raise ValueError(f"Linear4bit: expected a matrix (out, in), got a tensor of shape {weight.shape}")
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.quant_type = weight.quant_type
        self.blocksize = weight.blocksize
        self.packed = weight.packed
        self.absmax = weight.absmax
        self.nested_absmax: np.ndarray | None = None
        self.nested_offset: np.ndarray | None = None
        if weight.nested is not None:
            self._nest(weight.nested)

    def _nest(self, nested: Nested) -> None:
        if not np.array_equal(nested.code, create_dynamic_map()):
            raise ValueError("Linear4bit: absmax is nested with a map that bitsandbytes does not use")
        self.nested_absmax, self.nested_offset = nested.absmax, np.array(nested.offset, np.float32)

    @classmethod
    def from_linear(cls, linear: Any, **how: Any) -> Linear4bit:
        """A Linear's weight in four bits, and its bias; ``how``: the keywords of ``quantize_4bit``."""
        weight = linear.dense_weight().astype(np.float32, copy=False)
        return cls(dispatch.get("quantize_4bit", weight.dtype)(weight, **how), linear.bias)

    def constants(self) -> dict[str, np.ndarray]:
        """The sixteen values: the codes of another type would be as good as random."""
        return {"quant_map": code_table(self.quant_type)}

    @property
    def weight(self) -> Quantized:
        """(out_features, in_features) in four bits."""
        nested = None
        if self.nested_absmax is not None and self.nested_offset is not None:
            nested = Nested(create_dynamic_map(), self.nested_absmax, float(self.nested_offset), NESTED_BLOCKSIZE)
        shape = (self.out_features, self.in_features)
        return Quantized(self.packed, self.absmax, shape, self.blocksize, self.quant_type, nested)

    @property
    def packed_parameters(self) -> int:  # type: ignore[override]
        return self.out_features * self.in_features

    def base_forward(self, x: Tensor) -> Tensor:
        return linear_4bit(x, self.weight, self.bias)

    def packed_terms(self) -> tuple[Quantized, Tensor | None]:
        return self.weight, self.bias

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
        return lora_linear_4bit(x, self.weight, self.bias, A, B, s)

    def dense_weight(self) -> np.ndarray:
        return dispatch.get("dequantize_4bit", np.dtype(np.float32))(self.weight)

    def set_dense_weight(self, array: np.ndarray) -> None:
        raise RuntimeError("this weight is stored in four bits: set that of dense(), or quantize anew")

    def dense(self, dtype: Any) -> Linear:
        layer = Linear(self.in_features, self.out_features, bias=False)
        layer.weight.data = self.dense_weight().astype(dtype, copy=False)
        layer.weight.requires_grad_(False)
        layer.bias = self.bias
        return layer

    def repacked(self, dense: Leaf) -> Linear4bit:
        nested = self.nested_absmax is not None
        return Linear4bit.from_linear(
            dense, blocksize=self.blocksize, quant_type=self.quant_type, compress_statistics=nested
        )

    def extra_repr(self) -> str:
        bias = "" if self.bias is not None else ", bias=False"
        nested = ", nested" if self.nested_absmax is not None else ""
        return f"{self.in_features}, {self.out_features}{bias}, {self.quant_type} in blocks of {self.blocksize}{nested}"
