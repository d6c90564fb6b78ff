"""The method `ridge`: rows in closed form, and a mixture learned on what they would say of questions they never saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from fedcar.closed_form import Ridge, Statistics, solve
from fedcar.feature_map import FeatureMap
from fedcar.features import FeatureCache
from fedcar.mixture import fit_mixture
from fedcar.naive_bayes import NaiveBayes, gram_counts
from fedcar.pseudo_queries import PseudoQueries
from fedcar.questions import Questions
from fedcar.reference import reference_states
from fedcar.retriever import LEARNED, Retriever
from fedcar.ridge_rows import RidgeRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE = 3000
TEXTS_AT_ONCE = 2048
STRENGTHS = (0.3, 1.0, 3.0, 10.0)
PRIOR = (10.0, 0.03)  # of rows and words, in the unit of the score


@dataclass(frozen=True)
class Asked:
    """Training questions as the sums see them: features (n, D), grams (n, BUCKETS) and targets (n, documents).

    `alone` (n,) tells which of them share their document with no other document's questions.
    """

    questions: Questions
    features: NDArray[np.float32]
    grams: sparse.csr_array
    targets: NDArray[np.float32]
    alone: NDArray[np.bool_]

    @classmethod
    def of(cls, questions: Questions, fixed: FeatureMap, document_rows: Mapping[str, int]) -> Asked:
        targets = questions.targets(document_rows)
        return cls(questions, fixed(questions.states), gram_counts(questions.texts), targets, alone(targets))

    def take(self, rows: NDArray[np.int64]) -> Asked:
        """The chosen questions, in that order."""
        parts = (self.features[rows], self.grams[rows], self.targets[rows], self.alone[rows])
        return Asked(self.questions.take(rows), *parts)

    def sums(self) -> Sums:
        return Sums(Statistics.of(self.features, self.targets), NaiveBayes.of(self.grams, self.targets))


@dataclass(frozen=True)
class Sums:
    """What is learned from questions, and adds up over clients: statistics of the closed form, counts of words."""

    statistics: Statistics
    words: NaiveBayes

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.statistics + other.statistics, self.words + other.words)


def fit_ridge(
    retriever: Retriever, training: Questions, cache: FeatureCache, seed: int, pseudo: PseudoQueries | None = None
) -> Retriever:
    """Solve for the rows and count the words, then learn how much both count beside the evidence.

    Pseudo-queries join by their weight and give rows to documents without questions. That a document has no question is
    no feature: left-out documents would teach that the right one is always such a document.
    """
    fixed = FeatureMap.of_reference(reference_states(retriever.encoder, cache), seed)
    document_rows = {document.id: row for row, document in enumerate(retriever.documents)}
    asked = Asked.of(training, fixed, document_rows)
    taught = Taught(asked.sums(), PseudoSums.of(pseudo or PseudoQueries(), document_rows, retriever, fixed, cache))
    sample = asked.take(sampled(asked.targets, not taught.all_asked, np.random.default_rng(seed)))
    ridge = max(taught.solutions(), key=lambda ridge: right_without(ridge, sample))
    features, relevance = held_out(ridge, taught, sample)
    return taught.retriever(retriever, ridge, fixed, fit_mixture(features, relevance, prior(retriever)))


@dataclass(frozen=True)
class Taught:
    """The sums of all questions, and those of pseudo-queries beside them."""

    asked: Sums
    pseudo: PseudoSums

    @cached_property
    def statistics(self) -> Statistics:
        return self.pseudo.joined(self.asked.statistics)

    @cached_property
    def words(self) -> NaiveBayes:
        return self.asked.words + self.pseudo.words

    @property
    def all_asked(self) -> bool:
        """Whether every document has a question."""
        return bool(self.statistics.counts.all())

    def solutions(self) -> Iterator[Ridge]:
        """Ridge at each strength."""
        return (solve(self.statistics, strength) for strength in STRENGTHS)

    def retriever(
        self, retriever: Retriever, ridge: Ridge, fixed: FeatureMap, weights: NDArray[np.float32]
    ) -> Retriever:
        """The retriever with these rows, words and weights."""
        rows = RidgeRows.of(ridge, fixed, self.statistics.counts, self.words, self.pseudo.counts)
        return replace(retriever, ridge=rows, weights=weights)


def prior(retriever: Retriever) -> NDArray[np.float32]:
    """What the weights are pulled to: those of the evidence as they are."""
    return np.concatenate([retriever.weights[:LEARNED], PRIOR]).astype(np.float32)


def right_without(ridge: Ridge, sample: Asked) -> float:
    """Of how many questions a right document comes first when each is left out: the sum of those documents' targets."""
    left_out = ridge.predict_without(sample.features, sample.targets, np.arange(len(sample.targets)))
    return float(np.take_along_axis(sample.targets, left_out.argmax(axis=1)[:, None], axis=1).sum())


