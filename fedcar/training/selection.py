"""Selection: what is kept is chosen on selection questions and document folds, baselines among the candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedcar.common.progress import Silent
from fedcar.common.vectors import top_k
from fedcar.evaluation.metrics import DEPTH
from fedcar.retriever.evidence import Evidence
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import weights_of
from fedcar.training.folds import Fold, Folds
from fedcar.training.gains import FEW, NO_GAIN, UNKNOWN, Gain, Measured, Proof, gain, measures

if TYPE_CHECKING:
    from numpy.typing import NDArray

COSINE, LEXICAL = Evidence.NAMES.index("cosine"), Evidence.NAMES.index("lexical")
UNIT_OF_COSINE = 20.0
ALLOWED = 1e-9


class Score(NamedTuple):
    """What epochs, the weights of a federation and public questions choose by, in this order; `select` goes by `Gain`.

    Whether it is not below hybrid search on document folds; success@1 on selection questions, with that on document
    folds counting by their share; MRR@10 on selection questions. `success` and `unseen` are the two parts.
    """

    allowed: bool
    value: float
    reciprocal_rank: float
    success: float
    unseen: float = 0.0


NOTHING = Score(True, 0.0, 0.0, 0.0)


class Weighting(NamedTuple):
    """Weights of the mixture, and success@1 with them on the questions of document folds; 0 where there are none.

    `proof` is what training questions say that were left out of it.
    """

    weights: NDArray[np.float32]
    unseen: float = 0.0
    proof: Proof = Proof()


@dataclass(frozen=True)
class Fitted:
    """A trained retriever and the mixtures to choose among."""

    retriever: Retriever
    weightings: tuple[Weighting, ...]


@dataclass(frozen=True)
class Standard:
    """How much document folds count, by their share, and what weights of the evidence alone reach on them.

    `success` maps weights of the mixture to success@1 on the folds' questions. `taught` are the training questions,
    where they are at hand.
    """

    share: float = 0.0
    success: Callable[[NDArray[np.float32]], float] = field(default=lambda weights: 0.0)
    taught: Questions | None = None

    @classmethod
    def of(cls, share: float, held: Questions, empty: NDArray[np.bool_], taught: Questions | None = None) -> Standard:
        """By the share of documents without questions, the questions of document folds, and all training questions."""

        def success(weights: NDArray[np.float32]) -> float:
            return success_and_mrr(held.relevance, by_evidence(held, weights, empty))[0]

        return cls(share, success, taught) if share and len(held) else cls(taught=taught)

    @cached_property
    def least(self) -> float:
        """What hybrid search reaches on document folds."""
        return max(map(self.success, baseline_weights()[:2]))

    def fitted(self, retriever: Retriever, among: Sequence[NDArray[np.float32]] = ()) -> Fitted:
        """A retriever that knows the evidence alone, with its weights or these to choose among, all of them fixed."""

        def weighting(weights: NDArray[np.float32]) -> Weighting:
            proof = Proof()
            if self.taught is not None and len(self.taught):
                values = measures(self.taught, by_evidence(self.taught, weights, retriever.empty))
                proof = Proof(Measured(self.taught, values), Measured(self.taught, values))
            return Weighting(weights, self.success(weights), proof)

        return Fitted(retriever, tuple(map(weighting, among or [retriever.weights])))

    def score(self, questions: Questions, scores: NDArray[np.float32], unseen: float = 0.0) -> Score:
        """How well these scores (n, c) rank the questions' candidates: success@1 and MRR@10 as in `metrics`."""
        success, reciprocal_rank = success_and_mrr(questions.relevance, scores)
        value = (1 - self.share) * success + self.share * unseen
        return Score(unseen >= self.least - ALLOWED, value, reciprocal_rank, success, unseen)


