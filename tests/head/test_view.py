"""The view: what is alike in all texts counts little, and a text is seen alone as among others."""

from __future__ import annotations

import numpy as np
import pytest

from fedcar.common.vectors import unit
from fedcar.encoder.reading import state_type
from fedcar.head.feature_map import FeatureMap
from fedcar.head.view import View

WIDTH, LAYERS = 48, 3


def states(texts: int, seed: int) -> np.ndarray:
    """As a decoder makes them: one direction that all share, one whose share is chance, and little that is a text's."""
    generator = np.random.default_rng(seed)
    found = np.zeros(texts, dtype=state_type(LAYERS, WIDTH))
    own, chance = generator.normal(size=(texts, 1, WIDTH)) * 0.1, generator.normal(size=(texts, LAYERS)) * 3
    found["layers"] = own
    found["layers"][..., 0] += 20
    found["layers"][..., 1] += chance
    found["pooled"] = found["layers"][:, -1]
    return found


@pytest.fixture
def view() -> View:
    return View.of_reference(states(200, 0))


def near(states: np.ndarray) -> np.ndarray:
    """The same texts, told by another first token: what is alike in all texts, and what is chance, differ."""
    again, generator = states.copy(), np.random.default_rng(9)
    again["layers"][..., 0] += 5
    again["layers"][..., 1] += generator.normal(size=again["layers"].shape[:2]) * 3
    again["pooled"] = again["layers"][:, -1]
    return again


def test_in_the_view_a_text_is_found_again_where_hidden_states_lose_it(view: View) -> None:
    texts = states(100, 1)
    hidden, seen = (unit(found) @ unit(asked).T for found, asked in (
        (texts["pooled"], near(texts)["pooled"]), (view(texts), view(near(texts))),
    ))  # fmt: skip
    assert (hidden.argmax(axis=0) == np.arange(100)).mean() < 0.3
    assert (seen.argmax(axis=0) == np.arange(100)).mean() > 0.9


def test_it_equals_whitening_written_out() -> None:
    """(C + s)^-1/2 by the whole eigenvectors, with fewer directions than are kept."""
    reference, texts = states(30, 0), states(5, 1)
    expected = np.zeros((5, WIDTH))
    for layer in range(LAYERS):
        known, asked = (unit(some["layers"][:, layer].astype(np.float32)) for some in (reference, texts))
        centre = known.mean(0)
        covariance = np.cov((known - centre).T.astype(np.float64), bias=True)
        values, vectors = np.linalg.eigh(covariance)
        usual = np.trace(covariance) / WIDTH
        root = vectors @ np.diag(1 / np.sqrt(np.maximum(values, 0) + usual)) @ vectors.T
        expected += unit((asked - centre) @ root)
    np.testing.assert_allclose(View.of_reference(reference)(texts), unit(expected), atol=1e-4)


def test_a_text_is_seen_alone_as_among_others(view: View) -> None:
    texts = states(9, 1)
    np.testing.assert_allclose(view(texts[4:5])[0], view(texts)[4], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(view(texts), axis=1), 1.0, atol=1e-5)
    assert view(texts[:0]).shape == (0, WIDTH)


def test_what_has_no_text_is_zero(view: View) -> None:
    assert not view(np.zeros(2, dtype=state_type(LAYERS, WIDTH))).any()
    assert np.isfinite(View.of_reference(np.zeros(3, dtype=state_type(LAYERS, WIDTH)))(states(2, 1))).all()


def test_its_arrays_make_it_again(view: View) -> None:
    texts = states(9, 1)
    np.testing.assert_array_equal(View.from_tensors(view.tensors())(texts), view(texts))


def test_the_feature_map_of_a_hopeless_encoder_begins_with_the_view(view: View) -> None:
    reference, texts = states(200, 0), states(9, 1)
    found = FeatureMap.of_reference(reference, view=view)(texts)
    np.testing.assert_allclose(found[:, :WIDTH], unit(view(texts) - view(reference).mean(0)), atol=1e-5)
    assert np.abs(found - FeatureMap.of_reference(reference)(texts)).max() > 0.01
