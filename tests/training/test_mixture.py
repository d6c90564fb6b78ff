"""The mixture: it finds the weights that made the choices, and says no more than the questions support."""

from __future__ import annotations

import numpy as np
import pytest

from fedcar.training import mixture
from fedcar.training.mixture import fit_mixture

PLANTED = np.array([3.0, 0.0, 1.5, -1.0], dtype=np.float32)
ZERO = np.zeros(4, dtype=np.float32)


def chosen(questions: int, seed: int = 0, candidates: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, c, 4), and for each question one candidate drawn by the conditional logit of the planted weights."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(questions, candidates, 4)).astype(np.float32)
    noise = generator.gumbel(size=(questions, candidates))
    relevance = np.zeros((questions, candidates), dtype=np.float32)
    relevance[np.arange(questions), (features @ PLANTED + noise).argmax(axis=1)] = 1
    return features, relevance


def test_planted_weights_are_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fit_mixture(*chosen(6000), ZERO)
    assert found @ PLANTED > 0.99 * np.linalg.norm(found) * np.linalg.norm(PLANTED)
    assert 0.8 < np.linalg.norm(found) / np.linalg.norm(PLANTED) < 1
    monkeypatch.setattr(mixture, "STRENGTH", 0.0)
    monkeypatch.setattr(mixture, "STRENGTH_OF_ONE_QUESTION", 0.0)
    np.testing.assert_allclose(fit_mixture(*chosen(6000), ZERO), PLANTED, atol=0.15)


def test_few_questions_stay_near_the_prior() -> None:
    prior = np.array([1.0, 1.0, 1.0, 1.0], dtype=np.float32)
    moved = [np.abs(fit_mixture(*chosen(questions), prior) - prior).max() for questions in (1, 20, 2000)]
    assert moved[0] < 0.05 < moved[1] < moved[2]


def test_the_unit_of_a_feature_does_not_matter() -> None:
    features, relevance = chosen(300)
    units = np.array([1.0, 100.0, 0.01, 5.0], dtype=np.float32)
    prior = np.array([1.0, 0.5, 0.0, 2.0], dtype=np.float32)
    found = fit_mixture(features * units, relevance, prior / units)
    np.testing.assert_allclose(found * units, fit_mixture(features, relevance, prior), atol=1e-3)


def test_a_constant_feature_keeps_its_prior() -> None:
    """The same for all candidates of a question, though it differs from question to question."""
    features, relevance = chosen(300)
    features[..., 1] = np.arange(300)[:, None]
    features[..., 2] = 0.0
    prior = np.array([0.0, 7.0, -3.0, 0.0], dtype=np.float32)
    found = fit_mixture(features, relevance, prior)
    assert (found[1], found[2]) == (7.0, -3.0) and found[0] > 1


def test_without_a_choice_the_prior_is_returned() -> None:
    features, relevance = chosen(20)
    prior = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)
    for none in (np.zeros_like(relevance), np.ones_like(relevance)):
        np.testing.assert_array_equal(fit_mixture(features, none, prior), prior)
    np.testing.assert_array_equal(fit_mixture(features[:0], relevance[:0], prior), prior)


def test_questions_without_a_choice_say_nothing() -> None:
    features, relevance = chosen(300)
    extra, none = chosen(100, seed=1)
    none[:50], none[50:] = 0, 1
    with_them = fit_mixture(np.concatenate([features, extra]), np.concatenate([relevance, none]), ZERO)
    np.testing.assert_allclose(with_them, fit_mixture(features, relevance, ZERO), atol=1e-5)
