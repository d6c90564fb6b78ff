"""The method `ridge`: rows in closed form, and a mixture learned on what they would say of questions they never saw."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedcar.closed_form import Ridge, Statistics, solve
from fedcar.feature_map import FeatureMap
from fedcar.features import FeatureCache
from fedcar.mixture import fit_mixture
from fedcar.naive_bayes import NaiveBayes, gram_counts
from fedcar.questions import Questions
from fedcar.reference import reference_states
from fedcar.retriever import LEARNED, Retriever
from fedcar.ridge_rows import RidgeRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE = 3000
STRENGTHS = (0.3, 1.0, 3.0, 10.0)
PRIOR = (10.0, 0.03, 0.0)  # of rows, words and untouched, in the unit of the score


def fit_ridge(retriever: Retriever, training: Questions, cache: FeatureCache, seed: int) -> Retriever:
    """Solve for the rows and count the words, then learn how much both count beside the evidence."""
    fixed = FeatureMap.of_reference(reference_states(retriever.encoder, cache), seed)
    document_rows = {document.id: row for row, document in enumerate(retriever.documents)}
    targets = training.targets(document_rows)
    features, grams = fixed(training.states), gram_counts(training.texts)
    statistics, words = Statistics.of(features, targets), NaiveBayes.of(grams, targets)
    sample = sampled(targets, bool((statistics.counts == 0).any()), np.random.default_rng(seed))
    ridge = best_strength(statistics, features[sample], targets[sample])
    questions, answers = training.take(sample), targets[sample] > 0
    first = answers.argmax(axis=1)
    by_words = words.scores_without(grams[sample], targets[sample], first)
    # every sampled question twice, as if it had not been trained on: as one on a seen document (it alone left out) and,
    # where there are documents without questions, as one on such a document (all questions of its document left out)
    modes = [(np.arange(len(sample)), statistics.counts - answers == 0)]
    if not statistics.counts.all():
        modes.append((first, (statistics.counts == 0) | answers))
    held_out = []
    for groups, untouched in modes:
        rows = ridge.predict_without(features[sample], targets[sample], groups)
        learned = np.where(untouched[..., None], 0.0, np.stack([rows, by_words], axis=2)).astype(np.float32)
        learned = np.take_along_axis(learned, questions.candidates[..., None], axis=1)
        unknown = np.take_along_axis(untouched, questions.candidates, axis=1)
        held_out.append(retriever.joined(questions.evidence, learned, unknown))
    prior = np.concatenate([retriever.weights[:LEARNED], PRIOR]).astype(np.float32)
    relevance = np.concatenate([questions.relevance] * len(modes))
    weights = fit_mixture(np.concatenate(held_out), relevance, prior)
    return replace(retriever, ridge=RidgeRows.of(ridge, fixed, statistics.counts, words), weights=weights)


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
