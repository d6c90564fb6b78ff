"""What a retriever tells of its training: the record beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class TrainingRecord:
    """How a retriever came about, in plain values; None stands for what a kind of training does not tell.

    `settings` are those of the training, `history` its epochs, rounds or exchanges, `selection` each candidate's
    success on the selection questions, `federation` who took part and how, `privacy` the statement. Under epsilon
    `questions` is None: how many there are is a question's too. Without a `collection` nothing is known.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    questions: int | None = None
    selection: Mapping[str, float] | None = None
    federation: Mapping[str, Any] | None = None
    method: str = "none"
    collection: Mapping[str, str] | None = None
    selection_questions: int = 0
    seconds: Mapping[str, float] | None = None
    peak_memory_mb: float | None = None
    privacy: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in retriever.json; under epsilon those who took part come last."""
        if self.collection is None:
            return {}
        federation = {"federation": self.federation} if self.federation is not None else {}
        last = self.questions is None
        content: dict[str, Any] = {"method": self.method, "settings": self.settings}
        content |= {} if last else federation
        content["collection"] = self.collection
        content |= {"questions": self.questions, "selection_questions": self.selection_questions}
        content |= {"selection": self.selection} if self.selection is not None else {}
        content["history"] = list(self.history)
        if self.seconds is not None:
            content |= {"seconds": self.seconds, "peak_memory_mb": self.peak_memory_mb}
        content |= {"privacy": self.privacy} if self.privacy is not None else {}
        return {**content, **(federation if last else {})}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingRecord:
        """What `to_json` gave; what a later version has besides is left alone."""
        return cls(**{part.name: content[part.name] for part in fields(cls) if part.name in content})
