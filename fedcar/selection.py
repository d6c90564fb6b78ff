"""Selection: what is kept is chosen on selection questions alone, with the baselines among the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedcar.metrics import per_query, top_k
from fedcar.questions import Questions
from fedcar.retriever import Retriever, Weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

HYBRID = (Weights(1.0, 0.2), Weights(1.0, 0.4))
UNTRAINED = (*HYBRID, Weights(1.0, 0.0), Weights(0.0, 1.0))
TRAINED = (Weights(1.0, 0.0), Weights(1.0, 0.1), Weights(1.0, 0.2), Weights(1.0, 0.4))


class Score(NamedTuple):
    """What candidates are compared by: success@1, and MRR@10 where that is equal."""

    success: float
    reciprocal_rank: float


class Choice(NamedTuple):
    weights: Weights
    score: Score


def choose(retriever: Retriever, questions: Questions, cosines: NDArray[np.float32], among: Sequence[Weights]) -> Choice:
    """The best mixing weights of the candidates; of equal ones the first."""
    candidates = [Choice(weights, score(retriever, questions, cosines, weights)) for weights in among]
    return max(candidates, key=lambda choice: choice.score)


def score(retriever: Retriever, questions: Questions, cosines: NDArray[np.float32], weights: Weights) -> Score:
    """How well the retriever with these weights does on the questions, given the head's cosines (n, documents)."""
    ranking = ranked(retriever, retriever.mixed(cosines, questions.lexical, weights))
    values = per_query(ranking, questions.relevant)
    return Score(float(values["success@1"].mean()), float(values["mrr@10"].mean()))


def ranked(retriever: Retriever, scores: NDArray[np.float32], k: int = 10) -> list[list[str]]:
    """Scores (n, documents) -> the ids of the k best documents of each question, without those that score -inf."""
    return [
        [retriever.documents[row].id for row in rows if np.isfinite(scores[question, row])]
        for question, rows in enumerate(top_k(scores, k))
    ]
