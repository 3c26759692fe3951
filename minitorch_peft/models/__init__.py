"""The GPT that every method adapts."""

from minitorch_peft.models.cache import Cache
from minitorch_peft.models.classifier import ClassifierOutput, SequenceClassifier
from minitorch_peft.models.config import GPTConfig
from minitorch_peft.models.gpt import GPT, GPTOutput

__all__ = ["GPT", "Cache", "ClassifierOutput", "GPTConfig", "GPTOutput", "SequenceClassifier"]
