"""What hostile devices send: a kept suite, as data. Each attack knows the honest answers of its round, and the defence.

Attacks on a round's update change its step (by name, in float64) and leave Adam's moments as they were received, so
that nothing of the device's questions helps by another way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedcar.federation.rounds.aggregate import FIXED, STEPS
from fedcar.federation.rounds.compress import MOMENTS, decode
from fedcar.federation.rounds.in_process import LocalNetwork
from fedcar.federation.rounds.robust import share_right
from fedcar.federation.rounds.update import Enrolled, ServerState, Update
from fedcar.federation.sums.mixture import PooledSums, SpreadSums
from fedcar.head.naive_bayes import NaiveBayes
from fedcar.training.clients import Answers, Request
from fedcar.training.ridge import RidgeSums

if TYPE_CHECKING:
    from numpy.typing import NDArray

Step = Mapping[str, Tensor]
FAR = 9.5  # times: just below the length at which an update is refused


@dataclass(frozen=True)
class Told:
    """What an attacker knows: its own honest step, the others', and the round's number from 1."""

    own: Step
    others: Sequence[Step]
    number: int


def length(step: Step) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in step.values()))


def times(step: Step, factor: float) -> Step:
    return {name: factor * tensor for name, tensor in step.items()}


def mean(steps: Sequence[Step]) -> Step:
    return {name: torch.stack([step[name] for step in steps]).mean(0) for name in steps[0]}


def deviation(steps: Sequence[Step]) -> Step:
    return {name: torch.stack([step[name] for step in steps]).std(0) for name in steps[0]}


def noise(told: Told, factor: float) -> Step:
    """One and the same random direction in every round."""
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(one.shape, generator=generator, dtype=one.dtype) for name, one in told.own.items()}
    return times(drawn, factor * length(told.own) / length(drawn))


def other_rows(told: Told, factor: float) -> Step:
    """Each document's row gets what another's should have: what other labels teach."""
    return {name: factor * (one.roll(1, 0) if one.dim() > 1 else one) for name, one in told.own.items()}


def little_is_enough(told: Told, deviations: float = 1.5) -> Step:
    """The mean less some standard deviations of the honest steps, coordinate by coordinate (Baruch et al. 2019)."""
    away = deviation(told.others)
    return {name: one - deviations * away[name] for name, one in mean(told.others).items()}


ROUNDS: dict[str, Callable[[Told], Step]] = {
    "minus 9.5 times the honest step": lambda told: times(told.own, -FAR),
    "a random direction, far": lambda told: noise(told, FAR),
    "a random direction of the usual length": lambda told: noise(told, 1.0),
    "another document's rows, far": lambda told: other_rows(told, FAR),
    "another document's rows of the usual length": lambda told: other_rows(told, 1.0),
    "a little is enough": little_is_enough,
    "the mean the other way": lambda told: times(mean(told.others), -1.0),  # inner products, Xie et al. 2019
    "small steady pushes": lambda told: times(mean(told.others), -0.3),
    "every second round": lambda told: told.own if told.number % 2 else times(told.own, -FAR),
    "late": lambda told: told.own if told.number <= 12 else times(told.own, -FAR),
    "900 times as many questions": lambda told: times(told.own, -1.0),
}
CLAIMED = {"900 times as many questions": 900}  # just below where a number of questions is refused


def claimed(honest: Enrolled, attack: str | None) -> Enrolled:
    """What a device enrols with."""
    more = CLAIMED.get(attack or "", 1)
    return replace(honest, questions=more * honest.questions, row_questions=more * honest.row_questions)


def attacked(own: Update, others: Sequence[Update], state: Mapping[str, Tensor], attack: str, number: int) -> Update:
    """What the device sends in place of its honest update."""
    told = Told(step_of(own, state), [step_of(one, state) for one in others], number)
    sent = dict(own.tensors)
    step = ROUNDS[attack](told)
    for name, tensor in step.items():
        sent[name] = (state[name].double() + tensor).to(state[name].dtype)
    if step is not told.own:
        sent |= {name: state[name].clone() for name in sent if name.startswith(MOMENTS) and name != STEPS}
    return replace(own, tensors=sent, questions=CLAIMED.get(attack, 1) * own.questions)


def step_of(update: Update, state: Mapping[str, Tensor]) -> Step:
    trained = [name for name in update.tensors if not name.startswith(MOMENTS)]
    return {name: update.tensors[name].double() - state[name].double() for name in trained}


MIXTURE: dict[str, Callable[[object], object]] = {
    "the gradient the other way": lambda given: (
        replace(given, gradient=-10 * given.gradient) if isinstance(given, PooledSums) else given
    ),
    "a pull to nonsense": lambda given: (
        replace(given, gradient=given.gradient + 50 * float(given.hessian.diagonal().mean()), loss=0.0)
        if isinstance(given, PooledSums)
        else given
    ),
    "no curvature": lambda given: replace(given, hessian=0 * given.hessian) if isinstance(given, PooledSums) else given,
    "a false spread": lambda given: (
        given._replace(spread=torch.cat([1e9 * given.spread[:-1], given.spread[-1:]]), counted=1e9)
        if isinstance(given, SpreadSums)
        else given
    ),
}


def gram_of_noise(sums: RidgeSums) -> RidgeSums:
    """A gram of as much length as the honest one, in directions that no question has."""
    statistics = sums.statistics
    drawn = np.random.default_rng(1).normal(size=statistics.gram.shape).astype(np.float32)
    roots = np.sqrt(np.diagonal(statistics.gram))
    lengths = np.linalg.norm(drawn, axis=1, keepdims=True)
    return replace(
        sums, statistics=replace(statistics, gram=(drawn / lengths) @ (drawn / lengths).T * np.outer(roots, roots))
    )


def crosses(sums: RidgeSums, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> RidgeSums:
    return replace(sums, statistics=replace(sums.statistics, cross=change(sums.statistics.cross)))


def next_smaller(sums: RidgeSums) -> NDArray[np.int64]:
    """For each document another one with at most as many questions, whose sums are within its bounds."""
    order = np.argsort(sums.statistics.counts, kind="stable")
    taken = np.empty_like(order)
    taken[order] = np.concatenate([order[:1], order[:-1]])
    return taken


def other_words(sums: RidgeSums) -> RidgeSums:
    """Each document's words are those of another."""
    return replace(sums, words=NaiveBayes(sums.words.counts[next_smaller(sums)]))


