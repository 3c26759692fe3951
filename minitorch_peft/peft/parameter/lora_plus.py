"""LoRA+: LoRA whose B trains at a higher rate than its A (Hayou et al. 2024, section 3).

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ,   A ← A - η g_A,   B ← B - λ η g_B,   A (r, in), B (out, r),   λ = loraplus_lr_ratio

In a wide layer one rate cannot suit both: with A's rate for B, B hardly moves, since x Aᵀ sums over many inputs and B
over few. The paper finds λ near 2⁴ with A's rate tuned. Parameters: LoRA's. Targets by default: the query and value
projections.

Only the groups of the optimizer differ from LoRA's, and a file of ``peft``'s holds a LoRA. On an embedding A is looked
up, not summed over: both factors train at the common rate (``peft`` gives them one of their own, 1e-6 unless told
otherwise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from minitorch_peft.peft.config import check_positive
from minitorch_peft.peft.lowrank_files import LowRankFiles
from minitorch_peft.peft.parameter.lora import Lora, LoraConfig, lora_count
from minitorch_peft.peft.registry import Method, register


@dataclass
class LoraPlusConfig(LoraConfig):
    """LoRA's settings, and how many times A's rate B's is.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import get_peft_model
    >>> base = GPT(GPTConfig(vocab_size=7, n_positions=8, n_embd=4, n_layer=1, n_head=2))
    >>> for group in get_peft_model(base, LoraPlusConfig(r=2, target_modules=["q_proj"])).param_groups():
    ...     print(group["lr_scale"], group["params"])
    1.0 ['blocks.0.attn.q_proj.lora_A.default']
    16.0 ['blocks.0.attn.q_proj.lora_B.default']
    """

    peft_type: ClassVar[str] = "LORA_PLUS"

    loraplus_lr_ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("loraplus_lr_ratio", self.loraplus_lr_ratio)
        self.check_plain("LoRA+")


class LoraPlus(Lora):
    def param_groups(self) -> list[dict[str, Any]]:
        fast = [f"{path}.lora_B" for path, layer in self.wrappers.items() if not layer.base.takes_ids]
        common = [name for name in self.named_parameters() if name not in fast]
        ratio = float(self.config.loraplus_lr_ratio)
        return [{"params": common, "lr_scale": 1.0}, {"params": fast, "lr_scale": ratio}]


register(
    Method(
        name="lora_plus", config=LoraPlusConfig, adapter=LoraPlus, shape="reparam", folder="parameter",
        start="bitwise", count=lora_count, mergeable=True, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"), summary="LoRA whose B trains at a higher rate",
        examples=(
            LoraPlusConfig(r=2, lora_alpha=8),
            LoraPlusConfig(r=2, target_modules=["embed.tokens", "up_proj"], loraplus_lr_ratio=4),
        ),
        peft_files=LowRankFiles(),
    )
)  # fmt: skip
