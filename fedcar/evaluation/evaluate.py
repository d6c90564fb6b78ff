"""Evaluation: BM25, MIPS, hybrid and the retriever side by side, over all, seen and unseen documents."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.collection.collection import SPLITS, Collection, Judged
from fedcar.collection.splits import subset
from fedcar.common.files import check_file, whole_file
from fedcar.common.measure import Clock
from fedcar.common.progress import Silent
from fedcar.common.vectors import top_k
from fedcar.encoder.cache import FeatureCache
from fedcar.errors import FedcarError, FedcarWarning, quoted
from fedcar.evaluation import baselines, bootstrap, metrics
from fedcar.evaluation.metrics import area_under_roc, expected_calibration_error, risk_coverage
from fedcar.retriever.calibration import Calibration, Scored
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever

if TYPE_CHECKING:
    from numpy.typing import NDArray

SYSTEMS = ("bm25", "mips", "hybrid", "retriever")
RUN_DEPTH = 100
RISK = 0.05


def evaluate(
    retriever: Retriever,
    collection: Collection,
    split: str = "test",
    *,
    cache: str | Path | None = None,
    run: str | Path | None = None,
    report: Silent | None = None,
) -> dict[str, Any]:
    """Measure the four systems on the split's judged queries; docs/cli.md has the shape.

    Queries whose text stands in train are counted and left out. A query is unseen when none of its relevant documents
    has a training judgement. `run` names a TREC run file to write for the retriever.
    """
    if split not in SPLITS:
        raise FedcarError(f'--split "{split}": not known; give one of {", ".join(SPLITS)}')
    if run is not None:
        with _writable(Path(run)):
            check_file(Path(run))
    report, clock = report or Silent(), Clock()
    features = FeatureCache(Path(cache) if cache else None)
    warn_of_other_texts(retriever, collection)
    judged, trained_on = held_out(retriever, collection, split)
    questions = prepare(retriever, judged, features, report, f"{split} questions")
    clock.lap("encode")
    scores = retriever.scores_of(questions)
    rankings = baseline_rankings(retriever, collection, questions, features, report)
    rankings["retriever"] = retriever.ranked(questions, scores)
    seen = collection.seen_documents()
    answered_by = [{document_id for document_id, score in judged.items() if score > 0} for judged in questions.relevant]
    on_seen = np.array([not seen.isdisjoint(documents) for documents in answered_by], dtype=bool)
    systems = {name: summary(rankings[name], questions, on_seen) for name in SYSTEMS}
    unanswerable = Judged(collection.unanswerable(split), ({},) * len(collection.unanswerable(split)))
    unanswered = prepare(retriever, unanswerable, features, report, "unanswerable questions")
    clock.lap("evaluate")
    if run is not None:
        write_run(Path(run), retriever, [query.id for query in judged.queries], questions, scores)
    return {
        "collection": collection.name,
        "split": split,
        "documents": len(retriever.documents),
        "queries": len(judged),
        "trained_on": trained_on,
        "seconds": clock.seconds,
        "systems": systems,
        **trust(retriever, scores, rankings["retriever"], questions, unanswered),
        "difference": difference(rankings["retriever"], rankings["hybrid"], questions, on_seen),
    }


def warn_of_other_texts(retriever: Retriever, collection: Collection) -> None:
    """Equal ids are no equal documents: what is judged here may be a judgement of another text."""
    held = {document.id: document for document in retriever.documents}
    others = [
        document.id
        for document in collection.documents
        if (known := held.get(document.id)) and not document.reads_as(known)
    ]
    if others:
        what = f"{len(others)} of {len(collection.documents)} documents of {collection.name} have another text"
        way_out = "its judgements may not hold; train again, or bring the retriever up to date with fedcar update"
        message = f"{what} in the retriever, the first is {quoted(others[0])}: {way_out}"
        warnings.warn(message, FedcarWarning, stacklevel=3)


def held_out(retriever: Retriever, collection: Collection, split: str) -> tuple[Judged, int]:
    """The split's judged queries whose text does not stand in train, and how many were left out for that.

    Judgements of documents that the retriever does not hold are dropped with one warning.
    """
    judged = collection.judged(split)
    trained_on = collection.trained_on(split) if split != "train" else set()
    held = {document.id for document in retriever.documents}
    known = [
        any(score > 0 and document_id in held for document_id, score in scores.items()) for scores in judged.relevant
    ]
    if not all(known):
        message = "queries are about documents that the retriever does not hold and were left out"
        warnings.warn(f"{known.count(False)} {split} {message}", FedcarWarning, stacklevel=3)
    fresh = [query.id not in trained_on for query in judged.queries]
    asked = subset(judged, [one and other for one, other in zip(known, fresh, strict=True)])
    if not len(asked):
        message = f"{collection.name}: no judged query in the split {split} to evaluate"
        raise FedcarError(f"{message}; give another with --split")
    return asked, fresh.count(False)


def baseline_rankings(
    retriever: Retriever, collection: Collection, questions: Questions, cache: FeatureCache, report: Silent
) -> dict[str, list[list[str]]]:
    """What BM25, MIPS and hybrid return; the hybrid's weight is the better of .2 and .4 on dev, .2 without dev."""
    chosen = baselines.HYBRID_WEIGHTS[0]
    dev = collection.judged("dev")
    if len(dev):
        hidden_states = cache.hidden_states(retriever.encoder.untrained, dev.texts)
        ranked = baselines.rankings(retriever, dev.texts, hidden_states, baselines.HYBRID_WEIGHTS)
        right = [metrics.per_query(ranking, dev.relevant)["success@1"].mean() for ranking in ranked]
        chosen = baselines.HYBRID_WEIGHTS[int(np.argmax(right))]
    weights = (baselines.BM25, baselines.MIPS, chosen)
    ranked = baselines.rankings(retriever, questions.texts, questions.hidden_states, weights)
    return dict(zip(SYSTEMS, ranked, strict=False))


