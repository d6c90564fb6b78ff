"""The weights of the mixture: their names, and which are learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedcar.retriever.evidence import Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEARNED = len(Evidence.NAMES)
MIXED = (*Evidence.NAMES, "rows", "words")
WEIGHT_NAMES = (*MIXED, *(f"apart.{name}" for name in MIXED), "apart")
APART = len(MIXED)  # where the weights of documents without a trained row begin, where others have one


def weights_of(evidence: NDArray[np.float32], rows: float = 1.0, words: float = 0.0) -> NDArray[np.float32]:
    """Weights of the mixture by those of the evidence, the same for documents that stand apart."""
    mixed = [*evidence, rows, words]
    return np.array([*mixed, *mixed, 0.0], dtype=np.float32)


def mixed_features(
    evidence: NDArray[np.float32], learned: NDArray[np.float32], apart: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Evidence (n, c, 8), what was learned (n, c, 2), which candidates stand apart (n, c) -> (n, c, F).

    The features stand in the first places, those of a candidate that stands apart in the second ones, before a 1.
    """
    found = np.zeros((*apart.shape, len(WEIGHT_NAMES)), dtype=np.float32)
    found[..., :LEARNED], found[..., LEARNED:APART] = evidence, learned
    if apart.any():
        found[apart, APART:-1] = found[apart, :APART]
        found[apart, :APART] = 0.0
        found[..., -1] = apart
    return found
