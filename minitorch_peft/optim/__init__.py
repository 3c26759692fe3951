"""Optimizers, learning-rate schedules, gradient clipping."""

from minitorch_peft.optim.adamw import AdamW
from minitorch_peft.optim.adamw_8bit import AdamW8bit
from minitorch_peft.optim.clip import clip_grad_norm_, clip_grads_with_norm_, get_total_norm
from minitorch_peft.optim.groups import decay_groups, layerwise_groups
from minitorch_peft.optim.optimizer import Optimizer
from minitorch_peft.optim.paged import PagedAdamW, PagedAdamW8bit
from minitorch_peft.optim.schedule import SCHEDULES, constant, cosine, linear
from minitorch_peft.optim.sgd import SGD

__all__ = [
    "SCHEDULES",
    "SGD",
    "AdamW",
    "AdamW8bit",
    "Optimizer",
    "PagedAdamW",
    "PagedAdamW8bit",
    "clip_grad_norm_",
    "clip_grads_with_norm_",
    "constant",
    "cosine",
    "decay_groups",
    "get_total_norm",
    "layerwise_groups",
    "linear",
]
