"""What a user asks of a training under epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedcar.errors import FedcarError
from fedcar.privacy.errors import require
from fedcar.privacy.release import UNITS, check_target

DELTA = 1e-5
WAYS = ("example", "person=COLUMN", "client")  # of naming the unit


@dataclass(frozen=True)
class Target:
    """What the user asks for. `public_dev`: dev is declared public, and choices may be made on it.

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
    public_because: str | None = None

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
            raise FedcarError(f'--unit "{self.unit}": not known; give one of {", ".join(WAYS)}')
        if self.public_because is not None and not self.public_dev:
            raise FedcarError("--public-because: says why dev is public; give --public-dev too, or leave it out")
        if self.held_out and (self.public_dev or self.unit != "example"):
            why = "--public-dev chooses already" if self.public_dev else "it takes --unit example"
            raise FedcarError(f"--held-out: {why}; leave one of them out")
        try:
            check_target(self.epsilon, self.delta, units)
            require(math.isfinite(self.epsilon), "epsilon must be a finite number; without privacy leave it out")
        except ValueError as error:
            raise FedcarError(f"--epsilon {self.epsilon:g} --delta {self.delta:g}: {error}") from error
