"""A round's record in the history: which keys, in which order, and back."""

from __future__ import annotations

import json
from typing import Any

from fedcar.federation.rounds.record import RoundRecord, shown
from fedcar.training.noised.record import ExchangeRecord

COMMON: dict[str, Any] = {
    "clients": ["a"], "questions": 3, "refused": {}, "failed": {"b": "away"}, "bytes_down": 7, "bytes_up": 8,
    "client_seconds": {"a": 0.1}, "clock_seconds": 0.4,
}  # fmt: skip
ENDS = ["clients", "questions", "refused", "failed", "bytes_down", "bytes_up", "client_seconds"]


def test_the_keys_are_those_of_a_round_of_steps_or_of_ridge_in_the_order_of_the_history() -> None:
    held_out = {"questions": 5.0, "right": 4.0}
    steps = RoundRecord(
        round=2, attempts=1, loss=0.5, held_out=held_out, server_seconds=0.1, evaluation_seconds=0.2, **COMMON
    )
    seconds = ["server_seconds", "evaluation_seconds", "clock_seconds"]
    assert list(steps.to_json()) == ["round", "attempts", "selection", "loss", "held_out", *ENDS, *seconds]
    assert steps.to_json()["selection"] is None
    ridge = RoundRecord(round=1, what="ridge", exchanges=3, selection=0.9, **COMMON)
    assert list(ridge.to_json()) == ["round", "what", "exchanges", "selection", "loss", *ENDS, "clock_seconds"]
    for record in (steps, ridge):
        assert RoundRecord(**json.loads(json.dumps(record.to_json()))) == record


def test_every_record_is_shown_with_all_columns() -> None:
    """An exchange has no loss and no seconds, which would be an un-noised look; their keys stand there all the same."""
    exchange = ExchangeRecord(round=0, clients=["a"], refused={}, failed={}, bytes_up=1, bytes_down=2, what="count")
    assert not {"loss", "clock_seconds"} & set(exchange.to_json())
    assert shown(exchange) == {**exchange.to_json(), "selection": None, "loss": None, "clock_seconds": None}
