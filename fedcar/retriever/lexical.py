"""BM25 over the documents, and how much of a question the best sentence of a document holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.collection.wording import AS_BEFORE
from fedcar.errors import FedcarWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray

Words = Callable[[str], list[str]]

K1, B = 1.5, 0.75
MOST_COUNTED = np.iinfo(np.uint16).max


class LexicalIndex:
    """BM25 scores of documents for a query: bm25s' defaults with English stop words, or over `words` of one's own.

    Robertson and Zaragoza 2009; the Lucene variant, k1 = 1.5, b = .75: the scores are those of bm25s to the bit. Held
    as counts, so that documents come and go without the others' texts, and saved as plain arrays: `counts` and
    `indices` (the document) of the words' occurrences, `indptr` where each word's begin, `lengths` of the documents.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], arrays: Mapping[str, NDArray[Any]], words: Words | None = None
    ) -> None:
        self.vocabulary = vocabulary
        self.arrays = dict(arrays)
        self.words = words

    @classmethod
    def build(cls, texts: Sequence[str], words: Words | None = None) -> LexicalIndex:
        """An index over the texts; documents without any word get the score 0.

        `words` takes a text apart, documents and queries alike; without it bm25s does, and leaves English stop words
        out.
        """
        nothing = {"counts": np.uint16, "indices": np.int32, "lengths": np.int32}
        arrays = {name: np.zeros(0, dtype) for name, dtype in nothing.items()}
        return cls({}, arrays | {"indptr": np.zeros(1, np.int64)}, words).added(texts)

    def added(self, texts: Sequence[str]) -> LexicalIndex:
        """The index with these documents behind the others: what `build` makes of all of them."""
        vocabulary, documents = dict(self.vocabulary), self.documents + len(texts)
        numbers = [[vocabulary.setdefault(word, len(vocabulary)) for word in words] for words in self._words(texts)]
        lengths = np.array([len(words) for words in numbers], dtype=np.int32)
        column = np.fromiter(chain.from_iterable(numbers), dtype=np.int64, count=int(lengths.sum()))
        document = np.repeat(np.arange(self.documents, documents), lengths)
        pairs, counts = np.unique(column * documents + document, return_counts=True)
        new = {"counts": np.minimum(counts, MOST_COUNTED), "indices": pairs % max(documents, 1)}
        arrays = _with_new(self.arrays, len(vocabulary), pairs // max(documents, 1), new)
        arrays["lengths"] = np.concatenate([self.arrays["lengths"], lengths])
        return LexicalIndex(vocabulary, arrays, self.words)

    def without(self, rows: Sequence[int]) -> LexicalIndex:
        """The index without these documents and the words that only they had."""
        kept = np.ones(self.documents, dtype=bool)
        kept[list(rows)] = False
        here = kept[self.arrays["indices"]]
        sizes = _sizes(here, self.arrays["indptr"])
        words = list(compress(self.vocabulary, (sizes > 0).tolist()))  # which stand in the order of their numbers
        document = (np.cumsum(kept) - 1).astype(np.int32)
        arrays = {
            "counts": self.arrays["counts"][here],
            "indices": document[self.arrays["indices"][here]],
            "indptr": _starts(sizes[sizes > 0]),
            "lengths": self.arrays["lengths"][kept],
        }
        return LexicalIndex(numbered(words), arrays, self.words)

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return len(self.arrays["lengths"])

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """The idf of each word by its number, float32: log(1 + (N - n + .5) / (n + .5)), which is above 0."""
        return inverse_document_frequencies(np.diff(self.arrays["indptr"]), self.documents)

    @cached_property
    def _saturation(self) -> NDArray[np.float64]:
        lengths = self.arrays["lengths"]
        average = lengths.mean() if lengths.any() else 1.0
        saturation: NDArray[np.float64] = K1 * ((1 - B) + B * lengths / average)
        return saturation

    @cached_property
    def _asked(self) -> dict[int, tuple[NDArray[np.int32], NDArray[np.float32]]]:
        return {}

    def _of_word(self, column: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The documents that have the word, and what it adds to the score of each; worked out when first asked for."""
        if column not in self._asked:
            part = slice(*self.arrays["indptr"][column : column + 2])
            documents, counts = self.arrays["indices"][part], self.arrays["counts"][part].astype(np.float64)
            added = self.weights[column] * (counts / (self._saturation[documents] + counts))
            self._asked[column] = documents, added.astype(np.float32)
        return self._asked[column]

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Queries -> BM25 (n, documents), float32; a row of zeros for a query of stop words or unknown words only."""
        return self._scores(self._words(queries))

    def relative_scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """BM25 divided by its maximum for the query: (n, documents) in [0, 1].

        Warns (FedcarWarning) once a call about queries of stop words only, which say nothing to BM25.
        """
        words = self._words(queries)
        if silent := sum(not found for found in words):
            warnings.warn(
                f"{silent} of {len(queries)} queries have nothing but stop words; BM25 gives them 0 for every document",
                FedcarWarning,
                stacklevel=2,
            )
        return relative(self._scores(words))

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        return [*map(self.words or AS_BEFORE.words, texts)]

    def _scores(self, queries: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        result = np.zeros((len(queries), self.documents), dtype=np.float32)
        for scores, words in zip(result, queries, strict=True):
            for column in map(self.vocabulary.get, words):
                if column is not None:
                    documents, added = self._of_word(column)
                    scores[documents] += added
        return result


class SentenceCoverage:
    """The share of a query's words, weighted by idf, that the best sentence of each document holds.

    It speaks the words of a LexicalIndex over the same documents and takes their idf; a word that no document has
    weighs as much as the rarest. Held as the sentences of each word (`indices`, and `indptr` where each word's begin)
    and where each document's sentences begin (`starts`).
    """

    def __init__(self, index: LexicalIndex, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.index = index
        self.arrays = dict(arrays)

    @classmethod
    def build(cls, documents: Sequence[Sequence[str]], index: LexicalIndex) -> SentenceCoverage:
        """Each document as its sentences; one without a sentence counts as one empty sentence."""
        nothing: dict[str, NDArray[Any]] = {"indices": np.zeros(0, np.int32)}
        nothing |= {name: np.zeros(1, np.int64) for name in ("indptr", "starts")}
        return cls(index, nothing).added(documents, index)

    def added(self, documents: Sequence[Sequence[str]], index: LexicalIndex) -> SentenceCoverage:
        """With these documents behind the others; `index` has them already."""
        whole = [sentences or [""] for sentences in documents]
        words = index._words(list(chain.from_iterable(whole)))
        numbers = [{index.vocabulary[word] for word in found if word in index.vocabulary} for found in words]
        sizes = [len(found) for found in numbers]
        first = int(self.arrays["starts"][-1])
        column = np.fromiter(chain.from_iterable(numbers), dtype=np.int64, count=sum(sizes))
        order = np.argsort(column, kind="stable")
        new = {"indices": np.repeat(np.arange(first, first + len(words)), sizes)[order]}
        arrays = _with_new(self.arrays, len(index.vocabulary), column[order], new)
        ends = first + np.cumsum([len(sentences) for sentences in whole], dtype=np.int64)
        return SentenceCoverage(index, arrays | {"starts": np.concatenate([self.arrays["starts"], ends])})

    def without(self, rows: Sequence[int], index: LexicalIndex) -> SentenceCoverage:
        """Without these documents; `index` is without them already."""
        sizes = np.diff(self.arrays["starts"])
        kept = np.ones(len(sizes), dtype=bool)
        kept[list(rows)] = False
        sentences = np.repeat(kept, sizes)
        here = sentences[self.arrays["indices"]]
        left = [word in index.vocabulary for word in self.index.vocabulary]  # in the order of their numbers, as there
        arrays = {
            "indices": (np.cumsum(sentences) - 1).astype(np.int32)[self.arrays["indices"][here]],
            "indptr": _starts(_sizes(here, self.arrays["indptr"])[left]),
            "starts": _starts(sizes[kept]),
        }
        return SentenceCoverage(index, arrays)

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Queries -> (n, documents) in [0, 1]."""
        starts, indices, indptr = (self.arrays[name] for name in ("starts", "indices", "indptr"))
        weights, vocabulary = self.index.weights, self.index.vocabulary
        result = np.zeros((len(queries), len(starts) - 1), dtype=np.float32)
        if not vocabulary:
            return result
        rarest = weights.max()
        for row, words in enumerate(self.index._words(queries)):
            distinct = dict.fromkeys(words)
            columns = [column for column in map(vocabulary.get, distinct) if column is not None]
            held = np.zeros(starts[-1], dtype=np.float32)
            for column in columns:
                held[indices[indptr[column] : indptr[column + 1]]] += weights[column]
            total = weights[columns].sum() + rarest * (len(distinct) - len(columns))
            if columns:
                result[row] = np.maximum.reduceat(held, starts[:-1]) / total
        return result

    def within(self, query: str, document: int, ranges: NDArray[np.int64]) -> NDArray[np.float32]:
        """The share of a query's words that parts of a document hold: ranges (w, 2) of its sentences -> (w,)."""
        starts, indices, indptr = (self.arrays[name] for name in ("starts", "indices", "indptr"))
        columns = [self.index.vocabulary.get(word) for word in dict.fromkeys(self.index._words([query])[0])]
        held, total = np.zeros(len(ranges), dtype=np.float32), np.float32(1e-9)
        for column in columns:
            if column is not None:
                found = indices[indptr[column] : indptr[column + 1]]
                first, last = np.searchsorted(found, starts[document] + ranges).T
                held += self.index.weights[column] * (last > first)
                total += self.index.weights[column]
        result: NDArray[np.float32] = held / total
        return result


def relative(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores (n, documents), 0 and up, divided by the row's maximum, in place; a row of zeros stays."""
    maximum = scores.max(axis=1, keepdims=True, initial=0.0)
    np.divide(scores, maximum, out=scores, where=maximum > 0)
    return scores


def inverse_document_frequencies(found: NDArray[np.int64], documents: int) -> NDArray[np.float32]:
    """In how many of the documents each word is found -> log(1 + (N - n + .5) / (n + .5)), float32."""
    frequencies: NDArray[np.float32] = np.log(1 + (documents - found + 0.5) / (found + 0.5)).astype(np.float32)
    return frequencies


def numbered(vocabulary: Sequence[str] | Mapping[str, int]) -> Mapping[str, int]:
    """Words in the order of their numbers -> their numbers."""
    return vocabulary if isinstance(vocabulary, Mapping) else dict(zip(vocabulary, range(len(vocabulary)), strict=True))


def _with_new(
    old: Mapping[str, NDArray[Any]], words: int, columns: NDArray[np.int64], new: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Occurrences (m,) of words by their numbers `columns`, ascending, behind the old ones of each word.

    The old ones are copied once and never sorted. `words` is how many words there are now.
    """
    known = old["indptr"]
    starts = np.concatenate([known, np.full(words + 1 - len(known), known[-1])])
    arrays = {
        name: np.insert(old[name], starts[columns + 1], part.astype(old[name].dtype)) for name, part in new.items()
    }
    return arrays | {"indptr": starts + np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=words))])}


def _sizes(here: NDArray[np.bool_], indptr: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of each word's occurrences stay."""
    return np.diff(np.concatenate([[0], np.cumsum(here)])[indptr])


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each part of these sizes begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
