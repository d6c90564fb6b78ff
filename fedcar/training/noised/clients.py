"""Devices under epsilon: what each is asked to give out, and the one door through which anything leaves."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedcar.privacy.clip import ROUNDING
from fedcar.privacy.errors import require
from fedcar.privacy.ledger import Ledger, LedgerHead
from fedcar.privacy.noise import NoiseSource, add_noise
from fedcar.privacy.release import Release, of_a_question
from fedcar.training.clients import Clients, InProcess, Request
from fedcar.training.noised.plan import HELD_OUT, PrivatePlan
from fedcar.training.noised.sums import COUNT, ROWS, SUMS, ClippedSums, Tensors


@dataclass(frozen=True)
class NoisedRequest(Request["NoisedClient | Cohort", Tensors]):
    """What every device is asked to give out in one exchange of a run: a count, class sums, or gradients at `state`.

    `adaptive` is the clip norm of this step where that adapts.
    """

    number: int
    release: Release
    state: Tensors = field(default_factory=dict)
    adaptive: float | None = None

    @classmethod
    def of(
        cls, plan: PrivatePlan, number: int, state: Tensors | None = None, adaptive: float | None = None
    ) -> NoisedRequest:
        """Exchange `number` of a plan: 0 the count, 1 the class sums, the steps, what is held out; or ValueError."""
        release = {0: plan.count, 1: plan.sums, 2 + plan.steps: plan.held_out}.get(number)
        if plan.step is not None and 2 <= number < 2 + plan.steps:
            release = replace(plan.step, steps=1)
        steps = release is not None and release.name == plan.method
        if release is None or (adaptive is not None) != (steps and plan.target.adaptive_clip):
            raise ValueError(f"exchange {number} is none of this plan")
        return cls(number, release, state or {}, adaptive)

    def answered_by(self, member: NoisedClient | Cohort) -> dict[str, Tensor]:
        return member.answer(self)

    def sums(self, private_questions: ClippedSums, rows: Tensor | None = None) -> dict[str, Tensor]:
        """What is summed over the chosen questions: counts, class sums, or gradients clipped to what the release says.

        Where the clip norm adapts, gradients in units of it, and how many were not clipped.
        """
        if self.number == 0:
            return {COUNT: private_questions.counts()}
        if self.number == 1:
            return {ROWS: private_questions.class_sums(rows)[SUMS]}
        if self.adaptive is not None:
            return private_questions.gradients_and_below(self.state, self.adaptive, rows)
        return private_questions.gradients(self.state, float(self.release.sensitivity or 0.0), rows)


HeldOut = Callable[[Tensors], Tensor]  # a state -> held-out questions, right by search, right by the state: (3,)


class NoisedClients(Clients, Protocol):
    """Clients under epsilon: devices of this process (`InTurn`), or devices behind a network.

    Asked for a `NoisedRequest`; BudgetError where one refuses, and what the others gave out is lost.
    """

    @property
    def units(self) -> int:
        """How many clients train: as many as there are names, or all those of a cohort, which is asked as one."""
        ...

    @property
    def given(self) -> list[Release]:
        """What one of them has given out so far; they all spend alike."""
        ...

    @property
    def heads(self) -> Mapping[str, LedgerHead]:
        """Where each ledger stood last, for the server to keep."""
        ...


@dataclass
class NoisedClient:
    """One device: its questions, its noise, its ledger; nothing of the questions leaves but through `release`.

    Formal guarantees:
        charged_before_training: the ledger has the charge on disk before any question is read for it.
        A release asked for twice is sent again unchanged, and is noised and charged once.
    """

    name: str
    private_questions: ClippedSums | None  # None where sums of others go through this device's door: that of a cohort
    source: NoiseSource = field(default_factory=NoiseSource)
    ledger: Ledger | None = None
    run: str = ""
    known_head: LedgerHead | None = None  # where the server last saw this device's ledger
    held_out: HeldOut | None = None
    given: list[Release] = field(default_factory=list)

    def answer(self, request: NoisedRequest) -> dict[str, Tensor]:
        """The noised sums over all its questions, or over those drawn for this step: each unit by its own coin."""
        private_questions, release = self.private_questions, request.release
        assert private_questions is not None

        def sums() -> dict[str, Tensor]:
            if release.name == HELD_OUT:
                return {HELD_OUT: torch.zeros(3) if self.held_out is None else self.held_out(request.state)}
            drawn = None
            if release.sampler == "poisson":
                drawn = private_questions.rows_of(poisson(private_questions.units, release.sampling_rate))
            return request.sums(private_questions, drawn)

        return self.release(request.number, release, sums)

    def has_to_be_made(self, number: int, release: Release) -> bool:
        """Whether there is no stored answer to send again; BudgetError where there is none and no room for it."""
        if self.ledger is not None:
            if self.ledger.stored_update(self.run, number) is not None:
                return False
            self.ledger.check_room(f"round {number}", [of_a_question(release)], self.known_head)
        return True

    def release(self, number: int, release: Release, sums: Callable[[], Tensors]) -> dict[str, Tensor]:
        """Charge, sum, noise, keep: what leaves in exchange `number` of the run."""
        if self.ledger is not None and (stored := self.ledger.stored_update(self.run, number)) is not None:
            self.given.append(release)
            return unpacked(stored)
        charge = None
        if self.ledger is not None:
            charge = self.ledger.charge(self.run, number, of_a_question(release), self.known_head)
        self.given.append(release)
        tensors = noised(sums(), release, self.source)
        if self.ledger is not None and charge is not None:
            self.ledger.store_update(charge, packed(tensors))
            self.known_head = self.ledger.head()
        return tensors


@dataclass
class Cohort:
    """Clients whose sums a trusted server adds up and noises once: unit "client". Answers as a Device does.

    Each client counts as one question would: the mean of its questions' clipped parts, whose norm is at most the clip
    norm. Who takes part in a step is drawn by a coin a client. The server's `device` holds noise and ledger, in which
    every client is charged for every step, drawn or not.
    """

    members: Sequence[ClippedSums]
    device: NoisedClient

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def given(self) -> list[Release]:
        return self.device.given

    def answer(self, request: NoisedRequest) -> dict[str, Tensor]:
        return self.device.release(request.number, request.release, lambda: self.summed(request))

    def summed(self, request: NoisedRequest) -> dict[str, Tensor]:
        """The drawn clients' means, summed; zeros by name where none is drawn."""
        drawn = [self.members[place] for place in poisson(len(self.members), request.release.sampling_rate).tolist()]
        total = {name: torch.zeros_like(tensor) for name, tensor in request.sums(self.members[0]).items()}
        bound = float(request.release.sensitivity or 0.0)
        for private_questions in drawn:
            for name, tensor in within(mean(request, private_questions), bound).items():
                total[name] += tensor
        return total


