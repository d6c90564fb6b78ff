"""Privacy-loss distributions of Gaussian steps on a grid: discretised pessimistically, composed by FFT.

Doroshenko, Ghazi, Kamath, Kumar and Manurangsi, "Connect the Dots: Tighter Discrete Approximations of Privacy Loss
Distributions", PoPETs 2022. A step is the pair P = (1 - q) N(0, s^2) + q N(1, s^2), Q = N(0, s^2) ("remove") or the
same pair the other way round ("add"), s the noise multiplier and q the sampling rate (Zhu, Dong and Wang 2022).

Where one stands for k units, each drawn by its own coin, P is the mixture of N(j, s^2) over j of a binomial (k, q).
Their contributions may point anywhere; worst is that all are of full length and point the same way. See Choquette-Choo,
Ganesh, Steinke and Thakurta, "Privacy Amplification for Matrix Mechanisms", ICLR 2024, section 4 (a mixture of vectors
is dominated by that of their lengths), and, for groups, Schuchardt et al., "Unified Mechanism-Specific Amplification by
Subsampling and Group Privacy Amplification", NeurIPS 2024.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]

TAIL = 1e-15  # mass given up per composition, counted as a certain breach
_REACH = 9.5  # a step is cut at this many standard deviations: 1e-21 of the mass, counted as a certain breach
_MOST_POINTS = 1 << 17
_ROOM = 2e-5  # the variance that the grid may add, relative to the variance of the composed loss


@dataclass(frozen=True)
class Step:
    """One kind of Gaussian step: noise multiplier and Poisson sampling rate (1 = everyone takes part).

    `group` is how many units are hidden together, 1 for each by itself.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    group: int = 1

    @property
    def largest_loss(self) -> float:
        """Above the loss of any output that is looked at."""
        scale = self.noise_multiplier
        return self.group * (self.group + 2 * (_REACH + 1) * scale) / (2 * scale**2)

    @property
    def shifts(self) -> tuple[Floats, Floats]:
        """How many of the group may take part, and the logarithm of how likely that is."""
        if self.sampling_rate == 1:
            return np.array([float(self.group)]), np.zeros(1)
        drawn = np.arange(self.group + 1.0)
        ways = [math.lgamma(self.group + 1) - math.lgamma(j + 1) - math.lgamma(self.group - j + 1) for j in drawn]
        rate = self.sampling_rate
        return drawn, np.array(ways) + drawn * math.log(rate) + (self.group - drawn) * math.log1p(-rate)


@dataclass(frozen=True)
class LossDistribution:
    """masses[k] is the probability under P of the loss interval * (first + k); `infinity` that of an infinite one."""

    interval: float
    first: int
    masses: Floats
    infinity: float

    def losses(self) -> Floats:
        """Shape (masses,): the grid points."""
        return self.interval * np.arange(self.first, self.first + len(self.masses), dtype=np.float64)


def compose(counts: Mapping[Step, int]) -> tuple[LossDistribution, LossDistribution]:
    """Return the loss of all steps together, each repeated as often as its count says: of "remove" and of "add".

    Formal guarantees: composed_loss_is_pessimistic (delta at every epsilon is at least the true one, up to the
    rounding of float64).
    """
    present = {step: count for step, count in counts.items() if count > 0}
    interval = _interval(present)
    pairs = [(_discretise(step, interval), count) for step, count in present.items()]
    return _compose([(pair[0], count) for pair, count in pairs]), _compose([(pair[1], count) for pair, count in pairs])


def delta_at(loss: LossDistribution, epsilon: float) -> float:
    """Return the hockey-stick divergence: infinity + sum over l > epsilon of mass(l) (1 - exp(epsilon - l))."""
    losses = loss.losses()
    start = int(np.searchsorted(losses, epsilon, side="right"))
    return min(1.0, loss.infinity + float(np.sum(loss.masses[start:] * -np.expm1(epsilon - losses[start:]))))


def epsilon_at(loss: LossDistribution, delta: float) -> float:
    """Return the smallest epsilon >= 0 with delta_at(epsilon) <= delta; infinite where the infinite mass is more."""
    if loss.infinity > delta:
        return math.inf
    if delta_at(loss, 0.0) <= delta:
        return 0.0
    losses = loss.losses()
    low, high = int(np.searchsorted(losses, 0.0, side="right")) - 1, len(losses) - 1
    while high - low > 1:  # delta_at(losses[low]) > delta >= delta_at(losses[high])
        middle = (low + high) // 2
        low, high = (middle, high) if delta_at(loss, float(losses[middle])) > delta else (low, middle)
    # Between two grid points delta is infinity + sum of mass - exp(epsilon) * sum of mass * exp(-loss).
    masses, start = loss.masses[high:], float(losses[high])
    discounted = float(np.sum(masses * np.exp(start - losses[high:])))
    return max(0.0, start + math.log((loss.infinity + float(np.sum(masses)) - delta) / discounted))


