"""The method `ridge` over clients: sums in one round, exact; then how much they count, by a few numbers a round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from fedcar.closed_form import Ridge
from fedcar.feature_map import FeatureMap
from fedcar.features import FeatureCache
from fedcar.federation.additive import statistics_of, sums_of, total
from fedcar.federation.mixture import Evidence, federated_mixture
from fedcar.folds import SAMPLE, Folds
from fedcar.naive_bayes import NaiveBayes
from fedcar.pseudo_queries import PseudoQueries
from fedcar.questions import Questions
from fedcar.reference import reference_states
from fedcar.retriever import Retriever
from fedcar.ridge import STRENGTHS, Asked, HeldOut, PseudoSums, Sums, Taught, right_without, weightings
from fedcar.selection import Fitted, Standard

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    retriever: Retriever, shares: Mapping[str, Questions], cache: FeatureCache, seed: int, pseudo: PseudoQueries
) -> RidgeRound:
    """`fedcar.ridge.fit_ridge` with the questions on clients.

    One round sums statistics and word counts. The server solves at every strength and sends the solutions; each client
    says how often each is right on its own questions, left out one by one, and gives its part of the mixture's Newton
    steps. A document's questions are left out together as far as one client has them. The pseudo-queries come from the
    documents: the server adds them once.

    Formal guarantees:
        ridge_federated_equals_central: rows and words are those of all questions in one place, up to rounding.
    """
    fixed = FeatureMap.of_reference(reference_states(retriever.encoder, cache), seed)
    document_rows = {document.id: row for row, document in enumerate(retriever.documents)}
    asked, seconds, parts = {}, {}, {}
    for name, share in sorted(shares.items()):
        start = time.perf_counter()
        asked[name] = Asked.of(share, fixed, document_rows)
        parts[name] = asked[name].sums()
        seconds[name] = round(time.perf_counter() - start, 4)
    taught = Taught(summed(parts), PseudoSums.of(pseudo, document_rows, retriever, fixed, cache))
    questions = sum(map(len, shares.values()))
    folds = taught.folds(seed)
    samples = {name: part_of_sample(one, folds, questions, seed) for name, one in asked.items()}
    ridge = max(taught.solutions(), key=lambda ridge: sum(right_without(ridge, one) for one in samples.values()))
    held = {name: HeldOut.of(ridge, taught, one, folds, retriever.empty) for name, one in samples.items()}
    exchanges = 2

    def fit(share: float, prior: NDArray[np.float32], free: NDArray[np.bool_]) -> NDArray[np.float32]:
        nonlocal exchanges
        evidence = {name: Evidence.of(*one.stacked(share)) for name, one in held.items()}
        weights, rounds = federated_mixture(evidence, prior, free)
        exchanges += rounds
        return weights

    def unseen_success(weights: NDArray[np.float32]) -> float:
        """Each client says how many of its sampled questions are right."""
        right = sum(one.unseen_success(weights) * len(one.relevance) for one in held.values())
        return right / sum(len(one.relevance) for one in held.values())

    found = taught.retriever(retriever, ridge, fixed)
    fitted = Fitted(found, weightings(fit, unseen_success, found.weights, folds))
    down = len(shares) * (len(STRENGTHS) * bytes_of_solution(ridge) + bytes_of_words(taught.words))
    up = sum(bytes_of_sums(part) for part in parts.values())
    return RidgeRound(fitted, Standard(folds.share, unseen_success), exchanges, down, up, seconds)


def summed(parts: Mapping[str, Sums]) -> Sums:
    """The sums of all clients, in float64 and in the order of their names."""
    statistics = statistics_of(total({name: sums_of(part.statistics) for name, part in parts.items()}))
    return Sums(statistics, reduce(add, (part.words for _, part in sorted(parts.items()))))


def bytes_of_sums(part: Sums) -> int:
    """What a client sends: half of the symmetric gram, the columns of its own documents, its words."""
    dimension, own = len(part.statistics.gram), int((part.statistics.counts > 0).sum())
    return 4 * int(dimension * (dimension + 1) // 2 + own * (dimension + 2)) + bytes_of_words(part.words)


def bytes_of_solution(ridge: Ridge) -> int:
    """What the server sends of one solution: the rows, and half of the factor for leaving questions out."""
    dimension, documents = ridge.weights.shape
    return 4 * int(dimension * (dimension + 1) // 2 + int(ridge.weights.any(axis=0).sum()) * dimension + documents)


def bytes_of_words(words: NaiveBayes) -> int:
    return int(words.counts.nnz * 8 + 4 * (words.counts.shape[0] + 1))


def part_of_sample(asked: Asked, folds: Folds, questions: int, seed: int) -> Asked:
    """A client's share of the sample on which strength and weights are learned."""
    size = max(1, round(SAMPLE * len(asked.questions) / questions))
    return asked.take(folds.sample(asked.targets, np.random.default_rng(seed), size))
