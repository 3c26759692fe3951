"""Methods that change parameters. Importing this package registers them."""

from minitorch_peft.peft.parameter import dora as _dora  # noqa: F401  (its config is LoraConfig)
from minitorch_peft.peft.parameter import pissa as _pissa  # noqa: F401  (and so is its)
from minitorch_peft.peft.parameter.adalora import AdaLoraConfig
from minitorch_peft.peft.parameter.bitfit import BitFitConfig
from minitorch_peft.peft.parameter.diff_pruning import DiffPruningConfig
from minitorch_peft.peft.parameter.full import FullConfig
from minitorch_peft.peft.parameter.lora import LoraConfig
from minitorch_peft.peft.parameter.lora_plus import LoraPlusConfig
from minitorch_peft.peft.parameter.partial import PartialConfig
from minitorch_peft.peft.parameter.random_mask import RandomMaskConfig
from minitorch_peft.peft.parameter.vera import VeraConfig

__all__ = [
    "AdaLoraConfig",
    "BitFitConfig",
    "DiffPruningConfig",
    "FullConfig",
    "LoraConfig",
    "LoraPlusConfig",
    "PartialConfig",
    "RandomMaskConfig",
    "VeraConfig",
]
