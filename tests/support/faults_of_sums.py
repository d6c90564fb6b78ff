"""Faults of what is summed and of who takes part: clipping, sensitivity, coins, the adaptive clip's bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from support.planting import (
    COINS,
    FRESH_COINS,
    INDEPENDENT,
    STEPS,
    SUM,
    Patch,
    Sums,
    coins,
    fault,
    gradients,
    noising,
)
from torch import Tensor

from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.release import Release
from fedcar.training.noised import clients, sums
from fedcar.training.noised.clients import NoisedRequest
from fedcar.training.noised.sums import BELOW, ROWS, SUMS, ClippedSums

# ---------------------------------------------------------------- clipping and sensitivity


@fault("clipping", SUM)
def not_clipped(patch: Patch) -> None:
    """Nothing is clipped."""
    gradients(patch, lambda right, self, state, norm, rows: right(self, state, 1e6, rows))


@fault("clipping", "clipping holds on neighbours")
def clipped_at_twice_the_norm(patch: Patch) -> None:
    """Gradients are clipped at twice the norm."""
    gradients(patch, lambda right, self, state, norm, rows: right(self, state, 2 * norm, rows))


@fault("clipping", SUM, "adapter")
def adapter_not_clipped(patch: Patch) -> None:
    """The adapter's part of a gradient is not clipped, the rows' is."""

    def how(right: Any, self: ClippedSums, state: Sums, norm: float, rows: Any) -> dict[str, Tensor]:
        found = right(self, state, norm, rows)
        return {**right(self, state, 1e6, rows), ROWS: found[ROWS]}

    gradients(patch, how)


@fault("clipping", SUM)
def sum_clipped_as_one(patch: Patch) -> None:
    """The sum is clipped and not each question's gradient."""

    def how(right: Any, self: ClippedSums, state: Sums, norm: float, rows: Any) -> dict[str, Tensor]:
        found = right(self, state, 1e6, rows)
        length = torch.cat([tensor.reshape(-1) for tensor in found.values()]).norm()
        return {name: tensor * min(1.0, norm / float(length.clamp(min=1e-9))) for name, tensor in found.items()}

    gradients(patch, how)


@fault("clipping", SUM, "ridge")
def class_sums_twice_as_long(patch: Patch) -> None:
    """A question adds twice its vector to the class sums."""
    right = ClippedSums.class_sums
    patch.setattr(ClippedSums, "class_sums", lambda self, rows=None: {SUMS: 2 * right(self, rows)[SUMS]})


@fault("sensitivity", SUM)
def mean_of_the_batch(patch: Patch) -> None:
    """The mean of the batch leaves in place of the sum."""
    gradients(
        patch,
        lambda right, self, state, norm, rows: {
            name: tensor / max(1, len(self) if rows is None else len(rows))
            for name, tensor in right(self, state, norm, rows).items()
        },
    )


@fault("sensitivity", SUM, "adapter")
def divided_by_the_drawn(patch: Patch) -> None:
    """A sampled step is divided by how many were drawn."""
    mean_of_the_batch(patch)


@fault("sensitivity", "unit client: class sums: ", "ridge")
def sum_of_a_client(patch: Patch) -> None:
    """With clients as the unit a client adds the sum of its questions, not the mean."""
    patch.setattr(clients, "mean", lambda request, questions: request.sums(questions))


@fault("sensitivity", "count: sums", "ridge")
def count_of_two(patch: Patch) -> None:
    """Each question is counted twice."""
    right = NoisedRequest.sums

    def sums(self: NoisedRequest, questions: ClippedSums, rows: Any = None) -> Any:
        found = right(self, questions, rows)
        return {name: 2 * tensor for name, tensor in found.items()} if self.number == 0 else found

    patch.setattr(NoisedRequest, "sums", sums)


# ---------------------------------------------------------------- coins


@fault("wrong coins", COINS, "adapter")
def fair_coins(patch: Patch) -> None:
    """Coins of 1/2 where 1/20 is stated."""
    coins(patch, lambda count, rate: np.flatnonzero(np.random.default_rng().random(count) < 0.5))


