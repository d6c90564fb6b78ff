"""What a user has without training: BM25, MIPS (cosine) and hybrid search, over all documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedcar.common.vectors import top_k, unit
from fedcar.evaluation.metrics import DEPTH
from fedcar.retriever.evidence import at_once

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.retriever.retriever import Retriever

HYBRID_WEIGHTS = (0.2, 0.4)
MIPS = 0.0
BM25 = None
CHUNK = 256


def rankings(
    retriever: Retriever,
    texts: Sequence[str],
    hidden_states: NDArray[np.float32],
    weights: Sequence[float | None],
) -> list[list[list[str]]]:
    """For each weight the ten best document ids of each question by cosine + weight * BM25 / (its maximum).

    Hidden states (n, d) of the untrained encoder. The weight 0 is MIPS, None is BM25 alone; empty documents are never
    returned.
    """
    embeddings = retriever.head.embeddings.numpy()
    ids, empty = [document.id for document in retriever.documents], retriever.empty
    ranked: list[list[list[str]]] = [[] for _ in weights]
    for start in range(0, len(texts), step := at_once(CHUNK, len(ids))):
        cosines = unit(hidden_states[start : start + step]) @ embeddings.T
        lexical = retriever.evidence.lexical(texts[start : start + step])
        for place, weight in enumerate(weights):
            scores = lexical.copy() if weight is None else cosines + np.float32(weight) * lexical
            scores[:, empty] = -np.inf
            best = top_k(scores, DEPTH)
            ranked_at_all = np.isfinite(np.take_along_axis(scores, best, axis=1))
            ranked[place] += [[ids[row] for row in rows[keep]] for rows, keep in zip(best, ranked_at_all, strict=True)]
    return ranked
