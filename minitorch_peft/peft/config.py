"""PeftConfig: a method's settings, under ``peft``'s names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self


@dataclass
class PeftConfig:
    """Base of every method's config. ``peft_type`` is ``peft``'s name of the method, or ours where it has none."""

    peft_type: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        return {"peft_type": self.peft_type, **asdict(self)}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """The config of these settings; a name that it does not have is an error."""
        settings = {k: v for k, v in settings.items() if k != "peft_type"}
        known = {f.name for f in fields(cls)}
        if unknown := sorted(settings.keys() - known):
            raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}; it has: {', '.join(sorted(known))}")
        return cls(**settings)
