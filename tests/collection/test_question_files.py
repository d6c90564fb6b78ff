"""Files of questions: lines or JSON lines, in their order, and nothing left out without a word."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from fedcar.collection.question_files import AskedLine, read_questions
from fedcar.errors import FedcarError, FedcarWarning


def test_a_question_a_line(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_bytes('\ufeffwhy, "oh" why?\r\n  -5 degrees\nlast one'.encode())
    assert read_questions(file) == [AskedLine(None, one) for one in ('why, "oh" why?', "-5 degrees", "last one")]


def test_blank_lines_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("one\n\n  \ntwo\n")
    with pytest.warns(FedcarWarning, match="2 blank lines") as said:
        assert [one.text for one in read_questions(file)] == ["one", "two"]
    assert str(file) in str(said[0].message)


def test_json_lines_with_ids(tmp_path: Path) -> None:
    lines = [{"_id": "q1", "text": "one"}, {"id": 7, "question": "two", "more": 1}, {"query": "three"}]
    file = tmp_path / "questions.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    assert read_questions(file) == [AskedLine("q1", "one"), AskedLine("7", "two"), AskedLine(None, "three")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.txt", "", "no question"),
        ("q.jsonl", '{"text": "one"}\n{"text": " "}\n', 'q.jsonl:2: no question, "text" is'),
        ("q.jsonl", '{"txt": "one"}\n', "q.jsonl:1: no question; write"),
        ("q.jsonl", '{"text": 3}\n', "q.jsonl:1: no question"),
        ("q.txt", "a\nb\0c\n", "q.txt:2: a NUL"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FedcarError, match=said):
        read_questions(tmp_path / name)


@pytest.mark.parametrize(("content", "id_"), [(b"one\n", None), (b'{"id": "q", "text": "one"}\n', "q")])
def test_standard_input(content: bytes, id_: str | None) -> None:
    """What comes through a pipe is told apart by its content."""
    before, (read, write) = os.dup(0), os.pipe()
    os.write(write, content)
    os.close(write)
    os.dup2(read, 0)
    try:
        assert read_questions(Path("-")) == [AskedLine(id_, "one")]
    finally:
        os.dup2(before, 0)
        for descriptor in (before, read):
            os.close(descriptor)
