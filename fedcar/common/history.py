"""The history: one append-only record of a run. Tables, checkpoints and reports read it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class History:
    """A list of records, one an epoch or a round, each a flat mapping of plain values; records are only ever added.

    With a `file` each is a line of JSON at its end as well, on the disk before `add` returns.
    """

    def __init__(self, records: list[dict[str, Any]] | None = None, file: Path | None = None) -> None:
        self._records = list(records or [])
        self._file = file

    @classmethod
    def of(cls, file: Path, *, mend: bool = True) -> History:
        """The history in a file, empty where there is none; half a line at its end, which only a crash leaves, is none.

        With `mend` that half is taken away, so that whole lines follow; without, the file is only read, as is right
        while another process adds to it.
        """
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if mend and len(whole) < len(content):
            os.truncate(file, len(whole))
        return cls([json.loads(line) for line in whole.splitlines()], file)

    def add(self, **values: object) -> dict[str, Any]:
        record = dict(values)
        self._records.append(record)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        return record

    @property
    def records(self) -> list[dict[str, Any]]:
        return [dict(record) for record in self._records]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self._records)
