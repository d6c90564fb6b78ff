"""Noise that is correlated over steps, for a fixed order of questions: banded Toeplitz.

Library: no method of fedcar uses it, since its noised steps take every question in every step, where correlation cannot
help. For training of your own in a fixed order, each question in at most so many steps and so far apart: prefix sums of
the steps, which is what a model is, then carry less noise at the same epsilon.

    >>> release = fixed_order_release("head", 2.0, clip_norm=1.0, bands=4, steps=12, participations=3, separation=4)
    >>> noise = CorrelatedNoise(NoiseSource(), release.standard_deviation, bands=4, steps=12)
    >>> noise.add_noise({"rows": np.zeros((5, 8))}).values["rows"].shape  # of each step's clipped sums
    (5, 8)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from fedcar.privacy.errors import require
from fedcar.privacy.noise import Floats, Noised, NoiseSource, added_noise, check_deviation
from fedcar.privacy.release import Release


def toeplitz_coefficients(bands: int) -> Floats:
    """Shape (bands,): the first coefficients of (1 - x)^(1/2): 1, -1/2, -1/8, -1/16, ...

    They are the banded inverse square root (BISR) of the prefix-sum matrix: Kalinin, McKenna, Upadhyay and Lampert,
    "Back to Square Roots", arXiv 2505.12128. One band is independent noise.
    """
    require(bands >= 1, f"bands is {bands}, must be at least 1")
    coefficients = np.ones(bands)
    for index in range(1, bands):
        coefficients[index] = coefficients[index - 1] * (2 * index - 3) / (2 * index)
    return coefficients


def toeplitz_sensitivity(bands: int, steps: int, participations: int, separation: int) -> float:
    """How far one unit of norm 1 in up to `participations` steps, at least `separation` apart, moves C times the sums.

    C is the inverse of the lower Toeplitz matrix of toeplitz_coefficients. Its first column c is positive and falls
    (the partial sums of the coefficients are log-convex: Kaluza 1928), so that the worst case is the earliest pattern,
    steps 1, 1 + separation, ..., with all contributions aligned: the norm of the sum of these shifted columns (Kalinin
    and Lampert, "Banded Square Root Matrix Factorization", NeurIPS 2024, theorem 2).
    Formal guarantees: toeplitz_sensitivity_is_the_worst_pattern.
    """
    require(steps >= 1, f"steps is {steps}, must be at least 1")
    require(participations >= 1, f"participations is {participations}, must be at least 1")
    require(separation >= 1, f"separation is {separation}, must be at least 1")
    column = _first_column(bands, steps)
    total = np.zeros(steps)
    for start in range(0, min(steps, participations * separation), separation):
        total[start:] += column[: steps - start]
    return float(np.sqrt(np.sum(total**2)))


def fixed_order_release(
    name: str,
    noise_multiplier: float,
    clip_norm: float,
    *,
    bands: int,
    steps: int,
    participations: int,
    separation: int,
    unit: str = "example",
) -> Release:
    """Return the accountant's entry for a run with CorrelatedNoise: one Gaussian release of all its steps together.

    noise_multiplier is that of the whole run: each step's fresh noise has noise_multiplier * sensitivity as standard
    deviation, which Release.standard_deviation gives. Adaptive steps are covered (Denisov et al., NeurIPS 2022,
    theorem 2.1). Nothing is assumed about sampling; a unit's places in the order must not depend on the others, which
    is why the adjacency is zero-out-one.
    """
    require(math.isfinite(clip_norm) and clip_norm > 0, f"clip_norm is {clip_norm}, must be finite and above 0")
    return Release(
        name=name,
        noise_multiplier=noise_multiplier,
        sensitivity=clip_norm * toeplitz_sensitivity(bands, steps, participations, separation),
        sampler="fixed-order",
        unit=unit,
        adjacency="zero-out-one",
    )


class CorrelatedNoise:
    """Noise for successive steps, each with part of the last steps' noise taken off again (banded Toeplitz).

    Step t gets sum_j coefficients[j] * z_(t - j), z fresh normals of the given standard deviation: prefix sums of the
    steps, which is what a model is, then carry much less noise. Holds `bands` vectors. After `steps` steps it refuses:
    the sensitivity was computed for so many.
    """

    def __init__(self, source: NoiseSource, standard_deviation: float, bands: int, steps: int) -> None:
        """standard_deviation: fixed_order_release(...).standard_deviation with the same bands and steps."""
        check_deviation(standard_deviation)
        self._source = source
        self._standard_deviation = standard_deviation
        self._coefficients = toeplitz_coefficients(bands)
        self._steps_left = steps
        self._past: list[Floats] = []

    def add_noise(self, sums: Mapping[str, ArrayLike]) -> Noised:
        """Return the next step's clipped sums with its noise; names and shapes as in the step before."""
        require(self._steps_left > 0, "every step that the noise was computed for is taken; plan a new release")
        size = sum(math.prod(np.shape(value)) for value in sums.values())
        require(not self._past or self._past[0].size == size, f"{size} coordinates, the step before had another number")
        self._steps_left -= 1
        self._past = [self._source.normal((size,)), *self._past][: len(self._coefficients)]
        correlated = np.zeros(size)
        for coefficient, fresh in zip(self._coefficients, self._past, strict=False):
            correlated += self._standard_deviation * coefficient * fresh
        return Noised(
            added_noise(sums, correlated, self._standard_deviation), self._standard_deviation, self._source.name
        )


def _first_column(bands: int, steps: int) -> Floats:
    """Of C, the inverse of the banded lower Toeplitz matrix: c_0 = 1, c_t = -sum_j coefficients[j] c_(t - j)."""
    coefficients = toeplitz_coefficients(bands)
    column = np.zeros(steps)
    column[0] = 1.0
    for step in range(1, steps):
        reach = min(step, bands - 1)
        column[step] = -float(np.sum(coefficients[1 : reach + 1] * column[step - reach : step][::-1]))
    return column
