"""Gaussian noise from the operating system's randomness, independent or correlated over the steps (banded Toeplitz).

Whoever knows all but one question also knows the noise up to two guesses, so a generator whose state can be computed
from its output (Mersenne Twister, PCG, Philox) is no protection (Garfinkel and Leclerc, "Randomness Concerns When
Deploying Differential Privacy", WPES 2020). Every normal here is made of 64 fresh bits of a cryptographic generator
that the operating system seeds: OpenSSL's AES-256 CTR-DRBG (NIST SP 800-90A; 8 GB/s), or os.urandom (.6 GB/s) without.

What is left of the floating-point problem (Mironov, "On Significance of the Least Significant Bits", CCS 2012): sums
and noise are float64, and what is released is rounded to a grid of about 1e-6 standard deviations, which takes the low
bits away. By estimate, not by proof, the distribution of a released coordinate is that of a rounded Gaussian up to a
factor of 1 + 2^-29 (for sums below 16 standard deviations; more for larger ones) and 2^-64 of the mass (the cut at 9.5
standard deviations); neither is in the printed delta. An exact discrete Gaussian would close this; it is not built.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcar.privacy.errors import require
from fedcar.privacy.release import Release

Floats = NDArray[np.float64]
NoiseName = Literal["operating-system", "seeded-test", "none"]
_GRID_BITS = 20
_BLOCK = 16384  # normals at a time: the arrays stay in the processor's cache


class NoiseSource:
    """Where normals come from: the operating system, or a test seed that makes every epsilon infinite.

    Formal guarantees: noise_ignores_the_experiments_seed, seeded_or_missing_noise_gives_infinite_epsilon.
    `draws` counts the noised vectors: it must equal the steps charged (audit.steps_charged_equal_steps_noised).
    """

    def __init__(self, test_seed: int | None = None) -> None:
        """Without a seed, for use; with one, for tests only: anyone who knows it can take the noise off again."""
        self._generator = None if test_seed is None else np.random.default_rng(test_seed)
        self.draws = 0

    @property
    def name(self) -> NoiseName:
        """As Release.noise wants it."""
        return "operating-system" if self._generator is None else "seeded-test"

    def normal(self, shape: tuple[int, ...]) -> Floats:
        """Independent standard normals of this shape."""
        self.draws += 1
        if self._generator is not None:
            return self._generator.standard_normal(shape)
        normals = np.empty(math.prod(shape))
        for start in range(0, len(normals), _BLOCK):
            count = min(_BLOCK, len(normals) - start)
            normals[start : start + count] = box_muller(random_bytes(16 * ((count + 1) // 2)))[:count]
        return normals.reshape(shape)


@dataclass(frozen=True)
class Noised:
    """Named vectors that may leave the device, and how they were noised."""

    values: dict[str, Floats]
    standard_deviation: float
    noise: NoiseName


def random_bytes(count: int) -> bytes:
    """Cryptographic random bytes, from the operating system or from OpenSSL, which it seeds (anew after a fork)."""
    try:
        import ssl
    except ImportError:  # a Python built without OpenSSL
        return os.urandom(count)
    return ssl.RAND_bytes(count)


def box_muller(random_bytes: bytes) -> Floats:
    """One standard normal per 8 bytes, made in pairs (Box and Muller 1958); 64 bits each for radius and angle."""
    words = np.frombuffer(random_bytes, dtype=np.uint64)
    pairs = len(words) // 2
    # (k + 1/2) / 2^64: never 0, so that the logarithm is finite; the largest radius is 9.5.
    radius = np.sqrt(-2 * np.log((words[:pairs].astype(np.float64) + 0.5) * 2.0**-64))
    # Cosine and sine of twice an angle from its tangent: one of numpy's fast functions instead of two slow ones.
    tangent = np.tan(words[pairs : 2 * pairs] * (math.pi * 2.0**-64) - math.pi / 2)
    squared = tangent * tangent
    radius /= 1 + squared
    return np.concatenate([radius * (1 - squared), radius * (2 * tangent)])


def add_noise(sums: Mapping[str, ArrayLike], standard_deviation: float, source: NoiseSource) -> Noised:
    """Return the clipped sums plus Gaussian noise of this standard deviation on every coordinate.

    Give the same names and shapes at every step, whoever takes part: an empty batch has sums of zeros, is noised and
    is charged. numpy arrays and CPU tensors are taken; float64 arrays come back.
    Formal guarantees: noise_is_on_every_coordinate, empty_batch_is_noised_and_charged,
    released_values_are_rounded_to_the_grid.
    """
    _check_deviation(standard_deviation)
    flat = source.normal((sum(math.prod(np.shape(value)) for value in sums.values()),))
    flat *= standard_deviation
    return Noised(_added(sums, flat, standard_deviation), standard_deviation, source.name)


def round_to_grid(values: Floats, standard_deviation: float) -> None:
    """Round, in place, to multiples of the largest power of two that is at most 2^-20 standard deviations.

    The grid depends on the noise only, never on the values. Every later cast (to float32, say) is post-processing.
    """
    grid = 2.0 ** (math.floor(math.log2(standard_deviation)) - _GRID_BITS)
    values /= grid
    np.rint(values, out=values)
    values *= grid


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
    noise: str = "operating-system",
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
        noise=noise,
    )


class CorrelatedNoise:
    """Noise for successive steps, each with part of the last steps' noise taken off again (banded Toeplitz).

    Step t gets sum_j coefficients[j] * z_(t - j), z fresh normals of the given standard deviation: prefix sums of the
    steps, which is what a model is, then carry much less noise. Holds `bands` vectors. After `steps` steps it refuses:
    the sensitivity was computed for so many.
    """

    def __init__(self, source: NoiseSource, standard_deviation: float, bands: int, steps: int) -> None:
        """standard_deviation: fixed_order_release(...).standard_deviation with the same bands and steps."""
        _check_deviation(standard_deviation)
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
        return Noised(_added(sums, correlated, self._standard_deviation), self._standard_deviation, self._source.name)


def _first_column(bands: int, steps: int) -> Floats:
    """Of C, the inverse of the banded lower Toeplitz matrix: c_0 = 1, c_t = -sum_j coefficients[j] c_(t - j)."""
    coefficients = toeplitz_coefficients(bands)
    column = np.zeros(steps)
    column[0] = 1.0
    for step in range(1, steps):
        reach = min(step, bands - 1)
        column[step] = -float(np.sum(coefficients[1 : reach + 1] * column[step - reach : step][::-1]))
    return column


def _added(sums: Mapping[str, ArrayLike], noise: Floats, standard_deviation: float) -> dict[str, Floats]:
    """Put the sums on top of the flat noise, in place, and round it to the grid: views of it by name."""
    parts, start = {}, 0
    for name, value in sums.items():
        array = np.asarray(value)
        require(bool(np.isfinite(array).all()), f'"{name}" holds values that are not finite; clip first (privacy.clip)')
        parts[name] = noise[start : start + array.size].reshape(array.shape)
        parts[name] += array
        start += array.size
    round_to_grid(noise, standard_deviation)
    return parts


def _check_deviation(standard_deviation: float) -> None:
    require(
        math.isfinite(standard_deviation) and standard_deviation > 0,
        f"standard_deviation is {standard_deviation}, must be finite and above 0",
    )