def held_out(ridge: Ridge, taught: Taught, sample: Asked) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (m, c, F + 2) and relevance (m, c) of the sampled questions as if they had not been trained on.

    Every question twice: as one on a seen document (it alone left out) and, where there are documents without
    questions, as one on such a document (all questions of its document left out); pseudo-queries stay in both, as they
    do for documents that nobody asked about.
    """
    answers, counts = sample.targets > 0, taught.statistics.counts
    first = answers.argmax(axis=1)
    by_words = taught.words.scores_without(sample.grams, first)
    modes = [(np.arange(len(first)), by_words, (counts - answers == 0) & (taught.pseudo.counts == 0))]
    if not taught.all_asked:
        if taught.pseudo.counts.any():
            by_words = taught.words.scores_without(sample.grams, first, taught.asked.words.counts[first, :])
        untouched = (counts == 0) | answers
        silent = untouched & (taught.pseudo.counts == 0) | answers & ~sample.alone[:, None]
        modes.append((first, by_words, silent))
    features = []
    for groups, by_words, silent in modes:
        rows = ridge.predict_without(sample.features, sample.targets, groups)
        learned = np.where(silent[..., None], 0.0, np.stack([rows, by_words], axis=2)).astype(np.float32)
        learned = np.take_along_axis(learned, sample.questions.candidates[..., None], axis=1)
        features.append(np.concatenate([sample.questions.evidence, learned], axis=2))
    return np.concatenate(features), np.concatenate([sample.questions.relevance] * len(modes))


@dataclass(frozen=True)
class PseudoSums:
    """What the closed form and naive Bayes need of pseudo-queries; `counts` (documents,) are those of each document."""

    statistics: Statistics | None
    words: NaiveBayes
    counts: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        pseudo: PseudoQueries,
        document_rows: Mapping[str, int],
        retriever: Retriever,
        fixed: FeatureMap,
        cache: FeatureCache,
    ) -> PseudoSums:
        """Encode the texts (or find them in the cache) and sum their features and words, weighted."""
        rows = np.array([document_rows[identifier] for identifier in pseudo.document_ids], dtype=np.int64)
        places = (np.arange(len(rows)), rows)
        weights = sparse.csr_array((pseudo.weights, places), shape=(len(rows), len(document_rows)), dtype=np.float32)
        words = NaiveBayes(sparse.csr_array(weights.T @ gram_counts(pseudo.texts)))
        statistics = None
        with retriever.encoder.untrained():
            states = cache.states(retriever.encoder, pseudo.texts)
        for start in range(0, len(rows), TEXTS_AT_ONCE):
            part = slice(start, start + TEXTS_AT_ONCE)
            found = Statistics.of_pseudo_queries(fixed(states[part]), weights[part])
            statistics = found if statistics is None else statistics + found
        return cls(statistics, words, np.bincount(rows, minlength=len(document_rows)))

    def joined(self, statistics: Statistics) -> Statistics:
        return statistics if self.statistics is None else statistics + self.statistics


def alone(targets: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which questions (n,) share their document with no other document's questions: leaving it out leaves out all."""
    relevant = targets > 0
    shared = relevant[relevant.sum(axis=1) > 1].any(axis=0)
    kept: NDArray[np.bool_] = ~(relevant & shared).any(axis=1)
    return kept


def sampled(
    targets: NDArray[np.float32], whole: bool, generator: np.random.Generator, size: int = SAMPLE
) -> NDArray[np.int64]:
    """About `size` training questions; with `whole` all questions of each document that is in it."""
    if not whole:
        return np.sort(generator.permutation(len(targets))[:size])
    first = targets.argmax(axis=1)
    chosen: list[NDArray[np.int64]] = []
    for document in generator.permutation(np.unique(first)):
        if sum(map(len, chosen)) >= size:
            break
        chosen.append(np.flatnonzero(first == document))
    return np.sort(np.concatenate(chosen))
