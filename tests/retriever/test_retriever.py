"""The retriever: what search returns, and that a saved one is found again wherever it is used from."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.command import fedcar, learnable, tree

from fedcar import train
from fedcar.collection.collection import Collection, Document
from fedcar.encoder.cache import FeatureCache
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.retriever import evidence
from fedcar.retriever.calibration import NO_CONFIDENCE
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import APART, LEARNED

NOTES = {"author": "Ünal", "pages": [1, 2], "draft": None}


@pytest.fixture(scope="module")
def place(toy_collection: Path, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder and a trained retriever; one document is empty, one has metadata."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_model("llama"), place / "encoder")
    read = learnable(Collection.read(toy_collection))
    odd = (Document("empty", " ", ""), Document("notes", "", "line one\nline two\u2028three \x1b[31mred", NOTES))
    collection = replace(read, documents=(*read.documents, *odd))
    retriever = train(collection, encoder=place / "encoder", cache=place / "cache", method="adapter", epochs=12)
    assert retriever.encoder.adapter is not None
    retriever.save(place / "retriever")
    return place


@pytest.fixture(scope="module")
def retriever(place: Path) -> Retriever:
    return Retriever.load(place / "retriever")


def test_the_hits_are_ordered_and_few_questions_support_no_confidence(retriever: Retriever) -> None:
    answer = retriever.search("blower", k=7)
    scores = [hit.score for hit in answer]
    assert scores == sorted(scores, reverse=True) and answer.query == "blower"
    assert answer.answered is None and answer.reason == NO_CONFIDENCE
    assert {hit.confidence for hit in answer} == {None}
    assert retriever.search("blower", k=2).hits == answer.hits[:2], "k only cuts"


def test_training_looks_at_the_candidates_that_are_searched(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was learned: selection never saw how it ranks documents that encoder and words would not propose."""
    monkeypatch.setattr(evidence, "ALL_ARE_CANDIDATES", 2)
    monkeypatch.setattr(evidence, "CANDIDATES", 3)
    untrained = Retriever.untrained(retriever.documents, retriever.encoder, FeatureCache(None))
    weights = retriever.weights.copy()
    weights[LEARNED:APART] = 1e6
    trained = replace(retriever, weights=weights)
    texts = ["my pump is broken", "who looks after the display", "fan"]
    reading = trained.encoder.read(texts)
    looked_at = [one.evidence_for(texts, reading.states, reading.tokens)[0] for one in (trained, untrained)]
    assert trained.is_trained and looked_at[0].shape == (3, 3)
    np.testing.assert_array_equal(*looked_at)


@pytest.mark.filterwarnings("ignore:k is 100", "ignore:1 of 1 queries have nothing but stop words")
def test_an_empty_document_is_kept_and_never_returned(retriever: Retriever) -> None:
    assert "empty" in {document.id for document in retriever.documents}
    for question in ("empty", "blower", "the", " . "):
        hits = retriever.search(question, k=100).hits
        assert len(hits) == 7 and "empty" not in {hit.id for hit in hits}


def test_k_beyond_the_collection_returns_all_with_one_warning(retriever: Retriever) -> None:
    with pytest.warns(FedcarWarning, match="k is 9, but there are 8 documents") as said:
        retriever.search("blower", k=9)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retriever.search("blower", k=8)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(retriever: Retriever, question: str) -> None:
    with pytest.raises(FedcarError, match="the question is empty"):
        retriever.search(question)


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one_is_refused(retriever: Retriever, k: int) -> None:
    with pytest.raises(FedcarError, match="k is"):
        retriever.search("blower", k)


@pytest.mark.parametrize(
    "question",
    ["\x00", "a" * 100_000, "🛰️ …", "\ud800 blower", "‮fan", "\n\n fan \t"],
    ids=lambda question: ascii(question)[:9],
)
@pytest.mark.filterwarnings(
    "ignore:1 of 1 texts are longer than 40 tokens", "ignore:1 of 1 queries have nothing but stop words"
)
def test_any_question_gets_an_answer(retriever: Retriever, question: str) -> None:
    assert len(retriever.search(question).hits) == 5


def test_documents_survive_saving_as_they_are(place: Path, retriever: Retriever) -> None:
    (notes,) = (document for document in retriever.documents if document.id == "notes")
    assert notes == Document("notes", "", "line one\nline two\u2028three \x1b[31mred", NOTES)
    assert dict(notes.metadata) == NOTES


def test_saved_again_it_is_the_same_to_the_byte(place: Path, retriever: Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "again")
    assert tree(tmp_path / "again") == tree(place / "retriever")


def test_a_relative_encoder_is_found_from_another_folder(
    place: Path, retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    documents = Collection("one", retriever.documents[:1], {}, {})
    train(documents, encoder="encoder", cache=place / "cache").save(tmp_path / "retriever")
    monkeypatch.chdir("/")
    assert Retriever.load(tmp_path / "retriever").search("fan", 1).hits[0].id == "fan"


def test_a_moved_encoder_can_be_named(place: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(place, tmp_path / "place")
    shutil.copytree(place / "encoder", tmp_path / "elsewhere")
    record = moved / "retriever"
    away = place / "encoder away"
    (place / "encoder").rename(away)
    try:
        with pytest.raises(FedcarError, match=r"--encoder .*no such folder; give a folder that exists"):
            Retriever.load(record)
        assert fedcar("search", record, "blower").code == 1
        found = fedcar("search", record, "blower", "--encoder", tmp_path / "elsewhere", "--json")
        assert found.code == 0 and found.json["hits"]
    finally:
        away.rename(place / "encoder")
    assert Retriever.load(record, tmp_path / "elsewhere").search("blower").hits


def test_searching_changes_nothing(retriever: Retriever) -> None:
    before = {name: tensor.clone() for name, tensor in retriever.head.state_dict().items()}
    first = retriever.search("blower")
    assert retriever.search("blower") == first
    assert all(bool((tensor == before[name]).all()) for name, tensor in retriever.head.state_dict().items())


def test_one_question_and_many_score_the_same(retriever: Retriever) -> None:
    questions = ["blower", "who primes the pump, and with what water", "tube"]

    def scores(texts: list[str]) -> np.ndarray:
        reading = retriever.encoder.read(texts)
        candidates, evidence = retriever.evidence_for(texts, reading.states, reading.tokens)
        found = retriever.scores(texts, reading.states, candidates, evidence)
        return np.take_along_axis(found, candidates.argsort(axis=1), axis=1)

    together = scores(questions)
    for row, question in enumerate(questions):
        np.testing.assert_allclose(scores([question])[0], together[row], atol=1e-4)
