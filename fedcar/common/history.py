"""The history: one append-only record of a run. Tables, checkpoints and reports read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class History:
    """A list of records, one an epoch or a round, each a flat mapping of plain values; records are only ever added."""

    def __init__(self, records: list[dict[str, Any]] | None = None) -> None:
        self._records = list(records or [])

    def add(self, **values: object) -> dict[str, Any]:
        record = dict(values)
        self._records.append(record)
        return record

    def best(self, key: str) -> Mapping[str, Any] | None:
        """The first record with the highest value of `key`; None where no record has it."""
        scored = [record for record in self._records if record.get(key) is not None]
        return max(scored, key=lambda record: record[key]) if scored else None

    @property
    def records(self) -> list[dict[str, Any]]:
        return [dict(record) for record in self._records]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self._records)
