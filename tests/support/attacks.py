"""What hostile devices send: a kept suite, as data. Each attack knows the honest answers of its round, and the defence.

Attacks on a round's update change its step (by name, in float64) and leave Adam's moments as they were received, so
that nothing of the device's questions helps by another way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedcar.federation.rounds.aggregate import STEPS
from fedcar.federation.rounds.compress import MOMENTS
from fedcar.federation.rounds.update import Update
from fedcar.federation.sums.mixture import PooledSums, SpreadSums

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
}


def attacked(own: Update, others: Sequence[Update], state: Mapping[str, Tensor], attack: str, number: int) -> Update:
    """What the device sends in place of its honest update."""
    told = Told(step_of(own, state), [step_of(one, state) for one in others], number)
    sent = dict(own.tensors)
    step = ROUNDS[attack](told)
    for name, tensor in step.items():
        sent[name] = (state[name].double() + tensor).to(state[name].dtype)
    if step is not told.own:
        sent |= {name: state[name].clone() for name in sent if name.startswith(MOMENTS) and name != STEPS}
    return replace(own, tensors=sent)


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
