"""P-tuning v2: a prompt at every depth, and a head that reads off the class (Liu et al. 2022, section 3).

    head = softmax(q [K_P; K]ᵀ / √D) [V_P; V],   K_P, V_P (kv_heads, k, D) of each layer
    y = argmax W_c h_last,   W_c (num_labels, C)

The keys and values are prefix tuning's, and its encoders make them; what the paper adds is the recipe for small models
and for classification. No network behind the table unless asked for (section 3.3: whether it helps depends on the
task), dropout of the prompt (``prefix_dropout``, in the authors' code), and in place of words that a language model
must say for each class a linear head, trained with the prompt: ``SequenceClassifier(peft_model, num_labels)``, kept
with it by ``save_classifier``. The head's parameters are the classifier's.

Parameters: 2 k L kv, kv = kv_heads D; with ``prefix_projection`` those of prefix tuning's network. In ``peft`` it is
prefix tuning with ``task_type="SEQ_CLS"``, and its files are written so; text beside the tensors says what it was here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import Dropout
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import check_dropout
from minitorch_peft.peft.input.prefix_tuning import PrefixTuning, PrefixTuningConfig, prefix_count
from minitorch_peft.peft.input.prompt_files import PromptFiles
from minitorch_peft.peft.interop import AdapterFiles
from minitorch_peft.peft.registry import METHODS, Method, register


@dataclass
class PTuningV2Config(PrefixTuningConfig):
    """``prefix_dropout`` of the prompt's keys and values, in training."""

    peft_type: ClassVar[str] = "P_TUNING_V2"

    prefix_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dropout("prefix_dropout", self.prefix_dropout)


class PTuningV2(PrefixTuning):
    def attach(self, config: PrefixTuningConfig) -> None:
        super().attach(config)
        self.parts["prefix_dropout"] = Dropout(self.config.prefix_dropout, f"{self.name}.prefix")

    def table(self) -> Tensor:
        return self.parts["prefix_dropout"](super().table(), self.noise)


class AsPrefixTuning(PromptFiles):
    """``peft`` knows the method under prefix tuning's name."""

    def write(self, adapter: Adapter) -> AdapterFiles:
        files = super().write(adapter)
        files.settings["peft_type"] = PrefixTuningConfig.peft_type
        return files


def v2_files() -> AsPrefixTuning:
    prefix = METHODS["prefix_tuning"].peft_files
    assert isinstance(prefix, PromptFiles)
    return AsPrefixTuning(**vars(prefix))


register(
    Method(
        name="p_tuning_v2", config=PTuningV2Config, adapter=PTuningV2, shape="tokens", folder="input", start="none",
        count=prefix_count, mergeable=False, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="prompts at every depth, with a head for classes",
        examples=(
            PTuningV2Config(num_virtual_tokens=3),
            PTuningV2Config(num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=5, prefix_dropout=0.2),
        ),
        peft_files=v2_files(),
    )
)  # fmt: skip
