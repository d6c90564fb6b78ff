"""What the history has of an exchange under epsilon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ExchangeRecord:
    """What an exchange came to, in plain values. The order of the fields is that of the keys in the history.

    No seconds: how long a client took tells how many questions it has, and whether it was drawn. Nothing that was
    measured on private questions stands here but what was noised.

    `round` is its number, from 0, the count. `clip_norm` is that of a step where it adapts; `what` names the state that
    was made of the answers, `selection` its success on public dev questions. None is left out.
    """

    round: int
    clients: Sequence[str]
    refused: Mapping[str, str]
    failed: Mapping[str, str]
    bytes_up: int
    bytes_down: int
    clip_norm: float | None = None
    what: str | None = None
    selection: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the history."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in content.items() if value is not None}
