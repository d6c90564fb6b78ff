"""A BEIR folder of two documents and four queries, which the tests of the collection change file by file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcar.collection.collection import Collection

DOCUMENTS = [
    {"_id": "fan", "title": "Fan", "text": "Clean the fan."},
    {"_id": "pump", "title": "Pump", "text": "Prime the pump."},
]
QUERIES: list[dict[str, Any]] = [
    {"_id": "q1", "text": "fan stops", "metadata": {"client": "north"}},
    {"_id": "q2", "text": "pump is dry"},
    {"_id": "q3", "text": "who won?", "metadata": {"answerable": False, "split": "test"}},
    {"_id": "q4", "text": "Fan  STOPS "},
]
HEADER = "query-id\tcorpus-id\tscore\n"


CORPUS, ASKED, TRAIN = "corpus.jsonl", "queries.jsonl", "qrels/train.tsv"


def lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def standard() -> dict[str, str]:
    return {
        "corpus.jsonl": lines(*DOCUMENTS),
        "queries.jsonl": lines(*QUERIES),
        "qrels/train.tsv": HEADER + "q2\tpump\t2\nq2\tfan\t0\nq1\tfan\t1\n",
        "qrels/dev.tsv": HEADER + "q2\tpump\t1\n",
        "qrels/test.tsv": HEADER + "q4\tfan\t1\nq2\tfan\t0\n",
    }


def put(folder: Path, files: Mapping[str, str | bytes | None]) -> Path:
    """Write the standard collection with some files changed, or left out where None."""
    for name, content in {**standard(), **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read_silently(folder: Path) -> Collection:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Collection.read(folder)
