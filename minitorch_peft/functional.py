"""Every operation under its torch or torch.nn.functional name."""

from minitorch_peft.ops.activation import gelu, relu, silu, softmax, tanh
from minitorch_peft.ops.attention import apply_rotary, scaled_dot_product_attention
from minitorch_peft.ops.dropout import dropout
from minitorch_peft.ops.elementwise import add, div, exp, log, mul, neg, pow, sub
from minitorch_peft.ops.embedding import embedding
from minitorch_peft.ops.indexing import getitem
from minitorch_peft.ops.loss import cross_entropy
from minitorch_peft.ops.matmul import linear, matmul
from minitorch_peft.ops.normalization import layer_norm, rms_norm
from minitorch_peft.ops.promotion import to
from minitorch_peft.ops.reduction import mean, sum
from minitorch_peft.ops.shape import (
    broadcast_tensors,
    broadcast_to,
    cat,
    concat,
    concatenate,
    expand,
    flatten,
    permute,
    reshape,
    squeeze,
    transpose,
    unsqueeze,
)

__all__ = [
    "add", "apply_rotary", "broadcast_tensors", "broadcast_to", "cat", "concat", "concatenate", "cross_entropy",
    "div", "dropout", "embedding", "exp", "expand", "flatten", "gelu", "getitem", "layer_norm", "linear", "log",
    "matmul", "mean", "mul", "neg", "permute", "pow", "relu", "reshape", "rms_norm", "scaled_dot_product_attention",
    "silu", "softmax", "squeeze", "sub", "sum", "tanh", "to", "transpose", "unsqueeze",
]  # fmt: skip
