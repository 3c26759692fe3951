"""Losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.ops.activation import log_softmax, softplus
from minitorch_peft.ops.arithmetic import where
from minitorch_peft.ops.elementwise import square
from minitorch_peft.ops.indexing import gather, getitem
from minitorch_peft.ops.promotion import as_tensor, floating, integers, result_dtype, to
from minitorch_peft.ops.reduction import mean, sum
from minitorch_peft.ops.shape import movedim, reshape


def _checked(reduction: str, name: str) -> str:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return reduction


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    return loss if reduction == "none" else mean(loss) if reduction == "mean" else sum(loss)


# -- of class ids --------------------------------------------------------------------------------------------
class CrossEntropy(Function):
    """l_r = lse(x_r) - Σ_v q_rv x_rv, q_r one-hot mixed with 1/V; x_r gets g_r (softmax(x_r) - q_r).

    Logits x (R, V), target (R); l is (R), or () for the sum, or the mean over rows that are not ignored.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: np.ndarray,
        *,
        target: np.ndarray,
        ignore_index: int,
        label_smoothing: float,
        reduction: str,
    ) -> np.ndarray:
        loss, lse = dispatch.get("cross_entropy_forward", x.dtype)(x, target, ignore_index, label_smoothing)
        ctx.constants, ctx.rows, ctx.count = (ignore_index, label_smoothing), len(x), 1
        ctx.save_for_backward(x, target, lse)
        if reduction == "none":
            return loss
        if reduction == "mean":
            ctx.count = int(np.count_nonzero(target != ignore_index))
        total = loss.sum()
        return total / ctx.count if ctx.count else np.full((), np.nan, x.dtype)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        rows = np.broadcast_to(g / ctx.count if ctx.count else g, (ctx.rows,))
        return dispatch.get("cross_entropy_backward", g.dtype)(rows, *ctx.saved, *ctx.constants)


