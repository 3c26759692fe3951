"""Every operation, under its name in torch or torch.nn.functional; most are Tensor methods too."""

from minitorch_peft.ops.activation import (
    elu,
    gelu,
    leaky_relu,
    log_softmax,
    logsigmoid,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    swiglu,
    tanh,
)
from minitorch_peft.ops.arithmetic import add, div, masked_fill, maximum, minimum, mul, pow, sub, where
from minitorch_peft.ops.attention import apply_rotary, scaled_dot_product_attention
from minitorch_peft.ops.comparison import (
    all,
    any,
    eq,
    ge,
    gt,
    isfinite,
    isinf,
    isnan,
    le,
    logical_and,
    logical_not,
    logical_or,
    lt,
    ne,
)
from minitorch_peft.ops.dropout import dropout
from minitorch_peft.ops.einsum import einsum
from minitorch_peft.ops.elementwise import (
    abs,
    ceil,
    clamp,
    cos,
    erf,
    exp,
    expm1,
    floor,
    log,
    log1p,
    log2,
    neg,
    reciprocal,
    round,
    rsqrt,
    sign,
    sin,
    sqrt,
    square,
)
from minitorch_peft.ops.embedding import embedding, one_hot
from minitorch_peft.ops.indexing import (
    gather,
    getitem,
    index_add,
    index_select,
    scatter_add,
    take_along_dim,
    tril,
    triu,
)
from minitorch_peft.ops.joining import (
    cat,
    chunk,
    concat,
    concatenate,
    flip,
    pad,
    repeat_interleave,
    roll,
    split,
    stack,
    tile,
    unbind,
)
from minitorch_peft.ops.loss import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
)
from minitorch_peft.ops.lstm import lstm_layer
from minitorch_peft.ops.matmul import bmm, linear, matmul
from minitorch_peft.ops.normalization import layer_norm, rms_norm
from minitorch_peft.ops.promotion import to
from minitorch_peft.ops.reduction import (
    amax,
    amin,
    argmax,
    argmin,
    cumsum,
    logsumexp,
    mean,
    norm,
    prod,
    std,
    sum,
    var,
)
from minitorch_peft.ops.shape import (
    broadcast_shapes,
    broadcast_tensors,
    broadcast_to,
    clone,
    contiguous,
    expand,
    flatten,
    movedim,
    permute,
    reshape,
    squeeze,
    t,
    transpose,
    unflatten,
    unsqueeze,
    view,
)
from minitorch_peft.ops.sorting import argsort, max, min, sort, topk

__all__ = [
    "abs", "add", "all", "amax", "amin", "any", "apply_rotary", "argmax", "argmin", "argsort",
    "binary_cross_entropy_with_logits", "bmm", "broadcast_shapes", "broadcast_tensors", "broadcast_to",
    "cat", "ceil", "chunk", "clamp", "clone", "concat", "concatenate", "contiguous", "cos",
    "cross_entropy", "cumsum", "div", "dropout", "einsum", "elu", "embedding", "eq", "erf", "exp",
    "expand", "expm1", "flatten", "flip", "floor", "gather", "ge", "gelu", "getitem", "gt", "index_add",
    "index_select", "isfinite", "isinf", "isnan", "kl_div", "l1_loss", "layer_norm", "le", "leaky_relu",
    "linear", "log", "log1p", "log2", "log_softmax", "logical_and", "logical_not", "logical_or",
    "logsigmoid", "logsumexp", "lstm_layer", "lt", "masked_fill", "matmul", "max", "maximum", "mean", "min",
    "minimum", "movedim", "mse_loss", "mul", "ne", "neg", "nll_loss", "norm", "one_hot", "pad",
    "permute", "pow", "prod", "reciprocal", "relu", "repeat_interleave", "reshape", "rms_norm", "roll",
    "round", "rsqrt", "scaled_dot_product_attention", "scatter_add", "sigmoid", "sign", "silu", "sin",
    "softmax", "softplus", "sort", "split", "sqrt", "square", "squeeze", "stack", "std", "sub", "sum",
    "swiglu", "t", "take_along_dim", "tanh", "tile", "to", "topk", "transpose", "tril", "triu",
    "unbind", "unflatten", "unsqueeze", "var", "view", "where",
]  # fmt: skip
