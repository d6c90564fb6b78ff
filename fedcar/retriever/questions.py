"""Questions with everything that the encoder and the words say of them, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Questions:
    """n questions and, for c candidate documents each, what speaks for them before anything is learned.

    `states` (n,) are records of `FrozenModel.state_type` from the untrained encoder, `candidates` (n, c) document rows,
    `evidence` (n, c, F) the features of `Evidence.NAMES`, `relevance` (n, c) the judgements' scores.
    """

    texts: tuple[str, ...]
    states: NDArray[np.void]
    candidates: NDArray[np.int64]
    evidence: NDArray[np.float32]
    relevance: NDArray[np.float32]
    relevant: tuple[Mapping[str, int], ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def hidden_states(self) -> NDArray[np.float32]:
        """Hidden states h of the untrained encoder (n, d)."""
        hidden_states: NDArray[np.float32] = self.states["pooled"]
        return hidden_states

    def take(self, rows: NDArray[np.int64]) -> Questions:
        """The chosen questions, in that order."""
        chosen = rows.tolist()
        texts, relevant = tuple(self.texts[row] for row in chosen), tuple(self.relevant[row] for row in chosen)
        arrays = (self.states[rows], self.candidates[rows], self.evidence[rows], self.relevance[rows])
        return Questions(texts, *arrays, relevant)

    def targets(self, document_rows: Mapping[str, int]) -> sparse.csr_array:
        """Judgements over all documents (n, documents), sparse float32, each question's best score made 1."""
        values, columns, starts = [], [], [0]
        for judged in self.relevant:
            best = max(judged.values(), default=1)
            found = {document_rows[one]: score for one, score in judged.items() if score > 0 and one in document_rows}
            for column in sorted(found):
                values.append(found[column] / best)
                columns.append(column)
            starts.append(len(columns))
        parts = np.array(values, dtype=np.float32), np.array(columns, dtype=np.int64), np.array(starts)
        return sparse.csr_array(parts, shape=(len(self), len(document_rows)))

    def counts(self, document_rows: Mapping[str, int]) -> NDArray[np.int64]:
        """How many of the questions each document answers (documents,)."""
        return np.bincount(self.targets(document_rows).indices, minlength=len(document_rows))
