"""The contender of benchmarks.kernels that is PyTorch: the operator that a user would call.

Backward kernels are timed as autograd runs them on a graph that is kept: the gradients of the same inputs, from the
same gradient of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.contest import Prepared, serve_cases
from benchmarks.kernels_cases import arguments, copy_arguments, named, product_arguments


def lora_linear(x, w, b, a, up, s, p=0.0):
    return F.linear(x, w, b) + s * F.linear(F.linear(F.dropout(x, p) if p else x, a), up)


def lora_stacked(x, weights, biases, lora_as, lora_bs, scalings):
    return tuple(lora_linear(x, *p) for p in zip(weights, biases, lora_as, lora_bs, scalings, strict=True))


def lora_gathered(x, w, b, a, up, s, adapter):
    y = F.linear(x, w, b)
    for e in range(len(a)):
        rows = torch.nonzero(adapter == e)[:, 0]
        y[rows] += s[e] * F.linear(F.linear(x[rows], a[e]), up[e])
    return y


def rotary(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def attention(q, k, v, mask, causal, scale):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def cross_entropy(logits, target, ignore, smoothing):
    return F.cross_entropy(logits, target, reduction="none", ignore_index=ignore, label_smoothing=smoothing)


def layer_norm(x, w, b, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], w, b, eps)


def rms_norm(x, w, eps=1e-5):
    return F.rms_norm(x, x.shape[-1:], w, eps)


FORWARD: dict[str, Callable] = {
    "linear_forward": F.linear,
    "lora_linear_forward": lora_linear,
    "lora_stacked_forward": lora_stacked,
    "lora_gathered_forward": lora_gathered,
    "lora_dropout_forward": lambda x, w, b, a, up, s, p, seed: lora_linear(x, w, b, a, up, s, p),
    "matmul": torch.matmul,
    "layer_norm_forward": layer_norm,
    "rms_norm_forward": rms_norm,
    "gelu_forward": F.gelu,
    "gelu_tanh_forward": lambda x: F.gelu(x, approximate="tanh"),
    "silu_forward": F.silu,
    "swiglu_forward": lambda gate, up: F.silu(gate) * up,
    "softmax_forward": lambda x: F.softmax(x, -1),
    "attention_forward": attention,
    "cross_entropy_forward": cross_entropy,
    "embedding_forward": lambda weight, ids: F.embedding(ids, weight),
    "rotary_forward": rotary,
    "square_norm": lambda x: torch.linalg.vector_norm(x) ** 2,
    "philox_uniform": lambda seed, offset, shape: torch.rand(shape),
}


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().requires_grad_()


# Each makes, from our backward kernel's arguments, the inputs and the outputs of PyTorch's graph.
BACKWARD: dict[str, Callable[..., tuple[Any, Any]]] = {
    "linear_backward": lambda g, x, w: graph(F.linear, x, w, w.new_zeros(len(w))),
    "lora_linear_backward": lambda g, x, xa, w, a, up, s, needs: graph(
        lambda x, a, up: lora_linear(x, w, None, a, up, s), x, a, up
    ),
    "lora_dropout_backward": lambda g, x, xa, w, a, up, s, p, seed, needs: graph(
        lambda x, a, up: lora_linear(x, w, None, a, up, s, p), x, a, up
    ),
    "lora_stacked_backward": lambda g, x, xas, weights, lora_as, lora_bs, s: graph(
        lambda x, *ab: lora_stacked(x, weights, [None] * len(g), ab[: len(g)], ab[len(g) :], s), x, *lora_as, *lora_bs
    ),
    "lora_gathered_backward": lambda g, x, xa, w, a, up, s, adapter: graph(
        lambda x, a, up: lora_gathered(x, w, None, a, up, s, adapter), x, a, up
    ),
    "layer_norm_backward": lambda g, x, w, mean, rstd: graph(layer_norm, x, w, torch.zeros_like(w)),
    "rms_norm_backward": lambda g, x, w, rstd: graph(rms_norm, x, w),
    "gelu_backward": lambda g, x: graph(F.gelu, x),
    "gelu_tanh_backward": lambda g, x: graph(FORWARD["gelu_tanh_forward"], x),
    "silu_backward": lambda g, x: graph(F.silu, x),
    "swiglu_backward": lambda g, gate, up: graph(FORWARD["swiglu_forward"], gate, up),
    # softmax is unchanged by what is added to a row, so log(y) gives y again
    "softmax_backward": lambda g, y: graph(FORWARD["softmax_forward"], y.log()),
    "attention_backward": lambda g, q, k, v, out, lse, *rest: graph(lambda *a: attention(*a, *rest), q, k, v),
    "cross_entropy_backward": lambda g, logits, target, lse, *rest: graph(
        lambda x: cross_entropy(x, target, *rest), logits
    ),
    "embedding_backward": lambda g, ids, rows: graph(lambda w: F.embedding(ids, w), g.new_zeros(rows, g.shape[-1])),
    "rotary_backward": lambda g, cos, sin: graph(lambda x: rotary(x, cos, sin), torch.zeros_like(g)),
}


def graph(function: Callable, *inputs: torch.Tensor) -> tuple[Any, Any]:
    leaves = [leaf(x) for x in inputs]
    return leaves, function(*leaves)


def tensors(value: Any) -> Any:
    """Arrays as tensors, in tuples too; over the same memory where it can be written to."""
    if isinstance(value, tuple):
        values = map(tensors, value)
        return type(value)(*values) if hasattr(value, "_fields") else tuple(values)
    return torch.from_numpy(np.require(value, requirements="W")) if isinstance(value, np.ndarray) else value


def prepare(name: str) -> Prepared:
    if name in MACHINE:
        return MACHINE[name]()
    case = named(name)
    args = tensors(arguments(case))
    if case.kernel == "adamw_step":
        return adamw(*args)
    if case.kernel in BACKWARD:
        return gradients(*BACKWARD[case.kernel](*args), args[0])
    return timed(torch.no_grad()(lambda: FORWARD[case.kernel](*args)))


def gradients(inputs: Any, outputs: Any, grad: Any) -> Prepared:
    return timed(lambda: torch.autograd.grad(outputs, inputs, grad, retain_graph=True))


def timed(step: Callable[[], Any]) -> Prepared:
    def arrays() -> list[np.ndarray]:
        result = step()
        return [t.detach().float().numpy() for t in (result if isinstance(result, tuple) else (result,))]

    return Prepared(step, arrays)


def adamw(param, grad, m, v, lr, beta1, beta2, eps, decay, step) -> Prepared:
    """torch.optim.AdamW, fused, in the middle of training."""
    parameter = torch.nn.Parameter(param)
    parameter.grad = grad
    optimizer = torch.optim.AdamW([parameter], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, fused=True)
    optimizer.state[parameter] = {"step": torch.tensor(float(step - 1)), "exp_avg": m, "exp_avg_sq": v}

    def arrays() -> list[np.ndarray]:
        optimizer.step()
        return [t.detach().numpy() for t in (parameter, grad, m, v)]

    return Prepared(optimizer.step, arrays)


def copy() -> Prepared:
    source, target = map(torch.from_numpy, copy_arguments())
    return timed(lambda: target.copy_(source))


def product() -> Prepared:
    x, weight = map(torch.from_numpy, product_arguments())
    return timed(lambda: F.linear(x, weight))


MACHINE = {"copy/machine": copy, "product/machine": product}

if __name__ == "__main__":
    serve_cases(prepare)
