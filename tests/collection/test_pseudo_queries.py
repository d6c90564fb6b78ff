"""Pseudo-queries: what is taken from documents, and honest rows of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from support.machines import DOCUMENTS

import fedcar.collection.pseudo_queries as module
from fedcar.collection.collection import Collection, Document
from fedcar.collection.pseudo_queries import PseudoQueries, pseudo_queries
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.head.closed_form import Statistics, solve
from fedcar.head.naive_bayes import NaiveBayes, gram_counts
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.ridge import alone, fit_ridge
from fedcar.training.train import can_matter

# -------------------------------------------------------------------- titles and sentences


def test_titles_and_sentences_stand_for_their_document() -> None:
    found = pseudo_queries(DOCUMENTS, weight=0.2)
    by_document = {document.id: [] for document in DOCUMENTS}
    for text, identifier in zip(found.texts, found.document_ids, strict=True):
        by_document[identifier].append(text)
    assert by_document["pump"] == [
        "Pump",
        "Prime the pump with water before the first start.",
        "It runs dry otherwise, and breaks.",
    ]
    assert found.weights.tolist() == pytest.approx([0.2] * len(found)) and found.weights.dtype == np.float32


def test_text_of_several_documents_is_left_out() -> None:
    assert not any("blades" in text for text in pseudo_queries(DOCUMENTS).texts)


def test_at_most_so_many_a_document_with_its_title_by_seed() -> None:
    long = Document("long", "Title", " ".join(f"This is the sentence with number {n}." for n in range(40)))
    first = pseudo_queries([long, *DOCUMENTS], 3, 5)
    of_long = [text for text, name in zip(first.texts, first.document_ids, strict=True) if name == "long"]
    assert len(of_long) == 5 and of_long[0] == "Title"
    numbers = [int(text.split()[-1].rstrip(".")) for text in of_long[1:]]
    assert numbers == sorted(set(numbers))
    assert pseudo_queries([long, *DOCUMENTS], 3, 5).texts == first.texts
    assert pseudo_queries([long, *DOCUMENTS], 4, 5).texts != first.texts
    alone_there = pseudo_queries([long], 3, 5)
    assert list(alone_there.texts) == of_long, "other documents change nothing of a document's choice"
    assert pseudo_queries([long], 3, 1).texts == ("Title",)


@pytest.mark.parametrize(
    ("document", "texts"),
    [
        (Document("a"), ()),
        (Document("a", " ", "\n"), ()),
        (Document("a", "Only a title"), ("Only a title",)),
        (Document("a", "", "No title."), ("No title.",)),
        (Document("a", "Same", "same"), ("Same",)),
        (Document("\ud800", "x\ud800", ""), ("x\ud800",)),
    ],
)
def test_odd_documents(document: Document, texts: tuple[str, ...]) -> None:
    assert pseudo_queries([document]).texts == texts


def test_pseudo_queries_add_up() -> None:
    both = PseudoQueries.of([("a", "x")], 0.25) + PseudoQueries() + PseudoQueries.of([("b", "y"), ("b", "z")], 0.5)
    assert (both.texts, both.document_ids, both.weights.tolist()) == (
        ("x", "y", "z"),
        ("a", "b", "b"),
        [0.25, 0.5, 0.5],
    )


def test_many_documents_get_fewer_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TEXTS", 3)
    assert pseudo_queries(DOCUMENTS).texts == ("Fan", "Pump", "Hose")


# -------------------------------------------------------------------- in the closed form


def made_up(seed: int = 0) -> tuple[Any, ...]:
    """20 questions of the first two of 4 documents and 9 pseudo-queries of all: features, targets, words."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((20, 12)).astype(np.float32)
    answers = np.arange(20) % 2
    targets = np.eye(4, dtype=np.float32)[answers]
    grams = gram_counts([" ".join(generator.choice(list("abcdefgh"), 5)) for _ in range(20)])
    extra = generator.standard_normal((9, 12)).astype(np.float32)
    rows = np.arange(9) % 4
    weights = sparse.csr_array((np.full(9, 0.15, np.float32), (np.arange(9), rows)), shape=(9, 4))
    words = gram_counts([" ".join(generator.choice(list("abcdxyz"), 4)) for _ in range(9)])
    return features, targets, answers, grams, extra, weights, words


