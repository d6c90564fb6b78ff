"""Confidence: the temperature that was planted, a threshold that keeps its word, and measures as others define them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedcar.evaluation.metrics import area_under_roc, expected_calibration_error
from fedcar.retriever.calibration import LEAST_QUESTIONS, Calibration, answer_threshold, softmax


def asked(questions: int, temperature: float, seed: int = 0, candidates: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, c), and one relevant candidate each, drawn with softmax(temperature * score)."""
    generator = np.random.default_rng(seed)
    scores = (generator.normal(size=(questions, candidates)) * 3).astype(np.float32)
    drawn = (temperature * scores + generator.gumbel(size=scores.shape)).argmax(axis=1)
    return scores, np.arange(candidates) == drawn[:, None]


@pytest.mark.parametrize("planted", [0.2, 1.0, 5.0])
def test_a_planted_temperature_is_recovered(planted: float) -> None:
    scores, relevant = asked(3000, planted)
    calibration = Calibration.fit(scores, relevant)
    assert calibration.temperature == pytest.approx(planted, rel=0.15)
    confidence = calibration.confidences(scores)
    right = relevant[np.arange(3000), scores.argmax(axis=1)].astype(float)
    assert expected_calibration_error(confidence.max(axis=1), right) < 0.04


@pytest.mark.parametrize("planted", [0.7, 1.0, 5.0])
def test_at_least_95_percent_of_the_answered_are_right(planted: float) -> None:
    scores, relevant = asked(2000, planted)
    calibration = Calibration.fit(scores, relevant)
    answered = calibration.answers(scores)
    right = relevant[np.arange(2000), scores.argmax(axis=1)]
    assert calibration.threshold is not None and 0 < answered.mean()
    assert right[answered].mean() >= 0.95 and (answered.all() == (right.mean() >= 0.95))


def test_few_questions_support_no_threshold() -> None:
    for questions in (0, 1, LEAST_QUESTIONS - 1):
        calibration = Calibration.fit(*asked(questions, 5.0))
        assert calibration.threshold is None and calibration.known is None
        assert calibration.answers(asked(7, 5.0)[0]).all(), "without a threshold everything is answered"
        assert calibration.no_threshold == f"no threshold: fewer than {LEAST_QUESTIONS} dev questions"
    assert Calibration.fit(*asked(LEAST_QUESTIONS, 5.0)).known is not None
    assert Calibration(threshold=0.0).no_threshold is None


def test_where_hardly_anything_is_right_there_is_no_threshold() -> None:
    scores, _ = asked(200, 1.0)
    calibration = Calibration.fit(scores, np.zeros(scores.shape, dtype=bool))
    assert calibration.threshold is None and "fewer than 95% have a right first hit" in (calibration.no_threshold or "")


def test_the_threshold_is_the_lowest_that_serves() -> None:
    confidence = np.linspace(1, 0.01, 100)
    right = np.arange(100) < 57  # 57 of 60 are 95 %
    threshold = answer_threshold(confidence, right)
    assert threshold == confidence[59] and answer_threshold(confidence, np.ones(100, dtype=bool)) == 0.0
    assert answer_threshold(confidence, np.zeros(100, dtype=bool)) is None
    assert answer_threshold(confidence[:20], right[:20]) is None


@pytest.mark.parametrize("told", [False, True])
def test_unanswerable_questions_get_less_trust(told: bool) -> None:
    """Their best score is lower; whether or not some are there to learn from."""
    generator = np.random.default_rng(1)
    scores, relevant = asked(400, 1.0)
    scores = scores + 6 * relevant.astype(np.float32)
    nothing = (generator.normal(size=(300, 12)) * 3).astype(np.float32)
    calibration = Calibration.fit(scores, relevant, nothing[:100] if told else None)
    trusted, others = calibration.trust(scores), calibration.trust(nothing[100:])
    assert (area_under_roc(trusted, others) or 0) > 0.9
    if told:  # the threshold too is chosen with them in sight
        assert calibration.answers(scores).mean() > 0.8 > 0.3 > calibration.answers(nothing[100:]).mean()


def test_an_empty_document_has_no_confidence() -> None:
    scores, relevant = asked(100, 1.0)
    scores[:, 3], relevant[:, 3] = -np.inf, False
    calibration = Calibration.fit(scores, relevant)
    found = calibration.confidences(scores)
    assert not found[:, 3].any() and np.isfinite(calibration.trust(scores)).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_a_single_document_and_none_at_all() -> None:
    one = np.ones((60, 1), dtype=np.float32)
    calibration = Calibration.fit(one, np.ones((60, 1), dtype=bool))
    assert calibration.confidences(one).tolist() == [[1.0]] * 60 and calibration.answers(one).all()
    nothing = np.full((2, 1), -np.inf, dtype=np.float32)
    assert not calibration.confidences(nothing).any()
    assert softmax(np.empty((3, 0), dtype=np.float32), 1.0).shape == (3, 0)


def test_softmax_does_not_overflow() -> None:
    with np.errstate(over="raise", invalid="raise"):
        found = softmax(np.array([[1e4, 0.0, -np.inf], [-1e4, -1e4, -np.inf]], dtype=np.float32), 20.0)
    np.testing.assert_allclose(found, [[1, 0, 0], [0.5, 0.5, 0]])


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_error_is_a_plain_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidence = generator.random(137)
    confidence[:3] = 0.0, 1.0, 0.5
    correct = (generator.random(137) < confidence**2).astype(float)
    expected = 0.0
    for lower in range(10):
        inside = [
            i for i in range(137) if lower / 10 <= confidence[i] < (lower + 1) / 10 or lower == 9 and confidence[i] == 1
        ]
        if inside:
            gap = sum(confidence[i] for i in inside) / len(inside) - sum(correct[i] for i in inside) / len(inside)
            expected += abs(gap) * len(inside) / 137
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)
    assert expected_calibration_error(confidence[:0], correct[:0]) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_the_area_under_roc_is_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    positive, negative = generator.integers(2, 12, 40) / 10, generator.integers(0, 10, 25) / 10  # with ties
    expected = roc_auc_score([1] * 40 + [0] * 25, np.concatenate([positive, negative]))
    assert area_under_roc(positive, negative) == pytest.approx(expected, abs=1e-12)
    assert area_under_roc(positive, negative[:0]) is None and area_under_roc(positive[:0], negative) is None
