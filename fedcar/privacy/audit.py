"""The audit: tests that a correct run fails with probability below 1e-6, and a faulty one passes hardly ever.

They look at residuals: what left less the exact sum, over the standard deviation that was stated. In a correct run
those are independent standard normals, whatever the questions are. A residual is one row of an array (releases,
coordinates). An audit finds faults; it proves no epsilon. Each p-value here is an upper bound on the chance of the
finding in a correct run (Chernoff bounds, Bonferroni over everything that was looked at).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcar.privacy.errors import require
from fedcar.privacy.loss_distribution import upper_tail

Floats = NDArray[np.float64]
LEVEL = 1e-6
NEAR_ZERO = 0.01
MOST_SORTED = 1 << 20
BLOCKS = 10
GRID_BITS = 20  # noise.py: what leaves is rounded to 2^-20 of the largest power of two in the standard deviation
TOLERANCE = 1e-4  # of sums that are compared without noise


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


def certain(name: str, holds: bool, detail: str) -> Check:
    """A check without chance: it holds, or there is a fault."""
    return Check(name, 1.0 if holds else 0.0, detail)


def together(checks: Sequence[Check]) -> list[Check]:
    """The same with p-values for all of them together: a correct run is flagged anywhere with at most LEVEL."""
    return [replace(check, p_value=min(1.0, len(checks) * check.p_value)) for check in checks]


def noise_is_as_large_as_stated(residuals: ArrayLike, starts: Sequence[int] = (0,)) -> Check:
    """Chi-square of residuals (releases, coordinates), two-sided: of all, each release, each part, each coordinate.

    Parts (tensors, rows of a matrix) begin at `starts`; each is looked at in each release too. Single coordinates are
    tried for noise that is too small. Formal guarantees: correct_run_is_not_flagged, halved_noise_is_flagged,
    missing_noise_is_flagged.
    """
    noise = _residuals(residuals)
    squares = np.square(noise, dtype=np.float64)
    places, ends = np.asarray(starts), np.append(np.asarray(starts)[1:], squares.shape[1])
    sums, sizes = np.add.reduceat(squares, places, axis=1), ends - places
    count = len(squares)
    findings = [
        ("all together", np.array([squares.mean()]), np.array([squares.size])),
        ("one release", sums.sum(1) / sizes.sum(), np.full(count, sizes.sum())),
        ("one part over all releases", sums.sum(0) / (count * sizes), count * sizes),
        ("one part of one release", (sums / sizes).ravel(), np.tile(sizes, count)),
    ]
    smallest = squares.mean(0)
    findings.append(("one coordinate over all releases", np.minimum(smallest, 1.0), np.full(len(smallest), count)))
    p_value, said = 1.0, ""
    for what, ratios, freedoms in findings:
        tails = np.array([_chi_square_tail(ratio, free) for ratio, free in zip(ratios, freedoms, strict=True)])
        worst = int(tails.argmin())
        found = min(1.0, 2 * len(findings) * len(tails) * float(tails[worst]))
        if found < p_value:
            p_value, said = found, f"; {what} ({worst}): {math.sqrt(ratios[worst]):.4g} of it"
    detail = f"{math.sqrt(float(squares.mean())):.4g} of what is stated, over {squares.size} values{said}"
    return Check("noise is as large as stated", p_value, detail)


def noise_is_gaussian(residuals: ArrayLike) -> Check:
    """The residuals' distribution against the normal one, and how many lie next to 0, where nothing was added.

    Dvoretzky, Kiefer and Wolfowitz's inequality with Massart's constant, and a binomial tail, over at most a million
    values. Formal guarantees: correct_run_is_not_flagged, scattered_coordinates_without_noise_are_flagged.
    """
    noise = _residuals(residuals).ravel().astype(np.float64)
    noise = np.sort(noise[:: -(-noise.size // MOST_SORTED)])
    count = len(noise)
    below = 1 - upper_tail(noise)
    steps = np.arange(count + 1) / count
    gap = float(max(np.abs(below - steps[1:]).max(), np.abs(below - steps[:-1]).max()))
    near = int(np.sum(np.abs(noise) < NEAR_ZERO))
    chance = math.erf(NEAR_ZERO / math.sqrt(2))
    p_value = 2 * min(2 * math.exp(-2 * count * gap**2), binomial_tail(near, count, chance))
    detail = f"largest gap to the normal distribution {gap:.2g}, {near} of {count} values within {NEAR_ZERO:g} of 0"
    return Check("noise is Gaussian", min(1.0, p_value), f"{detail} ({chance * count:.0f} expected)")


def noise_has_no_mean(residuals: ArrayLike) -> Check:
    """Whether the residuals of the same coordinate add up over releases: what is there each time is no noise."""
    noise = _residuals(residuals)
    means = noise.sum(0, dtype=np.float64) / math.sqrt(len(noise))
    largest = float(np.abs(means).max())
    ratio = float(np.square(means).mean())
    p_value = 2 * min(2 * _chi_square_tail(ratio, means.size), means.size * two_sided(largest))
    detail = f"largest mean of a coordinate {largest:.2f} standard deviations, all {math.sqrt(ratio):.3f} times theirs"
    return Check("noise has no mean", min(1.0, p_value), detail)


def noise_is_fresh(residuals: ArrayLike) -> Check:
    """Equal or related noise at two clients, two steps or two runs: the correlation of every pair of releases.

    Independent ones have |correlation| > t with probability at most 2 exp(-n t^2 / 2) (Ball 1997, lemma 2.2), times
    the number of pairs. Formal guarantees: correct_run_is_not_flagged, repeated_seed_is_flagged.
    """
    noise = _residuals(residuals)
    require(len(noise) >= 2, "at least two releases are needed to compare")
    largest, first, second = _largest_correlation(noise)
    pairs = len(noise) * (len(noise) - 1) / 2
    p_value = min(1.0, pairs * 2 * math.exp(-noise.shape[1] * largest**2 / 2))
    detail = f"largest correlation {largest:.3f}, of releases {first} and {second}, n = {noise.shape[1]}"
    return Check("noise is fresh", p_value, detail)


def noise_is_independent_within(residuals: ArrayLike, width: int = 0) -> Check:
    """Noise that comes again inside one release: rows of this width that are alike, blocks that repeat at any distance.

    A sum of products at one distance has the tail of Laurent and Massart 2000, lemma 1.
    """
    noise = _residuals(residuals)
    size = noise.shape[1]
    p_value, said = 1.0, f"nothing repeats in {len(noise)} releases"
    for number, release in enumerate(noise.astype(np.float64)):
        spectrum = np.fft.rfft(release, 2 * size)
        products = np.abs(np.fft.irfft(spectrum * spectrum.conj(), 2 * size)[1:size])
        half = np.sqrt((size - np.arange(1, size)) / 2)  # the form's Frobenius norm; no eigenvalue is above 1
        roots = (-2 * half + np.sqrt(4 * half**2 + 8 * products)) / 4  # products = 2 half x + 2 x^2
        if size > 1:
            worst = int(roots.argmax())
            found = min(1.0, 4 * len(noise) * size * math.exp(-(float(roots[worst]) ** 2)))
            if found < p_value:
                p_value, said = found, f"release {number} is like itself at a distance of {worst + 1}"
        if 1 < width <= size // 2:
            rows = release[: size // width * width].reshape(-1, width)
            largest, first, second = _largest_correlation(rows)
            found = min(1.0, 2 * len(noise) * len(rows) ** 2 * math.exp(-width * largest**2 / 2))
            if found < p_value:
                p_value, said = found, f"rows {first} and {second} of release {number} correlate by {largest:.3f}"
    return Check("noise is independent within a release", p_value, said)


def noise_ignores_the_sums(residuals: ArrayLike, sums: ArrayLike) -> Check:
    """Whether residuals point along the exact sums, or are larger where those are: (releases, coordinates) each."""
    noise, exact = _residuals(residuals), np.asarray(sums)
    lengths = np.linalg.norm(exact, axis=1)
    along = np.einsum("mn,mn->m", noise, exact, dtype=np.float64) / np.where(lengths > 0, lengths, 1.0)
    tails = [two_sided(abs(float(value))) for value in along]
    tails.append(two_sided(abs(float(along.sum())) / math.sqrt(max(1, int(np.count_nonzero(lengths))))))
    order = np.argsort(np.abs(exact).sum(0), kind="stable")
    parts = [part for part in np.array_split(order, BLOCKS) if len(part)]
    ratios = [float(np.mean(np.square(noise[:, part], dtype=np.float64))) for part in parts]
    tails += [2 * _chi_square_tail(ratio, len(noise) * len(part)) for ratio, part in zip(ratios, parts, strict=True)]
    worst = float(np.abs(along).max())
    small, large = math.sqrt(ratios[0]), math.sqrt(ratios[-1])
    detail = f"along a sum at most {worst:.2f} standard deviations; {small:.3f} of what is stated where sums are small"
    p_value = min(1.0, len(tails) * min(tails))
    return Check("noise ignores the sums", p_value, f"{detail}, {large:.3f} where large")


def released_values_are_on_the_grid(released: Sequence[ArrayLike], standard_deviations: Sequence[float]) -> Check:
    """Every value is a multiple of the largest power of two that is at most 2^-20 of its standard deviation."""
    off = total = 0
    for values, deviation in zip(released, standard_deviations, strict=True):
        steps = np.asarray(values, np.float64) / 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)
        off, total = off + int(np.sum(steps != np.rint(steps))), total + steps.size
    return certain("what leaves is rounded to the grid", off == 0, f"{off} of {total} values are off it")


def clipping_holds_on_neighbours(moves: Sequence[float], bound: float) -> Check:
    """How far single units move a sum that is not noised yet: at most `bound`.

    Formal guarantees: correct_run_is_not_flagged, missing_clipping_is_flagged.
    """
    largest = max(moves, default=0.0)
    detail = f"one unit moves the sum by up to {largest:.6g} of the {bound:.6g} that the noise is made for"
    return certain("clipping holds on neighbours", largest <= bound * (1 + TOLERANCE), detail)


def steps_charged_equal_steps_noised(charged: int, noised: int) -> Check:
    """Hold the ledger's steps against NoiseSource.draws: more noised than charged is a release that nobody paid for."""
    return certain("steps charged = steps noised", charged == noised, f"{charged} charged, {noised} noised")


