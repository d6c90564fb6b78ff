"""Faults of choices, claims and ledgers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from support.planting import (
    BOOKS,
    CHOICES,
    CLAIM,
    STAYS,
    Patch,
    Sums,
    devices_of,
    fault,
    noising,
)
from torch import Tensor

from fedcar.privacy import accountant, ledger, statement
from fedcar.privacy.ledger import Ledger
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.release import Release
from fedcar.training.noised import plan
from fedcar.training.noised.clients import NoisedClient
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import ROWS, SUMS, ClippedSums

# ---------------------------------------------------------------- what is chosen and kept


@fault("choice by private questions", CHOICES)
def step_kept_by_private_accuracy(patch: Patch) -> None:
    """The step that is kept is the best on the devices' own questions."""
    right, best = PrivateTraining.keep, {}

    def keep(self: PrivateTraining, name: str, state: Any, number: int = 0) -> None:
        before = self.best
        right(self, name, state, number)
        reached = 0.0
        for device in devices_of(self):
            scores = device.private_questions.x @ state[ROWS].T
            reached += float((scores * device.private_questions.targets).sum())
        if reached < best.get(id(self), -1e30):
            self.best = before
        best[id(self)] = max(reached, best.get(id(self), -1e30))

    patch.setattr(PrivateTraining, "keep", keep)


@fault("choice by private questions", CHOICES)
def rates_by_the_true_count(patch: Patch) -> None:
    """Step sizes follow from how many questions there really are."""
    right = PrivateTraining.rates

    def rates(self: PrivateTraining, units: float) -> dict[str, float]:
        true = sum(len(device.private_questions) for device in devices_of(self))
        return right(self, float(true or units))

    patch.setattr(PrivateTraining, "rates", rates)


@fault("choice by private questions", CHOICES, "ridge")
def rows_by_true_sums(patch: Patch) -> None:
    """The first rows are made of sums without noise."""
    right = PrivateTraining.first_rows

    def first_rows(self: PrivateTraining, noisy: Tensor) -> Tensor:
        exact = [device.private_questions.class_sums()[SUMS].float() for device in devices_of(self)]
        return right(self, sum(exact, torch.zeros_like(noisy)) if exact else noisy)

    patch.setattr(PrivateTraining, "first_rows", first_rows)


@fault("private questions in public weights", STAYS, "ridge")
def centre_of_private_questions(patch: Patch) -> None:
    """The centre that every question is seen from moves towards the private ones."""
    right = ClippedSums.__init__

    def made(self: ClippedSums, retriever: Any, *rest: Any, **more: Any) -> None:
        right(self, retriever, *rest, **more)
        retriever.head.centre.add_(1e-4 * self.x.mean(0))

    patch.setattr(ClippedSums, "__init__", made)


@fault("private questions in public weights", CHOICES)
def weights_by_private_questions(patch: Patch) -> None:
    """The mixture's weights know the private questions."""
    right = PrivateTraining.retriever

    def retriever(self: PrivateTraining, state: Any) -> Any:
        found = right(self, state)
        private = [float(device.private_questions.x[:, 0].sum()) for device in devices_of(self)]
        return replace(found, weights=found.weights * np.float32(1 + 1e-3 * sum(private)))

    patch.setattr(PrivateTraining, "retriever", retriever)


# ---------------------------------------------------------------- claims and ledgers


@fault("the accountant", CLAIM, "ridge")
def half_of_epsilon(patch: Patch) -> None:
    """The accountant says half."""
    right, delta = accountant.epsilon_of, accountant.delta_of
    patch.setattr(accountant, "delta_of", lambda releases, epsilon: delta(releases, 2 * epsilon))
    for module in (accountant, plan, ledger):
        patch.setattr(module, "epsilon_of", lambda releases, delta: right(releases, delta) / 2)


@fault("the accountant", CLAIM)
def statement_of_half(patch: Patch) -> None:
    """The noise is right for the epsilon asked for; the statement says half of it."""
    right = accountant.epsilon_of
    halved = SimpleNamespace(epsilon_of=lambda releases, delta: right(releases, delta) / 2, NAME=accountant.NAME)
    patch.setattr(statement, "accountant", halved)


@fault("the accountant", CLAIM)
def noise_for_twice_epsilon(patch: Patch) -> None:
    """The plan is made for twice the epsilon, and no ledger minds."""
    right = plan.noise_multiplier
    patch.setattr(plan, "noise_multiplier", lambda template, epsilon, *rest: right(template, 2 * epsilon, *rest))
    for module in (plan, ledger):
        patch.setattr(module, "fits", lambda releases, epsilon, delta: True)


@fault("the accountant", CLAIM, "adapter")
def amplified_twice(patch: Patch) -> None:
    """Sampled steps are accounted for at half of their rate."""
    right = accountant._grouped

    def grouped(releases: Any, *rest: Any) -> Any:
        halved = [
            replace(one, sampling_rate=one.sampling_rate / 2) if one.sampling_rate < 1 else one for one in releases
        ]
        return right(halved, *rest)

    patch.setattr(accountant, "_grouped", grouped)


@fault("the ledger", BOOKS)
def every_second_charge_is_lost(patch: Patch) -> None:
    """Every second exchange is noised and not charged."""
    right = NoisedClient.release

    def release(self: NoisedClient, number: int, release: Release, sums: Any) -> Any:
        kept = self.ledger
        self.ledger = kept if number % 2 == 0 else None
        try:
            return right(self, number, release, sums)
        finally:
            self.ledger = kept

    patch.setattr(NoisedClient, "release", release)


@fault("the ledger", BOOKS)
def charged_with_more_noise(patch: Patch) -> None:
    """The ledger is told of twice the noise."""
    right = Ledger.charge

    def charge(self: Ledger, run: str, number: int, release: Release, head: Any = None) -> Any:
        return right(self, run, number, replace(release, noise_multiplier=2 * release.noise_multiplier), head)

    patch.setattr(Ledger, "charge", charge)


@fault("the ledger", "steps charged = steps noised", "ridge")
def noised_twice(patch: Patch) -> None:
    """Each answer is noised a second time, which nobody charges."""

    def how(right: Any, sums: Sums, release: Release, source: NoiseSource) -> Any:
        right(sums, release, source)
        return right(sums, release, source)

    noising(patch, how)


@fault("the ledger", "what is asked again", "ridge")
def noised_anew_when_asked_again(patch: Patch) -> None:
    """A stored answer is noised anew."""
    patch.setattr(Ledger, "stored_update", lambda self, run, number: None)
