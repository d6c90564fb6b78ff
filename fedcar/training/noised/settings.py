"""What a plan under epsilon follows from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedcar.encoder.adapter import Adapter
from fedcar.errors import FedcarError
from fedcar.training.noised.plan import SAMPLING_RATE, PrivatePlan, make_plan
from fedcar.training.target import Target, shown


@dataclass(frozen=True)
class PrivateSettings:
    """All that a plan follows from: devices and server make the same of it, so nobody is told how much noise to add."""

    target: Target
    method: str
    steps: int | None
    sampling_rate: float | None
    adapter: str
    seed: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PrivateSettings:
        """Of what came over a network; TypeError or KeyError for what is none."""
        return cls(**{**values, "target": Target(**values["target"])})

    def check(self) -> None:
        """Refuse what is none of this fedcar's plans, whoever asks for it; FedcarError.

        The rate of units "example" and "person" is the plan's own: a server that names another one would change what a
        step is charged by. That of unit "client" is the share of clients that the server draws, who is trusted there.
        """
        self.target.check()
        own = SAMPLING_RATE if self.method == "adapter" else 1.0
        if self.target.protects != "client" and self.sampling_rate not in (None, own):
            raise FedcarError(f"a sampling rate of {shown(self.sampling_rate)}: method {self.method} has {own:g}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise FedcarError(f"--seed {shown(self.seed)}: must be a whole number from 0 on")

    @property
    def values(self) -> dict[str, Any]:
        return asdict(self)

    def plan(self, documents: int) -> PrivatePlan:
        """The plan that follows; FedcarError for settings of which none does."""
        self.check()
        return make_plan(self.target, self.method, documents, steps=self.steps, sampling_rate=self.sampling_rate)

    def module(self, embedding_width: int) -> Adapter | None:
        """The adapter as every device and the server begin with it."""
        return Adapter(self.adapter, embedding_width, self.seed) if self.method == "adapter" else None
