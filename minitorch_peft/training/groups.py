"""The parameters of a run and the rates they train at: a method's own groups, or the config's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import Module
from minitorch_peft.optim import SGD, Optimizer, decay_groups, layerwise_groups
from minitorch_peft.training.config import OPTIMIZERS, TrainConfig

_PAGES = 16
"""A budget below 16 MiB is cut into so many pages."""


def trainable(model: Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimizer(model: Module, config: TrainConfig) -> Optimizer:
    """The optimizer over all that is trainable, in the groups that ``model.param_groups()`` asks for."""
    if not trainable(model):
        raise ValueError("nothing to train: no parameter of the model requires a gradient")
    asked = model.param_groups() if hasattr(model, "param_groups") else None
    if asked is not None and config.layer_decay != 1:
        raise ValueError("layer_decay cannot be used with a method that sets its own rates (param_groups)")
    groups = layer_groups(model, config) if asked is None else method_groups(model, asked)
    return OPTIMIZERS[config.optimizer](groups, **options(config))


def options(config: TrainConfig) -> dict[str, Any]:
    """What the optimizer of the config is made with, beside its groups."""
    made: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if OPTIMIZERS[config.optimizer] is SGD:
        return made | {"momentum": config.momentum}
    made |= {"betas": config.betas, "eps": config.eps}
    if config.optimizer_budget is not None:
        page_bytes = min(1 << 20, config.optimizer_budget // _PAGES // 64 * 64)
        made |= {"budget": config.optimizer_budget, "page_bytes": page_bytes}
    return made


def layer_groups(model: Module, config: TrainConfig) -> list[dict[str, Any]]:
    if config.layer_decay == 1:
        return decay_groups(model.named_parameters())
    return layerwise_groups(model, config.layer_decay)


def method_groups(model: Module, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names to parameters; each group is split so that weight decay leaves biases and gains alone."""
    own = trainable(model)
    names = [name for group in asked for name in group["params"]]
    if sorted(names) != sorted(own):
        missing, extra = sorted(own.keys() - set(names)), sorted(set(names) - own.keys())
        raise ValueError(
            "param_groups() must name every trainable parameter once; "
            f"missing: {missing[:3] or 'none'}, unknown: {extra[:3] or 'none'}, "
            f"names: {len(names)} for {len(own)} parameters"
        )
    return [
        {**split, **{key: value for key, value in group.items() if key != "params"}}
        for group in asked
        for split in decay_groups((name, own[name]) for name in group["params"])
    ]