def other_crosses(sums: RidgeSums) -> RidgeSums:
    """Each document's cross terms are those of another."""
    return crosses(sums, lambda cross: cross[:, next_smaller(sums)])


RIDGE: dict[str, Callable[[RidgeSums], RidgeSums]] = {
    "a gram of noise": gram_of_noise,
    "cross terms turned around": lambda sums: crosses(sums, lambda cross: -cross),
    "cross terms of other documents": other_crosses,
    "words of other documents": other_words,
    "cross terms and words of other documents": lambda sums: other_words(other_crosses(sums)),
}


# ---------------------------------------------------------------- devices in this process


class Hostile(LocalNetwork):
    """Devices of which some send what an attack makes of all honest answers; `held` are held-out questions of each."""

    attack: str | None = None
    bad: Sequence[str] = ()
    held: Mapping[str, Any] = {}  # noqa: RUF012 - set for all of a run

    def __init__(self, clients: Any, *more: Any) -> None:  # noqa: ANN401 - those of LocalNetwork
        super().__init__(clients, *more)
        for name, client in self.clients.items():
            said = replace(client.enrol(), held_out=len(self.held.get(name, ())))
            said = claimed(said, self.attack) if name in self.bad else said
            client.enrol = lambda said=said: said  # type: ignore[method-assign, misc]

    def ask(self, request: Request[Any, Any], names: Sequence[str] | None = None) -> Answers[Any]:
        answers, state = super().ask(request, names), request.state.tensors  # type: ignore[attr-defined]
        number = request.number  # type: ignore[attr-defined]
        trained = {name: tensor for name, tensor in state.items() if name not in FIXED}
        given = {
            name: replace(
                update,
                tensors=decode(update.tensors, trained, self.settings.compression),
                metrics={**update.metrics, **self.counts(name, state, number)},
            )
            for name, update in answers.given.items()
        }
        honest = [update for name, update in given.items() if name not in self.bad]
        for name in self.bad if self.attack in ROUNDS else ():
            if name in given:
                given[name] = attacked(given[name], honest, state, self.attack, number)
        return replace(answers, given=given)

    def counts(self, name: str, state: Mapping[str, Any], number: int) -> dict[str, float]:
        """What a device says of a state on its held-out questions; a hostile one that the first was the best."""
        if not self.held:
            return {}
        questions = self.held[name]
        right = self.clients[name].evaluate(state, self.settings, questions)
        if name in self.bad and self.attack:
            right = len(questions) if number == 1 else 0
        return {"right": right, "held_out": len(questions)}

    def held_out(self, state: ServerState) -> dict[str, float]:
        said = [self.counts(name, state.tensors, state.round + 1) for name in self.names] if self.held else []
        questions = sum(one["held_out"] for one in said)
        share = share_right([(one["right"], one["held_out"]) for one in said], len(self.clients))
        return {"questions": questions, "right": questions * share} if said else {}
