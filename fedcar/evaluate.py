"""Evaluation: BM25, MIPS, hybrid and the retriever side by side, over all, seen and unseen documents."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar import baselines, metrics
from fedcar.calibration import area_under_roc, confidences, expected_calibration_error
from fedcar.collection import SPLITS, Collection, Judged
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.features import FeatureCache
from fedcar.head import Head
from fedcar.measure import Clock
from fedcar.progress import Silent
from fedcar.questions import Questions, prepare
from fedcar.retriever import Retriever, Weights
from fedcar.selection import HYBRID, choose, ranked

if TYPE_CHECKING:
    from numpy.typing import NDArray

SYSTEMS = ("bm25", "mips", "hybrid", "retriever")
RUN_DEPTH = 100


def evaluate(
    retriever: Retriever,
    collection: Collection,
    split: str = "test",
    *,
    cache: str | Path | None = None,
    run: str | Path | None = None,
    report: Silent | None = None,
) -> dict[str, Any]:
    """Measure the four systems on the split's judged queries; the shape is design section 4's.

    Queries whose text stands in train are counted and left out. A query is unseen when none of its relevant documents
    has a training judgement. `run` names a TREC run file to write for the retriever.
    """
    if split not in SPLITS:
        raise FedcarError(f'--split "{split}": not known; give one of {", ".join(SPLITS)}')
    report, clock = report or Silent(), Clock()
    features = FeatureCache(Path(cache) if cache else None)
    judged, trained_on = held_out(retriever, collection, split)
    with retriever.encoder.untrained():
        untrained = prepare(retriever, judged, features, report, f"{split} questions")
    hidden_states = untrained.hidden_states
    if retriever.encoder.adapter is not None:
        hidden_states = prepare(retriever, judged, features, report, f"{split} questions, adapter").hidden_states
    clock.lap("encode")
    scores = system_scores(retriever, collection, untrained, hidden_states, features, report)
    seen = collection.seen_documents()
    on_seen = np.array([any(score > 0 and one in seen for one, score in judged.items()) for judged in untrained.relevant], bool)
    systems = {name: summary(retriever, scores[name], untrained, on_seen) for name in SYSTEMS}
    confidence = confidences(scores["retriever"], retriever.temperature).max(axis=1, initial=0.0)
    correct = correctness(retriever, scores["retriever"], untrained)
    unanswerable = unanswerable_confidence(retriever, collection, split, features, report)
    clock.lap("evaluate")
    if run is not None:
        write_run(Path(run), retriever, [query.id for query in judged.queries], scores["retriever"])
    return {
        "collection": collection.name,
        "split": split,
        "documents": len(retriever.documents),
        "queries": len(judged),
        "trained_on": trained_on,
        "seconds": clock.seconds,
        "systems": systems,
        "calibration": {"ece": expected_calibration_error(confidence, correct), "coverage": 1.0, "threshold": None},
        "unanswerable": {"queries": len(unanswerable), "auroc": area_under_roc(confidence, unanswerable)}
        if len(unanswerable)
        else None,
    }


def held_out(retriever: Retriever, collection: Collection, split: str) -> tuple[Judged, int]:
    """The split's judged queries whose text does not stand in train, and how many were left out for that.

    Judgements of documents that the retriever does not hold are dropped with one warning.
    """
    judged, trained_on = collection.judged(split), collection.trained_on(split)
    held = {document.id for document in retriever.documents}
    rows, leaked, lost = [], 0, 0
    for row, query in enumerate(judged.queries):
        known = any(score > 0 and document in held for document, score in judged.relevant[row].items())
        leaked += query.id in trained_on and split != "train"
        lost += not known
        if known and (split == "train" or query.id not in trained_on):
            rows.append(row)
    if lost:
        warnings.warn(
            f"{lost} {split} queries are about documents that the retriever does not hold and were left out",
            FedcarWarning,
            stacklevel=3,
        )
    if not rows:
        raise FedcarError(f"{collection.name}: no judged query to evaluate in the split {split}; give another with --split")
    return Judged(tuple(judged.queries[row] for row in rows), tuple(judged.relevant[row] for row in rows)), leaked


def system_scores(
    retriever: Retriever,
    collection: Collection,
    questions: Questions,
    hidden_states: NDArray[np.float32],
    features: FeatureCache,
    report: Silent,
) -> dict[str, NDArray[np.float32]]:
    """Scores (n, documents) of the four systems; the hybrid's weight is chosen on dev, .2 without dev."""
    search = replace(retriever, head=Head(retriever.head.embeddings.numpy()))  # the untrained rows
    cosines = search.cosines(questions.hidden_states)
    weights = Weights(1.0, baselines.HYBRID_WEIGHT_WITHOUT_DEV)
    dev = collection.judged("dev")
    if len(dev):
        with retriever.encoder.untrained():
            selection = prepare(retriever, dev, features, report, "dev questions")
        weights = choose(search, selection, search.cosines(selection.hidden_states), HYBRID).weights
    return {
        "bm25": search.mixed(cosines, questions.lexical, Weights(0.0, 1.0)),
        "mips": search.mixed(cosines, questions.lexical, Weights(1.0, 0.0)),
        "hybrid": search.mixed(cosines, questions.lexical, weights),
        "retriever": retriever.mixed(retriever.cosines(hidden_states), questions.lexical),
    }


def summary(
    retriever: Retriever, scores: NDArray[np.float32], questions: Questions, on_seen: NDArray[np.bool_]
) -> dict[str, Any]:
    """One system's measures over all queries, over those on seen and over those on unseen documents."""
    values = metrics.per_query(ranked(retriever, scores), questions.relevant)
    everything = np.ones(len(on_seen), dtype=bool)
    return {name: metrics.mean(values, rows) for name, rows in (("all", everything), ("seen", on_seen), ("unseen", ~on_seen))}


def correctness(retriever: Retriever, scores: NDArray[np.float32], questions: Questions) -> NDArray[np.float64]:
    """1 where the first hit is relevant, else 0."""
    return metrics.per_query(ranked(retriever, scores, 1), questions.relevant)["success@1"]


def unanswerable_confidence(
    retriever: Retriever, collection: Collection, split: str, features: FeatureCache, report: Silent
) -> NDArray[np.float64]:
    """The confidence of the first hit for each unanswerable query of the split."""
    queries = collection.unanswerable(split)
    questions = prepare(retriever, Judged(queries, ({},) * len(queries)), features, report, "unanswerable questions")
    if not len(questions):
        return np.empty(0)
    scores = retriever.mixed(retriever.cosines(questions.hidden_states), questions.lexical)
    best: NDArray[np.float64] = confidences(scores, retriever.temperature).max(axis=1)
    return best


def write_run(file: Path, retriever: Retriever, query_ids: Sequence[str], scores: NDArray[np.float32]) -> None:
    """A TREC run file: query id, Q0, document id, rank, score, tag; blanks in ids become %20."""
    try:
        with file.open("w", encoding="utf-8") as stream:
            for row, query_id in enumerate(query_ids):
                for rank, column in enumerate(metrics.top_k(scores[row : row + 1], RUN_DEPTH)[0], 1):
                    if np.isfinite(scores[row, column]):
                        ids = query_id.replace(" ", "%20"), retriever.documents[column].id.replace(" ", "%20")
                        stream.write(f"{ids[0]} Q0 {ids[1]} {rank} {scores[row, column]:.6f} fedcar\n")
    except OSError as error:
        raise FedcarError(f"{file}: cannot be written ({error.strerror}); name another file with --run") from error
