"""The method `ridge` over clients: sums in one round, exact; then how much they count, by a few numbers a round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedcar.collection.pseudo_queries import PseudoQueries
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.reference import reference_states
from fedcar.errors import FedcarError
from fedcar.federation.sums.additive import statistics_of, sums_of, total
from fedcar.federation.sums.mixture import MixtureTerms, federated_mixture
from fedcar.head.closed_form import Ridge, Statistics
from fedcar.head.feature_map import FeatureMap
from fedcar.head.naive_bayes import NaiveBayes
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.clients import Clients, InProcess
from fedcar.training.folds import SAMPLE, Folds
from fedcar.training.ridge import (
    MOST_ROWS,
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


class RidgeClients(Protocol):
    """The clients' side of the round, in this process (`LocalRidge`) or behind a network; what they answer is summed.

    `failed` says which of them answered something else, and why.
    """

    seconds: dict[str, float]
    failed: dict[str, str]

    def sums(self) -> Mapping[str, RidgeSums]:
        """Each client's statistics and words."""
        ...

    def choose(self, taught: Taught) -> Ridge:
        """The strength at which most sampled questions are right when each is left out, and its solution."""
        ...

    def mixing(self, share: float) -> Clients:
        """The clients as the mixture asks them: of sampled questions that are left out, by that solution."""
        ...

    def unseen_success(self, weights: NDArray[np.float32]) -> float:
        """How many sampled questions are right on document folds, as a share."""
        ...


@dataclass(frozen=True)
class RidgeRound:
    """The retriever with the mixtures to choose among, what document folds ask of them, and what the round cost.

    Bytes are those of all clients together, CPU seconds those of each client's sums.
    """

    fitted: Fitted
    standard: Standard
    exchanges: int
    bytes_down: int
    bytes_up: int
    client_seconds: Mapping[str, float]


def federated_ridge(
    retriever: Retriever, clients: RidgeClients, cache: FeatureCache, seed: int, pseudo: PseudoQueries
) -> RidgeRound:
    """`fedcar.training.ridge.fit_ridge` with the questions on clients.

    One round sums statistics and word counts. The server sends the sums; each client solves at every strength, says
    how often each is right on its own questions, left out one by one, and gives its part of the mixture's Newton
    steps. A document's questions are left out together as far as one client has them. The pseudo-queries come from the
    documents: the server adds them once.

    Formal guarantees:
        ridge_federated_equals_central: rows and words are those of all questions in one place, up to rounding.
        over_a_network_equals_in_process: what clients hear is the same there.

    Raises FedcarError past `MOST_ROWS` documents: which of them have questions is a client's own, so there is a column
    for each.
    """
    if len(retriever.documents) > MOST_ROWS:
        raise FedcarError(
            f"--method ridge: over clients every document gets a column, at most {MOST_ROWS:,}, and here are "
            f"{len(retriever.documents):,}; take --method head"
        )
    fixed = feature_map(retriever, cache, seed)
    parts = clients.sums()
    taught = joined(summed(parts), PseudoSums.of(pseudo, rows_of(retriever), retriever, fixed, cache))
    ridge = clients.choose(taught)
    exchanges = 2

    def fit(share: float, prior: NDArray[np.float32], free: NDArray[np.bool_]) -> NDArray[np.float32]:
        nonlocal exchanges
        weights, rounds = federated_mixture(clients.mixing(share), prior, free)
        exchanges += rounds
        return weights

    folds = taught.folds(seed)
    found = taught.retriever(retriever, ridge, fixed)
    fitted = Fitted(found, weightings(fit, clients.unseen_success, found.weights, folds))
    up = sum(bytes_of_sums(part) for part in parts.values())
    down = len(parts) * bytes_of_taught(taught)
    return RidgeRound(fitted, Standard(folds.share, clients.unseen_success), exchanges, down, up, clients.seconds)


@dataclass
class RidgeMember:
    """One client in the round of `ridge`: its questions, and what it heard of everybody's sums.

    `solutions` are solved once for all clients of a process.
    """

    questions: RidgeQuestions
    seed: int
    empty: NDArray[np.bool_]
    sample: RidgeQuestions = field(init=False)
    held: HeldOut = field(init=False)

    @classmethod
    def of(cls, retriever: Retriever, share: Questions, fixed: FeatureMap, seed: int) -> RidgeMember:
        return cls(RidgeQuestions.of(share, fixed, rows_of(retriever)), seed, retriever.empty)

    def hear(self, taught: Taught) -> None:
        """Everybody's sums: which of its questions are looked at follows from them."""
        self.sample = part_of_sample(self.questions, taught.folds(self.seed), taught.statistics.questions, self.seed)

    def hold_out(self, ridge: Ridge, taught: Taught) -> None:
        """What this solution would say of its questions if they had not been trained on."""
        self.held = HeldOut.of(ridge, taught, self.sample, taught.folds(self.seed), self.empty)

    def evidence(self, share: float) -> MixtureTerms:
        return MixtureTerms.of(*self.held.stacked(share))

    def unseen_right(self, weights: NDArray[np.float32]) -> tuple[float, int]:
        """How many of its sampled questions are right on document folds, and of how many."""
        return self.held.unseen_success(weights) * len(self.held.relevance), len(self.held.relevance)


class LocalRidge:
    """Clients of this process in the round of `ridge`."""

    def __init__(self, retriever: Retriever, shares: Mapping[str, Questions], cache: FeatureCache, seed: int) -> None:
        fixed = feature_map(retriever, cache, seed)
        self.failed: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.members: dict[str, RidgeMember] = {}
        self.parts: dict[str, RidgeSums] = {}
        for name, share in sorted(shares.items()):
            start = time.perf_counter()
            self.members[name] = RidgeMember.of(retriever, share, fixed, seed)
            self.parts[name] = self.members[name].questions.sums()
            self.seconds[name] = round(time.perf_counter() - start, 4)

    def sums(self) -> dict[str, RidgeSums]:
        return self.parts

    def choose(self, taught: Taught) -> Ridge:
        members = list(self.members.values())
        for member in members:
            member.hear(taught)
        ridge = max(taught.solutions(), key=lambda ridge: sum(right_without(ridge, one.sample) for one in members))
        for member in members:
            member.hold_out(ridge, taught)
        return ridge

    def mixing(self, share: float) -> InProcess[MixtureTerms]:
        return InProcess({name: member.evidence(share) for name, member in self.members.items()})

    def unseen_success(self, weights: NDArray[np.float32]) -> float:
        return share_of_right([member.unseen_right(weights) for member in self.members.values()])


def share_of_right(counts: list[tuple[float, int]]) -> float:
    """Of clients' right answers and questions; a client that says more than all were right is left out."""
    possible = [(right, questions) for right, questions in counts if 0 <= right <= questions]
    return sum(right for right, _ in possible) / max(1, sum(questions for _, questions in possible))


def rows_of(retriever: Retriever) -> dict[str, int]:
    return {document.id: row for row, document in enumerate(retriever.documents)}


def feature_map(retriever: Retriever, cache: FeatureCache, seed: int) -> FeatureMap:
    """The same on every client: nothing in it comes from a question."""
    return FeatureMap.of_reference(reference_states(retriever.encoder, cache), seed)


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


def part_of_sample(own: RidgeQuestions, folds: Folds, questions: int, seed: int) -> RidgeQuestions:
    """A client's share of the sample on which strength and weights are learned; `questions` are those of all."""
    size = max(1, round(SAMPLE * len(own.questions) / questions))
    return own.take(folds.sample(own.targets, np.random.default_rng(seed), size))
