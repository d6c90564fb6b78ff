"""Rows of numbers: unit length, and the highest of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row divided by its length; a row of zeros stays."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    result: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-12))
    return result


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
