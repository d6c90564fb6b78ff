"""A file of questions to search with: one a line, or JSON lines; "-" is standard input."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedcar.collection.columns import QUESTION_IDENTIFIER_NAMES
from fedcar.collection.lines import check_text, json_objects, text_lines
from fedcar.collection.normal_forms import is_blank
from fedcar.collection.sources import as_file
from fedcar.collection.tables import kind_of_file
from fedcar.errors import FedcarError, FedcarWarning, quoted

TEXT_KEYS = ("text", "question", "query")


class AskedLine(NamedTuple):
    """A question of a file; `id` is None where the file has none."""

    id: str | None
    text: str


def read_questions(path: Path) -> list[AskedLine]:
    """The questions in the order of the file: the lines of a text, or "text" (and "id") of the objects of JSON lines.

    Blank lines of a text are left out, with one FedcarWarning that counts them; a blank "text" is refused.
    Raises FedcarError where there is no question.
    """
    with as_file(path) as file:
        read = list(_objects(file) if kind_of_file(file) == "jsonl" else _lines(file))
    questions = [one for one in read if one.text]
    if not questions:
        raise FedcarError(f"{path}:1: no question; write one a line")
    if blank := len(read) - len(questions):
        message = f"{path}: {blank} blank lines are no questions and were left out"
        warnings.warn(message, FedcarWarning, stacklevel=2)
    return questions


def _lines(path: Path) -> Iterator[AskedLine]:
    for number, line in text_lines(path):
        text = "" if is_blank(line) else line.strip()
        yield AskedLine(None, check_text(text, "question", f"{path}:{number}"))


def _objects(path: Path) -> Iterator[AskedLine]:
    for where, record in json_objects(path):
        key = next((name for name in TEXT_KEYS if name in record), None)
        text = record.get(key) if key is not None else None
        if not isinstance(text, str) or is_blank(text):
            there = "" if key is None else f", {quoted(key)} is {quoted(text)}"
            raise FedcarError(f'{where}: no question{there}; write one a line, {{"id": "...", "text": "..."}}')
        yield AskedLine(_identifier(record), check_text(text, str(key), where))


def _identifier(record: dict[str, Any]) -> str | None:
    value = next((record[name] for name in QUESTION_IDENTIFIER_NAMES if record.get(name) is not None), None)
    return None if value is None else str(value)
