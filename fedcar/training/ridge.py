"""The method `ridge`: rows in closed form, and a mixture learned on what they would say of questions they never saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse

from fedcar.collection.pseudo_queries import PseudoQueries
from fedcar.collection.wording import Wording
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.reference import reference_states
from fedcar.head.closed_form import LeftOut, Ridge, Statistics, solve
from fedcar.head.feature_map import Beside, FeatureMap
from fedcar.head.naive_bayes import NaiveBayes, gram_counts
from fedcar.head.ridge_rows import RidgeRows
from fedcar.retriever.hopeless import view_for
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import APART, LEARNED, WEIGHT_NAMES, mixed_features, weights_of
from fedcar.training.folds import MOST_SHARE, Folds
from fedcar.training.gains import Measured, Proof, left_out_scores, measures
from fedcar.training.mixture import fit_mixture
from fedcar.training.selection import Fitted, Weighting, success_and_mrr

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXTS_AT_ONCE, FEATURES_AT_ONCE = 2048, 8192
STRENGTHS = (0.3, 1.0, 3.0, 10.0)
PRIOR = (10.0, 0.03)  # of rows and words, in the unit of the score
MOST_ROWS = 20_000  # that are solved for: 4 GB while they are, and 50 ms a question (docs/performance.md)
ADDED_SHARE = 0.2  # of document folds in the weights of documents that are added later, where all have questions

Fit = Callable[[float, "NDArray[np.float32]", "NDArray[np.bool_]"], "NDArray[np.float32]"]
Prove = Callable[["NDArray[np.float32]", float, "NDArray[np.float32]", "NDArray[np.bool_]"], Proof]


@dataclass(frozen=True)
class RidgeQuestions:
    """Training questions as the sums see them: features (n, D), grams (n, BUCKETS) and targets (n, documents), sparse.

    Features are made when they are asked for, as all of them together may not fit in memory. `alone` (n,) tells which
    questions share their document with no other document's questions.
    """

    questions: Questions
    fixed: FeatureMap
    grams: sparse.csr_array
    targets: sparse.csr_array
    alone: NDArray[np.bool_]

    @classmethod
    def of(
        cls, questions: Questions, fixed: FeatureMap, document_rows: Mapping[str, int], wording: Wording
    ) -> RidgeQuestions:
        targets = questions.targets(document_rows)
        return cls(questions, fixed, gram_counts(questions.texts, wording), targets, alone(targets))

    @cached_property
    def features(self) -> NDArray[np.float32]:
        return self.fixed(self.questions.states)

    def take(self, rows: NDArray[np.int64]) -> RidgeQuestions:
        """The chosen questions, in that order."""
        parts = (self.fixed, self.grams[rows], self.targets[rows], self.alone[rows])
        return RidgeQuestions(self.questions.take(rows), *parts)

    def sums(self) -> RidgeSums:
        """The sums of all, from the features of some at a time."""
        starts = range(0, len(self.questions), FEATURES_AT_ONCE)
        parts = [slice(start, start + FEATURES_AT_ONCE) for start in starts]
        statistics = (Statistics.of(self.fixed(self.questions.states[part]), self.targets[part]) for part in parts)
        return RidgeSums(reduce(add, statistics), NaiveBayes.of(self.grams, self.targets))


@dataclass(frozen=True)
class RidgeSums:
    """What is learned from questions, and adds up over clients: statistics of the closed form, counts of words."""

    statistics: Statistics
    words: NaiveBayes

    def __add__(self, other: RidgeSums) -> RidgeSums:
        return RidgeSums(self.statistics + other.statistics, self.words + other.words)


class Summed(NamedTuple):
    """Training questions and their sums, and the map and the documents' columns that both were made by.

    `places` (a,) are those of the documents that are solved for, `columns` (N,) where each document is found there.
    """

    questions: RidgeQuestions
    sums: RidgeSums
    fixed: FeatureMap
    document_rows: Mapping[str, int]
    places: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(
        cls, retriever: Retriever, training: Questions, cache: FeatureCache, seed: int, pseudo: PseudoQueries
    ) -> Summed:
        """With columns for all documents of these questions and pseudo-queries."""
        reference, second = reference_states(retriever.encoder, cache), retriever.encoder.beside
        fixed = FeatureMap.of_reference(reference, seed, retriever.evidence.view)
        if second is not None:
            fixed = replace(fixed, beside=Beside.of_reference(reference["beside"], seed, view_for(second, cache)))
        places, columns = columns_of(retriever, training, pseudo)
        document_rows = {retriever.documents[place].id: column for column, place in enumerate(places)}
        questions = RidgeQuestions.of(training, fixed, document_rows, retriever.evidence.wording)
        return cls(questions, questions.sums(), fixed, document_rows, places, columns)


def fit_ridge(
    retriever: Retriever,
    training: Questions,
    cache: FeatureCache,
    seed: int,
    pseudo: PseudoQueries | None = None,
    summed: Summed | None = None,
    few: bool = True,
) -> Fitted:
    """Solve for the rows and count the words, then learn how much both count beside the evidence.

    Pseudo-queries join by their weight and give rows to documents without questions. What no question touched is mixed
    apart, by weights learned on document folds: there its rivals have rows, and it has none. Time and memory follow the
    documents that get a row, not those that there are. `summed` are the training questions' sums where they are known
    already. Where there are `few` questions to choose by, each mixture is learned five more times to prove itself on
    training questions.
    """
    pseudo = pseudo or PseudoQueries()
    questions, sums, fixed, document_rows, places, columns = summed or Summed.of(
        retriever, training, cache, seed, pseudo
    )
    taught = Taught(sums, PseudoSums.of(pseudo, document_rows, retriever, fixed, cache))
    folds = taught.folds(seed, len(retriever.documents), questions.targets)
    sample = questions.take(folds.sample(questions.targets, np.random.default_rng(seed)))
    ridge, left_out = best_solution(taught.solutions(), sample)
    learned = taught.retriever(retriever, ridge, fixed, places)
    held = HeldOut.of(ridge, taught, sample, folds, retriever.empty, columns, left_out)

    def fit(share: float, prior: NDArray[np.float32], free: NDArray[np.bool_]) -> NDArray[np.float32]:
        features, relevance, importance = held.stacked(share)
        return fit_mixture(features, relevance, prior, importance=importance, free=free)

    def proof(weights: NDArray[np.float32], share: float, prior: NDArray[np.float32], free: NDArray[np.bool_]) -> Proof:
        if not few:
            return held.on_folds(sample.questions, weights)
        return held.proof(sample.questions, seed, share, prior, free)

    return Fitted(learned, weightings(fit, held.unseen_success, learned.weights, folds, proof))


def with_rows(retriever: Retriever, training: Questions, pseudo: PseudoQueries) -> NDArray[np.int64]:
    """The documents that a question or pseudo-query is about, which get a row: their places, ascending."""
    judged_documents = {identifier for judged in training.relevant for identifier, score in judged.items() if score > 0}
    touched = judged_documents.union(pseudo.document_ids)
    return np.flatnonzero([document.id in touched for document in retriever.documents])


def too_many(retriever: Retriever, training: Questions, pseudo: PseudoQueries) -> str:
    """Why ridge is not tried, in words; empty where it can be."""
    rows = len(with_rows(retriever, training, pseudo))
    return f"not tried: {rows:,} documents would get a row, and at most {MOST_ROWS:,} do" if rows > MOST_ROWS else ""


def columns_of(
    retriever: Retriever, training: Questions, pseudo: PseudoQueries
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the documents that are solved for (a,), and the column in which each document (N,) is found there.

    Those that get a row, and one more in whose column all others are found: nothing is said of any of them.
    """
    touched = np.zeros(len(retriever.documents), dtype=bool)
    touched[with_rows(retriever, training, pseudo)] = True
    if not touched.all():
        other = int(np.argmin(touched))
        touched[other] = True
    places = np.flatnonzero(touched)
    columns = np.cumsum(touched) - 1
    if len(places) < len(touched):
        columns[~touched] = columns[other]
    return places, columns