def upper_tail(values: Floats) -> Floats:
    """P(N(0, 1) > value), with full relative precision for positive values."""
    scaled = (values * math.sqrt(0.5)).tolist()
    return 0.5 * np.fromiter(map(math.erfc, scaled), np.float64, len(scaled))


def _losses_of(step: Step, points: Floats) -> Floats:
    """ln(P/Q) of "remove" at these points of the output: ln(1 - q + q exp((2x - 1) / (2 s^2))), for a group a sum."""
    if step.group > 1:
        return _losses_and_slopes(step, points)[0]
    exponents = (2 * points - 1) / (2 * step.noise_multiplier**2)
    if step.sampling_rate == 1:
        return exponents
    not_sampled = math.log1p(-step.sampling_rate)
    return np.logaddexp(not_sampled, math.log(step.sampling_rate) + exponents)


def _losses_and_slopes(step: Step, points: Floats) -> tuple[Floats, Floats]:
    """Ln sum_j w_j exp((2 j x - j^2) / (2 s^2)), and its derivative: the expected j at this x over s^2."""
    variance = step.noise_multiplier**2
    shifts, weights = step.shifts
    largest = np.full(len(points), -np.inf)
    for shift, weight in zip(shifts, weights, strict=True):
        largest = np.maximum(largest, weight + (2 * shift * points - shift**2) / (2 * variance))
    total, moment = np.zeros(len(points)), np.zeros(len(points))
    for shift, weight in zip(shifts, weights, strict=True):
        part = np.exp(weight + (2 * shift * points - shift**2) / (2 * variance) - largest)
        total += part
        moment += shift * part
    return largest + np.log(total), moment / total / variance


def _points_at(step: Step, losses: Floats) -> Floats:
    """The outputs at which the loss of a group reaches these: Newton's steps within brackets from a table."""
    scale = step.noise_multiplier
    table = np.linspace(-(_REACH + 1) * scale, step.group + (_REACH + 1) * scale, 20_001)
    known = _losses_of(step, table)
    places = np.clip(np.searchsorted(known, losses), 1, len(table) - 1)
    low, high = table[places - 1], table[places]
    points = (low + high) / 2
    for _ in range(6):
        reached, slopes = _losses_and_slopes(step, points)
        points = np.clip(points - (reached - losses) / np.maximum(slopes, np.finfo(np.float64).tiny), low, high)
    points[losses <= known[0]] = -np.inf
    return points


def _interval(counts: Mapping[Step, int]) -> float:
    """Return the grid's step: fine against the composed loss, coarse enough for _MOST_POINTS points."""
    total, widest = sum(counts.values()), 0.0
    variance = [0.0, 0.0]
    for step, count in counts.items():
        scale = step.noise_multiplier
        points = np.linspace(-_REACH * scale, step.group + _REACH * scale, 4001)
        losses = _losses_of(step, points)
        removed = np.exp(-0.5 * (points / scale) ** 2)
        for direction, weights in enumerate((removed * np.exp(losses), removed)):
            weights = weights / weights.sum()
            mean = float(np.sum(weights * losses))
            variance[direction] += count * float(np.sum(weights * (losses - mean) ** 2))
        widest = max(widest, float(losses[-1] - losses[0]))
    # A mass split between two grid points has variance interval^2 / 6 on average.
    fine = math.sqrt(6 * _ROOM * min(variance) / total)
    needed = max(widest, 24 * math.sqrt(max(variance)) / 8) / _MOST_POINTS
    return max(fine, needed)


def _discretise(step: Step, interval: float) -> tuple[LossDistribution, LossDistribution]:
    """Connect the dots: each bin between two grid points is split so that its mass under P and under Q stay exact.

    That keeps the hockey-stick divergence exact at every grid point and draws the chord (in exp(epsilon)) between
    them, which lies above a convex curve. Bins are taken from the smaller tail, so that far tails keep relative
    precision, where second differences of delta would lose it. Returns "remove" and "add", which is the same pair with
    P and Q exchanged and the loss's sign changed.
    """
    scale, rate = step.noise_multiplier, step.sampling_rate
    ends = _losses_of(step, np.array([-_REACH * scale, step.group + _REACH * scale]))
    first, last = math.floor(ends[0] / interval), math.ceil(ends[1] / interval)
    losses = interval * np.arange(first, last + 1, dtype=np.float64)
    if step.group > 1:
        points = _points_at(step, losses)
    elif rate < 1:
        ratios = (np.expm1(losses) + rate) / rate  # negative below ln(1 - q), where no output is
        points = scale**2 * np.log(np.maximum(ratios, np.finfo(np.float64).tiny)) + 0.5
    else:
        points = scale**2 * losses + 0.5
    points[0] = -np.inf
    without, above_without = _between(points / scale), float(upper_tail(points[-1:] / scale)[0])
    if step.group > 1:
        mixed, above = np.zeros(len(without)), 0.0
        for shift, weight in zip(*step.shifts, strict=True):
            mixed += math.exp(weight) * _between((points - shift) / scale)
            above += math.exp(weight) * float(upper_tail((points[-1:] - shift) / scale)[0])
    else:
        mixed = (1 - rate) * without + rate * _between((points - 1) / scale)
        above = (1 - rate) * above_without + rate * float(upper_tail((points[-1:] - 1) / scale)[0])
    remove = _split(interval, first, mixed, without)
    add = _split(interval, -last, without[::-1], mixed[::-1])
    # Outputs above the last point: an infinite loss for "remove"; for "add" less than the lowest one on the grid.
    add[0] += above_without
    return (
        LossDistribution(interval, first, remove, above),
        LossDistribution(interval, -last, add, 0.0),
    )