def two_sided(deviations: float) -> float:
    """P(|N(0, 1)| > deviations)."""
    return math.erfc(deviations / math.sqrt(2))


def binomial_tail(right: int, count: int, chance: float) -> float:
    """Chernoff bound on Bin(count, chance) being `right` or further from its mean on that side; 1 at the mean."""
    if count == 0 or (share := right / count) == chance:
        return 1.0
    if chance <= 0 or chance >= 1:
        return 0.0
    inside = share * math.log(share / chance) if share > 0 else 0.0
    outside = (1 - share) * math.log((1 - share) / (1 - chance)) if share < 1 else 0.0
    return math.exp(-count * (inside + outside))


def _chi_square_tail(ratio: float, freedom: int) -> float:
    """Chernoff bound on chi-square / freedom being as far from 1 as `ratio` on its side."""
    if ratio <= 0:
        return 0.0
    return math.exp(-freedom / 2 * max(0.0, ratio - 1 - math.log(ratio)))


def _largest_correlation(rows: NDArray[np.floating]) -> tuple[float, int, int]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    directions = rows / np.where(lengths > 0, lengths, 1.0)
    correlations = np.abs(directions @ directions.T)
    np.fill_diagonal(correlations, 0.0)
    first, second = sorted(map(int, np.unravel_index(int(correlations.argmax()), correlations.shape)))
    return float(correlations.max()), first, second


def _residuals(residuals: ArrayLike) -> NDArray[np.floating]:
    noise = np.asarray(residuals)
    require(noise.ndim == 2 and noise.size > 0, f"residuals have shape {noise.shape}, must be (releases, coordinates)")
    return noise