def weightings(
    fit: Fit,
    unseen_success: Callable[[NDArray[np.float32]], float],
    prior: NDArray[np.float32],
    folds: Folds,
    proof: Prove = lambda weights, share, prior, free: Proof(),
) -> tuple[Weighting, ...]:
    """Mixtures to choose among, fitted by `fit` from the share of document folds, what to be pulled to, what is free.

    Everything is learned; the same without the evidence where a document has a row; everything, with folds counting
    half. Where all documents have questions, folds only teach what documents are worth that are added later.
    """
    everything = np.ones(len(WEIGHT_NAMES), dtype=bool)
    of_apart, rows_alone = everything.copy(), everything.copy()
    of_apart[:APART], rows_alone[:LEARNED] = False, False
    chosen = [(everything, folds.share), (rows_alone, folds.share)]
    if 0.0 < folds.share < MOST_SHARE:
        chosen.append((everything, MOST_SHARE))
    fitted = []
    for free, share in chosen:
        start = np.where(free, prior, np.float32(0.0))
        weights = fit(share, start, free)
        if folds.exist and not share:
            weights = fit(ADDED_SHARE, weights, of_apart)
        fitted.append(Weighting(weights, unseen_success(weights), proof(weights, share, start, free)))
    return tuple(fitted)


@dataclass(frozen=True)
class Taught:
    """The sums of all questions, and those of pseudo-queries beside them."""

    sums: RidgeSums
    pseudo: PseudoSums

    @cached_property
    def statistics(self) -> Statistics:
        return self.pseudo.joined(self.sums.statistics)

    @cached_property
    def words(self) -> NaiveBayes:
        return self.sums.words + self.pseudo.words

    def folds(self, seed: int, documents: int | None = None, targets: sparse.csr_array | None = None) -> Folds:
        """Document folds of the questions, the same on clients; by their `targets` where these are in one place."""
        return Folds.of(self.sums.statistics.counts, seed, self.sums.statistics.questions, documents, targets)

    def solutions(self) -> Iterator[Ridge]:
        """Ridge at each strength."""
        return (solve(self.statistics, strength) for strength in STRENGTHS)

    def retriever(
        self, retriever: Retriever, ridge: Ridge, fixed: FeatureMap, places: NDArray[np.int64] | None = None
    ) -> Retriever:
        """The retriever with these rows and words, the evidence counting as before.

        `places` (a,) are those of the documents that were solved for, where these are not all.
        """
        wording = retriever.evidence.wording
        rows = RidgeRows.of(ridge, fixed, self.statistics.counts, self.words, self.pseudo.counts, wording)
        if places is not None:
            rows = rows.among(places, len(retriever.documents))
        return replace(retriever, ridge=rows, weights=weights_of(retriever.weights[:LEARNED], *PRIOR))


