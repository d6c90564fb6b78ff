"""Which questions train and which select."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from fedcar.collection.collection import Collection, Judged, normalised
from fedcar.errors import FedcarWarning

LEAST_SELECTION_QUESTIONS = 10
SELECTION_SHARE = 0.1


def unknown(collection: Collection) -> Judged:
    """The dev questions whose text does not stand in train: those would reward memory."""
    dev, trained_on = collection.judged("dev"), collection.trained_on("dev")
    return subset(dev, [query.id not in trained_on for query in dev.queries])


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
