"""The method `ridge`: rows in closed form, and a mixture learned on what they would say of questions they never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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


def fit_ridge(
    retriever: Retriever, training: Questions, cache: FeatureCache, seed: int, pseudo: PseudoQueries | None = None
) -> Retriever:
    """Solve for the rows and count the words, then learn how much both count beside the evidence.

    Pseudo-queries join by their weight and give rows to documents without questions. That a document has no question is
    no feature: left-out documents would teach that the right one is always such a document.
    """
    fixed = FeatureMap.of_reference(reference_states(retriever.encoder, cache), seed)
    document_rows = {document.id: row for row, document in enumerate(retriever.documents)}
    targets = training.targets(document_rows)
    features, grams = fixed(training.states), gram_counts(training.texts)
    statistics, asked = Statistics.of(features, targets), NaiveBayes.of(grams, targets)
    beside = PseudoSums.of(pseudo or PseudoQueries(), document_rows, retriever, fixed, cache)
    statistics, words = beside.joined(statistics), asked + beside.words
    sample = sampled(targets, bool((statistics.counts == 0).any()), np.random.default_rng(seed))
    ridge = best_strength(statistics, features[sample], targets[sample])
    questions, answers = training.take(sample), targets[sample] > 0
    first = answers.argmax(axis=1)
    by_words = words.scores_without(grams[sample], first)
    # every sampled question twice, as if it had not been trained on: as one on a seen document (it alone left out) and,
    # where there are documents without questions, as one on such a document (all questions of its document left out);
    # pseudo-queries stay in both, as they do for documents that nobody asked about
    untouched = statistics.counts - answers == 0
    modes = [(np.arange(len(sample)), by_words, untouched & (beside.counts == 0))]
    if not statistics.counts.all():
        untouched = (statistics.counts == 0) | answers
        if beside.counts.any():
            by_words = words.scores_without(grams[sample], first, asked.counts[first, :])
        silent = untouched & (beside.counts == 0) | answers & ~alone(targets)[sample][:, None]
        modes.append((first, by_words, silent))
    held_out = []
    for groups, by_words, silent in modes:
        rows = ridge.predict_without(features[sample], targets[sample], groups)
        learned = np.where(silent[..., None], 0.0, np.stack([rows, by_words], axis=2)).astype(np.float32)
        learned = np.take_along_axis(learned, questions.candidates[..., None], axis=1)
        held_out.append(np.concatenate([questions.evidence, learned], axis=2))
    prior = np.concatenate([retriever.weights[:LEARNED], PRIOR]).astype(np.float32)
    relevance = np.concatenate([questions.relevance] * len(modes))
    weights = fit_mixture(np.concatenate(held_out), relevance, prior)
    rows_kept = RidgeRows.of(ridge, fixed, statistics.counts, words, beside.counts)
    return replace(retriever, ridge=rows_kept, weights=weights)


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


def best_strength(statistics: Statistics, features: NDArray[np.float32], targets: NDArray[np.float32]) -> Ridge:
    """Ridge at the strength whose leave-one-out predictions put a right document first most often."""

    def right(ridge: Ridge) -> float:
        left_out = ridge.predict_without(features, targets, np.arange(len(features)))
        return float(np.take_along_axis(targets, left_out.argmax(axis=1)[:, None], axis=1).mean())

    return max((solve(statistics, strength) for strength in STRENGTHS), key=right)


def sampled(targets: NDArray[np.float32], whole: bool, generator: np.random.Generator) -> NDArray[np.int64]:
    """About SAMPLE training questions; with `whole` all questions of each document that is in it."""
    if not whole:
        return np.sort(generator.permutation(len(targets))[:SAMPLE])
    first = targets.argmax(axis=1)
    chosen: list[NDArray[np.int64]] = []
    for document in generator.permutation(np.unique(first)):
        if sum(map(len, chosen)) >= SAMPLE:
            break
        chosen.append(np.flatnonzero(first == document))
    return np.sort(np.concatenate(chosen))