def test_pseudo_queries_count_by_their_weight() -> None:
    features, targets, _, _, extra, weights, _ = made_up()
    both = Statistics.of(features, targets) + Statistics.of_pseudo_queries(extra, weights)
    scaled = np.concatenate([features, np.sqrt(np.float32(0.15)) * extra])
    goals = np.concatenate([targets, np.sqrt(np.float32(0.15)) * (weights.toarray() > 0)])
    np.testing.assert_allclose(both.gram, scaled.T @ scaled, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(both.cross, scaled.T @ goals, rtol=1e-4, atol=1e-4)
    assert both.questions == 20 and both.counts.tolist() == [10, 10, 0, 0]
    assert solve(both).weights.any(axis=0).all(), "every row is active"
    back = both - Statistics.of_pseudo_queries(extra, weights)
    np.testing.assert_allclose(back.gram, features.T @ features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whole", [False, True])
def test_left_out_rows_equal_solving_without_the_questions(whole: bool) -> None:
    features, targets, answers, _, extra, weights, _ = made_up()
    beside = Statistics.of_pseudo_queries(extra, weights)
    groups = answers if whole else np.arange(20)
    found = solve(Statistics.of(features, targets) + beside).left_out(features, targets).predict(groups)
    for group in np.unique(groups):
        inside = groups == group
        without = solve(Statistics.of(features[~inside], targets[~inside]) + beside)
        np.testing.assert_allclose(found[inside], without.predict(features[inside]), rtol=1e-3, atol=1e-3)
        if whole:
            assert np.abs(found[inside][:, group]).max() > 0, "the pseudo-queries of the document stay"


@pytest.mark.parametrize("whole", [False, True])
def test_left_out_words_equal_counting_without_the_questions(whole: bool) -> None:
    _, targets, answers, grams, _, weights, words = made_up()
    asked, beside = NaiveBayes.of(grams, targets), NaiveBayes(sparse.csr_array(weights.T @ words))
    left_out = asked.counts[answers, :] if whole else None
    found = (asked + beside).scores_without(grams, sparse.csr_array(targets), left_out)
    mass = (asked + beside).smoothing_mass
    for row in range(20):
        inside = answers == answers[row] if whole else np.arange(20) == row
        without = NaiveBayes.of(grams[np.flatnonzero(~inside)], targets[~inside]) + beside
        if without.smoothing_mass == mass:  # the number of known grams is taken as it is with the question
            np.testing.assert_allclose(found[row], without.scores(grams[[row]])[0], rtol=1e-3, atol=2e-3)


def test_alone_is_a_question_whose_document_shares_no_question() -> None:
    targets = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=np.float32)
    assert alone(targets).tolist() == [True, False, False, False]
    assert alone(targets[:2]).tolist() == [True, True]


@pytest.fixture(scope="module")
def prepared(collection: Collection, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    cache = FeatureCache(tmp_path_factory.mktemp("cache"))
    untrained = Retriever.untrained(collection.documents, Encoder.load(encoder_folder), cache)
    training = prepare(untrained, collection.judged("train"), cache, Silent(), "training questions")
    return untrained, training, cache


def test_pseudo_queries_give_rows_to_documents_without_questions(
    prepared: tuple[Any, ...], collection: Collection, tmp_path: Path
) -> None:
    untrained, training, cache = prepared
    plain = fit_ridge(untrained, training, cache, 0).retriever
    found = fit_ridge(untrained, training, cache, 0, pseudo_queries(collection.documents)).retriever
    seen = collection.seen_documents()
    unseen = [row for row, document in enumerate(collection.documents) if document.id not in seen]
    assert unseen and found.ridge.pseudo_documents.tolist() == unseen and not len(plain.ridge.pseudo_documents)
    assert found.ridge.documents.tolist() == plain.ridge.documents.tolist(), "who was asked"
    assert not plain.learned(training.texts, training.states)[:, unseen].any()
    learned = found.learned(training.texts, training.states)
    assert learned[:, unseen, 0].any() and learned[:, unseen, 1].any()
    assert np.isfinite(learned).all() and np.isfinite(found.weights).all()
    found.save(tmp_path / "retriever")
    again = Retriever.load(tmp_path / "retriever")
    np.testing.assert_array_equal(again.learned(training.texts, training.states), learned)
    assert again.ridge.pseudo_documents.tolist() == unseen


def test_without_pseudo_queries_nothing_changes(prepared: tuple[Any, ...]) -> None:
    untrained, training, cache = prepared
    fitted = [fit_ridge(untrained, training, cache, 0, pseudo) for pseudo in (None, PseudoQueries())]
    plain, empty = (replace(one.retriever, weights=one.weightings[0].weights) for one in fitted)
    np.testing.assert_array_equal(plain.weights, empty.weights)
    np.testing.assert_array_equal(
        plain.learned(training.texts, training.states), empty.learned(training.texts, training.states)
    )


# -------------------------------------------------------------------- in training


@pytest.mark.parametrize(("asked", "times", "matter"), [("ab", 500, False), ("ab", 50, True), ("a", 500, True)])
def test_pseudo_queries_are_tried_where_they_can_matter(asked: str, times: int, matter: bool) -> None:
    relevant = tuple({document: 1} for document in asked * times)
    nothing = np.zeros((len(relevant), 0), np.float32)
    training = Questions(("",) * len(relevant), nothing, nothing, nothing, nothing, relevant)  # type: ignore[arg-type]
    pseudo = PseudoQueries.of([("a", "one"), ("b", "two"), ("b", "three"), ("a", "four")], 0.75)
    assert can_matter(pseudo, training) is matter
