"""Document folds: documents that nobody asked about are looked at before anything is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedcar import train
from fedcar.collection.collection import Collection, Document, Judged, Query
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import APART, LEARNED, WEIGHT_NAMES, mixed_features, weights_of
from fedcar.training import ridge
from fedcar.training.folds import FEWER, LEAST_DOCUMENTS, MANY, NUMBER, Folds
from fedcar.training.selection import Standard, plain_weights

COUNTS = np.array([3, 0, 1, 2, 5, 1, 1, 1, 4, 2, 1, 0, 1, 1, 2, 1])
TARGETS = np.repeat(np.eye(len(COUNTS), dtype=np.float32), COUNTS, axis=0)


def test_every_asked_document_has_one_fold_and_no_other_document_has() -> None:
    folds = Folds.of(COUNTS, 0, int(COUNTS.sum()))
    assert ((folds.of_document >= 0) == (COUNTS > 0)).all()
    assert set(folds.of_document[COUNTS > 0]) == set(range(NUMBER))
    assert folds.share == pytest.approx(2 / 16)
    assert Folds.of(COUNTS, 0, MANY).of_document.max() == FEWER - 1
    np.testing.assert_array_equal(folds.of_document, Folds.of(COUNTS, 0, 20).of_document)
    assert (folds.of_document != Folds.of(COUNTS, 1, 20).of_document).any()


def test_folds_count_by_the_share_of_documents_without_questions_at_most_half() -> None:
    assert Folds.of(np.r_[np.ones(12, int), np.zeros(100, int)], 0, 12).share == 0.5
    assert Folds.of(np.ones(12, int), 0, 12).share == 0.0
    few = Folds.of(np.r_[np.ones(LEAST_DOCUMENTS - 1, int), np.zeros(5, int)], 0, 9)
    assert not few.exist and few.share == 0.0 and not list(few.split(np.eye(14, dtype=np.float32)))


def test_a_fold_keeps_its_documents_questions_to_itself() -> None:
    """A question about documents of two folds is in neither part of both."""
    folds = Folds.of(COUNTS, 0, len(TARGETS))
    both = np.zeros((1, len(COUNTS)), dtype=np.float32)
    both[0, [np.flatnonzero(folds.of_document == 0)[0], np.flatnonzero(folds.of_document == 1)[0]]] = 1
    targets, seen = np.concatenate([TARGETS, both]), []
    for number, fold in enumerate(folds.split(targets)):
        mine = folds.of_document == number
        assert not targets[fold.outside][:, mine].any() and not targets[fold.inside][:, ~mine].any()
        assert len(fold.outside) + len(fold.inside) == len(targets) - (number in (0, 1))
        seen += fold.inside.tolist()
    assert sorted(seen) == list(range(len(TARGETS)))


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_sample_has_all_questions_of_its_documents(size: int) -> None:
    chosen = Folds.of(COUNTS, 0, len(TARGETS)).sample(TARGETS, np.random.default_rng(0), size)
    sampled = TARGETS[chosen].sum(axis=0)
    assert len(chosen) >= min(size, len(TARGETS)) and ((sampled == 0) | (sampled == COUNTS)).all()


def test_a_document_that_stands_apart_is_mixed_with_weights_of_its_own() -> None:
    generator = np.random.default_rng(0)
    evidence = generator.random((4, 3, LEARNED)).astype(np.float32)
    learned, apart = generator.random((4, 3, 2)).astype(np.float32), generator.random((4, 3)) < 0.5
    features = mixed_features(evidence, learned, apart)
    weights = generator.random(len(WEIGHT_NAMES)).astype(np.float32)
    plain = np.concatenate([evidence, learned], axis=2)
    expected = np.where(apart, plain @ weights[APART:-1] + weights[-1], plain @ weights[:APART])
    np.testing.assert_allclose(features @ weights, expected, rtol=1e-5)
    same = weights_of(weights[:LEARNED], 2.0, 3.0)
    np.testing.assert_allclose(features @ same, plain @ same[:APART], rtol=1e-5)


def test_nothing_below_hybrid_on_document_folds_is_kept() -> None:
    """However good it is on selection questions."""
    relevance = np.tile(np.array([1.0, 0.0], dtype=np.float32), (8, 1))
    standard = Standard(0.2, lambda weights: 0.4 if np.array_equal(weights, plain_weights(1.0, 0.2)) else 0.3)
    assert standard.least == 0.4
    selection = Questions((), np.empty(0), np.empty(0), np.empty(0), relevance, ())  # type: ignore[arg-type]
    perfect, poor = np.tile([1.0, 0.0], (8, 1)), np.tile([0.0, 1.0], (8, 1))
    below, above = standard.score(selection, perfect, 0.39), standard.score(selection, poor, 0.4)
    assert above > below and below.value == pytest.approx(0.8 + 0.2 * 0.39) and above.success == 0.0


# -------------------------------------------------------------------- in training

WORDS = "pump fan kettle boiler lamp heater valve motor filter cable sensor panel switch engine drill saw".split()
WHAT = ("broken", "loud", "wet", "late", "cold", "red", "slow", "old")


@pytest.fixture(scope="module")
def collection() -> Collection:
    """Sixteen labels, the last four without a training question; questions name them."""
    documents = tuple(Document(word, "", f"the {word}") for word in WORDS)
    queries, judgements = {}, {"train": {}, "dev": {}, "test": {}}
    for place, word in enumerate(WORDS):
        for number, what in enumerate(WHAT):
            query = Query(f"{word}-{what}", f"my {word} is {what}")
            queries[query.id] = query
            split = "test" if place >= 12 or number == 7 else "dev" if number == 6 else "train"
            judgements[split][query.id] = {word: 1}
    return Collection("labels", documents, queries, judgements)


@pytest.mark.parametrize("method", ["ridge", "head"])
def test_documents_without_questions_are_still_found(
    collection: Collection, encoder_folder: Path, tmp_path: Path, method: str
) -> None:
    """Trained rows do not push them away: they are found at least as often as by hybrid search."""
    cache = tmp_path / "cache"
    retriever = train(collection, encoder=encoder_folder, method=method, cache=cache)
    untrained = Retriever.untrained(collection.documents, Encoder.load(encoder_folder), FeatureCache(cache))
    hybrid = replace(untrained, weights=plain_weights(1.0, 0.2))
    unseen = [query for query in collection.judged("test").queries if WORDS.index(query.id.split("-")[0]) >= 12]
    right = {
        name: sum(one.search(query.text, 1).hits[0].id == query.id.split("-")[0] for query in unseen)
        for name, one in (("trained", retriever), ("hybrid", hybrid))
    }
    assert len(unseen) == 32 and right["trained"] >= right["hybrid"] > 0, right


def test_documents_added_after_ridge_are_found_and_leave_the_others_alone(
    collection: Collection, encoder_folder: Path, tmp_path: Path
) -> None:
    """Also where every document had training questions, so that nothing stood apart in training."""
    asked = collection.documents[:12]
    cache = tmp_path / "cache"
    untrained = Retriever.untrained(asked, Encoder.load(encoder_folder), FeatureCache(cache))
    training = prepare(untrained, collection.judged("train"), FeatureCache(cache), Silent(), "training questions")
    fitted = ridge.fit_ridge(untrained, training, FeatureCache(cache), 0)  # search alone is right as often here
    retriever = replace(fitted.retriever, weights=fitted.weightings[0].weights)
    added = retriever.add(collection.documents[12:])
    hybrid = replace(
        Retriever.untrained(collection.documents, Encoder.load(encoder_folder), FeatureCache(cache)),
        weights=plain_weights(1.0, 0.2),
    )

    def right(one: Retriever, questions: list[Query]) -> int:
        return sum(one.search(query.text, 1).hits[0].id == query.id.split("-")[0] for query in questions)

    test = collection.judged("test").queries
    old = [query for query in test if WORDS.index(query.id.split("-")[0]) < 12]
    new = [query for query in test if query not in old]
    assert right(added, new) >= right(hybrid, new) > 0
    assert right(added, old) >= right(retriever, old) - 1


def test_documents_that_are_not_solved_for_change_nothing(
    collection: Collection, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ridge with a column for every document gives the same rows, words and weights."""
    untrained = Retriever.untrained(collection.documents, Encoder.load(encoder_folder), FeatureCache(tmp_path))
    training = prepare(untrained, collection.judged("train"), FeatureCache(tmp_path), Silent(), "training questions")
    fitted = ridge.fit_ridge(untrained, training, FeatureCache(tmp_path), 0)
    every = np.arange(16)
    monkeypatch.setattr(ridge, "columns_of", lambda *_: (every, every))
    whole = ridge.fit_ridge(untrained, training, FeatureCache(tmp_path), 0)
    ours, theirs = fitted.retriever.ridge, whole.retriever.ridge
    assert ours is not None and theirs is not None and ours.weights.shape[1] == 12
    np.testing.assert_array_equal(ours.documents, theirs.documents)
    np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-2, atol=1e-3)
    scores = [one.scores(training.texts, training.states) for one in (ours, theirs)]
    np.testing.assert_allclose(*scores, rtol=1e-3, atol=1e-3)
    assert not scores[0][:, 12:].any()
    for one, other in zip(fitted.weightings, whole.weightings, strict=True):
        np.testing.assert_allclose(one.weights, other.weights, rtol=0.02, atol=0.02)


