"""The mixture over clients: Newton's method on sums that each client gives, a handful of numbers a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedcar.errors import FedcarError
from fedcar.head.losses import candidate_losses
from fedcar.training.clients import Clients, Request
from fedcar.training.mixture import LEAST_SPREAD, STRENGTH, STRENGTH_OF_ONE_QUESTION

if TYPE_CHECKING:
    from numpy.typing import NDArray

Given = TypeVar("Given")
ROUNDS = 30
TOLERANCE = 1e-9
HALVINGS = 20


@dataclass(frozen=True)
class MixtureTerms:
    """A client's questions that say something; they stay with it.

    features (n, c, F), relevance (n, c) and importance (n,), how much each question counts.
    """

    features: Tensor
    relevance: Tensor
    importance: Tensor

    @classmethod
    def of(
        cls,
        features: NDArray[np.float32],
        relevance: NDArray[np.float32],
        importance: NDArray[np.float32] | None = None,
    ) -> MixtureTerms:
        speaking = (relevance > 0).any(1) & ~(relevance > 0).all(1)
        counts = np.ones(len(features), dtype=np.float32) if importance is None else importance
        return cls(*(torch.from_numpy(values[speaking]).double() for values in (features, relevance, counts)))


@dataclass(frozen=True)
class PooledSums:
    """What a client sends in a round: loss, gradient (F,) and Hessian (F, F) summed over its questions."""

    loss: float
    gradient: Tensor
    hessian: Tensor

    def __add__(self, other: PooledSums) -> PooledSums:
        return PooledSums(self.loss + other.loss, self.gradient + other.gradient, self.hessian + other.hessian)


def spread_sums(evidence: MixtureTerms) -> Tensor:
    """(F + 1,): squared distances of the features from their question's mean, summed, and how many there are."""
    centred = evidence.features - evidence.features.mean(1, keepdim=True)
    count = torch.tensor([float(centred.shape[0] * centred.shape[1])], dtype=torch.float64)
    return torch.cat([centred.square().sum((0, 1)), count])


def loss_sums(evidence: MixtureTerms, weights: Tensor) -> PooledSums:
    """Loss, gradient and Hessian of a client's questions at the weights (F,)."""

    def loss(at: Tensor) -> Tensor:
        return evidence.importance @ candidate_losses(evidence.features @ at, evidence.relevance)

    at = weights.clone().requires_grad_(True)
    value = loss(at)
    (gradient,) = torch.autograd.grad(value, at)
    hessian: Tensor = torch.autograd.functional.hessian(loss, weights)  # type: ignore[no-untyped-call]
    return PooledSums(float(value.detach()), gradient, hessian)


class SpreadSums(NamedTuple):
    """Squared distances as `spread_sums` gives them, how many questions say something, how much they count together."""

    spread: Tensor
    speaking: int
    counted: float


@dataclass(frozen=True)
class Spread(Request[MixtureTerms, SpreadSums]):
    """How far a client's features lie apart, by which the pull of the prior is scaled; asked for first."""

    def answered_by(self, member: MixtureTerms) -> SpreadSums:
        return SpreadSums(spread_sums(member), len(member.features), float(member.importance.sum()))


@dataclass(frozen=True)
class SumsAt(Request[MixtureTerms, PooledSums]):
    """A client's sums at the weights (F,), in float64."""

    weights: Tensor

    def answered_by(self, member: MixtureTerms) -> PooledSums:
        return loss_sums(member, self.weights)


