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

if TYPE_CHECKING:
    from numpy.typing import NDArray

COSINE, LEXICAL = Evidence.NAMES.index("cosine"), Evidence.NAMES.index("lexical")
UNIT_OF_COSINE = 20.0
ALLOWED = 1e-9


class Score(NamedTuple):
    """What candidates are compared by, in this order.

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
    """Weights of the mixture, and success@1 with them on the questions of document folds; 0 where there are none."""

    weights: NDArray[np.float32]
    unseen: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """A trained retriever and the mixtures to choose among."""

    retriever: Retriever
    weightings: tuple[Weighting, ...]


@dataclass(frozen=True)
class Standard:
    """How much document folds count, by their share, and what weights of the evidence alone reach on them.

    `success` maps weights of the mixture to success@1 on the folds' questions.
    """

    share: float = 0.0
    success: Callable[[NDArray[np.float32]], float] = field(default=lambda weights: 0.0)

    @classmethod
    def of(cls, share: float, held: Questions, empty: NDArray[np.bool_]) -> Standard:
        """By the share of documents without questions, and the questions of document folds."""

        def success(weights: NDArray[np.float32]) -> float:
            scores = held.evidence @ weights[: len(Evidence.NAMES)]
            return success_and_mrr(held.relevance, np.where(empty[held.candidates], -np.inf, scores))[0]

        return cls(share, success) if share and len(held) else cls()

    @cached_property
    def least(self) -> float:
        """What hybrid search reaches on document folds."""
        return max(map(self.success, baseline_weights()[:2]))

    def fitted(self, retriever: Retriever, among: Sequence[NDArray[np.float32]] = ()) -> Fitted:
        """A retriever that knows the evidence alone, with its weights or these to choose among."""
        return Fitted(
            retriever, tuple(Weighting(weights, self.success(weights)) for weights in among or [retriever.weights])
        )

    def score(self, questions: Questions, scores: NDArray[np.float32], unseen: float = 0.0) -> Score:
        """How well these scores (n, c) rank the questions' candidates: success@1 and MRR@10 as in `metrics`."""
        success, reciprocal_rank = success_and_mrr(questions.relevance, scores)
        value = (1 - self.share) * success + self.share * unseen
        return Score(unseen >= self.least - ALLOWED, value, reciprocal_rank, success, unseen)


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


@dataclass(frozen=True)
class Candidate:
    """One trained retriever and what the selection questions say of it."""

    name: str
    retriever: Retriever
    score: Score


@dataclass(frozen=True)
class FoldView:
    """The collection by document folds, and the standard that they set; no folds where every document has questions."""

    folds: tuple[Fold, ...] = ()
    standard: Standard = field(default_factory=Standard)

    @classmethod
    def of(cls, untrained: Retriever, training: Questions, seed: int) -> FoldView:
        rows = {document.id: row for row, document in enumerate(untrained.documents)}
        targets = training.targets(rows)
        folds = Folds.of(training.counts(rows), seed, len(training))
        if not folds.share:
            return cls()
        sample = folds.sample(targets, np.random.default_rng(seed))
        parts = [Fold(fold.outside, np.intersect1d(fold.inside, sample)) for fold in folds.split(targets)]
        held = training.take(np.concatenate([fold.inside for fold in parts]))
        return cls(tuple(fold for fold in parts if len(fold.inside)), Standard.of(folds.share, held, untrained.empty))


def candidate(name: str, fitted: Fitted, selection: Questions, standard: Standard, report: Silent) -> Candidate:
    best = Candidate(name, *best_weights(fitted, selection, standard))
    unseen = f", {best.score.unseen:.3f} on documents left out" if standard.share else ""
    below = "" if best.score.allowed else f" (hybrid {standard.least:.3f}: not kept)"
    report.say(f"{name}: {best.score.success:.3f} of the selection questions right{unseen}{below}")
    return best


def select(
    untrained: Retriever, selection: Questions, candidates: Sequence[Candidate], standard: Standard, report: Silent
) -> Candidate:
    """The best on the selection questions and document folds, baselines included; of equal ones the cheapest."""
    if not len(selection):
        return Candidate("none", untrained, NOTHING)
    searches = standard.fitted(untrained, (untrained.weights, *baseline_weights()))
    before = Candidate("none", *best_weights(searches, selection, standard))
    best = max((before, *candidates), key=lambda tried: tried.score)
    numbers = f"{best.score.success:.3f} of the selection questions right, before {before.score.success:.3f}"
    report.say(f"kept: {best.name} ({numbers})")
    return best
