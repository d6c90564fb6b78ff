"""The mixture over clients: Newton's method on sums that each client gives, a handful of numbers a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedcar.errors import FedcarError
from fedcar.head.losses import candidate_losses
from fedcar.training.clients import MANY, Clients, Request
from fedcar.training.mixture import LEAST_SPREAD, STRENGTH, STRENGTH_OF_ONE_QUESTION

if TYPE_CHECKING:
    from numpy.typing import NDArray

Given = TypeVar("Given")
ROUNDS = 30
TOLERANCE = 1e-9
HALVINGS = 20
FAR = 30.0  # times the median of what devices' questions count together
STRANGE = 4.0  # times the median of devices' mean squared spreads
DISAGREED = 0.01  # nats a question that the usual device would win by other weights


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
    many: bool = False,
) -> tuple[NDArray[np.float32], int]:
    """Weights as `fedcar.training.mixture.fit_mixture` learns them on all questions together, and the rounds it took.

    From five clients on, weights that most of them would gladly leave are not kept: those are learned that suit the
    usual client (of every sum a question the median), and who is at odds with them is named. Where nobody is strange
    the weights are those of all questions. `many` says that there were five, though some have been left out since.

    `free` (F,) tells which weights are learned. A client that does not answer is left out, and it begins again without
    it, and says so; FedcarError where nobody is left.

    The objective is the same sum, so its minimum is the same for every partition; it is convex, and damped Newton
    steps reach it in a few rounds of F^2 + F + 1 numbers a client.

    Formal guarantees:
        federated_mixture_equals_central: up to the tolerance of the optimisers.
    """
    while True:
        try:
            return _mixture(clients, prior, free, say, many)
        except _Left as left:
            say(f"the mixture goes on without {left}")
            clients.keep([name for name in clients.names if name not in left.names])
            if not clients.names:
                line = "no device answered while the mixture was learned; see fedcar status, then fedcar resume"
                raise FedcarError(line) from None


def _mixture(
    clients: Clients, prior: NDArray[np.float32], free: NDArray[np.bool_] | None, say: Callable[[str], None], many: bool
) -> tuple[NDArray[np.float32], int]:
    spreads = _all(clients, Spread(), clients.names)
    speaking = [name for name, spread in spreads.items() if spread.speaking > 0]
    questions = sum(spreads[name].speaking for name in speaking)
    counted = sum(spreads[name].counted for name in speaking)
    if not counted > 0:
        return prior, 0
    spread = usual_spread([spreads[name].spread for name in speaking])

    def sums(weights: Tensor) -> list[PooledSums]:
        return list(_all(clients, SumsAt(weights), speaking).values())

    pull = Pull.of(spread, questions, prior, free)
    weights, rounds = mixture_of_sums(pull, sums, counted)
    if len(speaking) < MANY and not (many and len(speaking) > 2):
        return weights.float().numpy(), rounds
    each = [max(spreads[name].counted, 1e-9) for name in speaking]
    here = dict(zip(speaking, sums(weights), strict=True))
    if agreed(here, each, pull, weights):
        return weights.float().numpy(), rounds + 1
    weights, more = newton(lambda at: usual(sums(at), each, pull, at), pull.start, pull.speaks)
    name = strangest(dict(zip(speaking, sums(weights), strict=True)), each, pull, weights)
    say(f"{name}: its sums for the mixture are at odds with most devices'; weights that suit most were learned instead")
    return weights.float().numpy(), rounds + more + 2


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


@dataclass(frozen=True)
class Pull:
    """Where weights (F,) start, how strongly each is pulled back, and which are learned."""

    start: Tensor
    strength: Tensor
    speaks: Tensor

    @classmethod
    def of(
        cls, spread_sums: Tensor, questions: int, prior: NDArray[np.float32], free: NDArray[np.bool_] | None = None
    ) -> Pull:
        """`spread_sums` (F + 1,) is added up over the clients, `questions` counts those that say something."""
        spread = (spread_sums[:-1] / spread_sums[-1]).sqrt()
        speaks = spread > LEAST_SPREAD
        if free is not None:
            speaks = speaks & torch.from_numpy(free)
        strength = torch.where(speaks, spread, 0.0).square() * (STRENGTH + STRENGTH_OF_ONE_QUESTION / questions)
        return cls(torch.from_numpy(prior).double(), strength, speaks)

    def added(self, mean: PooledSums, weights: Tensor) -> PooledSums:
        """The objective of a mean over questions."""
        distance = weights - self.start
        return PooledSums(
            mean.loss + float(self.strength @ distance.square()),
            mean.gradient + 2 * self.strength * distance,
            mean.hessian + 2 * self.strength.diag(),
        )


def mixture_of_sums(pull: Pull, ask: Callable[[Tensor], list[PooledSums]], counted: float) -> tuple[Tensor, int]:
    """The weights from the clients' sums alone, and the rounds it took.

    `counted` is how much all questions count together; `ask` brings every client's sums at the weights (F,).
    """

    def objective(weights: Tensor) -> PooledSums:
        summed = ask(weights)
        everything = sum(summed[1:], summed[0])
        mean = PooledSums(everything.loss / counted, everything.gradient / counted, everything.hessian / counted)
        return pull.added(mean, weights)

    weights, rounds = newton(objective, pull.start, pull.speaks)
    return weights, rounds + 1


# ---------------------------------------------------------------- where five or more take part


def usual_spread(spreads: Sequence[Tensor]) -> Tensor:
    """The spreads (F + 1,) of all devices added up; from five on none's mean counts more than four times the median."""
    together = torch.stack(list(spreads))
    if len(together) >= MANY:
        means = together[:, :-1] / together[:, -1:].clamp(min=1e-9)
        together[:, :-1] = means.minimum(STRANGE * means.median(0).values) * together[:, -1:]
    return together.sum(0)


