"""What was given out, in the terms an accountant needs; without all of them there is no epsilon."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fedcar.privacy.errors import PrivacyError, require

UNITS = ("example", "person", "client")
ADJACENCIES = ("add-or-remove-one", "zero-out-one", "replace-one")
SAMPLERS = ("full-batch", "poisson", "fixed-order")
NOISES = ("operating-system", "seeded-test", "none")
_ALLOWED_ADJACENCIES = {
    "full-batch": ADJACENCIES,
    "poisson": ("add-or-remove-one", "zero-out-one"),
    "fixed-order": ("zero-out-one",),
}
_REFUSED_SAMPLERS = {
    "shuffle": "shuffling is not Poisson sampling and gets no amplification here",
    "shuffled": "shuffling is not Poisson sampling and gets no amplification here",
    "fixed-cohort": "a fixed cohort is not a random sample and gets no amplification here",
}


@dataclass(frozen=True, kw_only=True)
class Release:
    """A sum of clipped contributions with Gaussian noise on every coordinate, given out `steps` times.

    name: what is given out ("class sums", "head", "adapter").
    noise_multiplier: standard deviation of the noise / sensitivity.
    sensitivity: the most that one unit can move the sum, in the l2 norm, under `adjacency`: the clip norm for
        add-or-remove-one and zero-out-one, twice the clip norm for replace-one.
    sampler: "full-batch" (everyone takes part in every step), "poisson" (each unit takes part independently with
        probability sampling_rate, fresh for each step) or "fixed-order" (no sampling is promised; one Gaussian release
        of a whole training run, whose sensitivity already counts all participations: see noise.fixed_order_release).
    noise: "operating-system"; "seeded-test" and "none" make epsilon infinite.
    """

    name: str
    noise_multiplier: float
    sensitivity: float | None
    sampler: str | None
    unit: str | None
    adjacency: str | None
    sampling_rate: float = 1.0
    steps: int = 1
    noise: str = "operating-system"

    @property
    def standard_deviation(self) -> float:
        """Of the noise on every coordinate, in the units of the sum."""
        return self.noise_multiplier * (self.sensitivity if self.sensitivity is not None else math.nan)

    @property
    def has_noise_that_counts(self) -> bool:
        """False where the noise is missing or can be repeated by anyone who knows a seed."""
        return self.noise == "operating-system" and self.noise_multiplier > 0

    def to_json(self) -> dict[str, Any]:
        """Plain values that json can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Release":
        """Read what to_json wrote; unknown names are refused."""
        names = {field.name for field in fields(cls)}
        require(set(values) <= names, f"release: unknown fields {sorted(set(values) - names)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise PrivacyError(f"release: {error}") from None


def check_release(release: Release) -> None:
    """Refuse a release of which sampler, unit, adjacency or sensitivity is not known, or whose numbers are senseless.

    Formal guarantees: no_epsilon_without_sampler_unit_adjacency_and_sensitivity,
    no_amplification_for_shuffling_or_fixed_cohorts.
    """
    say = f'no epsilon for "{release.name}": '
    if release.sampler in _REFUSED_SAMPLERS:
        raise PrivacyError(
            f'{say}sampler="{release.sampler}": {_REFUSED_SAMPLERS[release.sampler]}; use "poisson" where each unit is '
            'drawn independently, "full-batch", or "fixed-order" with noise.fixed_order_release'
        )
    for name, value, known in (
        ("sampler", release.sampler, SAMPLERS),
        ("unit", release.unit, UNITS),
        ("adjacency", release.adjacency, ADJACENCIES),
        ("noise", release.noise, NOISES),
    ):
        require(value in known, f"{say}{name} is {value!r}, must be one of {', '.join(known)}")
    for name in ("noise_multiplier", "sensitivity", "sampling_rate", "steps"):
        value = getattr(release, name)
        require(value is None or isinstance(value, int | float), f"{say}{name} is {value!r}, must be a number")
    require(
        release.sensitivity is not None and math.isfinite(release.sensitivity) and release.sensitivity > 0,
        f"{say}sensitivity is {release.sensitivity}, must be known, finite and above 0 (clip first: see privacy.clip)",
    )
    require(
        math.isfinite(release.noise_multiplier) and release.noise_multiplier >= 0,
        f"{say}noise_multiplier is {release.noise_multiplier}, must be finite and at least 0",
    )
    require(
        isinstance(release.steps, int) and release.steps >= 0, f"{say}steps is {release.steps}, must be an integer >= 0"
    )
    require(
        math.isfinite(release.sampling_rate) and 0 < release.sampling_rate <= 1,
        f"{say}sampling_rate is {release.sampling_rate}, must be above 0 and at most 1",
    )
    require(
        release.sampler == "poisson" or release.sampling_rate == 1,
        f'{say}sampling_rate is {release.sampling_rate} with sampler="{release.sampler}"; only "poisson" is amplified',
    )
    allowed = _ALLOWED_ADJACENCIES[str(release.sampler)]
    require(
        release.adjacency in allowed,
        f'{say}sampler="{release.sampler}" is accounted for {", ".join(allowed)}, not {release.adjacency}',
    )


def check_releases(releases: Iterable[Release]) -> Sequence[Release]:
    """Each checked; all must speak of the same unit and adjacency, or their epsilons do not add up to one claim."""
    checked = tuple(releases)
    for release in checked:
        check_release(release)
    for name in ("unit", "adjacency"):
        values = sorted({str(getattr(release, name)) for release in checked})
        if values == ["add-or-remove-one", "zero-out-one"]:  # who is not added to a sum adds a zero to it
            continue
        require(len(values) <= 1, f"no epsilon over releases of several kinds: {name} is {' and '.join(values)}")
    return checked


def merged(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Equal releases as one, steps added up, in order of first appearance: the same epsilon, shorter to say."""
    steps: dict[Release, int] = {}
    for release in releases:
        kind = replace(release, steps=1)
        steps[kind] = steps.get(kind, 0) + release.steps
    return tuple(replace(kind, steps=count) for kind, count in steps.items())


def of_a_question(release: Release) -> Release:
    """What a release is to a question, as ledgers count it: one moves a sum no further than the person who asked it."""
    return replace(release, unit="example") if release.unit == "person" else release


def check_target(epsilon: float, delta: float, count: int | None = None) -> None:
    """Refuse a target nobody should promise: epsilon <= 0, delta outside (0, 1) or >= 1 / count of units."""
    require(epsilon > 0 and not math.isnan(epsilon), f"epsilon is {epsilon}, must be above 0")
    require(0 < delta < 1, f"delta is {delta}, must be above 0 and below 1 (1e-5 is usual)")
    if count is not None:
        require(count >= 1, f"the number of units is {count}, must be at least 1")
        require(
            count < 1e300 and delta * count < 1,  # a larger one is no float
            f"delta is {delta}, must be below 1/n = {1 / count:.3g} for n = {count}: "
            "at 1/n, giving one whole record away would be allowed",
        )
