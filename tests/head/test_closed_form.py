"""The closed form: statistics add up and come out again, and what is left out is as if it had never been there."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest

from fedcar.errors import FedcarError
from fedcar.head.closed_form import Statistics, solve

QUESTIONS, DIMENSION, DOCUMENTS = 120, 24, 7
STRENGTHS = (0.3, 3.0)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Features (n, D) of about unit length and targets (n, documents); the last document is nobody's, some have two."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(QUESTIONS, DIMENSION)).astype(np.float32) / DIMENSION**0.5
    targets = np.zeros((QUESTIONS, DOCUMENTS), dtype=np.float32)
    targets[np.arange(QUESTIONS), generator.integers(0, DOCUMENTS - 1, QUESTIONS)] = 1
    targets[:10, 0] = np.maximum(targets[:10, 0], 0.5)
    return features, targets


def check(found: Statistics, expected: Statistics) -> None:
    np.testing.assert_allclose(found.gram, expected.gram, atol=1e-5)
    np.testing.assert_allclose(found.cross, expected.cross, atol=1e-5)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert found.questions == expected.questions


def plain_weights(features: np.ndarray, targets: np.ndarray, strength: float) -> np.ndarray:
    """Ridge in double precision, straight from its definition."""
    phi, y = features.astype(np.float64), targets.astype(np.float64)
    return np.linalg.solve(phi.T @ phi + strength * np.eye(phi.shape[1]), phi.T @ y)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_weights_are_ridge(data: tuple[np.ndarray, np.ndarray], strength: float) -> None:
    features, targets = data
    ridge = solve(Statistics.of(features, targets), strength)
    np.testing.assert_allclose(ridge.weights, plain_weights(features, targets, strength), atol=1e-5)
    np.testing.assert_allclose(ridge.predict(features), features @ ridge.weights, atol=1e-6)
    assert not ridge.weights[:, -1].any(), "a document without questions is untouched"


def test_counts_are_the_questions_of_each_document(data: tuple[np.ndarray, np.ndarray]) -> None:
    statistics = Statistics.of(*data)
    np.testing.assert_array_equal(statistics.counts, (data[1] > 0).sum(0))
    assert (statistics.questions, statistics.counts[-1]) == (QUESTIONS, 0)


@pytest.mark.parametrize("borders", [[60], [1, 2, 100], [0, 30]])
def test_ridge_federated_equals_central(data: tuple[np.ndarray, np.ndarray], borders: list[int]) -> None:
    """Clients of any size, one without a question among them, sorted by document: the extreme of non-IID."""
    features, targets = data
    order = targets.argmax(1).argsort()
    parts = zip(np.split(features[order], borders), np.split(targets[order], borders), strict=True)
    federated, central = reduce(add, (Statistics.of(*part) for part in parts)), Statistics.of(features, targets)
    check(federated, central)
    np.testing.assert_allclose(solve(federated).weights, solve(central).weights, atol=1e-5)


def test_removing_a_client_equals_never_having_it(data: tuple[np.ndarray, np.ndarray]) -> None:
    features, targets = data
    stays, goes = slice(0, 80), slice(80, None)
    left = Statistics.of(features, targets) - Statistics.of(features[goes], targets[goes])
    never = Statistics.of(features[stays], targets[stays])
    check(left, never)
    np.testing.assert_allclose(solve(left).weights, solve(never).weights, atol=1e-4)


def test_what_was_never_in_cannot_be_taken_out(data: tuple[np.ndarray, np.ndarray]) -> None:
    features, targets = data
    few = Statistics.of(features[:5], targets[:5])
    with pytest.raises(FedcarError, match="not in the sum"):
        few - Statistics.of(features, targets)
    other = np.roll(targets[:5], 1, axis=1)
    with pytest.raises(FedcarError, match="not in the sum"):
        few - Statistics.of(features[:5], other)


@pytest.mark.parametrize("damage", ["negative", "not a number", "infinite"])
def test_a_damaged_gram_is_refused(data: tuple[np.ndarray, np.ndarray], damage: str) -> None:
    statistics = Statistics.of(*data)
    gram = {
        "negative": statistics.gram - 100 * np.eye(DIMENSION, dtype=np.float32),
        "not a number": np.where(np.eye(DIMENSION) > 0, np.float32(np.nan), statistics.gram),
        "infinite": np.where(np.eye(DIMENSION) > 0, np.float32(-np.inf), statistics.gram),
    }[damage]
    with pytest.raises(FedcarError, match=f"{QUESTIONS} questions are not a sum of squares") as caught:
        solve(replace(statistics, gram=gram))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("by", ["question", "document"])
def test_left_out_equals_solved_without(data: tuple[np.ndarray, np.ndarray], by: str, strength: float) -> None:
    """Single questions, and all questions of a document."""
    features, targets = data
    groups = np.arange(QUESTIONS) if by == "question" else targets.argmax(axis=1)
    found = solve(Statistics.of(features, targets), strength).left_out(features, targets).predict(groups)
    for group in np.unique(groups):
        out = groups == group
        expected = features[out] @ plain_weights(features[~out], targets[~out], strength)
        np.testing.assert_allclose(found[out], expected, atol=2e-4)


def test_left_out_of_a_sample_equals_left_out_of_all(data: tuple[np.ndarray, np.ndarray]) -> None:
    """Only the groups asked about need to be there, in any order."""
    features, targets = data
    groups = targets.argmax(axis=1)
    ridge = solve(Statistics.of(features, targets))
    whole = ridge.left_out(features, targets).predict(groups)
    sample = np.flatnonzero(np.isin(groups, (1, 4)))[::-1]
    part = ridge.left_out(features[sample], targets[sample]).predict(groups[sample])
    np.testing.assert_allclose(part, whole[sample], atol=1e-4)
