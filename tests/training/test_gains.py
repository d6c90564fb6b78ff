"""Gains over hybrid search: measured as evaluation measures, and believed as far as the questions carry."""

from __future__ import annotations

import numpy as np
import pytest

from fedcar.evaluation.metrics import per_query
from fedcar.retriever.questions import Questions
from fedcar.training.gains import gain, left_out_scores, measures, parts_of

CANDIDATES = 20


def asked(count: int, seed: int = 0) -> Questions:
    """Questions with graded judgements, some of documents that are not among the candidates."""
    generator = np.random.default_rng(seed)
    candidates = np.stack([generator.permutation(40)[:CANDIDATES] for _ in range(count)])
    relevant = tuple(
        {str(document): int(generator.integers(0, 4)) for document in generator.permutation(40)[:9]}
        for _ in range(count)
    )
    relevance = np.array(
        [[judged.get(str(one), 0) for one in row] for row, judged in zip(candidates, relevant, strict=True)]
    )
    texts = tuple(f"question {number}" for number in range(count))
    nothing = np.zeros((count, CANDIDATES, 0), dtype=np.float32)
    return Questions(texts, np.zeros(count, dtype="V4"), candidates, nothing, relevance.astype(np.float32), relevant)


def test_the_measures_are_those_of_evaluation() -> None:
    """Graded, several relevant, some of them no candidates; an empty document, whose score is -inf, is not returned."""
    questions = asked(50)
    scores = np.random.default_rng(1).normal(size=(50, CANDIDATES)).astype(np.float32)
    scores[:, 3:15] = -np.inf
    ranking = [
        [str(questions.candidates[row, place]) for place in np.argsort(-scores[row]) if np.isfinite(scores[row, place])]
        for row in range(50)
    ]
    expected = per_query(ranking, questions.relevant)
    np.testing.assert_allclose(
        measures(questions, scores), np.stack([expected["success@1"], expected["ndcg@10"]], axis=1), atol=1e-12
    )


def test_a_few_questions_that_agree_are_no_proof_and_many_are() -> None:
    won = np.array([[1.0, 0.5]])
    assert not gain(won.repeat(2, axis=0)).sure
    assert gain(won.repeat(20, axis=0)).sure
    tied = np.zeros((200, 2))
    assert not gain(np.concatenate([won.repeat(3, axis=0), tied])).sure
    assert gain(np.concatenate([won.repeat(12, axis=0), tied])).sure


def test_what_wins_one_measure_and_loses_the_other_is_not_sure() -> None:
    generator = np.random.default_rng(0)
    success = (generator.random(100) < 0.3).astype(float)
    lost = generator.normal(-0.05, 0.1, size=100)
    assert gain(np.stack([success, -lost], axis=1)).sure
    mixed = gain(np.stack([success, lost], axis=1))
    assert mixed.bound > 0 and not mixed.sure


def test_document_folds_count_by_their_share() -> None:
    won, lost = np.full((100, 2), 0.2), np.full((100, 2), -0.2)
    assert gain(won, lost, 0.0).success == pytest.approx(gain(won).success)
    assert gain(won, lost, 0.5).success == pytest.approx(0.0)
    assert gain(won, lost, 0.2).sure and not gain(won, lost, 0.5).sure
    assert gain(lost, won, 0.8).bound > 0 and not gain(lost, won, 0.8).sure, "what users ask must gain as well"


def test_no_question_means_nothing_is_sure() -> None:
    assert not gain(np.zeros((0, 2))).sure


def test_each_question_is_left_out_once_and_equal_texts_together() -> None:
    texts = [f"question {number % 13}" for number in range(40)] + ["Question 3"]
    left = [left_out for _, left_out in parts_of(texts, 0)]
    np.testing.assert_array_equal(np.sort(np.concatenate(left)), np.arange(41))
    for others, left_out in parts_of(texts, 0):
        assert not {texts[row].lower() for row in others} & {texts[row].lower() for row in left_out}
    assert [list(one) for one in left] == [list(left_out) for _, left_out in parts_of(texts, 0)]


def test_a_question_is_scored_by_weights_that_did_not_learn_from_it() -> None:
    """The weights say from which questions they come; a question's score must not name itself."""
    count = 30
    features = np.zeros((count, 2, count), dtype=np.float32)
    features[np.arange(count), 0, np.arange(count)] = 1.0

    def fit(others: np.ndarray) -> np.ndarray:
        weights = np.zeros(count, dtype=np.float32)
        weights[others] = 1.0
        return weights

    texts = [f"question {number}" for number in range(count)]
    (scores,) = left_out_scores(texts, 0, fit, [features])
    assert not scores.any()
    (everywhere,) = left_out_scores(texts, 0, lambda others: np.ones(count, dtype=np.float32), [features])
    assert everywhere[:, 0].all()
