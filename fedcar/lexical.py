"""BM25 over the documents (bm25s behind it)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedcar.errors import FedcarWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LexicalIndex:
    """BM25 scores of documents for a query: bm25s defaults with English stop words.

    Held as one sparse matrix of word by document, so that it is saved as plain arrays. Robertson and Zaragoza 2009;
    the Lucene variant, k1 = 1.5, b = .75.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], arrays: Mapping[str, NDArray[np.generic]], documents: int
    ) -> None:
        self.vocabulary = dict(vocabulary)
        self.arrays = dict(arrays)
        self.documents = documents

    @classmethod
    def build(cls, texts: Sequence[str]) -> LexicalIndex:
        """An index over the texts; documents without any word get the score 0."""
        import bm25s

        tokens = bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
        if not any(tokens.ids):
            return cls({}, {}, len(texts))
        index = bm25s.BM25()
        index.index(tokens, show_progress=False)
        arrays = {name: np.asarray(index.scores[name]) for name in ("data", "indices", "indptr")}
        vocabulary = {word: row for word, row in index.vocab_dict.items() if word}
        return cls(vocabulary, arrays, len(texts))

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Queries -> BM25 (n, documents), float32; a row of zeros for a query of stop words or unknown words only."""
        return self._scores(_words(queries))

    def relative_scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """BM25 divided by its maximum for the query: (n, documents) in [0, 1].

        Warns (FedcarWarning) once a call about queries of stop words only, which say nothing to BM25.
        """
        words = _words(queries)
        if silent := sum(not found for found in words):
            warnings.warn(
                f"{silent} of {len(queries)} queries have nothing but stop words; BM25 gives them 0 for every document",
                FedcarWarning,
                stacklevel=2,
            )
        scores = self._scores(words)
        maximum = scores.max(axis=1, keepdims=True, initial=0.0)
        np.divide(scores, maximum, out=scores, where=maximum > 0)
        return scores

    def _scores(self, queries: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        result = np.zeros((len(queries), self.documents), dtype=np.float32)
        if not self.vocabulary:
            return result
        data, indices, indptr = (self.arrays[name] for name in ("data", "indices", "indptr"))
        for row, words in enumerate(queries):
            for word in words:
                column = self.vocabulary.get(word)
                if column is not None:
                    part = slice(int(indptr[column]), int(indptr[column + 1]))
                    result[row, indices[part]] += data[part]
        return result


def _words(queries: Sequence[str]) -> list[list[str]]:
    """The words of each query as bm25s sees them: lower case, without stop words."""
    import bm25s

    words: list[list[str]] = bm25s.tokenize(list(queries), stopwords="en", show_progress=False, return_ids=False)
    return words
