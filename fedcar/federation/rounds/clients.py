"""What a run of rounds needs of its clients beside their answers, in this process and behind a network alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fedcar.federation.rounds.update import Enrolled, ServerState
from fedcar.training.clients import Clients


class RoundClient(Protocol):
    """One client, as a checkpoint sees it."""

    def enrol(self) -> Enrolled:
        """What the server knows of it from the start."""
        ...

    def kept(self) -> dict[str, Tensor]:
        """What it keeps from round to round and the server has to write down."""
        ...

    def load_kept(self, tensors: Mapping[str, Tensor], round_done: int | None = None) -> None:
        """Go on from what `kept` gave after that round."""
        ...


class RoundClients(Clients, Protocol):
    """Clients who `Train`."""

    @property
    def clients(self) -> Mapping[str, RoundClient]:
        """Each of them by name."""
        ...

    def held_out(self, state: ServerState) -> Mapping[str, float]:
        """Of how many questions of their own they get how many right by this state; empty where there are none."""
        ...
