"""Complement naive Bayes over words and word pairs: counts add up over clients, as the closed form's statistics do."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.collection.wording import AS_BEFORE, Wording

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

BUCKETS = 1 << 20
SMOOTHING = 0.1


def csr(content: Any, **options: Any) -> sparse.csr_array:  # noqa: ANN401 - what scipy takes
    """A sparse matrix by rows. scipy is imported with the first one: a bundle without ridge starts without it."""
    from scipy import sparse

    return sparse.csr_array(content, **options)


def gram_counts(texts: Sequence[str], wording: Wording = AS_BEFORE) -> sparse.csr_array:
    """log2(1 + count) of each text's words and word pairs, hashed: (n, BUCKETS) sparse, float32."""
    columns: list[int] = []
    values: list[int] = []
    starts = [0]
    for text in texts:
        words = wording.words_and_signs(text)
        grams = Counter((*words, *map(" ".join, zip(words, words[1:], strict=False))))
        columns += [zlib.crc32(gram.encode("utf-8", "replace")) % BUCKETS for gram in grams]
        values += grams.values()
        starts.append(len(columns))
    counted = np.log2(1 + np.array(values, dtype=np.float32))
    matrix = csr((counted, np.array(columns, np.int64), np.array(starts)), shape=(len(texts), BUCKETS))
    matrix.sum_duplicates()
    return matrix


@dataclass(frozen=True)
class NaiveBayes:
    """`counts` (documents, BUCKETS): the grams of each document's training questions.

    score(q, d) = sum_g c_g [log p(g | d) - log p(g | any document but d)] with Lidstone smoothing (complement naive
    Bayes: Rennie et al. 2003), up to a constant of the question. A document without questions scores the mean of those
    with questions.
    """

    counts: sparse.csr_array

    @classmethod
    def of(cls, grams: sparse.csr_array, targets: NDArray[np.float32] | sparse.csr_array) -> NaiveBayes:
        """Grams (n, BUCKETS) of training questions and their targets (n, documents)."""
        return cls(csr(csr(targets > 0, dtype=np.float32).T @ grams))

    def __add__(self, other: NaiveBayes) -> NaiveBayes:
        return NaiveBayes(csr(self.counts + other.counts))

    @cached_property
    def of_gram(self) -> NDArray[np.float64]:
        """How often each gram was asked, over all documents (BUCKETS,)."""
        return np.asarray(self.counts.sum(axis=0), dtype=np.float64).ravel()

    @cached_property
    def of_document(self) -> NDArray[np.float64]:
        """How many grams each document was asked with (documents,)."""
        return np.asarray(self.counts.sum(axis=1), dtype=np.float64).ravel()

    @property
    def smoothing_mass(self) -> float:
        """What smoothing adds to a document's grams: SMOOTHING for each gram that was ever asked."""
        return SMOOTHING * max(1, int((self.of_gram > 0).sum()))

    @cached_property
    def biases(self) -> NDArray[np.float64]:
        """What one gram that no document was asked with says of each document (documents,)."""
        smooth = self.smoothing_mass
        rest = self.of_document.sum() - self.of_document
        biases: NDArray[np.float64] = np.log((rest + smooth) / (self.of_document + smooth))
        return biases

    @cached_property
    def weights(self) -> sparse.csr_array:
        """What each gram adds to that for the documents that were asked with it: (BUCKETS, documents) sparse."""
        counts = self.counts.tocoo()
        total, inside = self.of_gram[counts.col], counts.data.astype(np.float64)
        values = np.log1p(inside / SMOOTHING) + np.log((total + SMOOTHING) / (total - inside + SMOOTHING))
        return csr((values.astype(np.float32), (counts.col, counts.row)), shape=self.counts.shape[::-1])

    def scores(self, grams: sparse.csr_array) -> NDArray[np.float32]:
        """Grams (n, BUCKETS) -> (n, documents), centred on the documents that have questions."""
        return self._centred((grams @ self.weights).toarray() + np.outer(_sizes(grams), self.biases))

    def scores_without(
        self, grams: sparse.csr_array, answers: sparse.csr_array, left_out: sparse.csr_array | None = None
    ) -> NDArray[np.float32]:
        """The same for training questions as if each had never been asked of its documents, exactly.

        `answers` (n, documents) is above 0 at those, of which a question may have several. With `left_out` (n, BUCKETS)
        those grams were not asked of them, in place of the question's own alone.
        """
        by_gram = csr(self.counts.T)
        gone, away = grams if left_out is None else left_out, np.zeros(BUCKETS)
        smooth, everything = self.smoothing_mass, self.of_document.sum()
        raw = np.empty((grams.shape[0], len(self.of_document)))
        of_answer = np.zeros(len(self.of_document))
        for row in range(grams.shape[0]):
            answering = answers.indices[answers.indptr[row] : answers.indptr[row + 1]]
            of_answer[answering] = 1.0
            part = slice(grams.indptr[row], grams.indptr[row + 1])
            places, weights = grams.indices[part], grams.data[part].astype(np.float64)
            counts = by_gram[places].tocoo()
            asked = weights[counts.row]
            part = slice(gone.indptr[row], gone.indptr[row + 1])
            away[gone.indices[part]] = gone.data[part]
            fewer, size = away[places][counts.row], away[gone.indices[part]].sum()
            away[gone.indices[part]] = 0.0
            inside = np.maximum(counts.data - of_answer[counts.col] * fewer, 0.0)
            total = np.maximum(self.of_gram[places][counts.row] - len(answering) * fewer, inside)
            says = np.log1p(inside / SMOOTHING) + np.log((total + SMOOTHING) / (total - inside + SMOOTHING))
            left = self.of_document.copy()
            left[answering] = np.maximum(left[answering] - size, 0.0)
            biases = np.log((everything - len(answering) * size - left + smooth) / (left + smooth))
            of_answer[answering] = 0.0
            raw[row] = np.bincount(counts.col, asked * says, len(left)) + weights.sum() * biases
        return self._centred(raw)

    def _centred(self, raw: NDArray[np.float64]) -> NDArray[np.float32]:
        touched = self.of_document > 0
        if not touched.any():
            return np.zeros(raw.shape, dtype=np.float32)
        centred: NDArray[np.float32] = (raw - raw[:, touched].mean(axis=1, keepdims=True)).astype(np.float32)
        centred[:, ~touched] = 0.0
        return centred


def _sizes(grams: sparse.csr_array) -> NDArray[np.float64]:
    return np.asarray(grams.sum(axis=1), dtype=np.float64).ravel()
