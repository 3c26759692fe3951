"""Methods that change the function: small modules in, around or beside the blocks."""

from minitorch_peft.peft.function.bottleneck import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from minitorch_peft.peft.function.fusion import AdapterFusionConfig, fusion_weights
from minitorch_peft.peft.function.ia3 import IA3Config
from minitorch_peft.peft.function.ladder import LadderConfig
from minitorch_peft.peft.function.lora_experts import MoELoraConfig
from minitorch_peft.peft.function.loreft import LoReftConfig
from minitorch_peft.peft.function.mam import MAMConfig
from minitorch_peft.peft.function.moe import MoEConfig
from minitorch_peft.peft.function.routing import expert_load

__all__ = [
    "AdapterFusionConfig",
    "DoubleSeqBnConfig",
    "IA3Config",
    "LadderConfig",
    "LoReftConfig",
    "MAMConfig",
    "MoEConfig",
    "MoELoraConfig",
    "ParBnConfig",
    "SeqBnConfig",
    "expert_load",
    "fusion_weights",
]
