"""What a user has without training: BM25, MIPS (cosine) and hybrid search."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HYBRID_WEIGHTS = (0.2, 0.4)
HYBRID_WEIGHT_WITHOUT_DEV = 0.2


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of unit length; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def mips(hidden_states: NDArray[np.float32], embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of the untrained encoder: hidden states (n, d) and document embeddings (m, d) -> (n, m)."""
    return unit(hidden_states) @ unit(embeddings).T


def hybrid(cosines: NDArray[np.float32], lexical: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """Cosine + weight * BM25 / (its maximum for the query)."""
    return cosines + np.float32(weight) * lexical


def choose_hybrid_weight(score: Callable[[float], float] | None) -> float:
    """The better of .2 and .4 by `score` on dev (of equal ones the lower); .2 without dev."""
    if score is None:
        return HYBRID_WEIGHT_WITHOUT_DEV
    return max(HYBRID_WEIGHTS, key=lambda weight: (score(weight), -weight))
