"""What a plan under epsilon follows from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedcar.encoder.adapter import Adapter
from fedcar.training.noised.plan import PrivatePlan, make_plan
from fedcar.training.target import Target


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

    @property
    def values(self) -> dict[str, Any]:
        return asdict(self)

    def plan(self, documents: int) -> PrivatePlan:
        return make_plan(self.target, self.method, documents, steps=self.steps, sampling_rate=self.sampling_rate)

    def module(self, embedding_width: int) -> Adapter | None:
        """The adapter as every device and the server begin with it."""
        return Adapter(self.adapter, embedding_width, self.seed) if self.method == "adapter" else None