def mean(request: NoisedRequest, private_questions: ClippedSums) -> dict[str, Tensor]:
    """The mean of one client's clipped parts, as float32, as it goes over a network; zeros where it has no question.

    See `within` for its norm.
    """
    questions = max(1, len(private_questions))
    return {name: (tensor / questions).float() for name, tensor in request.sums(private_questions).items()}


def within(tensors: Tensors, bound: float) -> dict[str, Tensor]:
    """The tensors in float64, together no longer than the bound: cut to it; zeros for what is not finite.

    What a device has rounded to float32 lies a little above its bound, and what a hostile one sends far.

    Formal guarantees:
        a_mean_from_a_device_is_cut_to_its_bound.
    """
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    length = float(torch.cat([tensor.flatten() for tensor in wide.values()]).norm())
    if not math.isfinite(length):
        return {name: torch.zeros_like(tensor) for name, tensor in wide.items()}
    longest = length * (1 + ROUNDING)
    return {name: tensor if longest <= bound else bound / longest * tensor for name, tensor in wide.items()}


class InTurn(InProcess["NoisedClient | Cohort"]):
    """Devices of this process (or a cohort), asked one after the other."""

    def __init__(self, devices: Sequence[NoisedClient] | Sequence[Cohort]) -> None:
        super().__init__({device.name: device for device in devices})
        self.devices = devices

    def keep(self, names: Sequence[str]) -> None:
        """All of them answer always."""

    @property
    def units(self) -> int:
        return sum(len(device.members) if isinstance(device, Cohort) else 1 for device in self.devices)

    @property
    def given(self) -> list[Release]:
        return self.devices[0].given

    @property
    def heads(self) -> dict[str, LedgerHead]:
        doors = [device.device if isinstance(device, Cohort) else device for device in self.devices]
        return {door.name: door.known_head for door in doors if door.known_head is not None}


class Behind:
    """Clients that are asked through something else; all but how they are asked is theirs."""

    def __init__(self, clients: NoisedClients) -> None:
        self.clients = clients

    @property
    def names(self) -> Sequence[str]:
        return self.clients.names

    @property
    def units(self) -> int:
        return self.clients.units

    @property
    def given(self) -> list[Release]:
        return self.clients.given

    @property
    def heads(self) -> Mapping[str, LedgerHead]:
        return self.clients.heads

    def keep(self, names: Sequence[str]) -> None:
        self.clients.keep(names)


def noised(sums: Tensors, release: Release, source: NoiseSource) -> dict[str, Tensor]:
    """The sums with the release's noise on every coordinate, rounded to its grid, as float32.

    PrivacyError where the noise would come from elsewhere than what was charged says.
    """
    require(source.name == release.noise, f"noise of kind {source.name} for what is charged as {release.noise}")
    noisy = add_noise(sums, release.standard_deviation, source)
    return {name: torch.from_numpy(values).float() for name, values in noisy.values.items()}


def poisson(count: int, rate: float) -> Tensor:
    """The places (m,) of those whose own coin says yes, by the operating system's randomness."""
    if rate >= 1:
        return torch.arange(count)
    coins = np.frombuffer(secrets.token_bytes(8 * count), dtype=np.uint64)
    return torch.from_numpy(np.flatnonzero(coins < np.uint64(int(rate * 2**64))))


def packed(tensors: Tensors) -> bytes:
    """For the ledger's store of updates: safetensors."""
    from safetensors.torch import save

    return save(dict(tensors))


def unpacked(stored: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(stored)
