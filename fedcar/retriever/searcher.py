"""Searching: what answers a question, be it a retriever or a bundle of one. Nothing here imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedcar.collection.collection import Document
from fedcar.common.vectors import top_k
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.retriever.calibration import Calibration, Scored
from fedcar.retriever.evidence import Evidence, at_once
from fedcar.retriever.foreign import warn_of_other_languages
from fedcar.retriever.row_index import RowIndex
from fedcar.retriever.weights import LEARNED, mixed_features
from fedcar.retriever.windows import body_start

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.reading import Reading, TokenStates
    from fedcar.head.ridge_rows import RidgeRows
    from fedcar.retriever.questions import Questions

CHUNK = 256
READ_AT_ONCE = 1024  # questions; a batch of the encoder holds those of like length
FEATURES = 16  # numbers, about, that stand for a question and a candidate
STRANGE = "neither the encoder nor any document knows anything of this question"
POOL = 400  # documents nearest by encoder, and by words, among which the candidates are chosen


class Reader(Protocol):
    """What searching asks of an encoder."""

    @property
    def adapter(self) -> object | None:
        """What was trained of it, if anything."""
        ...

    def read(self, texts: Sequence[str], tokens: bool = True) -> Reading:
        """All states of n texts by one pass; those of their tokens only where they are asked for."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of n texts, cut where the encoder cuts."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Hidden states (n, d) with the adapter."""
        ...

    def unknown(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which texts hold nothing that the encoder knows (n,), so that their states are alike."""
        ...


