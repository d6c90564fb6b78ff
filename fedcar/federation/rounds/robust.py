"""A round's step where a device may be hostile: who surely harms is left out, and a state that is worse is not kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from fedcar.federation.rounds.aggregate import Tensors, aggregate, counted, is_clipped
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import Enrolled, ServerState, Update
from fedcar.retriever.questions import Questions
from fedcar.training.clients import MANY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Judge = Callable[[Tensors], NDArray[np.float64]]  # a state -> of each question the right answer's chance

JUDGING = 1000  # questions, at most, that judge each device
MOST_JUDGED = 32  # updates, each of which costs a look; among more than these one hardly counts
SURE = 4.0  # standard errors of the paired difference
LEAST_QUESTIONS = 20  # that judge: of fewer a standard error says nothing
HARM = 0.01  # of the chance of the right answer, over all rounds
WORSE = 0.02  # the same, of one state against the one before
HARMS = "harm."  # how the names of what is remembered of a device begin, beside the server optimiser's state


def judging(questions: Questions, most: int = JUDGING) -> Questions:
    """Those of the questions that judge: the same ones in every round."""
    return questions.take(np.sort(np.random.default_rng(len(questions)).permutation(len(questions))[:most]))


class Harm(NamedTuple):
    """By how much a judge's questions are better off without something, on average and in standard errors."""

    mean: float
    errors: float

    @classmethod
    def of(cls, differences: NDArray[np.float64]) -> Harm:
        if len(differences) < LEAST_QUESTIONS:
            return cls(0.0, 0.0)
        mean = float(differences.mean())
        error = float(differences.std()) / math.sqrt(len(differences))
        return cls(mean, mean / max(error, 1e-12))

    def surely(self, least: float) -> bool:
        return self.mean >= least and self.errors >= SURE


@dataclass(frozen=True)
class Combined:
    """The state after a round, the updates that made it and, for those left out, why; `gate` says why it is not kept.

    `optimizer` holds the server optimiser's state and what is remembered of each device.
    """

    tensors: Tensors
    optimizer: Tensors
    updates: Sequence[Update]
    blamed: Mapping[str, str]
    gate: str | None = None


def combined(
    state: ServerState,
    updates: Sequence[Update],
    enrolled: Mapping[str, Enrolled],
    settings: RoundSettings,
    judge: Judge | None = None,
    least: int = 1,
) -> Combined:
    """One step of the updates, less those of devices without which the judge's questions are surely better off.

    From five devices on each round looks at the state without each device in turn. What it harms is added up over
    rounds, question by question, from where it last did no harm: small steady pushes add up here too. At most a
    minority is left out, and no more than leaves `least` updates. A state on which the judge's questions are surely
    worse off than on the state before is not kept, whoever made it. Fewer than 20 questions judge nobody.

    Formal guarantees:
        one_of_five_cannot_take_the_model_away, a_state_that_is_surely_worse_is_not_kept.
    """
    remembered = {name: tensor for name, tensor in state.optimizer.items() if name.startswith(HARMS)}
    optimizer = {name: tensor for name, tensor in state.optimizer.items() if name not in remembered}

    def stepped(chosen: Sequence[Update]) -> tuple[Tensors, Tensors]:
        return aggregate(state.tensors, optimizer, chosen, enrolled, settings)

    chosen, blamed = list(updates), dict[str, str]()
    tensors, moments = stepped(chosen)
    if judge is None:
        return Combined(tensors, {**moments, **remembered}, chosen, blamed)
    now, before = judge(tensors), judge(state.tensors)
    most = min((len(updates) - 1) // 2, len(updates) - least)
    looks = is_clipped(settings, len(enrolled)) and 2 < len(updates) <= MOST_JUDGED
    while looks:
        without = {one.client: judge(stepped([other for other in chosen if other is not one])[0]) for one in chosen}
        harm = {client: chances - now for client, chances in without.items()}
        if not blamed:
            remembered = {**remembered, **added_up(remembered, harm)}
        found = worst(remembered, harm)
        if found is None or len(blamed) >= most:
            break
        client, why = found
        blamed[client] = why
        chosen = [one for one in chosen if one.client != client]
        tensors, moments = stepped(chosen)
        now = without[client]
    moments = {**moments, **remembered}
    if (fall := Harm.of(before - now)).surely(WORSE):
        gate = f"not kept: {now.mean():.3f} is the chance of the right answer after it, {before.mean():.3f} before"
        gate += f" ({fall.errors:.0f} standard errors)"
        return Combined(state.tensors, {**state.optimizer, **remembered}, chosen, blamed, gate)
    return Combined(tensors, moments, chosen, blamed)


def added_up(remembered: Tensors, harm: Mapping[str, NDArray[np.float64]]) -> dict[str, torch.Tensor]:
    """What each device harmed each question since it last did no harm, by the names of what is remembered."""
    sums = {}
    for client, differences in harm.items():
        before = remembered.get(HARMS + client)
        together = differences if before is None or len(before) != len(differences) else before.numpy() + differences
        sums[HARMS + client] = torch.from_numpy(together if together.mean() > 0 else np.zeros_like(together))
    return sums


def worst(remembered: Tensors, harm: Mapping[str, NDArray[np.float64]]) -> tuple[str, str] | None:
    """Of the devices that surely harm the one that does most, and why it is left out; None where none does."""
    harms = {client: Harm.of(remembered[HARMS + client].numpy()) for client in harm}
    sure = [client for client, one in harms.items() if one.surely(HARM)]
    if not sure:
        return None
    client = max(sure, key=lambda name: harms[name].mean)
    return client, f"left out: the judge's questions are surely better off without it (by {harms[client].mean:.3f})"


def share_right(counts: Sequence[tuple[float, float]], devices: int) -> float:
    """The share of right answers, by each device's word: (right, questions).

    Of all questions together; in a federation of five devices or more the median of their shares, each counting by its
    questions, at most the usual number: a minority that lies moves it no further than others differ.
    """
    told = sorted((right / questions, questions) for right, questions in counts if questions > 0)
    if devices < MANY or not told:
        return sum(right for right, _ in counts) / max(1, sum(questions for _, questions in counts))
    weights = counted([questions for _, questions in told], 1.0)
    return told[int(np.searchsorted(np.cumsum(weights), sum(weights) / 2))][0]
