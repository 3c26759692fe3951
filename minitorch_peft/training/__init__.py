"""The training loop, what it evaluates, and checkpoints that lose nothing."""

from minitorch_peft.training.config import TrainConfig
from minitorch_peft.training.errors import CheckpointError, TrainingError, TrainingInterrupted
from minitorch_peft.training.evaluate import Evaluation, evaluate
from minitorch_peft.training.progress import Progress, StepReport
from minitorch_peft.training.trainer import Trainer, TrainResult, train

__all__ = [
    "CheckpointError",
    "Evaluation",
    "Progress",
    "StepReport",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "TrainingError",
    "TrainingInterrupted",
    "evaluate",
    "train",
]
