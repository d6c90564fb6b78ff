"""What is kept: hybrid search, or what is surely better than it in both measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedcar.collection.collection import Document
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.evaluation.metrics import per_query
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of
from fedcar.training import gradient
from fedcar.training.gains import NO_GAIN, Measured, Proof, measures, parts_of
from fedcar.training.selection import (
    Candidate,
    Fitted,
    Standard,
    Weighting,
    candidate,
    hybrid_of,
    plain_weights,
    select,
)
from fedcar.training.settings import TrainingSettings

NAMES = "pump fan kettle boiler lamp heater valve motor filter cable".split()
STEMS = 3  # the place of the evidence that stands for what was trained


@pytest.fixture(scope="module")
def untrained(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    documents = [Document(name, "", f"the {name}") for name in NAMES]
    return Retriever.untrained(documents, Encoder.load(encoder_folder), FeatureCache(tmp_path_factory.mktemp("cache")))


def asked(count: int, answers: Sequence[Sequence[int]], evidence: np.ndarray, encoder: Encoder) -> Questions:
    """Questions whose documents, in the order of their names, are all candidates; `answers` are grades."""
    relevant = tuple({name: grade for name, grade in zip(NAMES, row, strict=True) if grade} for row in answers)
    states = np.zeros(count, dtype=encoder.model.state_type)
    candidates = np.tile(np.arange(len(NAMES)), (count, 1))
    texts = tuple(f"question {number}" for number in range(count))
    return Questions(texts, states, candidates, evidence, np.array(answers, dtype=np.float32), relevant)


def graded(count: int, untrained: Retriever, first: float) -> Questions:
    """Questions with one answer of grade 3 and four others of grade 1; the first place of what was trained is right.

    Hybrid search has the five first, but an irrelevant one before them for the share `first` of the questions. What was
    trained has a document of grade 1 first, and the others last.
    """
    answers = [[3, 1, 1, 1, 1, 0, 0, 0, 0, 0]] * count
    evidence = np.zeros((count, len(NAMES), LEARNED), dtype=np.float32)
    evidence[..., 0] = np.linspace(1, 0, len(NAMES))
    evidence[..., 1] = np.linspace(0, 1e-3, len(NAMES))  # words alone rank the wrong way round
    evidence[: round(first * count), 5, 0] = 2.0
    evidence[..., STEMS] = np.array([0, 9, 1, 1, 1, 5, 5, 5, 5, 5])
    return asked(count, answers, evidence, untrained.encoder)


def trained(untrained: Retriever, proof: Proof = Proof()) -> Fitted:  # noqa: B008 - a value
    weights = np.zeros(LEARNED, dtype=np.float32)
    weights[STEMS] = 1.0
    return Fitted(untrained, (Weighting(weights_of(weights), proof=proof),))


def kept(untrained: Retriever, selection: Questions, fitted: Fitted) -> Candidate:
    one = candidate("ridge", fitted, selection, Standard(), Silent())
    return select(untrained, selection, [one], Standard(), Silent())


def test_what_wins_success_and_loses_the_ranking_is_not_kept(untrained: Retriever) -> None:
    """The fault that was seen: a better first place, and the other relevant documents are gone."""
    selection = graded(60, untrained, 0.3)
    search = kept(untrained, selection, trained(untrained))
    one = candidate("ridge", trained(untrained), selection, Standard(), Silent())
    assert one.score.success == 1.0 and one.gain.success > 0.2 > 0 > one.gain.ndcg
    assert search.name == "none" and search.gain == NO_GAIN
    np.testing.assert_array_equal(search.retriever.weights, plain_weights(1.0, 0.2))


def test_what_wins_both_surely_is_kept(untrained: Retriever) -> None:
    selection = graded(60, untrained, 0.3)
    better = selection.evidence.copy()
    better[..., STEMS] = np.linspace(1, 0, len(NAMES))
    assert kept(untrained, replace(selection, evidence=better), trained(untrained)).name == "ridge"


@pytest.mark.parametrize(("count", "name"), [(6, "none"), (60, "ridge")])
def test_few_questions_do_not_decide(untrained: Retriever, count: int, name: str) -> None:
    """Three of ten questions are won and none is lost: of six questions that is no proof."""
    selection = graded(count, untrained, 0.3)
    better = selection.evidence.copy()
    better[..., STEMS] = np.linspace(1, 0, len(NAMES))
    assert kept(untrained, replace(selection, evidence=better), trained(untrained)).name == name


def test_beside_few_dev_questions_those_left_out_of_training_decide(untrained: Retriever) -> None:
    """Six dev questions alone prove nothing; sixty that were left out do, in either direction."""
    selection, taught = graded(6, untrained, 0.3), graded(60, untrained, 0.3)
    better = selection.evidence.copy()
    better[..., STEMS] = np.linspace(1, 0, len(NAMES))
    selection = replace(selection, evidence=better)
    won = measures(taught, np.tile(np.linspace(1, 0, len(NAMES)), (60, 1)).astype(np.float32))
    assert kept(untrained, selection, trained(untrained, Proof(Measured(taught, won)))).name == "ridge"
    assert kept(untrained, selection, trained(untrained, Proof(Measured(taught, np.zeros((60, 2)))))).name == "none"


def test_search_that_is_surely_better_than_hybrid_is_kept(untrained: Retriever) -> None:
    """BM25 alone finds what hybrid search misses."""
    selection = graded(60, untrained, 1.0)
    words = selection.evidence.copy()
    words[..., 1] = np.linspace(1, 0, len(NAMES))
    chosen = select(untrained, replace(selection, evidence=words), [], Standard(), Silent())
    np.testing.assert_array_equal(chosen.retriever.weights, plain_weights(0.0, 1.0))


def test_hybrid_is_that_of_evaluation(untrained: Retriever) -> None:
    """The weight of words is .4 only where that is right more often on the selection questions."""
    selection = graded(10, untrained, 0.0)
    np.testing.assert_array_equal(hybrid_of(selection, untrained.empty), plain_weights(1.0, 0.2))
    tipped = selection.evidence.copy()
    tipped[..., 0] = 0.0
    tipped[:, 5, 0], tipped[:, 0, 1] = 0.3, 1.0
    tipped = replace(selection, evidence=tipped)
    np.testing.assert_array_equal(hybrid_of(tipped, untrained.empty), plain_weights(1.0, 0.4))
    ranking = [[NAMES[place] for place in np.argsort(-(row[:, 0] + 0.4 * row[:, 1]))] for row in tipped.evidence]
    assert per_query(ranking, tipped.relevant)["success@1"].all()


def test_a_head_proves_itself_on_questions_that_it_did_not_learn_from(
    untrained: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five trainings, evidence included, each without the questions that are then asked of it."""
    taught, learned_from = graded(40, untrained, 0.3), []

    def fit(mixed: Retriever, training: Questions, *_: object) -> Fitted:
        learned_from.append(set(training.texts))
        return trained(mixed)

    def mixed(training: Questions) -> Retriever:
        learned_from.append(set(training.texts))
        return untrained

    monkeypatch.setattr(gradient, "fit", fit)
    settings = TrainingSettings(method="head").steps()
    proved = gradient.with_proof(trained(untrained), mixed, taught, taught, settings, Silent())
    proof = proved.weightings[0].proof.seen
    assert proof is not None and len(learned_from) == 10
    scores = taught.evidence[..., STEMS]
    np.testing.assert_allclose(proof.values, measures(taught, scores))
    parts = [set(taught.take(left_out).texts) for _, left_out in parts_of(taught.texts, settings.seed)]
    assert all(not learned & part for learned, part in zip(learned_from[::2], parts, strict=True))
    assert all(not learned & part for learned, part in zip(learned_from[1::2], parts, strict=True))
