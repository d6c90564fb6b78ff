"""What a user asks of a training under epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedcar.errors import FedcarError
from fedcar.privacy.errors import require
from fedcar.privacy.release import UNITS, check_target

DELTA = 1e-5


@dataclass(frozen=True)
class Target:
    """What the user asks for.

    `public_dev`: dev is declared public: rows are fitted to it, and choices made on it; `public_rows`: it has questions
    enough for rows to begin with, so that no class sums are given out.
    `noise_seed` is for tests: noise that can be repeated, so that epsilon is infinite. `against_advice` trains even
    where the plan expects less than search gives. `adaptive_clip` moves the clip norm to the median gradient, by
    noised counts. `held_out`: at the end the clients count on held-out questions of theirs, noised and charged, whether
    what was trained is better than search.
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

    def check(self, units: int | None = None) -> None:
        """Refuse what nobody should promise; `units` is how many questions (or clients) there are."""
        if self.unit not in UNITS:
            raise FedcarError(f'--unit "{self.unit}": not known; give one of {", ".join(UNITS)}')
        if self.held_out and (self.public_dev or self.unit == "client"):
            why = "--public-dev chooses already" if self.public_dev else "it takes --unit example"
            raise FedcarError(f"--held-out: {why}; leave one of them out")
        try:
            check_target(self.epsilon, self.delta, units)
            require(math.isfinite(self.epsilon), "epsilon must be a finite number; without privacy leave it out")
        except ValueError as error:
            raise FedcarError(f"--epsilon {self.epsilon:g} --delta {self.delta:g}: {error}") from error
