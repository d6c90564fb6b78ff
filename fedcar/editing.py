"""Documents come and go: the same retriever with more or fewer of them, without training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from fedcar.closed_form import STRENGTH
from fedcar.collection import Document
from fedcar.errors import FedcarError, FedcarWarning, quoted
from fedcar.head import Head
from fedcar.lines import check_identifier, check_text
from fedcar.naive_bayes import NaiveBayes
from fedcar.progress import Silent
from fedcar.pseudo_queries import pseudo_queries
from fedcar.ridge_rows import RidgeRows
from fedcar.rows import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.retriever import Retriever

REFINED_AT_ONCE = 100
NEIGHBOURS, MOST_OTHERS = 20, 400  # documents near a new one that its row must not answer for; near all solved at once
MARGIN = 5.0  # in the unit of the score


def with_added(
    retriever: Retriever, documents: Sequence[Document], refine: bool = False, report: Silent | None = None
) -> Retriever:
    """A new retriever that has these documents behind the others; the given one stays as it is.

    A new document has its embedding, its evidence and an untouched row: it is found at once, as one that nobody asked
    about in training. Rows and vectors of the others stay bit for bit; their scores change only as far as how rare
    words are among the documents does. Nothing is written into the hidden-state cache. An empty document is kept and
    never returned.

    `refine` solves rows for the new documents on their own titles and sentences, where the retriever has trained rows,
    and touches no other (see `refined`). Without it they compete with trained rows by the evidence alone.

    Raises FedcarError for no document at all, and for an id that is taken or stands there twice.

    Formal guarantees:
        added_document_found_without_training: a question in the words of a new document finds it.
        add_then_remove_gives_the_original_hits: and files with the same content.
    """
    report = report or Silent()
    _check_new(retriever, documents)
    texts = [document.full_text for document in documents]
    with retriever.encoder.untrained(), report.track("encoding documents", len(texts)) as advance:
        hidden_states = torch.from_numpy(retriever.encoder.encode(texts, advance))
    hidden_states[[not text for text in texts]] = 0.0
    embeddings = functional.normalize(hidden_states, dim=1)
    everyone = np.arange(len(retriever.documents))
    evidence = copy.copy(retriever.evidence)
    added = replace(
        retriever,
        documents=(*retriever.documents, *documents),
        evidence=evidence.add(documents, retriever.encoder, embeddings.numpy(), report),
        head=_head(retriever.head, everyone, embeddings),
        ridge=_ridge(retriever.ridge, everyone, len(documents)),
    )
    if retriever.row_index is not None:
        added = replace(added, row_index=retriever.row_index.added(added.evidence.embeddings))
    return refined(added, len(documents), report) if refine else added


def without(retriever: Retriever, ids: Sequence[str]) -> Retriever:
    """A new retriever that never had these documents' texts, vectors, rows and words; the given one stays as it is.

    What the questions about them taught the parts that all documents share (adapter, query map, mixture, other
    documents' rows) stays: that goes only with a new training.

    Raises FedcarError for an id that is not there, and where no document would be left.

    Formal guarantees:
        removed_document_never_returns: and nothing of it stands in any file of the retriever.
    """
    wanted = dict.fromkeys([ids] if isinstance(ids, str) else ids)
    rows = {document.id: row for row, document in enumerate(retriever.documents)}
    if not wanted:
        raise FedcarError("no document to remove; give the id of at least one")
    if unknown := [identifier for identifier in wanted if identifier not in rows]:
        raise FedcarError(f"{_named(unknown)}: not in the retriever; nothing was removed, check the id")
    if len(wanted) == len(rows):
        raise FedcarError(f"all {len(rows)} documents would be removed; leave one, or delete the retriever's folder")
    gone = sorted(rows[identifier] for identifier in wanted)
    kept = np.delete(np.arange(len(rows)), gone)
    evidence = copy.copy(retriever.evidence)
    return replace(
        retriever,
        documents=tuple(document for document in retriever.documents if document.id not in wanted),
        evidence=evidence.remove(gone),
        head=_head(retriever.head, kept, retriever.head.embeddings[:0]),
        ridge=_ridge(retriever.ridge, kept, 0),
        row_index=retriever.row_index.without(gone) if retriever.row_index is not None else None,
    )


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
            found = _rows_of(retriever, chosen)
            places.append(found[0])
            rows.append(found[1])
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
    own = np.array([row_of[identifier] for identifier in pseudo.document_ids], dtype=np.int64)
    texts, solved = [*pseudo.texts, *_nearest_texts(retriever, chosen)], np.unique(own)
    if retriever.ridge is not None:
        with retriever.encoder.untrained():
            features = retriever.ridge.feature_map(retriever.encoder.encode_states(texts))
        wanted = np.ones(len(own), dtype=np.float32)
    else:
        features, wanted = _missing(retriever.head, torch.from_numpy(retriever.encoder.encode(texts)), own)
    targets = np.zeros((len(texts), len(solved)))
    targets[np.arange(len(own)), np.searchsorted(solved, own)] = wanted
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
    head: Head, hidden_states: torch.Tensor, own: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a linear head's rows are multiplied with (n, d); what the first texts lack to find their document (p,)."""
    query = head.query_vectors(hidden_states)
    features = functional.normalize(query - head.centre, dim=1)
    scores, right = head(hidden_states[: len(own)]), torch.from_numpy(own)[:, None]
    best = scores.scatter(1, right, -torch.inf).max(dim=1).values
    missing = (best + MARGIN - scores.gather(1, right)[:, 0]).clamp(min=0) / head.log_scale.exp()
    return features.numpy(), missing.numpy()


def _with_rows(head: Head, places: NDArray[np.int64], rows: NDArray[np.float64]) -> Head:
    result = copy.deepcopy(head)
    with torch.no_grad():
        result.rows[places] = torch.from_numpy(rows.astype(np.float32))
        result.active[places] = True
    return result


def _check_new(retriever: Retriever, documents: Sequence[Document]) -> None:
    if not documents:
        raise FedcarError("no document to add; give at least one")
    taken, here = {document.id for document in retriever.documents}, set()
    for document in documents:
        check_identifier(document.id, "documents to add")
        for key, text in (("title", document.title), ("text", document.text)):
            check_text(text, key, f"document {quoted(document.id)}")
        if document.id in here:
            raise FedcarError(f"document {quoted(document.id)}: given twice; nothing was added, make the ids unique")
        here.add(document.id)
    if there := [identifier for identifier in here if identifier in taken]:
        message = "in the retriever already; nothing was added, remove it first or take another id"
        raise FedcarError(f"{_named(sorted(there))}: {message}")
    if empty := sum(not document.full_text for document in documents):
        message = f"{empty} of {len(documents)} documents to add are empty; kept, never returned"
        warnings.warn(message, FedcarWarning, stacklevel=4)


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    return f"document {quoted(ids[0])}{more}"


def _head(head: Head, kept: NDArray[np.int64], new: torch.Tensor) -> Head:
    """The head with these of its rows, and untouched ones for the new embeddings (m, d); each array is copied once."""
    layers = {"kind": head.kind, "pre_classifier": head.pre_classifier, "query_map": head.query_map}
    result = Head(new[:0].numpy(), **layers)  # type: ignore[arg-type]
    by_row = {"embeddings": new, "rows": torch.zeros_like(new), "active": torch.zeros(len(new), dtype=torch.bool)}
    state = head.state_dict()
    for name, behind in by_row.items():
        own = state.pop(name)
        chosen = own if len(kept) == len(own) else own[torch.from_numpy(kept)]
        tensor = torch.cat([chosen, behind]) if len(behind) else chosen
        setattr(result, name, nn.Parameter(tensor) if name == "rows" else tensor)
    result.load_state_dict(state, strict=False)
    return result


def _ridge(ridge: RidgeRows | None, kept: NDArray[np.int64], new: int) -> RidgeRows | None:
    """The rows of these documents at their new places; the new ones have neither row nor words."""
    if ridge is None:
        return None
    place = np.full(ridge.words.counts.shape[0], -1)
    place[kept] = np.arange(len(kept))
    columns = place[np.concatenate([ridge.documents, ridge.pseudo_documents])]
    documents, pseudo = place[ridge.documents], place[ridge.pseudo_documents]
    counts = ridge.words.counts[kept]
    starts = np.concatenate([counts.indptr, np.full(new, counts.indptr[-1])])
    shape = (len(kept) + new, counts.shape[1])
    return replace(
        ridge,
        weights=np.ascontiguousarray(ridge.weights[:, columns >= 0]),
        documents=documents[documents >= 0],
        pseudo_documents=pseudo[pseudo >= 0],
        words=NaiveBayes(sparse.csr_array((counts.data, counts.indices, starts), shape=shape)),
    )
