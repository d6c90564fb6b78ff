"""The rows that sums give: the closed form over fixed features of a question, and naive Bayes over its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.collection.wording import AS_BEFORE, Wording
from fedcar.head.feature_map import Beside, FeatureMap, below
from fedcar.head.naive_bayes import BUCKETS, NaiveBayes, csr, gram_counts
from fedcar.head.rows import HALF, with_moved_bits
from fedcar.head.view import View

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.head.closed_form import Ridge

FEATURES_AT_ONCE = 256  # whose weights are made float32 at once


@dataclass(frozen=True)
class RidgeRows:
    """`weights` (D, a) for the a documents with training questions, their rows `documents` (a,), and their words."""

    feature_map: FeatureMap
    weights: NDArray[np.float16]
    documents: NDArray[np.int64]
    words: NaiveBayes
    pseudo_documents: NDArray[np.int64]
    wording: Wording = AS_BEFORE  # of the documents, by which the questions' words were counted

    @classmethod
    def of(
        cls,
        ridge: Ridge,
        feature_map: FeatureMap,
        counts: NDArray[np.int64],
        words: NaiveBayes,
        pseudo_counts: NDArray[np.int64],
        wording: Wording = AS_BEFORE,
    ) -> RidgeRows:
        """Only the columns of documents with questions or pseudo-queries are kept; the others are 0."""
        documents, pseudo = np.flatnonzero(counts), np.flatnonzero((pseudo_counts > 0) & (counts == 0))
        columns = np.concatenate([documents, pseudo])
        weights = np.ascontiguousarray(ridge.weights[:, columns], dtype=np.float16)  # or safetensors garbles it
        return cls(feature_map, weights, documents, words, pseudo, wording)

    def among(self, places: NDArray[np.int64], documents: int) -> RidgeRows:
        """The same where the documents solved for stand at these places (a,), ascending, among N `documents`."""
        counts, sizes = self.words.counts, np.zeros(documents, dtype=np.int64)
        sizes[places] = np.diff(counts.indptr)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        words = csr((counts.data, counts.indices, starts), shape=(documents, counts.shape[1]))
        asked, pseudo = places[self.documents], places[self.pseudo_documents]
        return replace(self, documents=asked, pseudo_documents=pseudo, words=NaiveBayes(words))

    @property
    def has_row(self) -> NDArray[np.bool_]:
        """Which documents have training questions (N,)."""
        result = np.zeros(self.words.counts.shape[0], dtype=bool)
        result[self.documents] = True
        return result

    def added(self, documents: int) -> RidgeRows:
        """With so many documents behind the others; they have neither row nor words."""
        return self._changed(np.arange(self.words.counts.shape[0]), documents)

    def without(self, places: Sequence[int]) -> RidgeRows:
        """Without the documents at these places; the others move up."""
        return self._changed(np.delete(np.arange(self.words.counts.shape[0]), places), 0)

    def updated(self, places: Sequence[int]) -> RidgeRows:
        """With the documents at these places behind the others, and their rows and words; solved from texts, none."""
        others = np.delete(np.arange(self.words.counts.shape[0]), places)
        left = ~np.isin(self.pseudo_documents, places)
        columns = np.concatenate([np.ones(len(self.documents), dtype=bool), left])
        without = replace(self, weights=self.weights[:, columns], pseudo_documents=self.pseudo_documents[left])
        return without._changed(np.concatenate([others, np.asarray(places, dtype=np.int64)]), 0)

    def _changed(self, left: NDArray[np.int64], new: int) -> RidgeRows:
        """With the documents at these places, in their order, and so many new ones behind them."""
        place = np.full(self.words.counts.shape[0], -1)
        place[left] = np.arange(len(left))
        columns = place[np.concatenate([self.documents, self.pseudo_documents])]
        documents, pseudo = place[self.documents], place[self.pseudo_documents]
        counts = self.words.counts[left]
        starts = np.concatenate([counts.indptr, np.full(new, counts.indptr[-1])])
        shape = (len(left) + new, counts.shape[1])
        return replace(
            self,
            weights=np.ascontiguousarray(self.weights[:, columns >= 0]),
            documents=documents[documents >= 0],
            pseudo_documents=pseudo[pseudo >= 0],
            words=NaiveBayes(csr((counts.data, counts.indices, starts), shape=shape)),
        )

    def knows(self, text: str) -> bool:
        """Whether a training question had any of the text's words."""
        return bool((gram_counts([text], self.wording) @ self.words.of_gram).any())

    def scores(self, texts: Sequence[str], states: NDArray[np.void]) -> NDArray[np.float32]:
        """Questions and their states -> (n, documents, 2).

        The first is near 1 for documents that answered such questions and 0 for those without any; the second is naive
        Bayes.
        """
        words = self.words.scores(gram_counts(texts, self.wording))
        rows = np.zeros_like(words)
        columns = np.concatenate([self.documents, self.pseudo_documents])
        features = self.feature_map(states) * HALF
        products = np.zeros((len(features), len(columns)), dtype=np.float32)
        buffer = np.empty((FEATURES_AT_ONCE, len(columns)), dtype=np.float32)
        for start in range(0, len(self.weights), FEATURES_AT_ONCE):
            part = slice(start, min(start + FEATURES_AT_ONCE, len(self.weights)))
            products += features[:, part] @ with_moved_bits(self.weights[part], buffer[: part.stop - start])
        rows[:, columns] = products * HALF
        return np.stack([rows, words], axis=2)

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """Everything but the seed, as plain arrays."""
        fixed, counts = self.feature_map, self.words.counts
        view = {} if fixed.view is None else fixed.view.tensors()
        beside = {} if fixed.beside is None else fixed.beside.tensors()
        named = {f"view.{name}": array for name, array in view.items()}
        named |= {f"beside.{name}": array for name, array in beside.items()}
        return named | {
            "weights": np.ascontiguousarray(self.weights),  # safetensors writes memory as it lies
            "documents": self.documents,
            "pseudo_documents": self.pseudo_documents,
            "centre": fixed.centre,
            "layer_centre": fixed.layer_centre,
            "layer_spread": np.array([fixed.layer_spread], dtype=np.float64),
            "word_counts": counts.data,
            "word_grams": counts.indices.astype(np.int32),
            "word_starts": counts.indptr.astype(np.int64),
        }

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, NDArray[Any]], seed: int, number_of_documents: int, wording: Wording = AS_BEFORE
    ) -> RidgeRows:
        """What `tensors` gave, with the seed of the random features and the documents' wording."""
        spread = float(tensors["layer_spread"][0])
        drawn = None
        if "hidden_frequencies" in tensors:
            drawn = tensors["hidden_frequencies"], tensors["layer_frequencies"]
        of_view, of_second = below(tensors, "view."), below(tensors, "beside.")
        view = View.from_tensors(of_view) if of_view else None
        beside = Beside.from_tensors(of_second, seed) if of_second else None
        fixed = FeatureMap(tensors["centre"], tensors["layer_centre"], spread, seed, drawn, view, beside)
        parts = (tensors["word_counts"], tensors["word_grams"], tensors["word_starts"])
        words = NaiveBayes(csr(parts, shape=(number_of_documents, BUCKETS)))
        return cls(fixed, tensors["weights"], tensors["documents"], words, tensors["pseudo_documents"], wording)
