"""How sure a difference of two systems is: bootstrap confidence intervals over queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 100


class Interval(NamedTuple):
    """A mean and the bounds between which it lies with the probability LEVEL."""

    mean: float
    low: float
    high: float


def difference(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The mean of ours - theirs over n queries, paired, with its percentile bootstrap interval; None where n = 0.

    A resample counts how often it drew each distinct difference, which is multinomial: the same distribution as drawing
    n queries with replacement (Efron 1979), at the price of the distinct values alone.
    """
    if len(ours) != len(theirs):
        raise ValueError(
            f"{len(ours)} values of ours, {len(theirs)} of theirs; a paired difference needs as many of both"
        )
    if not len(ours):
        return None
    values, counts = np.unique(np.asarray(ours, np.float64) - theirs, return_counts=True)
    drawn, generator = np.empty(resamples), np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        part = drawn[start : start + CHUNK]
        part[:] = generator.multinomial(len(ours), counts / len(ours), size=len(part)) @ values / len(ours)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values @ counts / len(ours)), float(low), float(high))
