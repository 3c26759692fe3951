"""What can stop a run, each with what to do next."""

from __future__ import annotations

from pathlib import Path


class TrainingError(RuntimeError):
    """The run cannot go on. The message says at which step, why, and where the last good checkpoint is."""


class CheckpointError(TrainingError):
    """A file of the run could not be written or read, or belongs to another run."""


class TrainingInterrupted(TrainingError):  # noqa: N818 (it is what the user asked for, not a mistake)
    """Ctrl-C or a request to terminate: the step was finished and saved.

    Attributes:
        signal: the signal's number; 128 + signal is the customary exit code.
        step: steps done.
        path: the checkpoint that was written.
    """

    def __init__(self, signal: int, step: int, total: int, path: Path, name: str) -> None:
        super().__init__(
            f"stopped by {name} after step {step} of {total}, which is saved in {path}. "
            f"To go on: the same call with resume=True (same configuration, out={str(path.parent)!r})"
        )
        self.signal, self.step, self.path = signal, step, path