class Learned(Protocol):
    """What searching asks of a head."""

    @property
    def query_map(self) -> bool: ...
    @property
    def has_row(self) -> NDArray[np.bool_]:
        """Which documents have a trained row (N,)."""
        ...

    def inputs(self, states: NDArray[np.void]) -> NDArray[np.float32]:
        """What it takes of the states of questions (n,), of one encoder or of two: (n, d)."""
        ...

    def learned_scores(
        self,
        hidden_states: NDArray[np.float32],
        untrained: NDArray[np.float32],
        candidates: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """What training adds, from hidden states (n, d) with the adapter and without: (n, N) or (n, c)."""
        ...


@dataclass(frozen=True)
class Passage:
    """The part of a document that answers best: characters `start` to `end` of its text."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Hit:
    """One document found; `confidence` is the estimated probability that it answers the question.

    Of a question that has an answer; None where nothing supports an estimate.

    `passage` is what of its text answers best: one of the windows of a document that is longer than the encoder takes,
    all of another's text; None where there is a title alone.

    Formal guarantees:
        passage_stands_in_the_text: it is the text from `start` to `end`.
    """

    id: str
    score: float
    confidence: float | None
    title: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    passage: Passage | None = None


@dataclass(frozen=True)
class Answer:
    """The hits of one question, best first; not `answered` where the retriever does not know.

    None where it cannot tell, for the `reason` that no threshold could be learned. With a risk it is answered where the
    promise of `Calibration.limit` holds. Where neither encoder nor documents know anything of a question, the
    confidence is 0 and the `reason` says so.
    """

    query: str
    answered: bool | None
    hits: tuple[Hit, ...]
    reason: str | None = None

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)


@dataclass
class Searcher:
    """Everything that answers a question; searching changes nothing of it, so threads may share one.

    The score of a document is weights . (evidence, learned): the evidence of encoder and words, and what training has
    learned (`head` or `ridge`). Where some documents have trained rows, the others stand apart: they are mixed with
    weights of their own and a constant, which put both kinds on one scale. All documents are compared; where there are
    very many, and faiss is installed, a saved retriever has an index that says which.

    Formal guarantees:
        no_network_at_search: searching looks on this machine only.
        more_hits_begin_with_the_same: the k best documents are the first k of more; `search` and `search_many` agree.
    """

    encoder: Reader
    documents: Sequence[Document]
    evidence: Evidence
    head: Learned
    weights: NDArray[np.float32]
    ridge: RidgeRows | None = None
    calibration: Calibration = field(default_factory=Calibration)
    row_index: RowIndex | None = field(default=None, kw_only=True)

    def search(self, question: str, k: int = 5, risk: float | None = None) -> Answer:
        """The k best documents for the question; fewer where there are fewer, never an empty document.

        A hundred documents are weighed, those best by encoder and words. For more than a hundred the next hundreds are,
        and each stands behind the one before; the confidence of what comes after the first hundred is 0.
        `risk` is the share of wrong first hits among the answers that is allowed: see `Calibration.limit`.
        """
        return self.search_many([question], k, risk)[0]

    def search_many(self, questions: Sequence[str], k: int = 5, risk: float | None = None) -> list[Answer]:
        """What `search` gives for each question, in batches: scores up to the last digits, which a batch decides."""
        if any(not question.strip() for question in questions):
            raise FedcarError("the question is empty; ask something")
        if k < 1:
            raise FedcarError(f"k is {k}; it must be 1 or more")
        if risk is not None and not 0 < risk < 1:
            raise FedcarError(f"risk is {risk:g}; give a share of wrong answers between 0 and 1, such as .05")
        if k > len(self.documents):
            message = f"k is {k}, but there are {len(self.documents)} documents; all are returned"
            warnings.warn(message, FedcarWarning, stacklevel=2)
            k = len(self.documents)
        warn_of_other_languages(self.encoder, questions, self.evidence.wording.language)
        return [
            answer
            for start in range(0, len(questions), READ_AT_ONCE)
            for answer in self._answers(questions[start : start + READ_AT_ONCE], k, risk)
        ]

    def _answers(self, questions: Sequence[str], k: int, risk: float | None) -> Iterator[Answer]:
        least, reason = self.calibration.limit(risk)
        reading = self.encoder.read(questions, self.evidence.deep)
        depth = k + min(k, int(self.empty.sum()))  # empty documents are candidates and no hits
        step = at_once(CHUNK, max(self.evidence.vector_count, FEATURES * depth))
        for start in range(0, len(questions), step):
            part = slice(start, start + step)
            states = reading.states[part]
            candidates, evidence = self.evidence_for(questions[part], states, reading.tokens[part], k=depth)
            scores = self.scores(questions[part], states, candidates, evidence, reading.adapted[part])
            together = self.evidence.together
            first = Scored(scores[:, :together], evidence[:, :together], states["pooled"])
            confidences, trust = self.calibration.confidences(first.scores), self.calibration.trust(first)
            strange = self._strange(questions[part])
            vectors = self.evidence.vectors(states)
            for row, question in enumerate(questions[part]):
                tokens = reading.tokens[start + row] if self.evidence.deep else None
                passage = partial(self._passage, question, vectors[row], tokens)
                confidence = None if confidences is None else confidences[row] * (not strange[row])
                hits = tuple(self._hits(candidates[row], scores[row], confidence, k, passage))
                if strange[row]:
                    yield Answer(question, False, hits, STRANGE)
                elif hits and least is None:
                    yield Answer(question, None, hits, reason)
                else:
                    yield Answer(
                        question, bool(hits) and bool(trust[row] >= (least or 0.0)), hits, reason if hits else None
                    )

    def _strange(self, questions: Sequence[str]) -> NDArray[np.bool_]:
        """Of which questions neither the encoder, nor a document, nor what was learned of words knows anything (n,)."""
        strange = self.encoder.unknown(questions)
        for row, question in enumerate(questions):
            if strange[row]:
                learned = self.ridge is not None and self.ridge.knows(question)
                strange[row] = not (learned or self.evidence.knows(question))
        return strange

    def _hits(
        self,
        candidates: NDArray[np.int64],
        scores: NDArray[np.float32],
        confidences: NDArray[np.float64] | None,
        k: int,
        passage: Callable[[int, Document], Passage | None],
    ) -> Iterator[Hit]:
        """The k best of a question's candidates (c,), one hundred after the other."""
        size = self.evidence.together
        order = [start + top_k(scores[None, start : start + size], size)[0] for start in range(0, len(scores), size)]
        places = [place for part in order for place in part if np.isfinite(scores[place])]
        for place in places[:k]:
            document = self.documents[candidates[place]]
            confidence = None
            if confidences is not None:
                confidence = float(confidences[place]) if place < len(confidences) else 0.0
            about = document.title, document.text, document.metadata
            found = passage(int(candidates[place]), document)
            yield Hit(document.id, float(scores[place]), confidence, *about, found)

    def _passage(
        self, question: str, vector: NDArray[np.float32], tokens: TokenStates | None, row: int, document: Document
    ) -> Passage | None:
        """What of a document answers best a question of this vector (d,) and these tokens."""
        text = document.text
        if not text.strip():
            return None
        span = self.evidence.best_window(question, vector, tokens, row)
        if span is None:
            return Passage(text, 0, len(text))
        first, last = (max(0, at - body_start(document)) for at in span)
        part = text[first:last].rstrip()
        return Passage(part, first, first + len(part))

    # ---------------------------------------------------------------- scores

    def evidence_for(
        self,
        texts: Sequence[str],
        states: NDArray[np.void],
        tokens: Sequence[TokenStates] = (),
        advance: Callable[[int], None] | None = None,
        k: int = 0,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Questions and their untrained states -> candidate rows (n, c) and their evidence (n, c, F).

        `tokens` are their token states, where the documents were read token by token. For `k` see `candidates`.
        """
        candidates, evidence = [], []
        for start in range(0, len(texts), step := at_once(CHUNK, self.evidence.vector_count)):
            part, chunk = slice(start, start + step), list(texts[start : start + step])
            found = self.candidates(chunk, states[part], k)
            for first in range(0, found.shape[1], size := self.evidence.together):
                found[:, first : first + size].sort(axis=1)  # ties go to the first, as in the baselines
            candidates.append(found)
            vectors = self.evidence.vectors(states[part])
            evidence.append(self.evidence.features(chunk, states["pooled"][part], found, tokens[part], vectors))
            if advance is not None:
                advance(len(chunk))
        if not candidates:
            return np.empty((0, 0), dtype=np.int64), np.empty((0, 0, LEARNED), dtype=np.float32)
        return np.concatenate(candidates), np.concatenate(evidence)

    def candidates(self, texts: Sequence[str], states: NDArray[np.void], k: int = 0) -> NDArray[np.int64]:
        """The documents worth a closer look (n, c), by encoder and words: those that training and selection looked at.

        What was learned has no say: a map or rows that were never seen to rank others would crowd out right ones.
        Where `k` is more than a hundred, further documents behind them, in hundreds.
        """
        vectors, lexical = self.evidence.vectors(states), self.evidence.lexical(texts)
        if self.row_index is None:
            return self.evidence.candidates(self.evidence.cosines(vectors), lexical, k)
        near = indexed_candidates(self.evidence, self.row_index, vectors, lexical)
        if k <= near.shape[1]:
            return near
        every = self.evidence.candidates(self.evidence.cosines(vectors), lexical, k)
        further = [row[~np.isin(row, first)][: len(row) - len(first)] for row, first in zip(every, near, strict=True)]
        return np.concatenate([near, np.stack(further)], axis=1)

    def learned(
        self,
        texts: Sequence[str],
        states: NDArray[np.void],
        candidates: NDArray[np.int64] | None = None,
        adapted: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """What training has learned, by rows and by words: (n, documents, 2), or (n, c, 2) for the candidates.

        `adapted` (n, d) are the hidden states with the adapter, where they are known already.
        """
        if self.ridge is not None:
            scores = self.ridge.scores(texts, states)
            return scores if candidates is None else np.take_along_axis(scores, candidates[..., None], axis=1)
        shape = (len(texts), len(self.documents)) if candidates is None else candidates.shape
        learned = np.zeros((*shape, 2), dtype=np.float32)
        if self.is_trained:
            untrained = self.head.inputs(states)
            if self.encoder.adapter is None:
                adapted = untrained
            elif adapted is None:
                adapted = self.encoder.encode(texts)
            learned[..., 0] = self.head.learned_scores(adapted, untrained, candidates)
        return learned

    @property
    def is_trained(self) -> bool:
        return self.ridge is not None or self.head.query_map or bool(self.head.has_row.any())

    @property
    def has_row(self) -> NDArray[np.bool_]:
        """Which documents have a row that questions trained (N,)."""
        return self.head.has_row if self.ridge is None else self.ridge.has_row

    @property
    def apart(self) -> NDArray[np.bool_]:
        """Which documents have no row of their own while others have one (N,)."""
        rows = self.has_row
        return ~rows if rows.any() else np.zeros(len(rows), dtype=bool)

    def features(self, questions: Questions) -> NDArray[np.float32]:
        """All that the weights mix, (n, c, F), in the order of `WEIGHT_NAMES`."""
        learned = self.learned(questions.texts, questions.states, questions.candidates)
        return mixed_features(questions.evidence, learned, self.apart[questions.candidates])

    def scores(
        self,
        texts: Sequence[str],
        states: NDArray[np.void],
        candidates: NDArray[np.int64],
        evidence: NDArray[np.float32],
        adapted: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Scores of the candidates (n, c); -inf for an empty document. `adapted` as for `learned`."""
        learned = self.learned(texts, states, candidates, adapted)
        mixed = mixed_features(evidence, learned, self.apart[candidates]) @ self.weights
        return np.where(self.empty[candidates], -np.inf, mixed).astype(np.float32)

    def scores_of(self, questions: Questions) -> NDArray[np.float32]:
        """Scores of prepared questions (n, c)."""
        return self.scores(questions.texts, questions.states, questions.candidates, questions.evidence)

    def scored(self, questions: Questions, scores: NDArray[np.float32] | None = None) -> Scored:
        """What confidence in prepared questions is drawn from; `scores` (n, c) where they are known already."""
        scores = self.scores_of(questions) if scores is None else scores
        return Scored(scores, questions.evidence, questions.hidden_states)

    def ranked(self, questions: Questions, scores: NDArray[np.float32], k: int = 10) -> list[list[str]]:
        """Scores (n, c) -> the ids of the k best candidates of each question, without those that score -inf."""
        return [
            [self.documents[candidates[place]].id for place in places if np.isfinite(row[place])]
            for candidates, row, places in zip(questions.candidates, scores, top_k(scores, k), strict=True)
        ]

    @cached_property
    def empty(self) -> NDArray[np.bool_]:
        """Which documents have no text: kept, never returned."""
        stored: NDArray[np.bool_] | None = getattr(self.documents, "empty", None)  # a bundle's, read when asked for
        return np.array([not one.full_text for one in self.documents], dtype=bool) if stored is None else stored


def indexed_candidates(
    evidence: Evidence,
    index: RowIndex,
    vectors: NDArray[np.float32],
    lexical: NDArray[np.float32],
) -> NDArray[np.int64]:
    """`Evidence.candidates` among the documents nearest by encoder and by words: (n, c).

    The index finds beginnings of documents; the windows of long ones are all compared. What `Evidence.vectors` gives of
    the questions is (n, d), `lexical` (n, N).
    """
    embeddings, windows = evidence.embeddings, evidence.windows
    _, near = index.search(vectors, embeddings, POOL, rescored=1)
    of_windows = windows.best(vectors)
    cosine = np.full(len(evidence), -np.inf, dtype=np.float32)  # with the nearest window of a long document
    candidates = []
    for row, vector in enumerate(vectors):
        cosine[windows.long] = of_windows[row]
        long = windows.long[top_k(of_windows[row : row + 1], POOL)[0]]
        places = np.unique(np.concatenate([near[row], _highest(lexical[row]), long]))
        scores = np.maximum(embeddings[places] @ vector, cosine[places])
        candidates.append(places[evidence.candidates(scores[None], lexical[row, places][None])[0]])
    return np.stack(candidates)


def _highest(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """The places of the POOL highest scores, as far as they are above 0."""
    places = np.argpartition(-scores, POOL)[:POOL]
    return places[scores[places] > 0]
