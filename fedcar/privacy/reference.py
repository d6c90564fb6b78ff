"""Epsilon and delta of Gaussian releases once more, independent of the accountant, between bounds from both sides.

The accountant's own numbers are what an audit must not believe. Here the privacy loss is rounded down to a grid for
what is certainly given away, and up for what certainly is not; nothing is taken from accountant.py or
loss_distribution.py but the normal tail. It is coarser and slower than the accountant.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcar.privacy.loss_distribution import upper_tail
from fedcar.privacy.release import Release

Floats = NDArray[np.float64]
POINTS = 1 << 18
ROUNDING = 1e-10  # of the transform, and of what lies outside of the grid
CUT = 9.0  # standard deviations of a step that are looked at
STEP_POINTS = 20001


@dataclass(frozen=True)
class Losses:
    """Composed losses, in one direction: every true one lies between `low` and `high`; `masses` are common to both."""

    low: Floats
    high: Floats
    masses: Floats

    def delta(self, epsilon: float, losses: Floats) -> float:
        return float(np.sum(self.masses * np.maximum(0.0, -np.expm1(np.minimum(0.0, epsilon - losses)))))


def deltas(releases: Iterable[Release], epsilon: float) -> tuple[float, float]:
    """Bounds from below and from above on the delta that all these releases together need at this epsilon."""
    both = _composed(list(releases))
    low = max((losses.delta(epsilon, losses.low) for losses in both), default=0.0)
    high = max((losses.delta(epsilon, losses.high) for losses in both), default=0.0)
    return max(0.0, low - ROUNDING), min(1.0, high + ROUNDING)


def epsilon_at_least(releases: Iterable[Release], delta: float) -> float:
    """An epsilon below the true one of all these releases together; infinite where one has no noise.

    Formal guarantees: lower_bound_is_below_the_true_epsilon.
    """
    given = list(releases)
    if any(not release.has_noise_that_counts for release in given):
        return math.inf
    both = _composed(given)
    low, high = 0.0, 1.0

    def needed(epsilon: float) -> float:
        return max((losses.delta(epsilon, losses.low) for losses in both), default=0.0) - ROUNDING

    if needed(0.0) <= delta:
        return 0.0
    while needed(high) > delta and high < 1e6:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if needed(middle) > delta else (low, middle)
    return low


def _composed(releases: list[Release]) -> list[Losses]:
    """The losses of "the unit is taken out" and "is put in"."""
    sampled: dict[tuple[float, float], int] = {}
    squared = 0.0
    for release in releases:
        if release.sampling_rate < 1:
            key = (release.noise_multiplier, release.sampling_rate)
            sampled[key] = sampled.get(key, 0) + release.steps
        else:
            squared += release.steps / release.noise_multiplier**2
    if not sampled and not squared:
        return []
    parts = [(*key, count) for key, count in sampled.items()]
    if squared:
        parts.append((1 / math.sqrt(squared), 1.0, 1))
    return [_direction(parts, removed) for removed in ((True,) if not sampled else (True, False))]


def _direction(parts: list[tuple[float, float, int]], removed: bool) -> Losses:
    steps = []
    mean = variance = widest = 0.0
    for noise, rate, count in parts:
        points = np.linspace(-CUT * noise, 1 + CUT * noise, STEP_POINTS)
        tails = upper_tail(points / noise)
        tails = (1 - rate) * tails + rate * upper_tail((points - 1) / noise) if removed else tails
        masses = tails[:-1] - tails[1:]
        losses = np.logaddexp(
            math.log1p(-rate) if rate < 1 else -np.inf, math.log(rate) + (2 * points - 1) / (2 * noise**2)
        )
        losses = losses if removed else -losses
        ends = np.sort(np.stack([losses[:-1], losses[1:]]), axis=0)  # of the loss in each cell
        middle = ends.mean(0)
        average = float(masses @ middle)
        mean, variance = mean + count * average, variance + count * float(masses @ (middle - average) ** 2)
        widest = max(widest, float(np.abs(ends).max()))
        steps.append((ends, masses, count))
    interval = (4 * abs(mean) + 30 * math.sqrt(variance) + 2 * widest) / POINTS
    spectrum, shift, error = np.ones(POINTS // 2 + 1, dtype=np.complex128), 0, 0.0
    for ends, masses, count in steps:
        places = np.floor(ends[0] / interval).astype(np.int64)
        centre = int(round(float(masses @ places)))
        grid = np.bincount((places - centre) % POINTS, weights=masses, minlength=POINTS)
        spectrum *= np.fft.rfft(grid) ** count
        shift += centre * count
        error += count * (interval + float((ends[1] - ends[0]).max()))
    composed = np.maximum(np.fft.irfft(spectrum, POINTS), 0.0)
    places = np.arange(POINTS)
    places = np.where(places > POINTS // 2, places - POINTS, places) + shift
    low = interval * places
    return Losses(low, low + error, composed)
