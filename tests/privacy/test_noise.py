"""Noise from the operating system, on every coordinate; correlated noise and its sensitivity."""

import itertools
import math
import random

import numpy as np
import pytest
import torch

from fedcar.privacy.accountant import epsilon_of
from fedcar.privacy.correlated_noise import (
    CorrelatedNoise,
    fixed_order_release,
    toeplitz_coefficients,
    toeplitz_sensitivity,
)
from fedcar.privacy.errors import PrivacyError
from fedcar.privacy.noise import NoiseSource, add_noise, box_muller, round_to_grid

SHAPES = {"adapter": (16, 16), "rows": (7, 16), "scale": ()}


def zeros():
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def test_noise_ignores_the_experiments_seed():
    drawn = []
    for _ in range(2):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        drawn.append(NoiseSource().normal((50,)))
    assert not np.any(drawn[0] == drawn[1])
    assert NoiseSource().name == "operating-system"


def test_a_test_seed_repeats_and_is_marked():
    first, second = (add_noise(zeros(), 1.0, NoiseSource(test_seed=3)) for _ in range(2))
    assert all(np.array_equal(first.values[name], second.values[name]) for name in SHAPES)
    assert first.noise == "seeded-test"


def test_noise_is_standard_normal():
    from scipy.stats import kstest

    normals = NoiseSource().normal((100_001,))
    assert normals.shape == (100_001,) and normals.dtype == np.float64
    assert kstest(normals, "norm").pvalue > 1e-6
    halves = normals[:50_000], normals[50_000:100_000]
    assert abs(float(np.mean(halves[0] * halves[1]))) < 5 / math.sqrt(50_000)
    assert abs(float(np.mean(halves[0] ** 2 * halves[1] ** 2)) - 1) < 20 / math.sqrt(50_000)


def test_box_muller_at_its_ends():
    ends = box_muller(b"\x00" * 16 + b"\xff" * 16)
    assert np.isfinite(ends).all() and np.abs(ends).max() < 9.5
    assert float(np.abs(box_muller(b"\x00" * 16)).max()) == pytest.approx(math.sqrt(2 * 65 * math.log(2)))


def test_noise_is_on_every_coordinate():
    source = NoiseSource()
    draws = [add_noise(zeros(), 2.0, source) for _ in range(200)]
    for name, shape in SHAPES.items():
        values = np.stack([draw.values[name] for draw in draws])
        assert values.shape == (200, *shape)
        assert np.all(np.abs(values.std(axis=0) - 2) < 0.7)
    assert source.draws == 200 and draws[0].standard_deviation == 2.0


def test_empty_batch_is_noised():
    assert all(np.all(value != 0) for value in add_noise(zeros(), 1.0, NoiseSource()).values.values())


def test_released_values_are_rounded_to_the_grid():
    for deviation in (1e-3, 1.0, 7.3):
        released = add_noise({"rows": np.full((50,), 0.1)}, deviation, NoiseSource()).values["rows"]
        grid = 2.0 ** (math.floor(math.log2(deviation)) - 20)
        assert np.array_equal(released, np.rint(released / grid) * grid)
    values = np.linspace(-1, 1, 99)
    rounded = values.copy()
    round_to_grid(rounded, 1.0)
    assert np.abs(rounded - values).max() <= 2.0**-21 and np.array_equal(rounded * 2**20, np.rint(rounded * 2**20))
    mixed = add_noise({"a": torch.ones(3, dtype=torch.float32), "b": np.array(2, dtype=np.int64)}, 1.0, NoiseSource())
    assert mixed.values["a"].dtype == np.float64 and mixed.values["b"].shape == ()


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf])
def test_a_senseless_deviation_is_refused(deviation):
    with pytest.raises(PrivacyError, match="standard_deviation is"):
        add_noise(zeros(), deviation, NoiseSource())


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(PrivacyError, match='"rows" holds values that are not finite'):
        add_noise({"rows": np.array([1.0, math.nan])}, 1.0, NoiseSource())


def noise_matrix(bands, steps):
    matrix = np.zeros((steps, steps))
    for lag, coefficient in enumerate(toeplitz_coefficients(bands)[:steps]):
        matrix += np.diag(np.full(steps - lag, coefficient), -lag)
    return matrix


def test_toeplitz_coefficients_are_those_of_the_square_root():
    coefficients = toeplitz_coefficients(8)
    squared = np.convolve(coefficients, coefficients)[:8]
    assert np.allclose(squared, [1, -1, 0, 0, 0, 0, 0, 0])
    assert toeplitz_coefficients(1).tolist() == [1.0]


@pytest.mark.parametrize(
    "bands,steps,participations,separation", list(itertools.product((1, 2, 4, 9), (6, 9), (1, 2, 3), (1, 2, 4)))
)
def test_toeplitz_sensitivity_is_the_worst_pattern(bands, steps, participations, separation):
    strategy = np.linalg.inv(noise_matrix(bands, steps))
    assert np.all(strategy > -1e-12)
    worst = 0.0
    for count in range(1, participations + 1):
        for pattern in itertools.combinations(range(steps), count):
            if all(later - earlier >= separation for earlier, later in zip(pattern, pattern[1:], strict=False)):
                worst = max(worst, float(np.linalg.norm(strategy[:, list(pattern)].sum(axis=1))))
    assert toeplitz_sensitivity(bands, steps, participations, separation) == pytest.approx(worst, rel=1e-12)


def test_one_band_is_independent_noise():
    assert toeplitz_sensitivity(1, 40, 4, 10) == pytest.approx(2.0)
    entry = fixed_order_release("head", 5.0, 0.5, bands=1, steps=40, participations=4, separation=10)
    assert entry.sensitivity == pytest.approx(1.0) and entry.standard_deviation == pytest.approx(5.0)
    # four participations at multiplier 10 each are one at 5
    assert epsilon_of([entry], 1e-5) == pytest.approx(
        epsilon_of([fixed_order_release("head", 5.0, 1, bands=1, steps=1, participations=1, separation=1)], 1e-5)
    )


def test_correlated_noise_is_the_matrix_times_fresh_noise():
    size, steps, bands = 4000, 6, 3
    noise = CorrelatedNoise(NoiseSource(test_seed=5), 2.0, bands, steps)
    found = np.stack([noise.add_noise({"rows": np.zeros(size)}).values["rows"] for _ in range(steps)])
    fresh_source = NoiseSource(test_seed=5)
    fresh = np.stack([fresh_source.normal((size,)) for _ in range(steps)])
    assert np.allclose(found, 2.0 * noise_matrix(bands, steps) @ fresh, atol=1e-5)
    with pytest.raises(PrivacyError, match="every step"):
        noise.add_noise({"rows": np.zeros(size)})


def test_correlated_noise_makes_prefix_sums_quieter_at_the_same_epsilon():
    steps, participations, separation = 200, 4, 50

    def error(bands):
        noise = noise_matrix(bands, steps)
        deviation = toeplitz_sensitivity(bands, steps, participations, separation)
        return deviation * math.sqrt(float(np.mean(np.sum(np.cumsum(noise, axis=0) ** 2, axis=1))))

    assert error(16) < 0.6 * error(1)
