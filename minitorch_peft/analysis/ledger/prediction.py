"""The two ways to a ledger: predict it from small steps, or run the step and count."""

from __future__ import annotations

from math import prod
from typing import Any

from minitorch_peft.analysis.ledger.account import Ledger, account, stored
from minitorch_peft.analysis.ledger.scaling import Batch, small_batches
from minitorch_peft.analysis.ledger.trace import Configs, prepared, record, scaled, weights_of
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import PeftConfig, PeftModel
from minitorch_peft.peft.registry import Method
from minitorch_peft.training.config import OPTIMIZERS, PAGED, TrainConfig
from minitorch_peft.training.groups import make_optimizer, trainable


def ledger(
    model: GPT | PeftModel | GPTConfig, config: Configs = None, batch: Batch = (8, 128), optimizer: str = "adamw",
    training: bool = True, seed: int = 0,
) -> Ledger:  # fmt: skip
    """Predict what one step of ``batch`` = (B, T) costs; nothing of that size is run.

    Args:
        model: the base, or a config of which one is made; a PeftModel (then without ``config``) as it stands.
        config: a method's, or several that act together. Without one, ``model`` itself, with whatever trains in it.
        optimizer: "adamw", "sgd" or "adamw_bnb_8bit".
        training: False for a forward pass without a graph.

    >>> from minitorch_peft.peft import LoraConfig
    >>> shape = GPTConfig(vocab_size=97, n_positions=256, n_embd=64, n_layer=3, n_head=4)
    >>> predicted = ledger(shape, LoraConfig(r=4), batch=(8, 128))
    >>> predicted.trainable, predicted.gradients, predicted.optimizer
    (3072, 12288, 24576)
    """
    check(batch, optimizer)
    with prepared(model, config, seed) as ready:
        check_positions(ready, batch[1])
        batches = small_batches(batch)
        trace = scaled([record(ready, small, training) for small in batches], batches, batch)
        return account(trace, batch, *parameters(ready, optimizer, training))


def measure(
    model: GPT | PeftModel | GPTConfig, config: Configs = None, batch: Batch = (8, 128), optimizer: str = "adamw",
    training: bool = True, seed: int = 0,
) -> Ledger:  # fmt: skip
    """Run a real step of ``batch`` and count: arguments as in :func:`ledger`.

    Gradients and optimizer state are the arrays that are there after the step, which is one at rate 0.
    """
    check(batch, optimizer)
    with prepared(model, config, seed) as ready:
        check_positions(ready, batch[1])
        trace = record(ready, batch, training)
        count, weights, _, _ = parameters(ready, optimizer, training)
        if not training:
            return account(trace, batch, count, weights, 0, 0)
        own = trainable(ready)
        gradients = stored(p.grad for p in own.values() if p.grad is not None)
        made = make_optimizer(ready, TrainConfig(steps=1, lr=0.0, weight_decay=0.0, optimizer=optimizer))
        made.step()
        state = stored(a for slots in made.state.values() for a in slots.values() if hasattr(a, "nbytes"))
        return account(trace, batch, count, weights, gradients, state)


def parameters(model: Any, optimizer: str, training: bool) -> tuple[int, dict[str, int], int, int]:
    """Trainable parameters, bytes of weights, of gradients and of the optimizer's state: from shapes alone."""
    weights = {name: stored(arrays) for name, arrays in weights_of(model).items()}
    if not training:
        return 0, weights, 0, 0
    own = trainable(model)
    made = make_optimizer(model, TrainConfig(steps=1, optimizer=optimizer))
    state = sum(prod(shape) * dtype.itemsize for p in own.values() for shape, dtype in made.layout(p).values())
    return sum(p.data.size for p in own.values()), weights, sum(p.data.nbytes for p in own.values()), state


def default_config(method: Method) -> PeftConfig:
    """A method with nothing set; its first example where it has no defaults (which layers? how many numbers?)."""
    try:
        return method.make({})
    except ValueError:
        return method.examples[0]


def check(batch: Batch, optimizer: str) -> None:
    if min(batch) < 1 or batch[1] < 2:
        raise ValueError(f"batch={batch}: expected (B, T) with rows of at least 2 tokens, one to predict")
    known = [name for name in OPTIMIZERS if name not in PAGED]
    if optimizer not in known:
        paged = " (the state of a paged one takes what its budget gives it)" if optimizer in PAGED else ""
        raise ValueError(f"optimizer={optimizer!r}{paged}: expected one of {', '.join(known)}")


def check_positions(model: Any, T: int) -> None:
    """ValueError where the rows are too long for the model, prompts and prefixes included."""
    acting = [a for a in getattr(model, "adapters", {}).values() if a.active]
    virtual, places = sum(a.prompt_length + a.prefix_length for a in acting), model.config.n_positions
    if virtual + T > places:
        behind = f" behind {virtual} virtual ones" if virtual else ""
        raise ValueError(f"rows of {T} tokens{behind}: the model has {places} positions")
