"""Retrievers with something learned of each kind, without training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import sparse

from fedcar.collection.collection import Document
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.reference import reference_states
from fedcar.head.feature_map import FeatureMap
from fedcar.head.naive_bayes import NaiveBayes, gram_counts
from fedcar.head.ridge_rows import RidgeRows
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of


def made(kind: str, documents: tuple[Document, ...], encoder: Encoder, cache: FeatureCache) -> Retriever:
    """A retriever with something learned of each kind: random numbers, so that a wrong place shows."""
    head = "cosine" if kind == "cosine" else "linear"
    retriever = Retriever.untrained(documents, encoder, cache, head=head)
    generator = torch.Generator().manual_seed(1)
    touched = [0, 2, 3]
    if kind in ("head", "cosine"):
        retriever.head.active[touched] = True
        retriever.head.rows.data = torch.randn(retriever.head.rows.shape, generator=generator) * 0.02
    if kind == "query_map":
        mapped = type(retriever.head)(retriever.head.embeddings.numpy(), query_map=True)
        mapped.map.data = torch.randn(mapped.map.shape, generator=generator)
        retriever = replace(retriever, head=mapped)
    if kind == "ridge":
        fixed = FeatureMap.of_reference(reference_states(encoder, cache), view=retriever.evidence.view)
        weights = torch.randn((fixed.dimension, len(touched)), generator=generator).numpy().astype(np.float16) / 8
        targets = np.zeros((len(touched), len(documents)), dtype=np.float32)
        targets[np.arange(len(touched)), touched] = 1
        wording = retriever.evidence.wording
        words = NaiveBayes.of(gram_counts([f"blower word{place}" for place in touched], wording), targets)
        rows = RidgeRows(fixed, weights, np.array([0, 3]), words, np.array([2]), wording)
        retriever = replace(retriever, ridge=rows)
    if kind not in ("labels", "untrained"):
        retriever = replace(retriever, weights=weights_of(retriever.weights[:LEARNED], 1.0, 0.5))
    return retriever


def passes_of(runtime: Any) -> list[tuple[int, ...]]:
    """The shape of each batch that goes through the runtime from now on."""
    passes: list[tuple[int, ...]] = []
    run = runtime.run

    def counted(token_ids: np.ndarray, mask: np.ndarray) -> Any:
        passes.append(token_ids.shape)
        return run(token_ids, mask)

    runtime.run = counted
    return passes


def learned_of(retriever: Retriever) -> dict[str, dict[str, np.ndarray]]:
    """All that is kept of each document alone, by its id."""
    found = {}
    late = retriever.evidence.late
    for row, document in enumerate(retriever.documents):
        own = {
            "embedding": retriever.head.embeddings[row].numpy(),
            "evidence": retriever.evidence.embeddings[row],
            "row": retriever.head.rows[row].detach().numpy(),
            "active": retriever.head.active[row].numpy(),
        }
        if retriever.ridge is not None:
            column = np.flatnonzero(columns_of(retriever.ridge) == row)
            own["ridge"] = retriever.ridge.weights[:, column]
            own["words"] = sparse.csr_array(retriever.ridge.words.counts[[row]]).toarray()
        if late is not None:
            first, last = late.arrays["sentence_starts"][row : row + 2]
            start, end = late.arrays["token_starts"][[first, last]]
            own |= {"sentences": late.arrays["sentences"][first:last], "tokens": late.arrays["tokens"][start:end]}
        found[document.id] = own
    return found


def columns_of(ridge: RidgeRows) -> np.ndarray:
    return np.concatenate([ridge.documents, ridge.pseudo_documents])


def check_equal(found: dict[str, dict[str, np.ndarray]], expected: dict[str, dict[str, np.ndarray]]) -> None:
    """Bit for bit, for the documents that are expected."""
    for identifier, parts in expected.items():
        assert found[identifier].keys() == parts.keys()
        for name, array in parts.items():
            np.testing.assert_array_equal(found[identifier][name], array, err_msg=f"{identifier} {name}")
