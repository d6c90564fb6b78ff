"""Faults of training under epsilon, planted one at a time: what the audit must find, by kind, and which check finds it.

Each changes the product as a mistake in it would; none touches the audit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.release import Release
from fedcar.training.noised import clients
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import ClippedSums

Patch = pytest.MonkeyPatch
Sums = Mapping[str, Tensor]
STEPS = ("head", "adapter")
SIZE, SUM, FRESH = "noise is as large as stated", "sums are those of the definition", "noise is fresh"
GAUSSIAN, WITHIN, IGNORES = "noise is Gaussian", "independent within", "ignores the sums"
COINS, INDEPENDENT, FRESH_COINS = "coins are as stated", "coins are independent", "coins are fresh"
CHOICES, CLAIM, BOOKS, STAYS = "choices follow", "the claim holds", "ledger has what left", "what documents make stays"


@dataclass(frozen=True)
class Fault:
    """`found_by`: part of the name of the check that has to be among those that are flagged."""

    kind: str
    what: str
    found_by: str
    plant: Callable[[Patch], None]
    method: str = "head"

    @property
    def run(self) -> str:
        """Which of the audit's runs has it."""
        if self.found_by.startswith("unit client"):
            return "unit client"
        if self.kind == "the adaptive clip's bit" or self.plant.__name__ in ("bit_bare", "held_out_bare"):
            return "held out" if self.method == "ridge" else "adaptive clip, held out"
        return "unit client" if self.kind.endswith("coins") and self.method != "adapter" else self.method


FAULTS: list[Fault] = []


def fault(
    kind: str, found_by: str, method: str = "head"
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """The function's docstring says what it plants."""

    def kept(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        FAULTS.append(Fault(kind, str(plant.__doc__).rstrip("."), found_by, plant, method))
        return plant

    return kept


def noising(patch: Patch, how: Callable[[Callable[..., dict[str, Tensor]], Sums, Release, NoiseSource], Any]) -> None:
    """Another `noised`; `how` is given the right one."""
    right = clients.noised
    patch.setattr(clients, "noised", lambda sums, release, source: how(right, sums, release, source))


def bare(patch: Patch, when: Callable[[Release], bool]) -> None:
    """No noise where `when` says so."""

    def how(right: Any, sums: Sums, release: Release, source: NoiseSource) -> Any:
        given = right(sums, release, source)
        return {name: tensor.float() for name, tensor in sums.items()} if when(release) else given

    noising(patch, how)


def scaled(patch: Patch, factor: Callable[[Release], float]) -> None:
    """Noise of another size than is stated."""

    def how(right: Any, sums: Sums, release: Release, source: NoiseSource) -> Any:
        smaller = replace(release, noise_multiplier=release.noise_multiplier * factor(release))
        return right(sums, smaller, source)

    noising(patch, how)


def spoiled(patch: Patch, how: Callable[[str, Tensor, Tensor], Tensor]) -> None:
    """Of each tensor's name, noised values and exact sum something else, in steps."""

    def changed(right: Any, sums: Sums, release: Release, source: NoiseSource) -> Any:
        given = right(sums, release, source)
        if release.name not in STEPS:
            return given
        return {name: how(name, tensor.clone(), sums[name].float()) for name, tensor in given.items()}

    noising(patch, changed)


def normals(patch: Patch, how: Callable[[NoiseSource, tuple[int, ...], Any], Any]) -> None:
    """Other normals; `how` is given the right function."""
    right = NoiseSource.normal
    patch.setattr(NoiseSource, "normal", lambda self, shape: how(self, shape, right))


def coins(patch: Patch, how: Callable[[int, float], np.ndarray]) -> None:
    """Another `poisson`."""
    right = clients.poisson

    def tossed(count: int, rate: float) -> Tensor:
        return right(count, rate) if rate >= 1 else torch.from_numpy(np.asarray(how(count, rate), dtype=np.int64))

    patch.setattr(clients, "poisson", tossed)


def gradients(patch: Patch, how: Callable[..., dict[str, Tensor]]) -> None:
    """Other `ClippedSums.gradients`; `how` is given the right function first."""
    right = ClippedSums.gradients
    patch.setattr(ClippedSums, "gradients", lambda self, state, norm, rows=None: how(right, self, state, norm, rows))


def devices_of(training: PrivateTraining) -> list[Any]:
    """What a server in the same process could reach, and must not."""
    return [one for one in training.clients.devices if getattr(one, "private_questions", None) is not None]  # type: ignore[attr-defined]
