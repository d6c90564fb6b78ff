"""Success@1, recall@10, MRR@10 and nDCG@10, as ir-measures defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEPTH = 10
NAMES = ("success@1", "recall@10", "mrr@10", "ndcg@10")


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Scores (n, documents) -> the k best columns of each row, best first; of equal scores the lower column first.

    A score that is no number (NaN) counts as -inf.
    """
    k = max(0, min(k, scores.shape[1]))
    if np.isnan(scores).any():
        scores = np.where(np.isnan(scores), np.float32(-np.inf), scores)
    if k in (0, scores.shape[1]):
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    # everything at or above the k-th score is a candidate, so that ties at the border are not left to chance
    border = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k, None]
    result = np.empty((len(scores), k), dtype=np.int64)
    for row in range(len(scores)):
        candidates = np.flatnonzero(scores[row] >= border[row])
        result[row] = candidates[np.argsort(-scores[row, candidates], kind="stable")[:k]]
    return result


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