@fault("wrong coins", COINS, "adapter")
def coins_of_twice_the_rate(patch: Patch) -> None:
    """Coins of twice the stated rate."""
    coins(patch, lambda count, rate: np.flatnonzero(np.random.default_rng().random(count) < 2 * rate))


@fault("wrong coins", COINS)
def everyone_takes_part(patch: Patch) -> None:
    """Clients are drawn at a rate, and all take part."""
    coins(patch, lambda count, rate: np.arange(count))


@fault("dependent coins", INDEPENDENT, "adapter")
def shuffled(patch: Patch) -> None:
    """Questions are dealt out in turn from a shuffled pack."""
    packs: dict[int, list[int]] = {}

    def how(count: int, rate: float) -> np.ndarray:
        size, pack = max(1, round(count * rate)), packs.setdefault(count, [])
        if len(pack) < size:
            pack += np.random.default_rng().permutation(count).tolist()
        chosen, pack[:] = pack[:size], pack[size:]
        return np.array(sorted(set(chosen)))

    coins(patch, how)


@fault("dependent coins", INDEPENDENT, "adapter")
def fixed_cohort(patch: Patch) -> None:
    """The same questions take part in every step."""
    cohorts: dict[int, np.ndarray] = {}

    def how(count: int, rate: float) -> np.ndarray:
        return cohorts.setdefault(count, np.flatnonzero(np.random.default_rng().random(count) < rate))

    coins(patch, how)


@fault("dependent coins", INDEPENDENT, "adapter")
def steps_of_one_size(patch: Patch) -> None:
    """As many questions in each step, drawn without putting back."""
    coins(patch, lambda count, rate: np.random.default_rng().permutation(count)[: max(1, round(count * rate))])


@fault("dependent coins", INDEPENDENT, "adapter")
def coins_shared_by_two(patch: Patch) -> None:
    """Neighbours share a coin."""

    def how(count: int, rate: float) -> np.ndarray:
        return np.flatnonzero(np.repeat(np.random.default_rng().random(count // 2 + 1) < rate, 2)[:count])

    coins(patch, how)


@fault("dependent coins", INDEPENDENT, "adapter")
def coins_that_stay(patch: Patch) -> None:
    """Coins are tossed anew in every second step alone."""
    kept: dict[int, list[Any]] = {}

    def how(count: int, rate: float) -> np.ndarray:
        if kept.get(count):
            return kept[count].pop()
        kept[count] = [np.flatnonzero(np.random.default_rng().random(count) < rate)]
        return kept[count][0]

    coins(patch, how)


@fault("dependent coins", INDEPENDENT)
def coins_of_one_step_again(patch: Patch) -> None:
    """Clients that are drawn are drawn again in the next step."""
    coins_that_stay(patch)


@fault("dependent coins", FRESH_COINS, "adapter")
def coins_of_a_seed(patch: Patch) -> None:
    """Coins of numpy's global generator, which --seed may seed."""
    coins(patch, lambda count, rate: np.flatnonzero(np.random.random(count) < rate))  # noqa: NPY002


# ---------------------------------------------------------------- the adaptive clip's bit, and what else leaves


@fault("the adaptive clip's bit", SUM)
def bit_fifty_times(patch: Patch) -> None:
    """The bit is counted fifty times."""
    right = ClippedSums.gradients_and_below

    def counted(self: ClippedSums, state: Sums, norm: float, rows: Any = None) -> dict[str, Tensor]:
        found = right(self, state, norm, rows)
        return {**found, BELOW: 50 * found[BELOW]}

    patch.setattr(ClippedSums, "gradients_and_below", counted)


@fault("the adaptive clip's bit", "adaptive clip, held out: head: ")
def bit_beside_whole_gradients(patch: Patch) -> None:
    """Gradients keep their whole length beside the bit."""
    patch.setattr(sums, "BELOW_SHARE", 0.3)


@fault("more than the plan says", "nothing else leaves")
def norms_leave_too(patch: Patch) -> None:
    """The mean norm of the gradients leaves beside the sums."""

    def how(right: Any, sums: Sums, release: Release, source: NoiseSource) -> Any:
        given = right(sums, release, source)
        return given | ({"norm": torch.ones(1)} if release.name in STEPS else {})

    noising(patch, how)
