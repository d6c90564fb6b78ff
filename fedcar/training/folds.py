"""Document folds: training questions as questions about documents that nobody has asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

NUMBER, FEWER, MANY = 5, 2, 4000  # folds; fewer of them from so many questions on
LEAST_DOCUMENTS = 10
MOST_SHARE = 0.5
SAMPLE = 3000


class Fold(NamedTuple):
    """Rows of training questions: on documents outside the fold alone, and on documents inside it alone."""

    outside: NDArray[np.int64]
    inside: NDArray[np.int64]


@dataclass(frozen=True)
class Folds:
    """`of_document` (N,) is each document's fold, -1 for one without training questions; `share` how much folds count.

    A dev split drawn like the training questions hardly touches documents that nobody has asked about. So a fold's
    documents are looked at as such: all their questions are left out of training and asked afterwards. The share is
    that of documents without questions, at most a half. Documents that share a question are in one fold, where it is
    known: otherwise a question would be about documents inside and outside, and say nothing.
    """

    of_document: NDArray[np.int64]
    share: float

    @classmethod
    def of(
        cls,
        counts: NDArray[np.int64],
        seed: int,
        questions: int,
        documents: int | None = None,
        targets: NDArray[np.float32] | sparse.csr_array | None = None,
    ) -> Folds:
        """Questions of each document (N,) -> seeded folds; none where fewer than ten documents have questions.

        `documents` is how many there are where the counts leave out some that have no question. By the questions'
        `targets` (n, N) documents that share one stay together; there are no folds where that is half of them.
        """
        folds, with_questions = np.full(len(counts), -1), np.flatnonzero(counts)
        number = FEWER if questions >= MANY else NUMBER
        group = np.arange(len(counts)) if targets is None else linked(targets)
        largest = np.bincount(group[with_questions]).max(initial=0)
        if len(with_questions) < LEAST_DOCUMENTS or largest > MOST_SHARE * len(with_questions):
            return cls(folds, 0.0)
        order = np.random.default_rng(seed).permutation(with_questions)
        _, first, of_group = np.unique(group[order], return_index=True, return_inverse=True)
        dealt = np.argsort(np.argsort(first))  # groups in the order in which their first documents come
        folds[order] = dealt[of_group] % number
        return cls(folds, float(min(MOST_SHARE, 1 - len(with_questions) / max(1, documents or len(counts)))))

    @property
    def exist(self) -> bool:
        return bool((self.of_document >= 0).any())

    def sample(
        self, targets: NDArray[np.float32] | sparse.csr_array, generator: np.random.Generator, size: int = SAMPLE
    ) -> NDArray[np.int64]:
        """About `size` questions by their targets (n, N); where there are folds, all questions of each document."""
        if not self.exist:
            return np.sort(generator.permutation(targets.shape[0])[:size])
        first = targets.argmax(axis=1)
        documents = generator.permutation(np.unique(first))
        enough = np.searchsorted(np.cumsum(np.bincount(first)[documents]), size) + 1
        return np.flatnonzero(np.isin(first, documents[:enough]))

    def split(self, targets: NDArray[np.float32] | sparse.csr_array) -> Iterator[Fold]:
        """Targets (n, N) -> each fold; a question about documents on both sides is on neither."""
        relevant = (targets > 0).astype(np.int64)
        for number in range(int(self.of_document.max(initial=-1)) + 1):
            held = self.of_document == number
            touches, leaves = (relevant @ side.astype(np.int64) > 0 for side in (held, ~held))
            yield Fold(np.flatnonzero(~touches & leaves), np.flatnonzero(touches & ~leaves))


def linked(targets: NDArray[np.float32] | sparse.csr_array) -> NDArray[np.int64]:
    """Targets (n, N) -> the group of each document (N,): those that a question, or a chain of them, is about."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    relevant = sparse.csr_array(targets > 0)
    groups: NDArray[np.int64] = connected_components(relevant.T @ relevant, directed=False)[1].astype(np.int64)
    return groups
