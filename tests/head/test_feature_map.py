"""The feature map: fixed, the same everywhere, and close to the kernel it stands for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fedcar.head import feature_map
from fedcar.head.feature_map import FREQUENCY_SCALE, LAYER_WEIGHT, FeatureMap, centred, fourier, frequencies

WIDTH, LAYERS = 48, 2
STATE = np.dtype([("pooled", np.float32, (WIDTH,)), ("layers", np.float32, (LAYERS, WIDTH))])


@pytest.fixture(autouse=True)
def many_frequencies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many as a user gets."""
    monkeypatch.setattr(feature_map, "FREQUENCIES", 1024)
    frequencies.cache_clear()
    yield
    frequencies.cache_clear()


def states(questions: int, seed: int) -> np.ndarray:
    """Records as an encoder makes them; all share a usual direction."""
    generator = np.random.default_rng(seed)
    found = np.zeros(questions, dtype=STATE)
    found["pooled"] = generator.normal(size=(questions, WIDTH)) * 3 + 2
    found["layers"] = generator.normal(size=(questions, LAYERS, WIDTH)) - 1
    return found


def test_same_seed_same_map() -> None:
    reference, questions = states(60, 0), states(5, 1)
    first, same = (FeatureMap.of_reference(reference, 3)(questions) for _ in range(2))
    frequencies.cache_clear()
    again, other = FeatureMap.of_reference(reference, 3)(questions), FeatureMap.of_reference(reference, 4)(questions)
    np.testing.assert_array_equal(first, same)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[:, :WIDTH], other[:, :WIDTH])
    assert np.abs(first - other)[:, WIDTH:].max() > 0.01


def test_a_question_maps_alone_as_among_others() -> None:
    fixed, questions = FeatureMap.of_reference(states(60, 0)), states(9, 1)
    together = fixed(questions)
    assert together.shape == (9, fixed.dimension) == (9, WIDTH + 4 * 1024) and together.dtype == np.float32
    np.testing.assert_allclose(fixed(questions[4:5])[0], together[4], atol=1e-6)
    assert fixed(questions[:0]).shape == (0, fixed.dimension)


def test_each_part_has_unit_length() -> None:
    found = FeatureMap.of_reference(states(60, 0))(states(9, 1))
    hidden, waves, layers = np.split(found, [WIDTH, WIDTH + 2048], axis=1)
    for part, length in ((hidden, 1.0), (waves, 1.0), (layers, LAYER_WEIGHT)):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), length, atol=1e-5)


@pytest.mark.parametrize("dimension", [WIDTH, 384, 1500])
def test_the_inner_products_are_near_the_gaussian_kernel(dimension: int) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(40, dimension))
    vectors[20:] = vectors[:20] + generator.normal(size=(20, dimension)) * 0.4  # near ones too
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = fourier(vectors, frequencies(dimension, 0))
    distance = np.square(vectors[:, None] - vectors[None]).sum(2)
    np.testing.assert_allclose(found @ found.T, np.exp(-(FREQUENCY_SCALE**2) * distance / 2), atol=0.08)


def test_frequencies_are_orthogonal_in_blocks_and_as_long_as_gaussian_ones() -> None:
    found = frequencies(WIDTH, 0)
    assert found.shape == (1024, WIDTH)
    block = found[:WIDTH].astype(np.float64)
    lengths = np.linalg.norm(block, axis=1)
    np.testing.assert_allclose(block @ block.T, np.diag(lengths**2), atol=1e-3)
    lengths = np.square(np.linalg.norm(found, axis=1)).mean() / FREQUENCY_SCALE**2
    assert lengths == pytest.approx(WIDTH, rel=0.05)


def test_centred_states_do_not_share_a_direction() -> None:
    pooled = states(400, 0)["pooled"]
    plain = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    found = centred(pooled, plain.mean(0))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.linalg.norm(found.mean(0)) < 0.1 < 0.5 < np.linalg.norm(plain.mean(0))


def test_states_of_zero_are_no_division_by_zero() -> None:
    nothing = np.zeros(3, dtype=STATE)
    with np.errstate(all="raise"):
        assert np.isfinite(FeatureMap.of_reference(nothing)(nothing)).all()