def cross_entropy(
    input: Tensor,
    target: Any,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(input)[target], the negative log-likelihood of classes under logits.

    input (R, V) with integer target (R); or (V) with (); or (N, V, d1, ...) with (N, d1, ...). Rows whose
    target is ``ignore_index`` count nothing; "mean" is over the others (nan if there is none), weighted by
    ``weight`` (V), the class weights. ``label_smoothing`` mixes the target with 1/V (Szegedy et al. 2015,
    section 7). TypeError for probabilities as target, IndexError for a target that is no class.

    >>> import minitorch_peft as mp
    >>> round(cross_entropy(mp.tensor([[0.0, 0.0]]), mp.tensor([1])).item(), 4)
    0.6931
    """
    x, ids = _class_rows(input, target, "cross_entropy")
    _checked(reduction, "cross_entropy")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must be in [0, 1], got {label_smoothing}")
    if weight is not None:
        return _weighted(x, ids, floating(weight, "cross_entropy"), ignore_index, reduction, label_smoothing)
    loss = CrossEntropy.apply(
        reshape(x, (ids.size, x.shape[-1])), target=ids.reshape(-1), ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction,
    )  # fmt: skip
    return reshape(loss, ids.shape) if reduction == "none" else loss


def _weighted(
    x: Tensor, ids: np.ndarray, weight: Tensor, ignore_index: int, reduction: str, label_smoothing: float
) -> Tensor:
    """With class weights, from single operations: (1 - s) times the target's term plus s times the mean."""
    logp = log_softmax(x, -1)
    likely = _picked(logp, ids, weight, ignore_index, "none", "cross_entropy")
    kept = np.asarray(ids != ignore_index)
    spread = where(Tensor(kept), -sum(logp * weight, -1), 0.0) * (label_smoothing / x.shape[-1])
    loss = likely * (1 - label_smoothing) + spread
    if reduction == "none":
        return loss
    return sum(loss) if reduction == "sum" else sum(loss) / _total_weight(ids, weight, ignore_index)


def nll_loss(
    input: Tensor,
    target: Any,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-input[target]: :func:`cross_entropy` of log-probabilities, shapes and arguments as there.

    >>> import minitorch_peft as mp
    >>> nll_loss(mp.tensor([[-1.0, -2.0]]), mp.tensor([1])).item()
    2.0
    """
    x, ids = _class_rows(input, target, "nll_loss")
    _checked(reduction, "nll_loss")
    w = None if weight is None else floating(weight, "nll_loss")
    return _picked(x, ids, w, ignore_index, reduction, "nll_loss")


def _picked(
    logp: Tensor, ids: np.ndarray, weight: Tensor | None, ignore_index: int, reduction: str, name: str
) -> Tensor:
    """-weight[id] logp[..., id], 0 where the id is ignored: log-probabilities (..., V), ids (...)."""
    kept = np.asarray(ids != ignore_index)
    classes = logp.shape[-1]
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"{name}: weight must have one number for each of {classes} classes, got {weight.shape}")
    safe = np.where(kept, ids, 0)
    if safe.size and not (safe.min() >= 0 and safe.max() < classes):
        raise IndexError(f"{name}: targets must be in [0, {classes}) or {ignore_index} (ignore_index)")
    loss = -reshape(gather(logp, -1, safe[..., None]), ids.shape)
    if weight is not None:
        loss = loss * getitem(weight, safe)
    loss = where(Tensor(kept), loss, 0.0)
    if reduction != "mean":
        return loss if reduction == "none" else sum(loss)
    return sum(loss) / (float(kept.sum()) if weight is None else _total_weight(ids, weight, ignore_index))


def _total_weight(ids: np.ndarray, weight: Tensor, ignore_index: int) -> Tensor:
    return sum(getitem(weight, ids[ids != ignore_index]))


def _class_rows(input: Tensor, target: Any, name: str) -> tuple[Tensor, np.ndarray]:
    """Logits with the classes last, (..., V), and ids (...)."""
    x, ids = (
        floating(input, name),
        integers(target, name, "targets (class ids; probabilities are not supported)"),
    )
    if x.ndim == 0:
        raise ValueError(f"{name}: the input needs an axis of classes, got a 0-d tensor")
    axis = min(1, x.ndim - 1)
    if x.shape[:axis] + x.shape[axis + 1 :] != ids.shape:
        raise ValueError(
            f"{name}: input {x.shape} has its classes at axis {axis}, so the target must be "
            f"{x.shape[:axis] + x.shape[axis + 1 :]}, got {ids.shape}"
        )
    return (x if axis == x.ndim - 1 else movedim(x, axis, -1)), ids


# -- of distributions and numbers ----------------------------------------------------------------------------
class KlDiv(Function):
    """y = t (log t - x), x log-probabilities, t probabilities; x gets -g t, t gets g (log t + 1 - x)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        positive = t > 0
        log_t = np.log(t, out=np.zeros_like(t), where=positive)  # 0 log 0 = 0
        ctx.save_for_backward(x, t, log_t)
        return t * log_t - t * x

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        x, t, log_t = ctx.saved
        dx = -g * t if ctx.needs_input_grad[0] else None
        return dx, g * (log_t + 1 - x) if ctx.needs_input_grad[1] else None


def kl_div(input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """KL(target || input) pointwise: target (log target - input), input in log-probabilities, of one shape.

    "batchmean" (the KL divergence itself) divides the sum by the first axis, "mean" by all elements.
    ``log_target``: the target is in log-probabilities too.

    >>> import minitorch_peft as mp
    >>> kl_div(mp.tensor([[-1.0, -1.0]]), mp.tensor([[0.0, 1.0]]), reduction="batchmean").item()
    1.0
    """
    x, t = _pair(input, target, "kl_div")
    if reduction != "batchmean":
        _checked(reduction, "kl_div")
    elif x.ndim == 0:
        raise ValueError("kl_div: reduction='batchmean' needs an axis to divide by, got a 0-d input")
    loss = t.exp() * (t - x) if log_target else KlDiv.apply(x, t)
    return sum(loss) / float(x.shape[0]) if reduction == "batchmean" else _reduce(loss, reduction)


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)², of one shape (torch broadcasts, with a warning). ValueError for two shapes.

    >>> import minitorch_peft as mp
    >>> mse_loss(mp.tensor([1.0, 2.0]), mp.tensor([1.0, 4.0])).item()
    2.0
    """
    x, t = _pair(input, target, "mse_loss")
    return _reduce(square(x - t), _checked(reduction, "mse_loss"))


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|input - target|, of one shape.

    >>> import minitorch_peft as mp
    >>> l1_loss(mp.tensor([1.0, 2.0]), mp.tensor([1.0, 4.0])).item()
    1.0
    """
    x, t = _pair(input, target, "l1_loss")
    return _reduce((x - t).abs(), _checked(reduction, "l1_loss"))


def binary_cross_entropy_with_logits(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """-(t log s + (1 - t) log(1 - s)), s = sigmoid(input), target t in [0, 1] of input's shape.

    >>> import minitorch_peft as mp
    >>> binary_cross_entropy_with_logits(mp.tensor([500.0]), mp.tensor([0.0])).item()
    500.0
    """
    x, t = _pair(input, target, "binary_cross_entropy_with_logits")
    loss = softplus(x, threshold=float("inf")) - x * t
    return _reduce(loss, _checked(reduction, "binary_cross_entropy_with_logits"))


def _pair(input: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor]:
    x, t = floating(input, name), as_tensor(target, name)
    if x.shape != t.shape:
        raise ValueError(f"{name}: input and target must have one shape, got {x.shape} and {t.shape}")
    dtype = result_dtype(x, t)
    return to(x, dtype), to(t, dtype)
