"""Judged questions made ready for training and selection: hidden states, BM25 scores, judgements as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedcar.collection import Collection, Judged, normalised
from fedcar.errors import FedcarWarning
from fedcar.features import FeatureCache
from fedcar.progress import Silent
from fedcar.retriever import Retriever

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_SELECTION_QUESTIONS = 10
SELECTION_SHARE = 0.1


@dataclass(frozen=True)
class Questions:
    """n questions: texts, hidden states of the untrained encoder (n, d), BM25 / its maximum (n, documents), judgements."""

    texts: list[str]
    hidden_states: NDArray[np.float32]
    lexical: NDArray[np.float32]
    relevant: tuple[Mapping[str, int], ...]

    def __len__(self) -> int:
        return len(self.texts)

    def relevance(self, document_rows: Mapping[str, int], rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Judgements of the chosen questions as (n, documents), the score as value."""
        chosen = range(len(self)) if rows is None else rows
        matrix = np.zeros((len(chosen), len(document_rows)), dtype=np.float32)
        for place, row in enumerate(chosen):
            for document, score in self.relevant[row].items():
                if document in document_rows:
                    matrix[place, document_rows[document]] = score
        return matrix


def prepare(retriever: Retriever, judged: Judged, cache: FeatureCache, report: Silent, what: str) -> Questions:
    with report.track(f"encoding {what}", len(judged)) as advance:
        hidden_states = cache.hidden_states(retriever.encoder, judged.texts, advance)
    return Questions(judged.texts, hidden_states, retriever.lexical.relative_scores(judged.texts), judged.relevant)


def split_for_selection(collection: Collection, seed: int) -> tuple[Judged, Judged]:
    """Training and selection questions: train and dev; without dev a seeded tenth of train chooses instead.

    A dev question whose text stands in train would reward memory, so it is left out. Fewer than ten training questions
    are not divided: there is then nothing to select by.
    """
    training, dev = collection.judged("train"), collection.judged("dev")
    trained_on = collection.trained_on("dev")
    dev = _subset(dev, [query.id not in trained_on for query in dev.queries])
    if len(dev) or len(training) < LEAST_SELECTION_QUESTIONS:
        return training, dev
    texts = sorted({normalised(text) for text in training.texts})
    order = np.random.default_rng(seed).permutation(len(texts))
    chosen = {texts[row] for row in order[: max(1, round(SELECTION_SHARE * len(texts)))]}
    held_out = [normalised(text) in chosen for text in training.texts]
    return _subset(training, [not out for out in held_out]), _subset(training, held_out)


def _subset(judged: Judged, keep: Sequence[bool]) -> Judged:
    rows = [row for row, kept in enumerate(keep) if kept]
    return Judged(tuple(judged.queries[row] for row in rows), tuple(judged.relevant[row] for row in rows))


def warn_of_narrow_data(collection: Collection) -> None:
    """One warning where there is next to nothing to learn."""
    if len(collection.documents) == 1:
        warnings.warn("the collection has a single document, which answers every question", FedcarWarning, stacklevel=3)
    elif len(collection.seen_documents()) == 1:
        warnings.warn("all training questions have the same document: there is little to learn", FedcarWarning, stacklevel=3)