def best_solution(solutions: Iterator[Ridge], sample: RidgeQuestions) -> tuple[Ridge, LeftOut]:
    """Of solutions of rising strength the one with the most right when left out; none is tried after it has fallen.

    On all collections tried it rises to one strength and falls from there. With it the questions ready to be left out.
    """
    targets = sample.targets.toarray()
    tried = ((ridge, ridge.left_out(sample.features, targets)) for ridge in solutions)
    best = next(tried)
    most = right_of(best[1])
    for candidate in tried:
        right = right_of(candidate[1])
        if right < most:
            break
        if right > most:
            best, most = candidate, right
    return best


def right_without(ridge: Ridge, sample: RidgeQuestions) -> float:
    """Of how many questions a right document comes first when each is left out: the sum of those documents' targets."""
    return right_of(ridge.left_out(sample.features, sample.targets.toarray()))


def right_of(left_out: LeftOut) -> float:
    first = left_out.predict(np.arange(len(left_out.targets))).argmax(axis=1)
    return float(np.take_along_axis(left_out.targets, first[:, None], axis=1).sum())


@dataclass(frozen=True)
class HeldOut:
    """Features (m, c, F) and relevance (m, c) of sampled questions as if they had not been trained on.

    `seen`: each question alone is left out, so that its document keeps its other questions. `unseen`: all questions of
    its document's fold are left out, so that it asks for one of several documents that nobody asked about (were it the
    only one, "has no questions" would give it away); pseudo-queries stay. None where there are no folds. `beside`,
    where all documents have questions: as `seen`, among documents of another fold that have no row, as added ones.
    `inside` tells which questions are about documents of one fold alone: of others `unseen` would give the answer away.
    """

    seen: NDArray[np.float32]
    unseen: NDArray[np.float32] | None
    beside: NDArray[np.float32] | None
    relevance: NDArray[np.float32]
    empty: NDArray[np.bool_]
    inside: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        ridge: Ridge,
        taught: Taught,
        sample: RidgeQuestions,
        folds: Folds,
        empty: NDArray[np.bool_],
        columns: NDArray[np.int64] | None = None,
        left_out: LeftOut | None = None,
    ) -> HeldOut:
        """`columns` (N,) tells where each document is found among those that were solved for, if these are not all.

        `left_out` are the sample's questions ready to be left out, where they are.
        """
        answers, counts = sample.targets.toarray() > 0, taught.statistics.counts
        columns = np.arange(len(empty)) if columns is None else columns
        first = answers.argmax(axis=1)
        by_words = taught.words.scores_without(sample.grams, sample.targets)
        left_out = left_out or ridge.left_out(sample.features, sample.targets.toarray())
        apart = counts - answers == 0
        no_text = taught.pseudo.counts == 0
        silent = apart & no_text
        seen = features_without(left_out, sample, columns, np.arange(len(first)), by_words, apart, silent)
        unseen = beside = None
        if folds.exist:
            groups, whole = folds.of_document[first], answers.sum(axis=0) == counts
            if not folds.share:
                others = (groups + 1) % (folds.of_document.max() + 1)
                added = (folds.of_document == others[:, None]) & whole & ~answers
                beside = features_without(
                    left_out, sample, columns, np.arange(len(first)), by_words, apart | added, silent | added & no_text
                )
            if taught.pseudo.counts.any():
                parts = np.ones(len(first)), first, np.arange(len(first) + 1)
                of_first = sparse.csr_array(parts, shape=answers.shape)
                by_words = taught.words.scores_without(sample.grams, of_first, taught.sums.words.counts[first, :])
            apart = (folds.of_document == groups[:, None]) & whole | answers | (counts == 0)
            silent = apart & (no_text | ~sample.alone[:, None])
            unseen = features_without(left_out, sample, columns, groups, by_words, apart, silent)
        inside = ~(answers & (folds.of_document != folds.of_document[first, None])).any(axis=1)
        return cls(seen, unseen, beside, sample.questions.relevance, empty[sample.questions.candidates], inside)

    def stacked(self, share: float) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Features, relevance, and how much each question counts: document folds together by their share."""
        if self.unseen is None or not share:
            return self.seen, self.relevance, np.ones(len(self.relevance), dtype=np.float32)
        importance = np.repeat(np.array([1 - share, share], dtype=np.float32), len(self.relevance))
        importance[len(self.relevance) :] *= self.inside
        seen = self.seen if self.beside is None else self.beside
        return np.concatenate([seen, self.unseen]), np.concatenate([self.relevance] * 2), importance

    def proof(
        self, questions: Questions, seed: int, share: float, prior: NDArray[np.float32], free: NDArray[np.bool_]
    ) -> Proof:
        """What these questions say of the mixture where its weights are learned from the others as well."""
        features, relevance, importance = self.stacked(share)

        def fit(others: NDArray[np.int64]) -> NDArray[np.float32]:
            rows = np.concatenate([others, others + len(questions)]) if len(features) > len(questions) else others
            return fit_mixture(features[rows], relevance[rows], prior, importance=importance[rows], free=free)

        asked = [self.seen] if self.unseen is None else [self.seen, self.unseen]
        scores = left_out_scores(questions.texts, seed, fit, asked)
        measured = [Measured(questions, measures(questions, np.where(self.empty, -np.inf, one))) for one in scores]
        return Proof(*measured)

    def on_folds(self, questions: Questions, weights: NDArray[np.float32]) -> Proof:
        """What document folds say of weights that were learned with them."""
        if self.unseen is None:
            return Proof()
        values = measures(questions, np.where(self.empty, -np.inf, self.unseen @ weights))
        return Proof(unseen=Measured(questions, values))

    def unseen_success(self, weights: NDArray[np.float32]) -> float:
        """Success@1 on document folds; 0 where there are none."""
        if self.unseen is None:
            return 0.0
        return success_and_mrr(self.relevance, np.where(self.empty, -np.inf, self.unseen @ weights))[0]


def features_without(
    left_out: LeftOut,
    sample: RidgeQuestions,
    columns: NDArray[np.int64],
    groups: NDArray[np.int64],
    by_words: NDArray[np.float32],
    apart: NDArray[np.bool_],
    silent: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Features (m, c, F) where the questions of a group (m,) are left out together.

    `columns` (documents,) tells which of the N columns is each document's. `by_words` (m, N) is what naive Bayes then
    says; `apart` (m, N) tells which columns have no row of their own then, `silent` (m, N) of which neither row nor
    words say anything.
    """
    rows = left_out.predict(groups)
    learned = np.where(silent[..., None], 0.0, np.stack([rows, by_words], axis=2)).astype(np.float32)
    candidates = columns[sample.questions.candidates]
    learned = np.take_along_axis(learned, candidates[..., None], axis=1)
    return mixed_features(sample.questions.evidence, learned, np.take_along_axis(apart, candidates, axis=1))


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
        words = NaiveBayes(sparse.csr_array(weights.T @ gram_counts(pseudo.texts, retriever.evidence.wording)))
        statistics = None
        states = cache.public.states(retriever.encoder.untrained, pseudo.texts)
        for start in range(0, len(rows), TEXTS_AT_ONCE):
            part = slice(start, start + TEXTS_AT_ONCE)
            part_sums = Statistics.of_pseudo_queries(fixed(states[part]), weights[part])
            statistics = part_sums if statistics is None else statistics + part_sums
        return cls(statistics, words, np.bincount(rows, minlength=len(document_rows)))

    def joined(self, statistics: Statistics) -> Statistics:
        return statistics if self.statistics is None else statistics + self.statistics


def alone(targets: sparse.csr_array) -> NDArray[np.bool_]:
    """Which questions (n,) share their document with no other document's questions: leaving it out leaves out all."""
    relevant = (targets > 0).astype(np.int64)
    shared = relevant[relevant.sum(axis=1) > 1].sum(axis=0) > 0
    apart: NDArray[np.bool_] = relevant @ shared.astype(np.int64) == 0
    return apart
