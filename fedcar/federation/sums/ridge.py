"""The method `ridge` over clients: sums in one round, exact; then how much they count, by a few numbers a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import add
from statistics import median_low
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from fedcar.collection.pseudo_queries import PseudoQueries
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.reference import reference_states
from fedcar.errors import FedcarError
from fedcar.federation.rounds.robust import share_right
from fedcar.federation.sums.additive import statistics_of, sums_of, total
from fedcar.federation.sums.harm import SumsJudge, left_out
from fedcar.federation.sums.mixture import MixtureTerms, federated_mixture
from fedcar.head.closed_form import Ridge, Statistics, solve
from fedcar.head.feature_map import FeatureMap
from fedcar.head.naive_bayes import NaiveBayes
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.clients import MANY, Answers, Clients, Request
from fedcar.training.folds import SAMPLE, Folds
from fedcar.training.ridge import (
    MOST_ROWS,
    STRENGTHS,
    HeldOut,
    PseudoSums,
    RidgeQuestions,
    RidgeSums,
    Taught,
    right_without,
    weightings,
)
from fedcar.training.selection import Fitted, Standard

if TYPE_CHECKING:
    from numpy.typing import NDArray

Given = TypeVar("Given")


class Solution(NamedTuple):
    """Ridge at a strength; only the strength travels, as a device solves for itself."""

    strength: float
    ridge: Ridge


@dataclass
class RidgeMember:
    """One client in the round of `ridge`: its questions, and what it heard of everybody's sums."""

    retriever: Retriever
    share: Questions
    fixed: FeatureMap
    seed: int
    taught: Taught | None = field(init=False, default=None)
    sample: RidgeQuestions = field(init=False)
    held: HeldOut = field(init=False)
    strength: float = field(init=False, default=0.0)

    @cached_property
    def questions(self) -> RidgeQuestions:
        return RidgeQuestions.of(self.share, self.fixed, rows_of(self.retriever), self.retriever.evidence.wording)

    def hear(self, taught: Taught) -> None:
        """Everybody's sums: which of its questions are looked at follows from them."""
        self.taught, self.strength = taught, 0.0
        self.sample = part_of_sample(self.questions, taught.folds(self.seed), taught.statistics.questions, self.seed)

    def held_out_by(self, solution: Solution) -> HeldOut:
        """What this solution would say of its sampled questions if they had not been trained on."""
        assert self.taught is not None
        if solution.strength != self.strength:
            folds = self.taught.folds(self.seed)
            self.held = HeldOut.of(solution.ridge, self.taught, self.sample, folds, self.retriever.empty)
            self.strength = solution.strength
        return self.held

    def evidence(self, solution: Solution, share: float) -> MixtureTerms:
        """Its sampled questions as the mixture sees them, each left out."""
        return MixtureTerms.of(*self.held_out_by(solution).stacked(share))


# ---------------------------------------------------------------- what clients are asked for


class MeasuredSums(NamedTuple):
    """A client's statistics and words, and the CPU seconds they took; None where nobody measured."""

    sums: RidgeSums
    seconds: float | None = None


@dataclass(frozen=True)
class QuestionSums(Request[RidgeMember, MeasuredSums]):
    """A client's statistics and words; asked for first."""

    def answered_by(self, member: RidgeMember) -> MeasuredSums:
        start = time.perf_counter()
        sums = member.questions.sums()
        return MeasuredSums(sums, round(time.perf_counter() - start, 4))


@dataclass(frozen=True)
class RightByStrength(Request[RidgeMember, Sequence[float]]):
    """How many sampled questions are right at each strength when each is left out, once everybody's sums are heard."""

    taught: Taught

    @cached_property
    def ridges(self) -> tuple[Ridge, ...]:
        """Solved once for all clients of a process."""
        return tuple(self.taught.solutions())

    def answered_by(self, member: RidgeMember) -> list[float]:
        member.hear(self.taught)
        return [right_without(ridge, member.sample) for ridge in self.ridges]


@dataclass(frozen=True)
class OfLeftOut(Request[RidgeMember, Given]):
    """What the mixture asks, asked of sampled questions that are left out; document folds count by `share`."""

    solution: Solution
    share: float
    request: Request[MixtureTerms, Given]

    def answered_by(self, member: RidgeMember) -> Given:
        return self.request.answered_by(member.evidence(self.solution, self.share))


class RightCounts(NamedTuple):
    """How many of a client's sampled questions are right on document folds, and of its held-out ones, of how many."""

    right: float
    questions: int
    held_out_right: int = 0
    held_out: int = 0


