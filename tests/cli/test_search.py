"""`fedcar search`: one question and many, a retriever and a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import fedcar
from support.retrievers import made

from fedcar.collection.collection import Collection
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.retriever import searcher
from fedcar.retriever.retriever import Retriever

QUESTIONS = ("who looks after the pump", "- 5 degrees on the display", "the fan, is it loud?", "who charges it", "hose")


@pytest.fixture(scope="module")
def saved(toy_collection: Path, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    documents = Collection.read(toy_collection).documents
    retriever = made("ridge", documents, Encoder.load(tiny_model("llama")), FeatureCache(folder / "cache"))
    retriever = replace(retriever, documents=tuple(replace(one, metadata={"page": 3}) for one in documents))
    retriever.save(folder / "retriever")
    return folder / "retriever"


def test_many_questions_are_answered_in_their_order(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "READ_AT_ONCE", 2)
    lines = [{"id": f"q{place}", "text": text} for place, text in enumerate(QUESTIONS)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS), "utf-8")
    retriever = Retriever.load(saved)
    for name in ("questions.jsonl", "questions.txt"):
        result = fedcar("search", saved, "--file", tmp_path / name, "-k", 2, "--json")
        answers = [json.loads(line) for line in result.out.splitlines()]
        assert result.code == 0 and result.err == "" and [one["query"] for one in answers] == list(QUESTIONS)
        assert [one.get("id") for one in answers] == ([f"q{at}" for at in range(5)] if "jsonl" in name else [None] * 5)
        for answer in answers:
            alone = retriever.search(answer["query"], 2)
            assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in alone]
            assert all(hit["metadata"] == {"page": 3} for hit in answer["hits"])
    shown = fedcar("search", saved, "--file", tmp_path / "questions.txt", "-k", 1).out
    assert [line[2:] for line in shown.splitlines() if line.startswith("? ")] == list(QUESTIONS)


def test_one_question_is_one_object(saved: Path) -> None:
    answer = fedcar("search", saved, QUESTIONS[0], "-k", 1, "--json").json
    assert list(answer) == ["query", "answered", "hits", "reason"]
    assert list(answer["hits"][0]) == ["id", "score", "confidence", "title", "text", "metadata", "passage"]


def test_a_file_that_is_refused_prints_nothing(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"text": "one"}\n{"text": ""}\n')
    result = fedcar("search", saved, "--file", tmp_path / "questions.jsonl", "--json")
    assert result.code == 1 and result.out == "" and "questions.jsonl:2: no question" in result.err
