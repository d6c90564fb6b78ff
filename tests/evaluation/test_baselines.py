"""The baselines: BM25, MIPS and hybrid against their definitions, with bm25s itself."""

from __future__ import annotations

from pathlib import Path

import bm25s
import numpy as np
import pytest

from fedcar.collection.collection import Collection, Document
from fedcar.common.vectors import unit
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.evaluation.baselines import BM25, HYBRID_WEIGHTS, MIPS, rankings
from fedcar.retriever.retriever import Retriever

QUESTIONS = ["the fan is broken", "who cleans a leaking hose with water", "blower", "is it for the", "dark display"]


@pytest.fixture(scope="module")
def retriever(toy_collection: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    """The toy's documents with an empty one between them."""
    documents = list(Collection.read(toy_collection).documents)
    documents.insert(2, Document("empty", "", " "))
    cache = FeatureCache(tmp_path_factory.mktemp("cache"))
    return Retriever.untrained(documents, Encoder.load(encoder_folder, "mean"), cache)


def expected(retriever: Retriever, weight: float | None) -> list[list[str]]:
    documents = [document for document in retriever.documents if document.full_text]
    texts = [document.full_text for document in documents]
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize([one.full_text for one in retriever.documents], stopwords="en", show_progress=False),
        show_progress=False,
    )
    kept = [bool(document.full_text) for document in retriever.documents]
    words = bm25s.tokenize(QUESTIONS, stopwords="en", show_progress=False, return_ids=False)
    lexical = np.stack([index.get_scores(one)[kept] if one else np.zeros(len(texts)) for one in words])
    lexical = lexical / np.maximum(lexical.max(axis=1, keepdims=True), 1e-9)
    cosines = unit(retriever.encoder.encode(QUESTIONS)) @ unit(retriever.encoder.encode(texts)).T
    scores = lexical if weight is None else cosines + weight * lexical
    return [[documents[place].id for place in row] for row in np.argsort(-scores, axis=1, kind="stable")]


@pytest.mark.filterwarnings("ignore::fedcar.errors.FedcarWarning")
@pytest.mark.parametrize("weight", [BM25, MIPS, *HYBRID_WEIGHTS, 3.0])
def test_the_ranking_is_the_definition(retriever: Retriever, weight: float | None) -> None:
    """Also of a question of stop words only; the empty document is never there."""
    (found,) = rankings(retriever, QUESTIONS, retriever.encoder.encode(QUESTIONS), [weight])
    assert found == expected(retriever, weight)


@pytest.mark.filterwarnings("ignore::fedcar.errors.FedcarWarning")
def test_many_questions_at_once(retriever: Retriever) -> None:
    """In chunks, each weight beside the others."""
    many = QUESTIONS * 60
    weights = (BM25, MIPS, 0.2)
    found = rankings(
        retriever, many, retriever.encoder.encode(QUESTIONS).repeat(1, axis=0)[np.arange(300) % 5], weights
    )
    alone = rankings(retriever, QUESTIONS, retriever.encoder.encode(QUESTIONS), weights)
    assert found == [one * 60 for one in alone]


def test_unit_keeps_a_row_of_zeros() -> None:
    with np.errstate(all="raise"):
        found = unit(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 0.0]], atol=1e-7)
