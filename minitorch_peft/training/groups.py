"""The parameters of a run and the rates they train at: a method's own groups, or the config's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import Module
from minitorch_peft.optim import SGD, AdamW, Optimizer, decay_groups, layerwise_groups
from minitorch_peft.training.config import TrainConfig


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
    if config.optimizer == "adamw":
        return AdamW(groups, config.lr, config.betas, config.eps, config.weight_decay)
    return SGD(groups, config.lr, config.momentum, weight_decay=config.weight_decay)


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