def _split(interval: float, first: int, upper: Floats, lower: Floats) -> Floats:
    """Each bin's mass (upper under P, lower under Q) on its two ends, both masses kept."""
    left_losses = interval * np.arange(first, first + len(upper), dtype=np.float64)
    to_right = np.clip((upper - np.exp(left_losses) * lower) / -math.expm1(-interval), 0.0, upper)
    masses = np.zeros(len(upper) + 1)
    masses[:-1] += upper - to_right
    masses[1:] += to_right
    return masses


def _compose(parts: list[tuple[LossDistribution, int]]) -> LossDistribution:
    """Independent losses add up: a product of spectra, in a window that holds all but TAIL of the mass."""
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    lowest, highest = _bounds(parts)
    size = _fast_length(highest - lowest + 1)
    spectrum: Complexes = np.ones(size // 2 + 1, dtype=np.complex128)
    shift = 0
    log_finite = 0.0
    for part, count in parts:
        # The mean goes to index 0, so that the phases stay small and their rounding errors too.
        centre = part.first + int(round(float(np.sum(part.masses * np.arange(len(part.masses))))))
        places = (np.arange(part.first, part.first + len(part.masses)) - centre) % size
        spectrum *= _power(np.fft.rfft(np.bincount(places, weights=part.masses, minlength=size)), count)
        shift += centre * count
        log_finite += count * math.log1p(-part.infinity)
    circular = np.maximum(np.fft.irfft(spectrum, size), 0.0)
    # Mass outside the window wraps around into it, which only adds; what it misses above is in TAIL.
    masses = np.take(circular, (np.arange(lowest, highest + 1) - shift) % size)
    return LossDistribution(parts[0][0].interval, lowest, masses, min(1.0, -math.expm1(log_finite) + TAIL))


def _between(edges: Floats) -> Floats:
    """P(edges[k] < N(0, 1) <= edges[k + 1]), each from the smaller tail."""
    tails = upper_tail(np.abs(edges))
    left, right = tails[:-1], tails[1:]
    same_side = np.abs(right - left)
    masses: Floats = np.where((edges[:-1] < 0) & (edges[1:] >= 0), 1 - left - right, same_side)
    return masses


def _power(spectrum: Complexes, count: int) -> Complexes:
    """Return spectrum ** count; what falls below exp(-600) is 0 (most of it does, and denormal numbers are slow)."""
    if count == 1:
        return spectrum
    powers = np.zeros_like(spectrum)
    seen = np.abs(spectrum) > math.exp(-600 / count)
    powers[seen] = np.exp(count * np.log(spectrum[seen]))
    return powers


def _bounds(parts: list[tuple[LossDistribution, int]]) -> tuple[int, int]:
    """Grid indices outside which the composed loss has at most TAIL of its mass (Chernoff, best of several orders)."""
    interval = parts[0][0].interval
    variance = 0.0
    for part, count in parts:
        losses = part.losses()
        mean = float(np.sum(part.masses * losses))
        variance += count * float(np.sum(part.masses * (losses - mean) ** 2))
    lowest = sum(part.first * count for part, count in parts)
    highest = sum((part.first + len(part.masses) - 1) * count for part, count in parts)
    # Orders for losses that are nearly normal, and for heavy tails (few steps, small sampling rate).
    relative = np.array([1.0, 2, 4, 6, 8, 10, 14, 20, 40]) / math.sqrt(variance)
    for order in (*relative, 0.5, 1, 2, 4, 6, 8, 12, 16, 24, 32, 64):
        up = sum(count * _log_moment(part, float(order)) for part, count in parts)
        down = sum(count * _log_moment(part, -float(order)) for part, count in parts)
        room = math.log(2 / TAIL)
        highest = min(highest, math.ceil((up + room) / (order * interval)))
        lowest = max(lowest, math.floor(-(down + room) / (order * interval)))
    return lowest, max(lowest, highest)


def _log_moment(part: LossDistribution, order: float) -> float:
    """Return ln of the sum of mass * exp(order * loss)."""
    exponents = order * part.losses()
    largest = float(exponents.max())
    # Cut at exp(-600): what lies below cannot be seen in the sum, and denormal numbers are slow.
    return largest + math.log(float(np.sum(part.masses * np.exp(np.maximum(exponents - largest, -600.0)))))


def _fast_length(size: int) -> int:
    """Return the next power of two or three times one: lengths at which the FFT is quick."""
    power = 1 << max(0, size - 1).bit_length()
    return 3 * power // 4 if size <= 3 * power // 4 and power >= 4 else power
