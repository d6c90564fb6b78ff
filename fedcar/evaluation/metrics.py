"""Success@1, recall@10, MRR@10 and nDCG@10, as ir-measures defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10
CURVE_POINTS = 10
DEPTH = 10
NAMES = ("success@1", "recall@10", "mrr@10", "ndcg@10")


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.float64]) -> float:
    """Mean distance of confidence and accuracy over ten bins of equal width, weighted by size (Guo et al. 2017)."""
    if not len(confidence):
        return 0.0
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    inside = [bins == number for number in np.unique(bins)]
    return float(sum(abs(confidence[rows].mean() - correct[rows].mean()) * rows.mean() for rows in inside))


def risk_coverage(trust: NDArray[np.float64], correct: NDArray[np.float64]) -> list[dict[str, float]]:
    """The share of wrong answers among the most trusted tenth, two tenths, ... of the questions (El-Yaniv 2010).

    Of equally trusted questions each counts as the mean of them all, so that their order does not matter.
    """
    if not len(trust):
        return []
    _, group, sizes = np.unique(-trust, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=1 - correct) / sizes
    risk = np.cumsum(wrong[np.sort(group)]) / np.arange(1, len(trust) + 1)
    answered = [-(-len(trust) * point // CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)]
    return [{"coverage": number / len(trust), "risk": float(risk[number - 1])} for number in answered]


def area_under_roc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float | None:
    """The probability that a positive value is above a negative one, ties counted half; None where one is empty."""
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * len(negative)))


def per_query(
    ranking: Sequence[Sequence[str]], relevant: Sequence[Mapping[str, int]]
) -> dict[str, NDArray[np.float64]]:
    """Ranked document ids and judgements of n queries -> each measure's n values.

    A document is relevant from score 1; nDCG uses the score itself as gain (linear).
    """
    values = {name: np.zeros(len(ranking)) for name in NAMES}
    for row, (documents, judged) in enumerate(zip(ranking, relevant, strict=True)):
        gains = [max(0, judged.get(document, 0)) for document in documents[:DEPTH]]
        hits = [position for position, gain in enumerate(gains) if gain > 0]
        wanted = sorted((score for score in judged.values() if score > 0), reverse=True)
        if not wanted or not hits:
            continue
        values["success@1"][row] = float(hits[0] == 0)
        values["recall@10"][row] = len(hits) / len(wanted)
        values["mrr@10"][row] = 1 / (hits[0] + 1)
        values["ndcg@10"][row] = _discounted(gains) / _discounted(wanted[:DEPTH])
    return values


def _discounted(gains: Sequence[int]) -> float:
    return float(sum(gain / np.log2(position + 2) for position, gain in enumerate(gains)))


def mean(values: Mapping[str, NDArray[np.float64]], rows: NDArray[np.bool_]) -> dict[str, float] | None:
    """The means over the chosen queries, with their number; None where there is none."""
    if not rows.any():
        return None
    return {"queries": int(rows.sum()), **{name: float(values[name][rows].mean()) for name in NAMES}}