@dataclass(frozen=True)
class RightOnFolds(Request[RidgeMember, RightCounts]):
    """How many questions are right with these weights (F,)."""

    solution: Solution
    weights: NDArray[np.float32]

    def answered_by(self, member: RidgeMember) -> RightCounts:
        held = member.held_out_by(self.solution)
        return RightCounts(held.unseen_success(self.weights) * len(held.relevance), len(held.relevance))


class LeftOutClients:
    """Clients in the round of `ridge` as the mixture asks them; who fails there is left out of that mixture alone."""

    def __init__(self, clients: Clients, solution: Solution, share: float) -> None:
        self.clients, self.solution, self.share = clients, solution, share
        self.names = list(clients.names)

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        request = OfLeftOut(self.solution, self.share, request)
        return self.clients.ask(request, self.names if names is None else names)

    def keep(self, names: Sequence[str]) -> None:
        self.names = list(names)


# ---------------------------------------------------------------- the round


@dataclass
class Gathered:
    """Each client's sums and their CPU seconds; `failed` says who gave no answer since, and why.

    `refused` says whose sums were left out (see `left_out`).
    """

    sums: Mapping[str, RidgeSums]
    seconds: Mapping[str, float]
    failed: dict[str, str]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def clients(self) -> int:
        """How many gave sums."""
        return len(self.sums) + len(self.refused)

    def answers(self, clients: Clients, request: Request[RidgeMember, Given]) -> list[Given]:
        """What clients answer, in the order of their names; FedcarError where none does."""
        answers = clients.ask(request)
        self.failed = {name: why for name, why in self.failed.items() if name not in answers.given}
        self.failed.update(answers.failed)
        if not answers.given:
            raise FedcarError("no device answers any more; see fedcar status, then fedcar resume")
        return [answer for _, answer in sorted(answers.given.items())]


def gather(retriever: Retriever, clients: Clients, judge: SumsJudge | None = None) -> Gathered:
    """Ask every client for its sums, once for all candidates; who gives none is not asked again.

    Raises FedcarError past `MOST_ROWS` documents: which of them have questions is a client's own, so there is a column
    for each. And where nobody gives any sums. Who surely harms the judge's questions is left out of all that follows
    (see `left_out`).
    """
    if len(retriever.documents) > MOST_ROWS:
        raise FedcarError(
            f"--method ridge: over clients every document gets a column, at most {MOST_ROWS:,}, and here are "
            f"{len(retriever.documents):,}; take --method head"
        )
    answers = clients.ask(QuestionSums())
    if not answers.given:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(answers.failed.items())[:5])
        raise FedcarError(f"no device gave any sums ({reasons}); see fedcar doctor on them, then fedcar resume")
    given = dict(sorted(answers.given.items()))
    refused = left_out({name: answer.sums for name, answer in given.items()}, judge)
    given = {name: answer for name, answer in given.items() if name not in refused}
    clients.keep(list(given))
    seconds = {name: answer.seconds for name, answer in given.items() if answer.seconds is not None}
    sums = {name: answer.sums for name, answer in given.items()}
    return Gathered(sums, seconds, dict(answers.failed), refused)


@dataclass(frozen=True)
class RidgeRound:
    """The retriever with the mixtures to choose among, what document folds ask of them, and what the round cost.

    `held_out` is the share of the clients' held-out questions that is right with each mixture's weights. Bytes are
    those of all clients together.
    """

    fitted: Fitted
    standard: Standard
    held_out: Mapping[bytes, float]
    exchanges: int
    bytes_down: int
    bytes_up: int


