"""What a user asks of a training under epsilon, and the limits within which a plan can be made for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedcar.errors import FedcarError, quoted
from fedcar.privacy.release import UNITS, check_target

DELTA = 1e-5
# Within these a plan takes under two seconds and every number of it can be worked out; nobody needs what lies outside.
LEAST_EPSILON, MOST_EPSILON = 1e-3, 100.0
LEAST_DELTA = 1e-12
LEAST_RATE = 0.01  # of steps that are sampled, where every plan takes the accountant's whole arithmetic
MOST_STEPS, MOST_SAMPLED_STEPS, MOST_SAMPLED_DELTA = 10_000, 1_000, 0.01
USUAL_POWER = 1.1  # delta is usually below units^-1.1
WAYS = ("example", "person=COLUMN", "client")  # of naming the unit


@dataclass(frozen=True)
class Target:
    """What the user asks for.

    `public_dev`: dev is declared public: rows are fitted to it, and choices made on it; `public_file`: so are the
    questions of a file, which then stand in dev; `public_rows`: they are enough for rows to begin with, so that no
    class sums are given out.
    `noise_seed` is for tests: noise that can be repeated, so that epsilon is infinite. `against_advice` trains even
    where the plan expects less than search gives. `adaptive_clip` moves the clip norm to the median gradient, by
    noised counts. `held_out`: at the end the clients count on held-out questions of theirs, noised and charged, whether
    what was trained is better than search. `unit` is "example" (a question), "client", or "person=COLUMN": those who
    have one value in this field of their questions' metadata. `public_because` says why dev may be called public.
    """

    epsilon: float
    delta: float = DELTA
    unit: str = "example"
    public_dev: bool = False
    noise_seed: int | None = None
    against_advice: bool = False
    adaptive_clip: bool = False
    held_out: bool = False
    public_rows: bool = False
    public_file: bool = False
    public_because: str | None = None

    @property
    def has_public(self) -> bool:
        """Whether there are questions that no promise is made of."""
        return self.public_dev or self.public_file

    @property
    def protects(self) -> str:
        """What is hidden, as releases and statements have it: example, person or client."""
        return "person" if self.column is not None else self.unit

    @property
    def column(self) -> str | None:
        """The field of a question's metadata that says whose it is, where persons are the unit."""
        name, _, column = self.unit.partition("=")
        return column if name == "person" and column.strip() else None

    def check(self, units: int | None = None) -> None:
        """Refuse what nobody should promise; `units` is how many questions (persons, clients) there are."""
        if self.protects not in UNITS or self.unit == "person":
            raise FedcarError(f"--unit {quoted(self.unit)}: not known; give one of {', '.join(WAYS)}")
        if self.public_because is not None and not self.has_public:
            raise FedcarError("--public-because: says why questions are public; give --public-dev or --public too")
        if self.held_out and (self.has_public or self.unit != "example"):
            why = "public questions choose already" if self.has_public else "it takes --unit example"
            raise FedcarError(f"--held-out: {why}; leave one of them out")
        check_budget(self.epsilon, self.delta, units=units, limited=self.noise_seed is None)


def check_budget(
    epsilon: float, delta: float, option: str = "--epsilon", units: int | None = None, limited: bool = True
) -> None:
    """Refuse what nobody should promise, and what no plan can be made for (unless it is not `limited`, for a test)."""
    for name, value in ((option, epsilon), ("--delta", delta)):
        if isinstance(value, bool) or not isinstance(value, int | float) or _is_huge(value):
            raise FedcarError(f"{name} {shown(value)}: must be a number, and one that a float can hold")
    words = f"{option} {epsilon:g} --delta {delta:g}"
    try:
        check_target(epsilon, delta, units)
    except ValueError as error:
        raise FedcarError(f"{words}: {error}") from error
    if epsilon == math.inf:
        raise FedcarError(f"{words}: epsilon must be a finite number; without privacy leave it out")
    if limited and not LEAST_EPSILON <= epsilon <= MOST_EPSILON:
        raise FedcarError(
            f"{words}: no noise can be worked out; give an epsilon from {LEAST_EPSILON:g} to {MOST_EPSILON:g}"
        )
    if limited and delta < LEAST_DELTA:
        raise FedcarError(f"{words}: give a delta of {LEAST_DELTA:g} or more (1e-5 is usual)")


def check_steps(steps: int | None, rate: float, target: Target) -> None:
    """Refuse numbers of steps and sampling rates of which no plan can be made in time."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not LEAST_RATE <= rate <= 1:
        raise FedcarError(f"a sampling rate of {shown(rate)}: must be from {LEAST_RATE:g} to 1")
    sampled = rate < 1
    most, how = (MOST_SAMPLED_STEPS, " where each takes part by a coin") if sampled else (MOST_STEPS, "")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise FedcarError(
            f"--epochs {shown(steps)}: must be 1 or more; under --epsilon it is the number of noised steps"
        )
    if steps is not None and steps > most:
        raise FedcarError(f"{shown(steps)} noised steps: give at most {most}{how}")
    if sampled and target.delta > MOST_SAMPLED_DELTA and target.noise_seed is None:
        raise FedcarError(f"--delta {target.delta:g}: give at most {MOST_SAMPLED_DELTA:g}{how}")


def delta_warning(delta: float, units: int) -> str:
    """What to say of a delta above units^-1.1, the usual bound; empty below it. Where units may be known alone."""
    usual = units**-USUAL_POWER
    if delta <= usual:
        return ""
    return f"delta {delta:g} is high for {units} units: a chance of delta is outside the promise; usual is {usual:.1g}"


def shown(value: object) -> str:
    """In a few characters, also where it has thousands of digits."""
    return "with thousands of digits" if _is_huge(value) else quoted(value)


def _is_huge(value: object) -> bool:
    """Whether this is a whole number that no float can hold."""
    return isinstance(value, int) and value.bit_length() > 1000