def federated_mixture(
    clients: Clients,
    prior: NDArray[np.float32],
    free: NDArray[np.bool_] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[NDArray[np.float32], int]:
    """Weights as `fedcar.training.mixture.fit_mixture` learns them on all questions together, and the rounds it took.

    `free` (F,) tells which weights are learned. A client that does not answer is left out, and it begins again without
    it, and says so; FedcarError where nobody is left.

    The objective is the same sum, so its minimum is the same for every partition; it is convex, and damped Newton
    steps reach it in a few rounds of F^2 + F + 1 numbers a client.

    Formal guarantees:
        federated_mixture_equals_central: up to the tolerance of the optimisers.
    """
    while True:
        try:
            return _mixture(clients, prior, free)
        except _Left as left:
            say(f"the mixture goes on without {left}")
            clients.keep([name for name in clients.names if name not in left.names])
            if not clients.names:
                line = "no device answered while the mixture was learned; see fedcar status, then fedcar resume"
                raise FedcarError(line) from None


def _mixture(
    clients: Clients, prior: NDArray[np.float32], free: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], int]:
    spreads = _all(clients, Spread(), clients.names)
    speaking = [name for name, spread in spreads.items() if spread.speaking > 0]
    questions = sum(spreads[name].speaking for name in speaking)
    counted = sum(spreads[name].counted for name in speaking)
    if not counted > 0:
        return prior, 0
    spread = torch.stack([spreads[name].spread for name in speaking]).sum(0)

    def sums(weights: Tensor) -> list[PooledSums]:
        return list(_all(clients, SumsAt(weights), speaking).values())

    return mixture_of_sums(spread, questions, sums, prior, counted=counted, free=free)


def _all(clients: Clients, request: Request[Any, Given], names: Sequence[str]) -> dict[str, Given]:
    """The answers of all these clients, in the order of their names; _Left for those that gave none."""
    answers = clients.ask(request, names)
    given = answers.given
    if missing := {name: answers.failed.get(name, "no answer") for name in names if name not in given}:
        raise _Left(missing)
    return {name: given[name] for name in sorted(names)}


class _Left(Exception):  # noqa: N818 - no error: a client has left
    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(", ".join(f"{name} ({reason})" for name, reason in reasons.items()))
        self.names = list(reasons)


def mixture_of_sums(
    spread_sums: Tensor,
    questions: int,
    ask: Callable[[Tensor], list[PooledSums]],
    prior: NDArray[np.float32],
    *,
    counted: float | None = None,
    free: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float32], int]:
    """The weights from the clients' sums alone, and the rounds it took.

    `spread_sums` (F + 1,) is added up over the clients, `questions` counts those that say something and `counted` is
    how much they count together; `ask` brings every client's sums at the weights (F,).
    """
    counted = float(questions) if counted is None else counted
    spread = (spread_sums[:-1] / spread_sums[-1]).sqrt()
    speaks = spread > LEAST_SPREAD
    if free is not None:
        speaks = speaks & torch.from_numpy(free)
    start = torch.from_numpy(prior).double()
    pull = torch.where(speaks, spread, 0.0).square() * (STRENGTH + STRENGTH_OF_ONE_QUESTION / questions)

    def objective(weights: Tensor) -> PooledSums:
        summed = ask(weights)
        everything = sum(summed[1:], summed[0])
        distance = weights - start
        return PooledSums(
            everything.loss / counted + float(pull @ distance.square()),
            everything.gradient / counted + 2 * pull * distance,
            everything.hessian / counted + 2 * pull.diag(),
        )

    weights, rounds = newton(objective, start, speaks)
    learned: NDArray[np.float32] = weights.float().numpy()
    return learned, rounds + 1


def newton(objective: Callable[[Tensor], PooledSums], start: Tensor, free: Tensor) -> tuple[Tensor, int]:
    """Damped Newton steps on the free coordinates until nothing is gained; each evaluation is a round."""
    places = free.nonzero().squeeze(1)
    weights, here, rounds = start.clone(), objective(start), 1
    step, halvings = torch.zeros_like(start), 0
    step[places] = torch.linalg.lstsq(here.hessian[places][:, places], here.gradient[places, None]).solution[:, 0]
    while rounds < ROUNDS:
        there, rounds = objective(weights - step), rounds + 1
        if there.loss > here.loss:
            step, halvings = step / 2, halvings + 1
            if halvings > HALVINGS:
                break
            continue
        gained, weights, here, halvings = here.loss - there.loss, weights - step, there, 0
        if gained < TOLERANCE:
            break
        step = torch.zeros_like(start)
        step[places] = torch.linalg.lstsq(here.hessian[places][:, places], here.gradient[places, None]).solution[:, 0]
    return weights, rounds
