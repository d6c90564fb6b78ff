"""Tests of the coins by which units take part in sampled steps, as they are seen in what leaves.

`taken` (steps, units) says who took part in which step. Amplification by sampling is claimed for coins that are all
independent; a shuffle, a cohort that stays, or a coin that two share gets none.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedcar.privacy.audit import Check, binomial_tail, certain
from fedcar.privacy.errors import require

Booleans = NDArray[np.bool_]
FURTHEST = 64  # steps, or units, between two coins that are compared


def coins_are_as_stated(taken: Booleans, rate: float) -> Check:
    """How often units took part: in all, each unit, each step. Formal guarantees: wrong_coins_are_flagged."""
    require(taken.ndim == 2 and taken.size > 0, f"coins have shape {taken.shape}, must be (steps, units)")
    share = float(taken.mean())
    detail = f"{share:.4g} of {taken.size} coins said yes, {rate:g} stated"
    if rate >= 1:
        return certain("coins are as stated", bool(taken.all()), detail)
    tails = [
        binomial_tail(int(taken.sum()), taken.size, rate),
        *_each(taken.sum(0), len(taken), rate),
        *_each(taken.sum(1), taken.shape[1], rate),
    ]
    return Check("coins are as stated", min(1.0, 2 * len(tails) * min(tails)), detail)


def coins_are_independent(taken: Booleans, rate: float) -> Check:
    """Whether counts by unit and by step spread as independent ones do, and coins say yes together no more often.

    Counts that spread too little are a shuffle, or steps of one size; too much, a cohort that stays. Coins are compared
    at every distance up to FURTHEST, in steps and in units. Formal guarantees: dependent_coins_are_flagged.
    """
    if rate >= 1:
        return Check("coins are independent", 1.0, "every unit takes part in every step")
    findings = {
        "the units' counts": _spread_tail(taken.sum(0), len(taken), rate),
        "the steps' counts": _spread_tail(taken.sum(1), taken.shape[1], rate),
    }
    for what, coins in (("steps", taken), ("units", taken.T)):
        for distance in range(1, min(FURTHEST, len(coins) - 1) + 1):
            findings[f"coins {distance} {what} apart"] = _together_tail(coins, distance, rate)
    worst = min(findings, key=lambda name: findings[name])
    p_value = min(1.0, len(findings) * findings[worst])
    return Check("coins are independent", p_value, f"least likely of {len(findings)}: {worst}")


def coins_are_fresh(runs: Sequence[Booleans], rate: float) -> Check:
    """Whether two runs, or two devices, have tossed the same coins: how often both say yes at the same place."""
    tails = [1.0]
    for first in range(len(runs)):
        for other in runs[first + 1 :]:
            both = int(np.sum(runs[first] & other))
            if rate < 1:
                tails.append(binomial_tail(both, other.size, rate**2))
    p_value = min(1.0, 2 * len(tails) * min(tails))
    return Check("coins are fresh", p_value, f"{len(runs)} runs of {runs[0].size} coins compared")


def _each(counts: NDArray[np.int64], of: int, rate: float) -> list[float]:
    return [binomial_tail(count, of, rate) for count in counts.tolist()]


def _spread_tail(counts: NDArray[np.int64], of: int, rate: float) -> float:
    """Chernoff bound, both sides, on the sum of squared distances of independent Bin(of, rate) from their mean."""
    values = np.arange(of + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, of + 1)))])
    log_masses = logs[-1] - logs - logs[::-1] + values * math.log(rate) + (of - values) * math.log1p(-rate)
    squares = (values - of * rate) ** 2
    found = float(np.sum((counts - of * rate) ** 2))
    best = 0.0
    for scale in np.concatenate([-np.logspace(-3, 3, 121), np.logspace(-3, 1, 81)]):
        power = scale / (of * rate * (1 - rate))
        exponents = log_masses + power * squares
        largest = exponents.max()
        log_moment = largest + math.log(float(np.exp(exponents - largest).sum()))
        best = min(best, len(counts) * log_moment - power * found)
    return min(1.0, 2 * math.exp(best))


def _together_tail(coins: Booleans, distance: int, rate: float) -> float:
    """Pairs of coins at this distance, in two classes whose pairs share no coin: how many both say yes."""
    first = np.arange(len(coins) - distance)
    both = coins[first] & coins[first + distance]
    tails = []
    for odd in (0, 1):
        chosen = both[first // distance % 2 == odd]
        tails.append(binomial_tail(int(chosen.sum()), chosen.size, rate**2))
    return min(1.0, 4 * min(tails))