def test_ridge_is_not_tried_for_too_many_rows(
    collection: Collection, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    report = Silent()
    report.say = said.append  # type: ignore[method-assign]
    for most, tried in ((12, {"evidence", "ridge"}), (11, {"evidence"})):
        monkeypatch.setattr(ridge, "MOST_ROWS", most)
        found = train(collection, encoder=encoder_folder, method="ridge", cache=tmp_path, report=report)
        assert found.training.selection.keys() == tried
    assert said.count("ridge+pseudo: not tried: 16 documents would get a row, and at most 12 do") == 1
    assert said.count("ridge: not tried: 12 documents would get a row, and at most 11 do") == 1


# -------------------------------------------------------------------- several relevant documents a question

PAIRS = np.kron(np.eye(8, dtype=np.float32), np.ones((3, 2), dtype=np.float32))


def test_documents_that_share_a_question_are_in_one_fold() -> None:
    """So that no question is about documents inside and outside: every one is left out with its fold."""
    folds = Folds.of(PAIRS.sum(axis=0).astype(int), 0, len(PAIRS), targets=PAIRS)
    assert (folds.of_document[::2] == folds.of_document[1::2]).all() and folds.of_document.max() == NUMBER - 1
    parts = list(folds.split(PAIRS))
    assert sum(len(part.inside) for part in parts) == len(PAIRS)
    apart = Folds.of(PAIRS.sum(axis=0).astype(int), 0, len(PAIRS))
    assert (apart.of_document[::2] != apart.of_document[1::2]).any(), "this is what the questions are needed for"


def test_where_a_question_is_about_one_document_folds_are_those_of_the_counts() -> None:
    by_targets = Folds.of(COUNTS, 0, len(TARGETS), targets=TARGETS)
    np.testing.assert_array_equal(by_targets.of_document, Folds.of(COUNTS, 0, len(TARGETS)).of_document)


def test_there_are_no_folds_where_half_of_the_documents_hang_together() -> None:
    chain = np.eye(20, dtype=np.float32)[:11] + np.eye(20, k=1, dtype=np.float32)[:11]
    targets = np.concatenate([chain, np.eye(20, dtype=np.float32)])
    assert not Folds.of(np.ones(20, int), 0, 31, targets=targets).exist


def test_no_word_of_a_question_is_left_with_any_of_its_documents(
    collection: Collection, encoder_folder: Path, tmp_path: Path
) -> None:
    """Questions in words of their own about random documents teach nothing: left out they must not find them."""
    untrained = Retriever.untrained(collection.documents, Encoder.load(encoder_folder), FeatureCache(tmp_path))
    generator = np.random.default_rng(0)
    asked = tuple(Query(f"q{number}", f"w{number} v{number} u{number}") for number in range(40))
    answers = tuple({WORDS[place]: 1 for place in generator.permutation(16)[:4]} for _ in asked)
    training = prepare(untrained, Judged(asked, answers), FeatureCache(tmp_path), Silent(), "training questions")
    fitted = ridge.fit_ridge(untrained, training, FeatureCache(tmp_path), 0)
    proof = fitted.weightings[0].proof.seen
    assert proof is not None and proof.values[:, 0].mean() < 0.45, "a quarter of the documents are relevant"
