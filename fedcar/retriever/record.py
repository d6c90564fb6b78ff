"""What a retriever tells of its training: counts, settings, history, and the promise of privacy where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

SAID_WHERE_NOT_NONE = ("federation", "selection", "seconds", "peak_memory_mb", "privacy")


@dataclass(frozen=True)
class TrainingRecord:
    """How a retriever came about; without a `method` nothing is known.

    `questions` is None where their number is private, `selection` the share of selection questions that each candidate
    got right, `history` a record an epoch, round or exchange, `federation` the settings of the rounds, `privacy` the
    statement.
    """

    method: str = ""
    settings: Mapping[str, Any] | None = None
    federation: Mapping[str, Any] | None = None
    collection: Mapping[str, str] | None = None
    questions: int | None = None
    selection_questions: int = 0
    selection: Mapping[str, float] | None = None
    history: Sequence[Mapping[str, Any]] = ()
    seconds: Mapping[str, float] | None = None
    peak_memory_mb: float | None = None
    privacy: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """For retriever.json and `--json`: what is known, in the order of the fields."""
        if not self.method:
            return {}
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if name == "history" else value
            for name, value in known.items()
            if value is not None or name not in SAID_WHERE_NOT_NONE
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingRecord:
        """What `to_json` gave; what a later version has besides is left alone."""
        return cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})
