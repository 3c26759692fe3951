"""The contender of benchmarks.kernels that is bitsandbytes' Python interface, on its CPU backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes import functional as B

from benchmarks.contest import Prepared, serve_cases
from benchmarks.kernels_cases import arguments, named
from benchmarks.kernels_torch import gradients, leaf, tensors, timed


def state_of(q: Any, dtype: torch.dtype = torch.float32) -> B.QuantState:
    """Our 4-bit tensor (its arrays as tensors) as their QuantState: the same bytes."""
    nested = q.nested and B.QuantState(
        absmax=q.nested.absmax, blocksize=q.nested.blocksize, code=q.nested.code, dtype=torch.float32
    )
    return B.QuantState(
        absmax=q.absmax,
        shape=torch.Size(q.shape),
        code=B.get_4bit_type(q.quant_type, device="cpu"),
        blocksize=q.blocksize,
        quant_type=q.quant_type,
        dtype=dtype,
        offset=q.nested and torch.tensor(q.nested.offset),
        state2=nested,
    )


def quantize(x: Any, blocksize: int, quant_type: str, nested: bool) -> Prepared:
    def step() -> Any:
        return B.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type, compress_statistics=nested)

    return Prepared(step, lambda: [step()[0].flatten().numpy()])


def dequantize(q: Any, dtype: str, out: None) -> Prepared:
    state = state_of(q, getattr(torch, dtype))
    return timed(lambda: B.dequantize_4bit(q.packed[:, None], state))


def product(q: Any, b: Any) -> Callable[[Any], torch.Tensor]:
    state, packed = state_of(q), q.packed[:, None].t()
    return lambda x: bnb.matmul_4bit(x, packed, state, bias=b)


def lora(q: Any, b: Any, s: float) -> Callable[[Any, Any, Any], torch.Tensor]:
    base = product(q, b)
    return lambda x, a, up: base(x) + s * (x @ a.T @ up.T)


def forward(function: Callable, x: Any, *factors: Any) -> Prepared:
    """In training, where x asks for a gradient: bitsandbytes then dequantizes and multiplies."""
    return timed(lambda: function(leaf(x), *factors))


def backward(function: Callable, grad: Any, *inputs: Any) -> Prepared:
    leaves = [leaf(x) for x in inputs]
    return gradients(leaves, function(*leaves), grad)


def adamw(param, grad, m, m_absmax, v, v_absmax, lr, beta1, beta2, eps, decay, step) -> Prepared:
    """The step of bitsandbytes.optim.AdamW8bit, in the middle of training."""
    signed, unsigned = (B.create_dynamic_map(signed=signed) for signed in (True, False))

    def update() -> None:
        B.optimizer_update_8bit_blockwise(
            "adam", grad, param, m, v, beta1, beta2, 0.0, 0.0, eps, step, lr, signed, unsigned, m_absmax, v_absmax,
            weight_decay=decay,
        )  # fmt: skip

    def arrays() -> list:
        update()
        return [param.numpy()]

    return Prepared(update, arrays)


CASES: dict[str, Callable[..., Prepared]] = {
    "quantize_4bit": quantize,
    "dequantize_4bit": dequantize,
    "quantize_blockwise": lambda x, code, size: Prepared(
        lambda: B.quantize_blockwise(x, code=code, blocksize=size),
        lambda: [B.quantize_blockwise(x, code=code, blocksize=size)[0].numpy()],
    ),
    "dequantize_blockwise": lambda codes, absmax, code, shape, size: timed(
        lambda: B.dequantize_blockwise(codes, absmax=absmax, code=code, blocksize=size)
    ),
    "adamw_8bit_step": adamw,
    "linear_4bit_forward": lambda x, q, b: forward(product(q, b), x),
    "linear_4bit_backward": lambda grad, q: backward(
        product(q, None), grad, grad.new_zeros(*grad.shape[:-1], q.shape[1])
    ),
    "lora_linear_4bit_forward": lambda x, q, b, a, up, s: forward(lora(q, b, s), x, a, up),
    "lora_linear_4bit_backward": lambda grad, x, xa, q, a, up, s, needs: backward(lora(q, None, s), grad, x, a, up),
}


def prepare(name: str) -> Prepared:
    case = named(name)
    return CASES[case.kernel](*tensors(arguments(case)))


if __name__ == "__main__":
    serve_cases(prepare)
