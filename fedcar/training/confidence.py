"""Confidence: what the selection questions say of how far the retriever that was kept can be trusted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedcar.collection.wording import AS_BEFORE
from fedcar.common.vectors import unit
from fedcar.retriever.calibration import LEAST_QUESTIONS, Asked, Calibration, Scored
from fedcar.retriever.evidence import Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.retriever.questions import Questions
    from fedcar.retriever.retriever import Retriever

RELATIVE = [Evidence.NAMES.index(name) for name in AS_BEFORE.vocabularies]  # divided by the question's highest


def calibrated(
    retriever: Retriever, selection: Questions, unanswered: Questions, training: Questions | None = None
) -> Retriever:
    """With confidence, and what it takes to answer, from the selection questions and those that nothing answers.

    Of the training questions, where they may be looked at, the mean is kept, from 50 on: what lies far from it was not
    asked about.
    """
    if not len(selection):
        return replace(retriever, calibration=Calibration())
    asked = Asked(
        retriever.scored(selection),
        selection.relevance > 0,
        without_answers(retriever, selection),
        retriever.scored(unanswered) if len(unanswered) else None,
        unit(training.hidden_states).mean(axis=0)
        if training is not None and len(training) >= LEAST_QUESTIONS
        else None,
    )
    return replace(retriever, calibration=Calibration.fit(asked))


def without_answers(retriever: Retriever, questions: Questions) -> Scored:
    """The questions as if their relevant documents were not there: no scores, and words compared with the others'."""
    relevant = questions.relevance > 0
    evidence: NDArray[np.float32] = np.where(relevant[..., None], np.float32(0.0), questions.evidence)
    words = evidence[..., RELATIVE]
    highest = words.max(axis=1, keepdims=True, initial=0.0)
    evidence[..., RELATIVE] = np.divide(words, highest, out=np.zeros_like(words), where=highest > 0)
    others = replace(questions, evidence=evidence)
    scores = np.where(relevant, np.float32(-np.inf), retriever.scores_of(others))
    return retriever.scored(others, scores)
