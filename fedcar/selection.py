"""Selection: what is kept is chosen on selection questions alone, with the baselines among the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedcar.evidence import Evidence
from fedcar.metrics import DEPTH, top_k
from fedcar.questions import Questions
from fedcar.retriever import WEIGHT_NAMES, Retriever

if TYPE_CHECKING:
    from numpy.typing import NDArray

COSINE, LEXICAL = Evidence.NAMES.index("cosine"), Evidence.NAMES.index("lexical")
UNIT_OF_COSINE = 20.0


class Score(NamedTuple):
    """What candidates are compared by: success@1, and MRR@10 where that is equal."""

    success: float
    reciprocal_rank: float


def plain_weights(cosine: float, lexical: float) -> NDArray[np.float32]:
    """The weights of a baseline: cosine and BM25 / its maximum alone."""
    weights = np.zeros(len(WEIGHT_NAMES), dtype=np.float32)
    weights[COSINE], weights[LEXICAL] = UNIT_OF_COSINE * cosine, UNIT_OF_COSINE * lexical
    return weights


def baseline_weights() -> tuple[NDArray[np.float32], ...]:
    """Hybrid with .2 and .4, MIPS, BM25."""
    return plain_weights(1.0, 0.2), plain_weights(1.0, 0.4), plain_weights(1.0, 0.0), plain_weights(0.0, 1.0)


def score(questions: Questions, scores: NDArray[np.float32]) -> Score:
    """How well these scores (n, c) rank the questions' candidates: success@1 and MRR@10 as in `metrics`."""
    best = top_k(scores, DEPTH)
    relevant, reached = (np.take_along_axis(values, best, axis=1) for values in (questions.relevance, scores))
    right = (relevant > 0) & np.isfinite(reached)
    first = np.where(right.any(axis=1), right.argmax(axis=1) + 1.0, np.inf)
    return Score(float((first == 1).mean()), float((1 / first).mean()))


def best_weights(
    retriever: Retriever, questions: Questions, among: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], Score]:
    """The best of several weights; of equal ones the first."""
    features = retriever.features(questions)
    empty = retriever.empty[questions.candidates]
    scored = [(weights, score(questions, np.where(empty, -np.inf, features @ weights))) for weights in among]
    return max(scored, key=lambda pair: pair[1])
