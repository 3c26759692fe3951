"""The GPT that every method adapts."""

from minitorch_peft.models.cache import Cache
from minitorch_peft.models.classifier import ClassifierOutput, SequenceClassifier
from minitorch_peft.models.config import GPTConfig
from minitorch_peft.models.gpt import GPT, GPTOutput
from minitorch_peft.quant import BitsAndBytesConfig

__all__ = ["GPT", "BitsAndBytesConfig", "Cache", "ClassifierOutput", "GPTConfig", "GPTOutput", "SequenceClassifier"]
