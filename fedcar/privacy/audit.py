"""The audit: tests that a correct run fails with probability below 1e-6, and a faulty one passes hardly ever.

Self-tests look at the parts (clipped sums on neighbours, noise on empty batches, steps counted, seeds); canaries look
at the whole: Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023. An audit finds
faults; it proves no epsilon. Each p-value here is an upper bound on the chance of the finding in a correct run.
"""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcar.privacy.accountant import epsilon_of
from fedcar.privacy.errors import require
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.release import Release

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
LEVEL = 1e-6
CANARY_DELTA = 1e-10


@dataclass(frozen=True)
class Check:
    """One finding: flagged where its p-value is below LEVEL. Deterministic checks have p-values 0 and 1."""

    name: str
    p_value: float
    detail: str

    @property
    def flagged(self) -> bool:
        """Whether something is wrong."""
        return self.p_value < LEVEL


def noise_is_as_large_as_stated(draws: ArrayLike, standard_deviation: float) -> Check:
    """Chi-square of the noise released on empty batches, all coordinates together and each by itself.

    draws: (m, n), m releases of n coordinates from empty batches. Two-sided together (halved or doubled noise), one
    coordinate at a time for noise that is too small (rows that were forgotten), m >= 20 making that sharp.
    Formal guarantees: correct_run_is_not_flagged, halved_noise_is_flagged, missing_noise_is_flagged.
    """
    noise = _draws(draws)
    require(standard_deviation > 0, f"standard_deviation is {standard_deviation}, must be above 0")
    squares = (noise / standard_deviation) ** 2
    together = 2 * _chi_square_tail(float(squares.mean()), squares.size)
    smallest = float(squares.mean(axis=0).min())
    single = squares.shape[1] * _chi_square_tail(smallest, squares.shape[0]) if smallest < 1 else 1.0
    measured = standard_deviation * math.sqrt(float(squares.mean()))
    detail = f"stated {standard_deviation:.4g}, found {measured:.4g} over {squares.size} coordinates"
    if single < together:
        detail += (
            f"; one coordinate has only {standard_deviation * math.sqrt(smallest):.4g} over {squares.shape[0]} draws"
        )
    return Check("noise is as large as stated", min(1.0, 2 * min(together, single)), detail)


def noise_is_fresh(draws: ArrayLike) -> Check:
    """Equal or related noise at two clients or two steps: the correlation of every pair of draws (m, n).

    Independent draws have |correlation| > t with probability at most 2 exp(-n t^2 / 2) (Ball 1997, lemma 2.2), times
    the number of pairs. Correlated noise (noise.CorrelatedNoise) has to be made independent again first.
    Formal guarantees: correct_run_is_not_flagged, repeated_seed_is_flagged.
    """
    noise = _draws(draws)
    count, size = noise.shape
    require(count >= 2, "at least two draws are needed to compare")
    lengths = np.linalg.norm(noise, axis=1, keepdims=True)
    correlations = np.abs(np.einsum("in,jn->ij", *[noise / np.where(lengths > 0, lengths, 1.0)] * 2))
    np.fill_diagonal(correlations, 0.0)
    first, second = np.unravel_index(int(correlations.argmax()), correlations.shape)
    largest = float(correlations.max())
    pairs = count * (count - 1) / 2
    p_value = min(1.0, pairs * 2 * math.exp(-size * largest**2 / 2))
    detail = f"largest correlation {largest:.3f}, of draws {min(first, second)} and {max(first, second)}, n = {size}"
    return Check("noise is fresh", p_value, detail)


def clipping_holds_on_neighbours(
    clipped_sum: Callable[[Sequence[int]], ArrayLike], count: int, clip_norm: float, tolerance: float = 1e-4
) -> Check:
    """Replay without noise: leaving any one example out moves the sum by at most clip_norm.

    clipped_sum(indices) is the sum that the run would noise, for this batch, as one flat vector. Put examples among
    the `count` that are sure to need clipping. Formal guarantees: correct_run_is_not_flagged,
    missing_clipping_is_flagged.
    """
    whole = _flat(clipped_sum(range(count)))
    moves = [
        float(np.linalg.norm(whole - _flat(clipped_sum([other for other in range(count) if other != left_out]))))
        for left_out in range(count)
    ]
    largest = max(moves, default=0.0)
    holds = largest <= clip_norm * (1 + tolerance)
    detail = f"one example moves the sum by up to {largest:.6g}, the clip norm is {clip_norm:.6g}"
    return Check("clipping holds on neighbours", 1.0 if holds else 0.0, detail)


def sums_add_up(clipped_sum: Callable[[Sequence[int]], ArrayLike], count: int, tolerance: float = 1e-4) -> Check:
    """Replay without noise: the sum over a batch is the sum over its halves, and an empty batch has zeros.

    False where a sum is divided by the actual batch size, or where examples mix. Formal guarantees:
    correct_run_is_not_flagged, division_by_the_batch_size_is_flagged.
    """
    middle = count // 2
    whole = _flat(clipped_sum(range(count)))
    halves = _flat(clipped_sum(range(middle))) + _flat(clipped_sum(range(middle, count)))
    gap = float(np.linalg.norm(whole - halves)) / max(float(np.linalg.norm(whole)), 1e-12)
    empty = float(np.linalg.norm(_flat(clipped_sum([]))))
    holds = gap <= tolerance and empty == 0
    detail = f"relative gap {gap:.2g} between a batch and its halves; norm {empty:.2g} of the empty batch"
    return Check("sums add up", 1.0 if holds else 0.0, detail)


