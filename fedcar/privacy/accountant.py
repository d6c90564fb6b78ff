"""The privacy accountant: epsilon and delta of Gaussian releases, and the noise for a wanted epsilon.

Full-batch steps are exact (Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018,
theorem 8); Poisson-subsampled ones go through privacy-loss distributions (loss_distribution.py), in both directions of
add-or-remove-one, the worse one counting. Everything is rounded to the safe side.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from fedcar.privacy.errors import require
from fedcar.privacy.loss_distribution import LossDistribution, Step, compose, delta_at, epsilon_at
from fedcar.privacy.release import Release, check_releases, check_target

MOST_LOSS = 600.0  # exp of it is a number yet
NAME = "fedcar PLD (connect-the-dots, pessimistic; exact Gaussian for full batches)"


def epsilon_of(releases: Iterable[Release], delta: float, *, group: int = 1) -> float:
    """Return the epsilon that all these releases together give away at this delta; infinite where noise does not count.

    `group` is of how many units: those of a person who asked so many questions, added or removed together. Without
    sampling the distance of the Gaussians grows by that factor; drawn units make a mixture (see loss_distribution).

    Formal guarantees: epsilon_matches_reference, a_group_is_what_the_reference_says,
    no_epsilon_without_sampler_unit_adjacency_and_sensitivity, no_amplification_for_shuffling_or_fixed_cohorts,
    seeded_or_missing_noise_gives_infinite_epsilon, nothing_released_costs_nothing.
    Raises PrivacyError where the claim would not be known to hold.
    """
    require(0 < delta < 1, f"delta is {delta}, must be above 0 and below 1 (1e-5 is usual)")
    checked = _released(releases)
    if not checked:
        return 0.0
    if not all(release.has_noise_that_counts for release in checked):
        return math.inf
    gaussian, counts = _grouped(checked, group)
    if not counts:
        return gaussian_epsilon(gaussian, delta)
    return max(epsilon_at(loss, delta) for loss in _composed(gaussian, counts))


def delta_of(releases: Iterable[Release], epsilon: float) -> float:
    """Return the delta that all these releases together need at this epsilon; 1 where noise does not count."""
    require(epsilon >= 0, f"epsilon is {epsilon}, must be at least 0")
    checked = _released(releases)
    if not checked:
        return 0.0
    if not all(release.has_noise_that_counts for release in checked):
        return 1.0
    gaussian, counts = _grouped(checked)
    if not counts:
        return gaussian_delta(gaussian, epsilon)
    return max(delta_at(loss, epsilon) for loss in _composed(gaussian, counts))


def epsilon_of_a_change(releases: Iterable[Release], delta: float) -> float:
    """The epsilon of one unit that is changed into another: one is taken out and another put in.

    Without sampling that is a group of two. Sampled, delta at 2 e is at most (1 + exp(e)) times that of one unit at e
    (group privacy: Dwork and Roth 2014, theorem 2.2, with delta).
    """
    checked = _released(releases)
    if not any(release.sampler == "poisson" and release.sampling_rate < 1 for release in checked):
        return epsilon_of(checked, delta, group=2)
    if not all(release.has_noise_that_counts for release in checked):
        return math.inf
    low, high = 0.0, 1.0
    while (1 + math.exp(high)) * delta_of(checked, high) > delta:
        low, high = high, 2 * high
        if high > 1e3:
            return math.inf
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        fine = (1 + math.exp(middle)) * delta_of(checked, middle) <= delta
        low, high = (low, middle) if fine else (middle, high)
    return 2 * high


def fits(releases: Iterable[Release], epsilon: float, delta: float) -> bool:
    """Whether all these releases together stay within (epsilon, delta): the test that calibration and ledger share."""
    return delta_of(releases, epsilon) <= delta


def calibrate(
    releases_at: Callable[[float], Sequence[Release]], epsilon: float, delta: float, tolerance: float = 1e-4
) -> float:
    """Return the smallest noise multiplier m, to a relative tolerance from above, for which releases_at(m) fits.

    Formal guarantees: calibrated_noise_fits_the_budget. Raises PrivacyError where no noise is enough, because the part
    of releases_at that does not depend on m spends the budget already.
    """
    check_target(epsilon, delta)

    def excess(log_multiplier: float) -> float:
        reached = epsilon_of(releases_at(math.exp(log_multiplier)), delta)
        return math.log(min(max(reached, 1e-9), max(1e9, 10 * epsilon))) - math.log(epsilon)

    start = math.log(_single_step_multiplier(epsilon, delta))
    low, excess_low = high, excess_high = start, excess(start)
    for _ in range(40):
        if excess_low > 0 >= excess_high:
            break
        if excess_high > 0:
            low, excess_low = high, excess_high
            high += 0.3 + excess_high
            excess_high = excess(high)
        else:
            high, excess_high = low, excess_low
            low -= 0.5
            excess_low = excess(low)
    require(
        excess_high <= 0,
        f"no noise is enough for epsilon {epsilon:g} at delta {delta:g}: what was released before spends the budget; "
        "raise it, or take fewer steps",
    )
    if excess_low > 0:
        high = _shrink(excess, low, excess_low, high, excess_high, tolerance)
    while not fits(releases_at(math.exp(high)), epsilon, delta):  # the two ways of asking differ in the last bits
        high += tolerance / 100
    return math.exp(high)


def noise_multiplier(template: Release, epsilon: float, delta: float, already: Sequence[Release] = ()) -> float:
    """Return the noise multiplier with which `template` fits the budget, after what was released already.

    The template's own noise multiplier is ignored.

    Formal guarantees: calibrated_noise_fits_the_budget.
    """
    return calibrate(
        lambda multiplier: (*already, replace(template, noise_multiplier=multiplier)), epsilon=epsilon, delta=delta
    )


def in_parallel(epsilons: Iterable[float]) -> float:
    """Disjoint clients, each with its own noise: a question is with one client only, so the largest epsilon holds."""
    return max(epsilons, default=0.0)


def gaussian_delta(distance: float, epsilon: float) -> float:
    """Exact delta of N(0, 1) against N(distance, 1): Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m), m the distance."""
    if distance == 0:
        return 0.0
    near, far = distance / 2 - epsilon / distance, distance / 2 + epsilon / distance
    inside = 0.5 * math.erfc(-near / math.sqrt(2))
    if far > 25:  # exp(e) Phi(-far) = phi(near) * Mills(far), and Mills(x) > 1/x - 1/x^3
        mills = 1 / far - 1 / far**3
        return max(0.0, inside - math.exp(-near * near / 2) / math.sqrt(2 * math.pi) * mills)
    return max(0.0, inside - math.exp(epsilon) * 0.5 * math.erfc(far / math.sqrt(2)))


def gaussian_epsilon(distance: float, delta: float) -> float:
    """Exact epsilon of N(0, 1) against N(distance, 1), by bisection to the last bits, from above."""
    if gaussian_delta(distance, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(distance, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(distance, middle) > delta else (low, middle)
    return high


def _released(releases: Iterable[Release]) -> list[Release]:
    return [release for release in check_releases(releases) if release.steps > 0]


def _grouped(releases: Sequence[Release], group: int = 1) -> tuple[float, dict[Step, int]]:
    """Everything without sampling as one Gaussian at this distance; the Poisson steps counted by kind.

    Steps that tell a large group for certain count as if all were drawn, which is never less.
    """
    squared = 0.0
    counts: dict[Step, int] = {}
    for release in releases:
        step = Step(release.noise_multiplier, release.sampling_rate, group)
        if release.sampler == "poisson" and release.sampling_rate < 1 and (group == 1 or step.largest_loss < MOST_LOSS):
            counts[step] = counts.get(step, 0) + release.steps
        else:
            squared += release.steps * (group / release.noise_multiplier) ** 2
    return math.sqrt(squared), counts


def _composed(gaussian: float, counts: dict[Step, int]) -> tuple[LossDistribution, LossDistribution]:
    everything = dict(counts)
    if gaussian > 0:
        everything[Step(1 / gaussian)] = 1
    return compose(everything)


def _single_step_multiplier(epsilon: float, delta: float) -> float:
    """Return the noise for one full-batch step: where calibration starts."""
    low, high = 1e-6, 1.0
    while gaussian_delta(high, epsilon) <= delta:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, epsilon) <= delta else (low, middle)
    return 1 / low


def _shrink(
    excess: Callable[[float], float],
    low: float,
    excess_low: float,
    high: float,
    excess_high: float,
    tolerance: float,
) -> float:
    """Illinois' variant of false position; excess(low) > 0 >= excess(high) throughout; returns the safe end, high."""
    weight_low, weight_high = excess_low, excess_high
    for _ in range(60):
        if high - low <= tolerance:
            break
        middle = high - weight_high * (high - low) / (weight_high - weight_low)
        # Aimed a little to the safe side, so that the bracket closes from both ends.
        middle = min(max(middle + tolerance / 3, low + tolerance / 3), high - tolerance / 3)
        value = excess(middle)
        if value > 0:
            low, weight_low, weight_high = middle, value, weight_high / 2
        else:
            high, weight_high, weight_low = middle, value, weight_low / 2
    return high
