"""Collection: what is written reads back, and a write that fails leaves nothing."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.beir import DOCUMENTS, QUERIES, lines, put, read_silently

from fedcar.collection.collection import Collection, Document, Query
from fedcar.errors import FedcarError, FedcarWarning

# Writing


def test_round_trip(tmp_path: Path) -> None:
    extra = {"_id": "q1", "text": 'ünïcode   and "quotes"', "metadata": {"client": "a", "k": [1, None]}}
    document = {"_id": "läbel 1", "title": "T", "text": "two\nlines\u2028three", "metadata": {"url": "x"}}
    files = {"queries.jsonl": lines(extra, *QUERIES[1:]), "corpus.jsonl": lines(*DOCUMENTS, document)}
    original = read_silently(put(tmp_path / "a", files))
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "deep" / "er" / "a", tmp_path / "empty"):
        original.write(target)
        again = read_silently(target)
        assert replace(again, name="a") == original
        assert list(again.judgements["train"]) == list(original.judgements["train"])
        assert again.fingerprint == original.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "deep", "empty"]


IDENTIFIERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t\n\r"), min_size=1).filter(
    lambda text: bool(text.strip())
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.dictionaries(IDENTIFIERS, st.tuples(TEXTS, TEXTS), min_size=1, max_size=4),
    queries=st.dictionaries(IDENTIFIERS, TEXTS.filter(lambda text: bool(text.strip())), max_size=4),
    score=st.integers(0, 3),
)
def test_whatever_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    documents: dict[str, tuple[str, str]],
    queries: dict[str, str],
    score: int,
) -> None:
    target = tmp_path_factory.mktemp("written")
    first = next(iter(documents))
    original = Collection(
        target.name,
        tuple(Document(key, title, text) for key, (title, text) in documents.items()),
        {key: Query(key, text) for key, text in queries.items()},
        {"train": {key: {first: score} for key in queries}} if queries else {},
    )
    original.write(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FedcarWarning)
        again = Collection.read(target)
    assert again == original and again.fingerprint == original.fingerprint


def test_write_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    original = read_silently(put(tmp_path / "a", {}))
    before = sorted(tmp_path.rglob("*"))
    for target in (tmp_path / "a", tmp_path / "a" / "corpus.jsonl"):
        with pytest.raises(FedcarError, match="exists and is not an empty folder"):
            original.write(target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    original = read_silently(put(tmp_path / "a", {}))

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    expected = FedcarError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        original.write(tmp_path / "b")
    if expected is FedcarError:
        assert "cannot be written (No space left on device)" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "document",
    [Document("a\tb"), Document("a", text="\ud83d"), Document("a", metadata={"x": object()})],
    ids=["tab in an id", "surrogate", "metadata that is not JSON"],
)
def test_write_refuses_what_could_not_be_read_back(tmp_path: Path, document: Document) -> None:
    with pytest.raises(FedcarError) as caught:
        Collection("c", (document,), {}, {}).write(tmp_path / "c")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
