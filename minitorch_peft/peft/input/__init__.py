"""Methods that change the input: vectors before it, or keys and values that every layer starts with."""

from minitorch_peft.peft.input.gist import GistConfig
from minitorch_peft.peft.input.p_tuning import PromptEncoderConfig
from minitorch_peft.peft.input.p_tuning_v2 import PTuningV2Config
from minitorch_peft.peft.input.prefix_tuning import PrefixTuningConfig
from minitorch_peft.peft.input.prompt_tuning import PromptTuningConfig

__all__ = ["GistConfig", "PTuningV2Config", "PrefixTuningConfig", "PromptEncoderConfig", "PromptTuningConfig"]
