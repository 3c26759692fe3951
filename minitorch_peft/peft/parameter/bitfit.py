"""BitFit: the bias vectors alone (Ben Zaken et al. 2021, section 3).

    y = x Wᵀ + b + Δb

Parameters: all biases, of linear layers and of layer norms; about a thousandth of a large model. Targets by default:
all of them. The paper also trains some kinds alone, most of all the query's and that of the MLP's first layer (section
4): ``bias_kinds``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minitorch_peft.models import GPT
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.inject import base_parameters
from minitorch_peft.peft.patterns import Pattern, select
from minitorch_peft.peft.registry import Method, register


@dataclass
class BitFitConfig(PeftConfig):
    """``target_parameters``: a pattern over the names of biases; by default all of them.

    ``bias_kinds``: of these, those of the modules with such a name. The paper's query, key and value are ``q_proj``,
    ``k_proj`` and ``v_proj``, its m1, m2 and m3 are ``o_proj``, ``up_proj`` and ``down_proj``, its LN1 and LN2 the
    norms ``ln_1`` and ``ln_2`` (here they stand before the layers that they belong to).

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=2, n_head=4))
    >>> bitfit_targets(model, BitFitConfig(bias_kinds=["q_proj", "ln_f"]))
    {'blocks.0.attn.q_proj.bias': 64, 'blocks.1.attn.q_proj.bias': 64, 'ln_f.bias': 64}
    """

    peft_type: ClassVar[str] = "BITFIT"

    target_parameters: Pattern = ("bias",)
    bias_kinds: list[str] | None = None


class BitFit(Adapter):
    def attach(self, config: BitFitConfig) -> None:
        self.select(list(bitfit_targets(self.model, config)))


def bitfit_targets(model: GPT, config: BitFitConfig) -> dict[str, int]:
    """Path to size of every chosen bias."""
    # BEGIN SOLUTION(task="5.6a")
    biases = {path: p.data.size for path, p in base_parameters(model) if path.endswith(".bias")}
    # END SOLUTION
    if not biases:
        raise ValueError("this model has no biases (Llama's family has none by default): BitFit has nothing to train")
    chosen = select(config.target_parameters, biases, "bias")
    if config.bias_kinds is not None:
        chosen = of_kinds(config.bias_kinds, chosen)
    return {path: biases[path] for path in chosen}


def of_kinds(kinds: list[str], paths: list[str]) -> list[str]:
    """The biases whose module has one of the names ``kinds``; ValueError for a name that none has."""
    kind = {path: path.split(".")[-2] for path in paths}
    there = f"the kinds here are {', '.join(dict.fromkeys(kind.values()))}"
    if isinstance(kinds, str) or not kinds:
        raise ValueError(f"bias_kinds must be a list of names, got {kinds!r}; {there}")
    if unknown := [name for name in kinds if name not in kind.values()]:
        raise ValueError(f"bias_kinds: {unknown[0]!r} is no kind of bias; {there}")
    # BEGIN SOLUTION(task="5.6b")
    return [path for path in paths if kind[path] in kinds]
    # END SOLUTION


def bitfit_count(model: GPT, config: BitFitConfig) -> int:
    """The sum of the biases' sizes."""
    # BEGIN SOLUTION(task="5.6c")
    return sum(bitfit_targets(model, config).values())
    # END SOLUTION


register(
    Method(
        name="bitfit",
        config=BitFitConfig,
        adapter=BitFit,
        shape="select",
        folder="parameter",
        start="bitwise",
        count=bitfit_count,
        mergeable=True,
        rowwise=False,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="the biases",
        examples=(BitFitConfig(), BitFitConfig(bias_kinds=["q_proj", "up_proj"])),
    )
)