def federated_ridge(
    retriever: Retriever,
    clients: Clients,
    gathered: Gathered,
    cache: FeatureCache,
    seed: int,
    pseudo: PseudoQueries,
    say: Callable[[str], None] = lambda line: None,
) -> RidgeRound:
    """`fedcar.training.ridge.fit_ridge` with the questions on clients, whose sums were gathered (see `gather`).

    One round sums statistics and word counts. The server sends the sums; each client solves at every strength, says
    how often each is right on its own questions, left out one by one, and gives its part of the mixture's Newton
    steps. From five clients on no one of them decides how much anything counts (see `together`, `share_right`,
    `federated_mixture`). A document's questions are left out together as far as one client has them. The pseudo-queries
    come from the documents: the server adds them once.

    Formal guarantees:
        ridge_federated_equals_central: rows and words are those of all questions in one place, up to rounding.
        over_a_network_equals_in_process: what clients hear is the same there.
    """
    fixed, parts = feature_map(retriever, cache, seed), gathered.sums
    taught = joined(summed(parts), PseudoSums.of(pseudo, rows_of(retriever), retriever, fixed, cache))
    right = together(gathered.answers(clients, RightByStrength(taught)), gathered.clients)
    strength = STRENGTHS[right.index(max(right))]
    solution = Solution(strength, solve(taught.statistics, strength))
    exchanges, held_out = 2, {}

    def fit(share: float, prior: NDArray[np.float32], free: NDArray[np.bool_]) -> NDArray[np.float32]:
        nonlocal exchanges
        asked = LeftOutClients(clients, solution, share)
        weights, rounds = federated_mixture(asked, prior, free, say, many=gathered.clients >= MANY)
        exchanges += rounds
        return weights

    def unseen_success(weights: NDArray[np.float32]) -> float:
        counts = gathered.answers(clients, RightOnFolds(solution, weights))
        held = possible((count.held_out_right, count.held_out) for count in counts)
        held_out[weights.tobytes()] = share_right(held, gathered.clients)
        return share_right(possible((count.right, count.questions) for count in counts), gathered.clients)

    folds = taught.folds(seed)
    learned = taught.retriever(retriever, solution.ridge, fixed)
    fitted = Fitted(learned, weightings(fit, unseen_success, learned.weights, folds))
    up = sum(bytes_of_sums(part) for part in parts.values())
    down = len(parts) * bytes_of_taught(taught)
    return RidgeRound(fitted, Standard(folds.share, unseen_success), held_out, exchanges, down, up)


def possible(counts: Iterable[tuple[float, int]]) -> list[tuple[float, int]]:
    """Of clients' right answers and questions; a client that says more than all were right is left out."""
    return [(right, questions) for right, questions in counts if 0 <= right <= questions]


def together(counts: Sequence[Sequence[float]], clients: int) -> list[float]:
    """Clients' right answers at each strength, added up; of five or more none moves the choice further than is usual.

    What moves it is by how much a client's counts differ from their mean. Their length is cut to twice the median.
    """
    each = np.array(counts, dtype=np.float64)
    if clients >= MANY:
        away = each - each.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(away, axis=1)
        longest = 2 * median_low(lengths.tolist())
        each = np.where((lengths > longest)[:, None], away * (longest / np.maximum(lengths, 1e-300))[:, None], each)
    return [float(count) for count in each.sum(axis=0)]


def rows_of(retriever: Retriever) -> dict[str, int]:
    return {document.id: row for row, document in enumerate(retriever.documents)}


def feature_map(retriever: Retriever, cache: FeatureCache, seed: int) -> FeatureMap:
    """The same on every client: nothing in it comes from a question."""
    return FeatureMap.of_reference(reference_states(retriever.encoder, cache), seed, retriever.evidence.view)


def summed(parts: Mapping[str, RidgeSums]) -> RidgeSums:
    """The sums of all clients, in float64 and in the order of their names."""
    statistics = statistics_of(total({name: sums_of(part.statistics) for name, part in parts.items()}))
    return RidgeSums(statistics, reduce(add, (part.words for _, part in sorted(parts.items()))))


def joined(sums: RidgeSums, pseudo: PseudoSums) -> Taught:
    """What clients hear: questions and pseudo-queries in one gram, exactly symmetric, since half of it travels."""
    statistics = pseudo.joined(sums.statistics)
    whole = statistics_of(sums_of(statistics))
    return Taught(
        RidgeSums(replace(whole, questions=statistics.questions), sums.words), replace(pseudo, statistics=None)
    )


def bytes_of_sums(part: RidgeSums) -> int:
    """What a client sends: half of the symmetric gram, the columns of its own documents, its words."""
    return bytes_of_statistics(part.statistics) + bytes_of_words(part.words)


def bytes_of_taught(taught: Taught) -> int:
    """What the server sends to a client: everybody's sums, with those of pseudo-queries."""
    words = bytes_of_words(taught.sums.words) + bytes_of_words(taught.pseudo.words)
    return bytes_of_statistics(taught.statistics) + words + 8 * len(taught.pseudo.counts)


def bytes_of_statistics(statistics: Statistics) -> int:
    dimension, columns = len(statistics.gram), int(statistics.cross.any(axis=0).sum())
    return 4 * (dimension * (dimension + 1) // 2 + columns * dimension) + 8 * (columns + len(statistics.counts))


def bytes_of_words(words: NaiveBayes) -> int:
    return int(words.counts.nnz * 8 + 8 * (words.counts.shape[0] + 1))


def part_of_sample(share: RidgeQuestions, folds: Folds, questions: int, seed: int) -> RidgeQuestions:
    """A client's share of the sample on which strength and weights are learned; `questions` are those of all."""
    size = max(1, round(SAMPLE * len(share.questions) / questions))
    return share.take(folds.sample(share.targets, np.random.default_rng(seed), size))
