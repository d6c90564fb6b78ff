"""Judged questions made ready: encoder states, candidates, evidence and judgements as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from fedcar.collection import Collection, Judged, normalised
from fedcar.errors import FedcarWarning
from fedcar.features import FeatureCache
from fedcar.progress import Silent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.retriever import Retriever

LEAST_SELECTION_QUESTIONS = 10
SELECTION_SHARE = 0.1
TEXTS_AT_ONCE = 2048  # whose token states are held in memory


@dataclass(frozen=True)
class Questions:
    """n questions and, for c candidate documents each, what speaks for them before anything is learned.

    `states` (n,) are records of `Encoder.state_type` from the untrained encoder, `candidates` (n, c) document rows,
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


def prepare(retriever: Retriever, judged: Judged, cache: FeatureCache, report: Silent, what: str) -> Questions:
    """Encode the questions (or find them in the cache), choose their candidates and weigh the evidence."""
    if retriever.evidence.deep:
        with retriever.encoder.untrained(), report.track(f"reading {what}", len(judged)) as advance:
            states, candidates, evidence = _read(retriever, judged.texts, cache, advance)
    else:
        with retriever.encoder.untrained(), report.track(f"encoding {what}", len(judged)) as advance:
            states = cache.states(retriever.encoder, judged.texts, advance)
        with report.track(f"reading evidence for {what}", len(judged)) as advance:
            candidates, evidence = retriever.evidence_for(judged.texts, states, advance)
    ids = [document.id for document in retriever.documents]
    relevance = np.zeros(candidates.shape, dtype=np.float32)
    for row, scores in enumerate(judged.relevant):
        relevance[row] = [scores.get(ids[column], 0) for column in candidates[row]]
    return Questions(tuple(judged.texts), states, candidates, evidence, relevance, judged.relevant)


def _read(
    retriever: Retriever, texts: Sequence[str], cache: FeatureCache, advance: Callable[[int], None]
) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.float32]]:
    """States, candidates and evidence where token states are compared too: one pass makes both kinds of states."""
    parts = []
    chunks = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, max(1, len(texts)), TEXTS_AT_ONCE)]
    for chunk, (states, tokens) in zip(chunks, retriever.encoder.read_parts(chunks, advance), strict=True):
        cache.keep(retriever.encoder, chunk, states)
        states = cache.states(retriever.encoder, chunk)  # those that were there before, where they were
        parts.append((states, *retriever.evidence_for(chunk, states, tokens=tokens)))
    states, candidates, evidence = map(np.concatenate, zip(*parts, strict=True))
    return states, candidates, evidence


def split_for_selection(collection: Collection, seed: int) -> tuple[Judged, Judged]:
    """Training and selection questions: train and dev; without dev a seeded tenth of train chooses instead.

    A dev question whose text stands in train would reward memory, so it is left out. Fewer than ten training questions
    are not divided: there is then nothing to select by.
    """
    training, dev = collection.judged("train"), collection.judged("dev")
    trained_on = collection.trained_on("dev")
    dev = subset(dev, [query.id not in trained_on for query in dev.queries])
    if len(dev) or len(training) < LEAST_SELECTION_QUESTIONS:
        return training, dev
    texts = sorted({normalised(text) for text in training.texts})
    order = np.random.default_rng(seed).permutation(len(texts))
    chosen = {texts[row] for row in order[: max(1, round(SELECTION_SHARE * len(texts)))]}
    held_out = [normalised(text) in chosen for text in training.texts]
    return subset(training, [not out for out in held_out]), subset(training, held_out)


def subset(judged: Judged, keep: Sequence[bool]) -> Judged:
    """The judged queries that are kept."""
    rows = [row for row, kept in enumerate(keep) if kept]
    return Judged(tuple(judged.queries[row] for row in rows), tuple(judged.relevant[row] for row in rows))


def warn_of_narrow_data(collection: Collection) -> None:
    """One warning where there is next to nothing to learn."""
    if len(collection.documents) == 1:
        warnings.warn("the collection has a single document, which answers every question", FedcarWarning, stacklevel=3)
    elif len(collection.seen_documents()) == 1:
        message = "all training questions have the same document: there is little to learn"
        warnings.warn(message, FedcarWarning, stacklevel=3)
