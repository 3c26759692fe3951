"""Adaptation: a frozen base, and small trainable functions attached to it from outside."""

from minitorch_peft.peft.check import check_file
from minitorch_peft.peft.classification import load_classifier, save_classifier
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.function import (
    AdapterFusionConfig,
    DoubleSeqBnConfig,
    IA3Config,
    LadderConfig,
    LoReftConfig,
    MAMConfig,
    MoEConfig,
    MoELoraConfig,
    ParBnConfig,
    SeqBnConfig,
    expert_load,
    fusion_weights,
)
from minitorch_peft.peft.input import (
    GistConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PTuningV2Config,
)
from minitorch_peft.peft.merge import MergeCertificate
from minitorch_peft.peft.model import PeftModel, get_peft_model
from minitorch_peft.peft.parameter import (
    AdaLoraConfig,
    BitFitConfig,
    DiffPruningConfig,
    FullConfig,
    LoraConfig,
    LoraPlusConfig,
    PartialConfig,
    RandomMaskConfig,
    VeraConfig,
)
from minitorch_peft.peft.registry import METHODS
from minitorch_peft.quant import prepare_model_for_kbit_training

__all__ = [
    "METHODS",
    "AdaLoraConfig",
    "AdapterFusionConfig",
    "BitFitConfig",
    "DiffPruningConfig",
    "DoubleSeqBnConfig",
    "FullConfig",
    "GistConfig",
    "IA3Config",
    "LadderConfig",
    "LoReftConfig",
    "LoraConfig",
    "LoraPlusConfig",
    "MAMConfig",
    "MergeCertificate",
    "MoEConfig",
    "MoELoraConfig",
    "PTuningV2Config",
    "ParBnConfig",
    "PartialConfig",
    "PeftConfig",
    "PeftModel",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptTuningConfig",
    "RandomMaskConfig",
    "SeqBnConfig",
    "VeraConfig",
    "check_file",
    "expert_load",
    "fusion_weights",
    "get_peft_model",
    "load_classifier",
    "prepare_model_for_kbit_training",
    "save_classifier",
]
