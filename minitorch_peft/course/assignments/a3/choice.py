"""Task 3.7: LoRA settings for the tiny GPT that is to read the English of 1395."""

from __future__ import annotations

from typing import Any


def choose() -> dict[str, Any]:
    """``lr`` and settings of a :class:`LoraConfig` that train at most ``adaptation.BUDGET`` parameters.

    The names are in ``adaptation.NAMES``; numbers, strings, lists and dicts only. ``target_modules`` is a list of names
    or ``"all-linear"``.
    """
    # BEGIN SOLUTION(task="3.7")
    # The spelling is new, so the head has most to learn; what is left of the budget goes to every linear layer.
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    return {
        "r": 1,
        "lora_alpha": 2,
        "target_modules": ["lm_head", *projections],
        "rank_pattern": {"lm_head": 4},
        "alpha_pattern": {"lm_head": 8},
        "lr": 1.5e-2,
    }
    # END SOLUTION