def usual(sums: Sequence[PooledSums], counted: Sequence[float], pull: Pull, weights: Tensor) -> PooledSums:
    """The objective of the usual device: of each number a question the median over devices."""
    each = [
        (one.loss / count, one.gradient / count, one.hessian / count) for one, count in zip(sums, counted, strict=True)
    ]
    losses, gradients, hessians = zip(*each, strict=True)
    middle = PooledSums(median(losses), torch.stack(gradients).median(0).values, torch.stack(hessians).median(0).values)
    return pull.added(middle, weights)


def agreed(sums: Mapping[str, PooledSums], counted: Sequence[float], pull: Pull, weights: Tensor) -> bool:
    """Whether the usual device would win next to nothing by other weights: half the Newton decrement, a question.

    Where it would win more, and more than few questions do by chance (a half for each weight), somebody has pulled the
    weights away from where most devices want them.
    """
    middle = usual(list(sums.values()), counted, pull, weights)
    places = pull.speaks.nonzero().squeeze(1)
    gradient, hessian = middle.gradient[places], middle.hessian[places][:, places]
    step = torch.linalg.lstsq(hessian, gradient[:, None]).solution[:, 0]
    won, by_chance = float(gradient @ step) / 2, len(places) / median(counted)
    return bool(torch.isfinite(step).all()) and won < max(DISAGREED, by_chance)


def strangest(sums: Mapping[str, PooledSums], counted: Sequence[float], pull: Pull, weights: Tensor) -> str:
    """The device that says it has far more questions than most, or whose gradient is farthest from theirs."""
    most = max(range(len(counted)), key=lambda place: counted[place])
    if counted[most] > FAR * median(counted):
        return list(sums)[most]
    gradients = torch.stack([one.gradient / count for one, count in zip(sums.values(), counted, strict=True)])
    away = (gradients - gradients.median(0).values) / pull.strength.clamp(min=1e-12).sqrt()
    return list(sums)[int(away[:, pull.speaks].norm(dim=1).argmax())]


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
