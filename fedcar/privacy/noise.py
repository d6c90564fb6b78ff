"""Gaussian noise from the operating system's randomness, independent on every coordinate.

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

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcar.privacy.errors import require

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
    check_deviation(standard_deviation)
    flat = source.normal((sum(math.prod(np.shape(value)) for value in sums.values()),))
    flat *= standard_deviation
    return Noised(added_noise(sums, flat, standard_deviation), standard_deviation, source.name)


def round_to_grid(values: Floats, standard_deviation: float) -> None:
    """Round, in place, to multiples of the largest power of two that is at most 2^-20 standard deviations.

    The grid depends on the noise only, never on the values. Every later cast (to float32, say) is post-processing.
    """
    grid = 2.0 ** (math.floor(math.log2(standard_deviation)) - _GRID_BITS)
    values /= grid
    np.rint(values, out=values)
    values *= grid


def added_noise(sums: Mapping[str, ArrayLike], noise: Floats, standard_deviation: float) -> dict[str, Floats]:
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


def check_deviation(standard_deviation: float) -> None:
    require(
        math.isfinite(standard_deviation) and standard_deviation > 0,
        f"standard_deviation is {standard_deviation}, must be finite and above 0",
    )