def steps_charged_equal_steps_noised(charged: int, noised: int) -> Check:
    """Hold the ledger's steps against NoiseSource.draws: more noised than charged is a release that nobody paid for."""
    return Check(
        "steps charged = steps noised", 1.0 if charged == noised else 0.0, f"{charged} charged, {noised} noised"
    )


def draw_inclusion(count: int) -> Booleans:
    """Each canary in or out by a fair coin of the operating system: shape (count,)."""
    return np.array([bool(secrets.randbits(1)) for _ in range(count)])


def canary_gradients(count: int, size: int, clip_norm: float) -> Floats:
    """Random directions of norm clip_norm, shape (count, size): what canaries add to a clipped sum.

    With many more coordinates than canaries they hardly touch each other.
    """
    directions = NoiseSource().normal((count, size))
    return np.asarray(directions * (clip_norm / np.linalg.norm(directions, axis=1, keepdims=True)))


def canary_scores(released: ArrayLike, canaries: ArrayLike) -> Floats:
    """How much of each canary is in what was released (summed over all steps): their inner products, shape (count,)."""
    return np.asarray(np.einsum("cn,n->c", np.asarray(canaries, np.float64), _flat(released)))


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return the chance of `correct` or more right guesses out of `guesses` if the run were (epsilon, delta)-DP.

    Steinke, Nasr and Jagielski 2023, theorem 5.2 and corollary 5.4: P[Bin(r, q) >= v] + 2 m delta max_i
    P[v > Bin(r, q) >= v - i] / i, with q = 1 / (1 + exp(-epsilon)).
    """
    require(0 <= correct <= guesses <= canaries, "need 0 <= correct <= guesses <= canaries")
    probability = 1 / (1 + math.exp(-epsilon))
    masses = _binomial(guesses, probability)
    tail = float(masses[correct:].sum())
    below = np.cumsum(masses[:correct][::-1])
    worst = float((below / np.arange(1, correct + 1)).max(initial=0.0))
    return min(1.0, tail + 2 * canaries * delta * worst)


def one_run_lower_bound(canaries: int, guesses: int, correct: int, delta: float, level: float = LEVEL) -> float:
    """Return the largest epsilon that these guesses rule out at this delta; too large with a chance of at most level.

    Formal guarantees: lower_bound_is_below_the_true_epsilon.
    """
    low, high = 0.0, 1.0
    if one_run_p_value(canaries, guesses, correct, 0.0, delta) >= level:
        return 0.0
    while one_run_p_value(canaries, guesses, correct, high, delta) < level and high < 1000:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        refuted = one_run_p_value(canaries, guesses, correct, middle, delta) < level
        low, high = (middle, high) if refuted else (low, middle)
    return low


def right_guesses(scores: ArrayLike, included: Booleans, guesses: int) -> int:
    """Count the right ones: the highest-scored half of the guesses says "in", the lowest-scored half "out".

    The other canaries are not guessed. `guesses` has to be fixed before the scores are seen.
    """
    order = np.argsort(np.asarray(scores, np.float64), kind="stable")
    half = guesses // 2
    return int(np.sum(~included[order[:half]]) + np.sum(included[order[len(order) - (guesses - half) :]]))


def canaries_agree_with_the_claim(
    scores: ArrayLike, included: Booleans, releases: Sequence[Release], guesses: int
) -> Check:
    """Whether the guesses refute the epsilon of these releases, taken at the small delta at which a test can be sharp.

    At a delta of 1e-5 the bound's second term alone is above LEVEL, whatever the guesses; Gaussian noise has a claim at
    every delta, and that at CANARY_DELTA is tested. Formal guarantees: correct_run_is_not_flagged,
    missing_noise_is_flagged.
    """
    canaries = len(included)
    correct = right_guesses(scores, included, guesses)
    epsilon = epsilon_of(releases, CANARY_DELTA)
    p_value = one_run_p_value(canaries, guesses, correct, epsilon, CANARY_DELTA)
    bound = one_run_lower_bound(canaries, guesses, correct, CANARY_DELTA)
    detail = (
        f"{correct} of {guesses} guesses right, {canaries} canaries: epsilon is at least {bound:.3g}, "
        f"claimed {epsilon:.3g} (at delta {CANARY_DELTA:g})"
    )
    if one_run_p_value(canaries, guesses, guesses, epsilon, CANARY_DELTA) >= LEVEL:
        detail += "; too few canaries to refute this claim, whatever they show"
    return Check("canaries agree with the claim", p_value, detail)


def _chi_square_tail(ratio: float, freedom: int) -> float:
    """Chernoff bound on chi-square / freedom being as far from 1 as `ratio` on its side."""
    if ratio <= 0:
        return 0.0
    return math.exp(-freedom / 2 * max(0.0, ratio - 1 - math.log(ratio)))


def _binomial(count: int, probability: float) -> Floats:
    """Return the masses of Bin(count, probability), shape (count + 1,)."""
    if probability >= 1:
        return np.append(np.zeros(count), 1.0)
    log_factorials = np.cumsum(np.log(np.maximum(np.arange(count + 1), 1)))
    right = np.arange(count + 1)
    logs = log_factorials[-1] - log_factorials - log_factorials[::-1]
    return np.asarray(np.exp(logs + right * math.log(probability) + (count - right) * math.log1p(-probability)))


def _draws(draws: ArrayLike) -> Floats:
    noise = np.asarray(draws, dtype=np.float64)
    require(noise.ndim == 2 and noise.size > 0, f"draws have shape {noise.shape}, must be (releases, coordinates)")
    return noise


def _flat(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1)
