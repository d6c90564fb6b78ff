"""Documents come and go: the same retriever with more or fewer of them, without training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from fedcar.collection.collection import Document
from fedcar.collection.lines import check_identifier, check_text
from fedcar.common.progress import Silent
from fedcar.errors import FedcarError, FedcarWarning, quoted
from fedcar.head.head import head_with
from fedcar.head.ridge_rows import ridge_with
from fedcar.training.refine import refined

if TYPE_CHECKING:
    from fedcar.retriever.retriever import Retriever


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
        head=head_with(retriever.head, everyone, embeddings),
        ridge=ridge_with(retriever.ridge, everyone, len(documents)),
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
        head=head_with(retriever.head, kept, retriever.head.embeddings[:0]),
        ridge=ridge_with(retriever.ridge, kept, 0),
        row_index=retriever.row_index.without(gone) if retriever.row_index is not None else None,
    )


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
