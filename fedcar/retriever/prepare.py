"""Judged questions made ready: encoder states, candidates, evidence and judgements as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedcar.collection.collection import Judged
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.retriever.questions import Questions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.retriever.retriever import Retriever

TEXTS_AT_ONCE = 2048  # whose token states are held in memory


def prepare(retriever: Retriever, judged: Judged, cache: FeatureCache, report: Silent, what: str) -> Questions:
    """Encode the questions (or find them in the cache), choose their candidates and weigh the evidence."""
    if retriever.evidence.deep:
        with report.track(f"reading {what}", len(judged)) as advance:
            states, candidates, evidence = _read(retriever, judged.texts, cache, advance)
    else:
        with report.track(f"encoding {what}", len(judged)) as advance:
            states = cache.states(retriever.encoder.untrained, judged.texts, advance)
        with report.track(f"reading evidence for {what}", len(judged)) as advance:
            candidates, evidence = retriever.evidence_for(judged.texts, states, advance=advance)
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
    encoder = retriever.encoder.untrained
    for chunk, (states, tokens) in zip(chunks, encoder.alone.read_parts(chunks, advance), strict=True):
        cache.keep(encoder.alone, chunk, states)
        states = cache.states(encoder, chunk)  # those that were there before, and a second encoder's
        parts.append((states, *retriever.evidence_for(chunk, states, tokens)))
    states, candidates, evidence = map(np.concatenate, zip(*parts, strict=True))
    return states, candidates, evidence
