"""Gains over hybrid search, question by question, and the bound below them: what a choice may rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedcar.collection.collection import normalised
from fedcar.common.vectors import top_k
from fedcar.evaluation.metrics import DEPTH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.retriever.questions import Questions

FEW = 200  # selection questions, below which training questions that were left out are asked beside them
PARTS = 5  # of the training questions, each left out in turn
SURE, NOT_WORSE = 2.0, 1.0  # standard errors: of both measures together, and of each alone
DISCOUNT = 1 / np.log2(np.arange(DEPTH) + 2)


def measures(questions: Questions, scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Success@1 and nDCG@10 of each question (n, 2), its candidates ranked by scores (n, c); as in `metrics`."""
    best = top_k(scores, DEPTH)
    gains, reached = (np.take_along_axis(values, best, axis=1) for values in (questions.relevance, scores))
    gains = np.where(np.isfinite(reached), np.maximum(gains, 0), 0).astype(np.float64)
    success = gains[:, 0] > 0 if gains.shape[1] else np.zeros(len(gains))
    found = gains @ DISCOUNT[: gains.shape[1]]
    return np.stack([success, found / np.maximum(ideal(questions.relevant), 1e-9)], axis=1)


def ideal(relevant: Sequence[Mapping[str, int]]) -> NDArray[np.float64]:
    """The discounted gain of the best ranking there can be of each question's judgements (n,)."""
    best = np.zeros(len(relevant))
    for row, judged in enumerate(relevant):
        wanted = sorted((score for score in judged.values() if score > 0), reverse=True)[:DEPTH]
        best[row] = np.array(wanted) @ DISCOUNT[: len(wanted)] if wanted else 0.0
    return best


class Measured(NamedTuple):
    """Questions that were left out of what was learned, and its measures (n, 2) on them."""

    questions: Questions
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Proof:
    """What training questions say of a mixture that did not learn from them; nothing where none was left out.

    `seen`: each was left out with few others, so that its document keeps its other questions. `unseen`: with all
    questions of its document's fold.
    """

    seen: Measured | None = None
    unseen: Measured | None = None


class Gain(NamedTuple):
    """What is won over hybrid search: the mean over both measures less its slack, and whether that can be relied on.

    `sure`: it is above 0, and neither measure is likely to be lost. `success` and `ndcg` are the two means.
    """

    sure: bool
    bound: float
    success: float = 0.0
    ndcg: float = 0.0


NO_GAIN = Gain(True, 0.0)
UNKNOWN = Gain(False, -np.inf)


def gain(seen: NDArray[np.float64], unseen: NDArray[np.float64] | None = None, share: float = 0.0) -> Gain:
    """The gain where differences to hybrid are these, (n, 2) each; `unseen` count by their share.

    The bound is as many standard errors below the mean. Each mean and its error are those with two more questions, one
    won and one lost by the largest difference that was seen (Agresti and Caffo 2000): a few questions that happen to
    agree are no proof. The questions of document folds are training questions too, so the errors add up. A gain is sure
    where `seen` alone is too: folds know that the answer is a document without questions, which users do not.
    """
    mean, error = _mean_and_error(seen)
    sure = _is_sure(mean, error)
    if unseen is not None and share:
        mean_unseen, error_unseen = _mean_and_error(unseen)
        mean, error = (1 - share) * mean + share * mean_unseen, (1 - share) * error + share * error_unseen
        sure = sure and _is_sure(mean, error)
    return Gain(sure, float(mean[2] - SURE * error[2]), float(mean[0]), float(mean[1]))


def _is_sure(mean: NDArray[np.float64], error: NDArray[np.float64]) -> bool:
    return bool(mean[2] > SURE * error[2]) and bool((mean[:2] > NOT_WORSE * error[:2]).all())


def _mean_and_error(differences: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of both measures and their mean (3,)."""
    values = np.column_stack([differences, differences.mean(axis=1)])
    if not len(values):
        return np.zeros(3), np.full(3, np.inf)
    number, largest = len(values) + 2, np.abs(values).max(axis=0)
    mean = values.sum(axis=0) / number
    squares = np.square(values - mean).sum(axis=0) + np.square(largest - mean) + np.square(largest + mean)
    return mean, np.sqrt(squares) / number


def parts_of(texts: Sequence[str], seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Questions to learn from and questions left out, in five seeded ways; those of one text stay together."""
    numbers = {text: number for number, text in enumerate(sorted({normalised(text) for text in texts}))}
    dealt = np.random.default_rng(seed).permutation(len(numbers)) % PARTS
    part = np.array([dealt[numbers[normalised(text)]] for text in texts], dtype=np.int64)
    for number in np.unique(part):
        if (part != number).any():
            yield np.flatnonzero(part != number), np.flatnonzero(part == number)


def left_out_scores(
    texts: Sequence[str],
    seed: int,
    fit: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    features: Sequence[NDArray[np.float32]],
) -> list[NDArray[np.float32]]:
    """Scores (n, c) by each of the features (n, c, F), each question's by weights that `fit` learned from others."""
    scores = [np.zeros(one.shape[:2], dtype=np.float32) for one in features]
    for others, left_out in parts_of(texts, seed):
        weights = fit(others)
        for of_all, one in zip(scores, features, strict=True):
            of_all[left_out] = one[left_out] @ weights
    return scores
