"""The strongest attack there is: was this unit there? By the likelihood ratio of everything that was given out.

Canaries are units made up for it: each moves every sum by all that one may, in directions at right angles to those of
all others, so that a thousand of them are a thousand independent attacks on one run. The attacker knows everything but
whether the one was there. Neyman and Pearson: no test beats the likelihood ratio.
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcar.privacy.attack import area_under_curve
from fedcar.privacy.audit import Check, binomial_tail
from fedcar.privacy.errors import require

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
CONFIDENCE = 0.95  # of the lower bounds that are printed


class Canaries:
    """Unit vectors of `size` coordinates at right angles: canary i has every count-th coordinate from i on."""

    def __init__(self, count: int, size: int, signs: Floats | None = None) -> None:
        require(0 < count <= size, f"{count} canaries do not fit into {size} coordinates; take fewer")
        self.count, self.size = count, size
        self.width = size // count
        drawn = np.where(draw_inclusion(self.width * count), 1.0, -1.0) if signs is None else signs
        self.signs: Floats = drawn[: self.width * count]

    def among(self, size: int) -> "Canaries":
        """The same canaries among the first of the coordinates."""
        return self if size == self.size else Canaries(self.count, size, self.signs)

    def planted(self, weights: ArrayLike) -> Floats:
        """The sum of all canaries times their weights (count,): shape (size,)."""
        total = np.zeros(self.size)
        total[: len(self.signs)] = np.tile(np.asarray(weights, np.float64), self.width) * self.signs
        return total / math.sqrt(self.width)

    def read(self, released: ArrayLike) -> Floats:
        """How much of each canary is in what was released (size,): shape (count,)."""
        part = np.asarray(released, np.float64)[: len(self.signs)] * self.signs
        return np.asarray(part.reshape(self.width, self.count).sum(0) / math.sqrt(self.width))


@dataclass(frozen=True)
class Membership:
    """What the attack came to, and what the claim allows at most.

    A distance is the mu of Gaussian privacy: how many standard deviations apart the two cases lie. `distance_at_least`
    holds with CONFIDENCE.
    """

    canaries: int
    right: int
    area: float
    distance_at_least: float
    right_allowed: float
    area_allowed: float

    @property
    def distance(self) -> float:
        """As the AUC says it: Phi(mu / sqrt(2)). Never below 0."""
        return math.sqrt(2) * NormalDist().inv_cdf(min(max(self.area, 0.5), 1 - 1e-12))

    @property
    def distance_allowed(self) -> float:
        return gaussian_distance_of(self.right_allowed)


def draw_inclusion(count: int) -> Booleans:
    """Each canary in or out by a fair coin of the operating system: shape (count,)."""
    bits = np.frombuffer(secrets.token_bytes(-(-count // 8)), dtype=np.uint8)
    return np.unpackbits(bits)[:count].astype(np.bool_)


def log_likelihood_ratios(
    amounts: Sequence[Floats], lengths: Sequence[float], deviations: Sequence[float], rates: Sequence[float]
) -> Floats:
    """Of "it was there" against "it was not", over all releases: shape (count,).

    amounts[t] (count,): how much of each canary release t has; lengths[t]: how much it has of one that took part,
    besides noise of standard deviation deviations[t]; rates[t]: with what probability one that was there took part.
    """
    total = np.zeros(len(amounts[0]))
    for amount, length, deviation, rate in zip(amounts, lengths, deviations, rates, strict=True):
        took_part = length * amount / deviation**2 - (length / deviation) ** 2 / 2
        total += np.logaddexp(math.log1p(-rate), math.log(rate) + took_part) if rate < 1 else took_part
    return total


def attacked(ratios: Floats, included: Booleans, right_allowed: float, area_allowed: float) -> Membership:
    """Guess "there" where the ratio is above 1."""
    right = int(np.sum((ratios > 0) == included))
    share = _share_at_least(right, len(included))
    distance = gaussian_distance_of(share)
    return Membership(len(included), right, area_under_curve(ratios, included), distance, right_allowed, area_allowed)


def canaries_agree_with_the_claim(found: Membership) -> Check:
    """Whether more guesses are right than the claim allows.

    Formal guarantees: correct_run_is_not_flagged, missing_noise_is_flagged.
    """
    expected = found.right_allowed * found.canaries
    p_value = binomial_tail(found.right, found.canaries, found.right_allowed) if found.right > expected else 1.0
    detail = (
        f"{found.right} of {found.canaries} right, {expected:.0f} allowed; AUC {found.area:.3f}, "
        f"{found.area_allowed:.3f} allowed; mu is at least {found.distance_at_least:.3g} with {100 * CONFIDENCE:.0f} % "
        f"confidence, {found.distance_allowed:.3g} allowed"
    )
    return Check("canaries agree with the claim", p_value, detail)


def gaussian_distance_of(right: float) -> float:
    """The mu at which the best guess is right with this probability: 2 Phi^-1(right)."""
    return 2 * NormalDist().inv_cdf(min(max(right, 0.5), 1 - 1e-12))


def simulated_area(
    lengths: Sequence[float], deviations: Sequence[float], rates: Sequence[float], count: int = 50000
) -> float:
    """The AUC of the same attack on releases that are as they are stated, by so many made-up canaries."""
    random = np.random.default_rng(0)
    scores = []
    for there in (True, False):
        amounts = [
            length * (random.random(count) < (rate if there else 0.0)) + deviation * random.standard_normal(count)
            for length, deviation, rate in zip(lengths, deviations, rates, strict=True)
        ]
        scores.append(log_likelihood_ratios(amounts, lengths, deviations, rates))
    return area_under_curve(np.concatenate(scores), np.arange(2 * count) < count)


def _share_at_least(right: int, count: int) -> float:
    """The share of right guesses that is too large with a chance of at most 1 - CONFIDENCE (Clopper and Pearson)."""
    low, high = 0.0, right / count
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _as_many(right, count, middle) < 1 - CONFIDENCE else (low, middle)
    return low


def _as_many(right: int, count: int, chance: float) -> float:
    """P(Bin(count, chance) >= right)."""
    if chance <= 0:
        return float(right == 0)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    many = np.arange(right, count + 1)
    masses = logs[-1] - logs[many] - logs[count - many] + many * math.log(chance) + (count - many) * math.log1p(-chance)
    return float(np.exp(masses).sum())
