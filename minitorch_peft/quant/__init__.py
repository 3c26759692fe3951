"""4-bit storage: a model's weights into four bits and out of them again, with the settings of ``transformers``."""

from minitorch_peft.quant.config import QLORA, BitsAndBytesConfig
from minitorch_peft.quant.quantize import (
    bits_per_parameter,
    dequantize_model,
    prepare_model_for_kbit_training,
    quantization_of,
    quantize_model,
    quantized_layers,
)

__all__ = [
    "QLORA",
    "BitsAndBytesConfig",
    "bits_per_parameter",
    "dequantize_model",
    "prepare_model_for_kbit_training",
    "quantization_of",
    "quantize_model",
    "quantized_layers",
]
