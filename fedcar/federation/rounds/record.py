"""What the history has of a round: one record, the same from a round of gradient training and from that of ridge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fedcar.training.noised.record import ExchangeRecord

ALWAYS = ("selection", "loss")  # told also where there is none; all else is left out where it is None


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What a round came to, in plain values. The order of the fields is that of the keys in the history.

    `selection` is the success of the state on the selection questions, `held_out` what the devices' own questions say
    of the state before. `clients` are those whose update counted, `questions` theirs together; `refused` and `failed`
    tell for the others why; `gate` why the state that was made of them was not kept. Bytes are those of all clients
    together, `clock_seconds` by the virtual clock where there is one. `what` and `exchanges` are of the method ridge
    alone.
    """

    round: int
    what: str | None = None
    attempts: int | None = None
    exchanges: int | None = None
    selection: float | None = None
    gate: str | None = None
    loss: float | None = None
    held_out: Mapping[str, float] | None = None
    clients: Sequence[str]
    questions: int
    refused: Mapping[str, str]
    failed: Mapping[str, str]
    bytes_down: int
    bytes_up: int
    client_seconds: Mapping[str, float]
    server_seconds: float | None = None
    evaluation_seconds: float | None = None
    clock_seconds: float

    def to_json(self) -> dict[str, Any]:
        """As it stands in history.jsonl."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in content.items() if value is not None or name in ALWAYS}


Record = RoundRecord | ExchangeRecord
Watch = Callable[[Record, Mapping[str, float | None]], None]  # a round as it ends, and what stands beside it


def shown(record: Record) -> dict[str, Any]:
    """A record with all columns of tables and `--json`; what would need an un-noised look or a clock is empty."""
    content = record.to_json()
    return {**content, **{name: content.get(name) for name in (*ALWAYS, "clock_seconds")}}