def summary(ranking: list[list[str]], questions: Questions, on_seen: NDArray[np.bool_]) -> dict[str, Any]:
    """One system's measures over all queries, over those on seen and over those on unseen documents."""
    values = metrics.per_query(ranking, questions.relevant)
    return {name: metrics.mean(values, rows) for name, rows in parts(on_seen).items()}


def parts(on_seen: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Which queries belong to all, seen and unseen."""
    return {"all": np.ones(len(on_seen), dtype=bool), "seen": on_seen, "unseen": ~on_seen}


def difference(
    ranking: list[list[str]], hybrid: list[list[str]], questions: Questions, on_seen: NDArray[np.bool_]
) -> dict[str, Any]:
    """What the retriever is right more often than hybrid, with the 95 % bootstrap interval; None where no query is."""
    ours, theirs = (metrics.per_query(system, questions.relevant)["success@1"] for system in (ranking, hybrid))
    result: dict[str, Any] = {"to": "hybrid"}
    for name, rows in parts(on_seen).items():
        gain = bootstrap.difference(ours[rows], theirs[rows])
        result[name] = gain and {"success@1": gain.mean, "low": gain.low, "high": gain.high}
    return result


def trust(
    retriever: Retriever,
    scores: NDArray[np.float32],
    ranking: list[list[str]],
    questions: Questions,
    unanswerable: Questions,
) -> dict[str, Any]:
    """How far confidence can be trusted: calibration error, coverage, AUROC on unanswerable queries.

    The error is that of the first hit and, as `ece@10`, of the first ten; None where nothing supports a confidence.
    """
    calibration, scored = retriever.calibration, retriever.scored(questions, scores)
    trusted = calibration.trust(scored)
    correct = metrics.per_query(ranking, questions.relevant)["success@1"]
    first, ten = calibration_errors(calibration.confidences(scores), scores, questions.relevance, correct)
    result: dict[str, Any] = {
        "calibration": {
            "ece": first,
            "coverage": float(calibration.answers(scored).mean()),
            "threshold": calibration.threshold,
            "ece@10": ten,
            "at_risk": at_risk(calibration, scored, correct),
        },
        "unanswerable": None,
        "risk_coverage": risk_coverage(trusted, correct),
    }
    if len(unanswerable):
        answerable = calibration.has_answer(scored), calibration.has_answer(retriever.scored(unanswerable))
        result["unanswerable"] = {"queries": len(unanswerable), "auroc": area_under_roc(*answerable)}
    return result


def calibration_errors(
    confidences: NDArray[np.float64] | None,
    scores: NDArray[np.float32],
    relevance: NDArray[np.float32],
    correct: NDArray[np.float64],
) -> tuple[float | None, float | None]:
    """The expected calibration error of the first hit, and of the first ten; None without confidences (n, c)."""
    if confidences is None:
        return None, None
    best = top_k(scores, metrics.DEPTH)
    hits = np.isfinite(np.take_along_axis(scores, best, axis=1))
    right = np.take_along_axis(relevance > 0, best, axis=1)[hits].astype(np.float64)
    ten = expected_calibration_error(np.take_along_axis(confidences, best, axis=1)[hits], right)
    return expected_calibration_error(confidences.max(axis=1, initial=0.0), correct), ten


def at_risk(calibration: Calibration, scored: Scored, correct: NDArray[np.float64]) -> dict[str, float | None] | None:
    """How many of the queries are answered at a risk of .05, and how many of those wrongly; None without a promise."""
    if calibration.counts is None:
        return None
    answered = calibration.answers(scored, RISK)
    wrong = float(1 - correct[answered].mean()) if answered.any() else None
    return {"risk": RISK, "coverage": float(answered.mean()), "wrong": wrong}


def write_run(
    file: Path, retriever: Retriever, query_ids: Sequence[str], questions: Questions, scores: NDArray[np.float32]
) -> None:
    """A TREC run file: query id, Q0, document id, rank, score, tag; blanks in ids become %20."""
    with _writable(file), whole_file(file) as stream:
        for row, query_id in enumerate(query_ids):
            for rank, place in enumerate(top_k(scores[row : row + 1], RUN_DEPTH)[0], 1):
                if np.isfinite(scores[row, place]):
                    document = retriever.documents[questions.candidates[row, place]]
                    ids = query_id.replace(" ", "%20"), document.id.replace(" ", "%20")
                    stream.write(f"{ids[0]} Q0 {ids[1]} {rank} {scores[row, place]:.6f} fedcar\n")


@contextmanager
def _writable(file: Path) -> Iterator[None]:
    """One line where the run file cannot be written."""
    try:
        yield
    except OSError as error:
        raise FedcarError(f"{file}: cannot be written ({error.strerror}); name another file with --run") from error
