"""One run of the product, watched: its plan, its clients, what was asked and what left, and the same asked again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fedcar.encoder.adapter import Adapter
from fedcar.privacy.ledger import Budget, Ledger
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.release import Release
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.audit.definition import Blocks, Definition
from fedcar.training.noised.audit.watched import Exchange, Watched
from fedcar.training.noised.clients import Cohort, InTurn, NoisedClient, NoisedRequest
from fedcar.training.noised.plan import PrivatePlan
from fedcar.training.noised.server import Outcome, PrivateTraining, held_out_counts
from fedcar.training.noised.sums import ClippedSums

QUIET = 1e-3  # of the noise: what is asked again so shows every sum
MOST_QUIET_NOISE = 0.02  # of the sensitivity, so that a coin is plain to see
RUN = "audit"


@dataclass(frozen=True)
class Setting:
    """A plan, and whose questions it is tried on: those of each device, or of each member of a cohort."""

    name: str
    untrained: Retriever
    plan: PrivatePlan
    parts: Mapping[str, Questions]
    held_out: Questions | None = None
    blocks: Blocks | None = None

    @property
    def cohort(self) -> bool:
        return self.plan.target.unit == "client"

    def module(self) -> Adapter | None:
        width = self.untrained.encoder.embedding_width
        return Adapter("full", width) if self.plan.method == "adapter" else None

    def definitions(self) -> dict[str, list[Definition]]:
        """By the name of who answers: for a device its questions, for a cohort its members'."""
        found = {
            name: Definition(self.untrained, questions, self.blocks, self.held_out)
            for name, questions in self.parts.items()
        }
        return {"server": list(found.values())} if self.cohort else {name: [one] for name, one in found.items()}

    def clients(self, folder: Path | None = None) -> InTurn:
        """As the product makes them; with a folder each keeps a ledger there."""
        sums = {name: ClippedSums(self.untrained, questions, self.module()) for name, questions in self.parts.items()}
        if self.cohort:
            return InTurn([Cohort(list(sums.values()), self.device("server", None, folder))])
        return InTurn([self.device(name, one, folder) for name, one in sums.items()])

    def device(self, name: str, sums: ClippedSums | None, folder: Path | None) -> NoisedClient:
        ledger = None
        if folder is not None:
            ledger = Ledger(folder / name / "ledger.jsonl")
            ledger.create(Budget(self.plan.target.epsilon, self.plan.target.delta))
        counts = None
        if self.held_out is not None:
            counts = partial(held_out_counts, self.untrained, self.held_out, self.module())
        return NoisedClient(name, sums, NoiseSource(), ledger=ledger, run=RUN, held_out=counts)


@dataclass
class Trial:
    """A run as it was watched: at the stated noise, and what the same requests were answered with again."""

    setting: Setting
    watched: Watched
    outcome: Outcome
    again: list[Exchange] = field(default_factory=list)  # as it was stated: the small ones, many times
    quiet: list[Exchange] = field(default_factory=list)
    quiet_again: list[Exchange] = field(default_factory=list)

    @property
    def exchanges(self) -> list[Exchange]:
        return self.watched.exchanges

    @property
    def outcome_given(self) -> list[Release]:
        """What was given out in the run itself."""
        return [exchange.request.release for exchange in self.exchanges]

    @property
    def doors(self) -> list[NoisedClient]:
        """Where noise and ledger are."""
        assert isinstance(self.watched.clients, InTurn)
        return [one.device if isinstance(one, Cohort) else one for one in self.watched.clients.devices]


def run(setting: Setting, folder: Path) -> Trial:
    """The whole plan as the product runs it, with a ledger for each device."""
    with same_seeds():
        watched = Watched(setting.clients(folder))
        server = PrivateTraining(setting.untrained, watched, setting.plan, adapter=setting.module())
        return Trial(setting, watched, server.run())


def asked_again(clients: InTurn, exchanges: Sequence[Exchange], *, quiet: bool) -> list[Exchange]:
    """The same requests to these clients, at the stated noise or with next to none, after the same seeds."""
    with same_seeds():
        watched = Watched(clients)
        for exchange in exchanges:
            watched.ask(quieter(exchange.request) if quiet else exchange.request)
    return watched.exchanges


def quieter(request: NoisedRequest) -> NoisedRequest:
    noise = min(QUIET * request.release.noise_multiplier, MOST_QUIET_NOISE)
    return replace(request, release=replace(request.release, noise_multiplier=noise))


@contextmanager
def same_seeds() -> Iterator[None]:
    """Every generator that can be seeded is, alike each time: noise and coins must not know. Put back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what is looked for
    torch.manual_seed(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
