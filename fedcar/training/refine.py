"""Rows for documents that came after training, solved from their own texts."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from fedcar.collection.pseudo_queries import pseudo_queries
from fedcar.common.progress import Silent
from fedcar.errors import FedcarWarning
from fedcar.head.closed_form import STRENGTH
from fedcar.head.head import Head
from fedcar.head.rows import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.retriever.retriever import Retriever

REFINED_AT_ONCE = 100
NEIGHBOURS, MOST_OTHERS = 20, 400  # documents near a new one that its row must not answer for; near all solved at once
MARGIN = 5.0  # in the unit of the score


def refined(retriever: Retriever, new: int, report: Silent | None = None) -> Retriever:
    """Rows for the last `new` documents from their titles and sentences; no other row is touched.

    What the trained rows were solved from is not kept, so each new row is a ridge regression of its own: at its
    pseudo-queries what a trained row would give, 0 at those of the documents solved with it (100 at once) and at the
    texts of the documents nearest to them. In closed form a trained row gives 1; in a linear head what puts the
    document MARGIN above all others, so that the old rows are the negatives (IncDSI: Kishore et al., ICML 2023, here
    with a squared loss). Other retrievers have no rows that could be solved for: one warning, and nothing changes.
    """
    ridge, head, documents = retriever.ridge, retriever.head, len(retriever.documents)
    if ridge is None and (head.kind != "linear" or not bool(head.active.any())):
        message = "--refine: there are no rows to solve for; the new documents are found by the evidence"
        warnings.warn(message, FedcarWarning, stacklevel=4)
        return retriever
    places, rows = [], []
    with (report or Silent()).track("solving rows", new) as advance:
        for start in range(documents - new, documents, REFINED_AT_ONCE):
            chosen = np.arange(start, min(start + REFINED_AT_ONCE, documents))
            solved_places, solved_rows = _rows_of(retriever, chosen)
            places.append(solved_places)
            rows.append(solved_rows)
            advance(len(chosen))
    solved, weights = np.concatenate(places), np.concatenate(rows)
    if ridge is None:
        return replace(retriever, head=_with_rows(head, solved, weights))
    changed = replace(
        ridge,
        weights=np.concatenate([ridge.weights, weights.T.astype(np.float16)], axis=1),
        pseudo_documents=np.concatenate([ridge.pseudo_documents, solved]),
    )
    return replace(retriever, ridge=changed)


def _rows_of(retriever: Retriever, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which of the chosen documents have a title or sentence of their own (a,), and rows for them (a, D)."""
    pseudo = pseudo_queries([retriever.documents[row] for row in chosen])
    row_of = {retriever.documents[row].id: row for row in chosen}
    rows_of_texts = np.array([row_of[identifier] for identifier in pseudo.document_ids], dtype=np.int64)
    texts, solved = [*pseudo.texts, *_nearest_texts(retriever, chosen)], np.unique(rows_of_texts)
    if retriever.ridge is not None:
        features = retriever.ridge.feature_map(retriever.encoder.untrained.encode_states(texts))
        wanted = np.ones(len(rows_of_texts), dtype=np.float32)
    else:
        if retriever.encoder.adapter is None:
            hidden_states = retriever.head.inputs(retriever.encoder.encode_states(texts))
        else:
            hidden_states = retriever.encoder.encode(texts)
        features, wanted = _missing(retriever.head, torch.from_numpy(hidden_states.copy()), rows_of_texts)
    targets = np.zeros((len(texts), len(solved)))
    targets[np.arange(len(rows_of_texts)), np.searchsorted(solved, rows_of_texts)] = wanted
    return solved, _solved(features.astype(np.float64), targets)


def _nearest_texts(retriever: Retriever, chosen: NDArray[np.int64]) -> list[str]:
    """The texts of the other documents that lie nearest to one of the chosen, nearer ones first."""
    embeddings = retriever.evidence.embeddings
    nearest = Rows(embeddings).nearest(embeddings[chosen], NEIGHBOURS + len(chosen))[1]
    others = np.stack([row[~np.isin(row, chosen)][:NEIGHBOURS] for row in nearest])
    rows = list(dict.fromkeys(others.T.ravel().tolist()))[:MOST_OTHERS]
    return [text for row in rows if (text := retriever.documents[row].full_text)]


def _solved(features: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ridge regression by its n examples: features (n, D) and targets (n, a) -> rows (a, D)."""
    kernel = features @ features.T + STRENGTH * np.eye(len(features))
    rows: NDArray[np.float64] = np.linalg.solve(kernel, targets).T @ features
    return rows


@torch.inference_mode()
def _missing(
    head: Head, hidden_states: torch.Tensor, rows_of_texts: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a linear head's rows are multiplied with (n, d); what the first texts lack to find their document (p,)."""
    query = head.query_vectors(hidden_states)
    features = functional.normalize(query - head.centre, dim=1)
    scores, right = head(hidden_states[: len(rows_of_texts)]), torch.from_numpy(rows_of_texts)[:, None]
    best = scores.scatter(1, right, -torch.inf).max(dim=1).values
    missing = (best + MARGIN - scores.gather(1, right)[:, 0]).clamp(min=0) / head.log_scale.exp()
    return features.numpy(), missing.numpy()


def _with_rows(head: Head, places: NDArray[np.int64], rows: NDArray[np.float64]) -> Head:
    result = copy.deepcopy(head)
    with torch.no_grad():
        result.rows[places] = torch.from_numpy(rows.astype(np.float32))
        result.active[places] = True
    return result