def by_evidence(questions: Questions, weights: NDArray[np.float32], empty: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scores (n, c) by the evidence alone; -inf for empty documents (N,)."""
    scores = questions.evidence @ weights[: len(Evidence.NAMES)]
    return np.where(empty[questions.candidates], np.float32(-np.inf), scores)


def success_and_mrr(relevance: NDArray[np.float32], scores: NDArray[np.float32]) -> tuple[float, float]:
    """Relevance and scores (n, c) -> success@1 and MRR@10."""
    best = top_k(scores, DEPTH)
    relevant, reached = (np.take_along_axis(values, best, axis=1) for values in (relevance, scores))
    right = (relevant > 0) & np.isfinite(reached)
    first = np.where(right.any(axis=1), right.argmax(axis=1) + 1.0, np.inf)
    return float((first == 1).mean()), float((1 / first).mean())


def plain_weights(cosine: float, lexical: float) -> NDArray[np.float32]:
    """The weights of a baseline: cosine and BM25 / its maximum alone."""
    evidence = np.zeros(len(Evidence.NAMES), dtype=np.float32)
    evidence[COSINE], evidence[LEXICAL] = UNIT_OF_COSINE * cosine, UNIT_OF_COSINE * lexical
    return weights_of(evidence)


def baseline_weights() -> tuple[NDArray[np.float32], ...]:
    """Hybrid with .2 and .4, MIPS, BM25."""
    return plain_weights(1.0, 0.2), plain_weights(1.0, 0.4), plain_weights(1.0, 0.0), plain_weights(0.0, 1.0)


def best_weights(fitted: Fitted, questions: Questions, standard: Standard | None = None) -> tuple[Retriever, Score]:
    """The retriever with the best of its weightings; of equal ones the first."""
    standard, retriever = standard or Standard(), fitted.retriever
    features = retriever.features(questions)
    empty = retriever.empty[questions.candidates]
    scored = [
        (
            weighting.weights,
            standard.score(questions, np.where(empty, -np.inf, features @ weighting.weights), weighting.unseen),
        )
        for weighting in fitted.weightings
    ]
    weights, score = max(scored, key=lambda pair: pair[1])
    return replace(retriever, weights=weights), score


def hybrid_of(selection: Questions, empty: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The weights of hybrid search, as evaluation takes them: .2, or .4 where that is better on selection questions."""
    return max(
        baseline_weights()[:2],
        key=lambda weights: success_and_mrr(selection.relevance, by_evidence(selection, weights, empty))[0],
    )


@dataclass(frozen=True)
class AgainstHybrid:
    """Selection questions with what hybrid search makes of them, to hold mixtures against it."""

    selection: Questions
    empty: NDArray[np.bool_]
    hybrid: NDArray[np.float32]
    standard: Standard

    @classmethod
    def of(cls, selection: Questions, empty: NDArray[np.bool_], standard: Standard) -> AgainstHybrid:
        return cls(selection, empty, hybrid_of(selection, empty), standard)

    def differences(self, measured: Measured) -> NDArray[np.float64]:
        """Both measures less those of hybrid search (n, 2)."""
        by_hybrid = by_evidence(measured.questions, self.hybrid, self.empty)
        return measured.values - measures(measured.questions, by_hybrid)

    def gain(self, scores: NDArray[np.float32], weighting: Weighting) -> Gain:
        """What a mixture wins: on the selection questions, those left out where they are few, and document folds."""
        seen, proof, share = self.differences(Measured(self.selection, measures(self.selection, scores))), None, 0.0
        if weighting.proof.seen is not None and len(self.selection) < FEW:
            seen = np.concatenate([seen, self.differences(weighting.proof.seen)])
        if self.standard.share:
            proof, share = weighting.proof.unseen, self.standard.share
        unseen = self.differences(proof) if proof is not None else None
        result = gain(seen, unseen, share)
        if not self.standard.share:
            return result
        advantage = weighting.unseen - self.standard.success(self.hybrid)
        if proof is None:  # of clients only the share that is right is known
            result = result._replace(bound=(1 - share) * result.bound + share * advantage)
        return result._replace(sure=result.sure and advantage >= -ALLOWED)


def best_gain(fitted: Fitted, selection: Questions, standard: Standard) -> tuple[Retriever, Score, Gain, Proof]:
    """The retriever with that of its weightings whose gain over hybrid has the best bound; of equal ones the first."""
    retriever = fitted.retriever
    features, empty = retriever.features(selection), retriever.empty[selection.candidates]
    against = AgainstHybrid.of(selection, retriever.empty, standard)

    def judged(weighting: Weighting) -> tuple[Gain, Score, Weighting]:
        scores = np.where(empty, np.float32(-np.inf), features @ weighting.weights)
        score = standard.score(selection, scores, weighting.unseen)
        return against.gain(scores, weighting), score, weighting

    best, score, weighting = max(map(judged, fitted.weightings), key=lambda one: one[0][:2])
    return replace(retriever, weights=weighting.weights), score, best, weighting.proof


@dataclass(frozen=True)
class Candidate:
    """One trained retriever, what the selection questions say of it, and what it wins over hybrid search.

    `proof` is what training questions say that its mixture did not learn from.
    """

    name: str
    retriever: Retriever
    score: Score
    gain: Gain = UNKNOWN
    proof: Proof = Proof()


@dataclass(frozen=True)
class FoldView:
    """The collection by document folds, and the standard that they set; no folds where every document has questions."""

    folds: tuple[Fold, ...] = ()
    standard: Standard = field(default_factory=Standard)

    @classmethod
    def of(cls, untrained: Retriever, training: Questions, seed: int) -> FoldView:
        rows = {document.id: row for row, document in enumerate(untrained.documents)}
        targets = training.targets(rows)
        folds = Folds.of(training.counts(rows), seed, len(training), targets=targets)
        if not folds.share:
            return cls(standard=Standard(taught=training))
        sample = folds.sample(targets, np.random.default_rng(seed))
        parts = [Fold(fold.outside, np.intersect1d(fold.inside, sample)) for fold in folds.split(targets)]
        held = training.take(np.concatenate([fold.inside for fold in parts]))
        standard = Standard.of(folds.share, held, untrained.empty, training)
        return cls(tuple(fold for fold in parts if len(fold.inside)), standard)


def candidate(name: str, fitted: Fitted, selection: Questions, standard: Standard, report: Silent) -> Candidate:
    best = Candidate(name, *best_gain(fitted, selection, standard))
    unseen = f", {best.score.unseen:.3f} on documents left out" if standard.share else ""
    below = "" if best.gain.sure else " (not surely above hybrid)"
    report.say(f"{name}: {best.score.success:.3f} of the selection questions right{unseen}{below}")
    return best


def select(
    untrained: Retriever, selection: Questions, candidates: Sequence[Candidate], standard: Standard, report: Silent
) -> Candidate:
    """The one that surely wins most over hybrid search; hybrid search itself where none does.

    Surely is by a bound on the paired difference in success@1 and nDCG@10, see `gains`; of equal ones the cheapest.
    """
    if not len(selection):
        return Candidate("none", untrained, NOTHING)
    hybrid = hybrid_of(selection, untrained.empty)
    before = candidate("none", standard.fitted(untrained, (hybrid,)), selection, standard, Silent())
    searches = standard.fitted(untrained, (untrained.weights, *baseline_weights()))
    others = candidate("none", searches, selection, standard, Silent())
    first = replace(before, gain=NO_GAIN)
    best = max((first, others, *candidates), key=lambda tried: tried.gain[:2])
    right = "right" if best.name == "none" else "of the selection questions right"
    search = ", so search alone" if best.name == "none" else ""
    report.say(f"kept: {best.name}{search} ({best.score.success:.3f} {right}, before {before.score.success:.3f})")
    return best


def cheaper_unless_better(
    cheaper: Candidate, dearer: Candidate, selection: Questions, share: float, report: Silent
) -> Candidate:
    """The dearer one where it is surely better, by the bound by which candidates are held against hybrid search.

    `share` is that of documents without questions.

    Formal guarantees:
        second_encoder_stays_only_where_it_surely_pays: else what is kept is as if it had never been named.
    """

    def difference(ours: Measured | None, theirs: Measured | None) -> NDArray[np.float64] | None:
        if ours is None or theirs is None or ours.questions.texts != theirs.questions.texts:
            return None
        return ours.values - theirs.values

    values = [measures(selection, one.retriever.scores_of(selection)) for one in (dearer, cheaper)]
    seen, left_out = values[0] - values[1], difference(dearer.proof.seen, cheaper.proof.seen)
    if left_out is not None and len(selection) < FEW:
        seen = np.concatenate([seen, left_out])
    won = gain(seen, difference(dearer.proof.unseen, cheaper.proof.unseen), share)
    better = won.sure and dearer.gain.sure
    kept = dearer if better else cheaper
    numbers = f"{won.success:+.3f} success@1, {won.ndcg:+.3f} nDCG@10"
    verdict = "surely better" if better else "not surely better, so the cheaper one stays"
    report.say(f"{dearer.name} against {cheaper.name}: {numbers}; {verdict}")
    return kept
