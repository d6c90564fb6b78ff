"""The index over rows: exact scores, near-complete recall, and in step with add and remove."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.toy import TOY_DOCUMENTS

from fedcar.bench.search import clustered
from fedcar.collection.collection import Collection, Document
from fedcar.common.vectors import unit
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.head.rows import Rows
from fedcar.retriever import retriever as retriever_module
from fedcar.retriever import row_index, searcher
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.row_index import RowIndex

pytest.importorskip("faiss")

GENERATOR = np.random.default_rng(0)
CENTRES = GENERATOR.standard_normal((60, 16)).astype(np.float32)
VECTORS = unit(np.repeat(CENTRES, 50, axis=0) + GENERATOR.standard_normal((3000, 16)).astype(np.float32))
QUERIES = unit(CENTRES[:20] + GENERATOR.standard_normal((20, 16)).astype(np.float32))


def best(vectors: np.ndarray, k: int = 10) -> np.ndarray:
    return np.argsort(-(QUERIES @ vectors.T), axis=1, kind="stable")[:, :k]


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found, wanted, strict=True)]))


@pytest.fixture(scope="module")
def index() -> RowIndex:
    return RowIndex.build(VECTORS)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_found_scores_are_exact(index: RowIndex, kind: str) -> None:
    rows = Rows.of(VECTORS, kind)
    scores, places = index.search(QUERIES, rows, 10)
    np.testing.assert_allclose(scores, np.take_along_axis(rows.products(QUERIES), places, axis=1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert recall(places, best(rows[:])) >= 0.99


def test_index_follows_add_and_remove(index: RowIndex) -> None:
    gone = np.unique(best(VECTORS, 3))
    fewer = index.without(gone)
    left = np.delete(VECTORS, gone, axis=0)
    scores, places = fewer.search(QUERIES, left, 10)
    np.testing.assert_allclose(scores, (QUERIES[:, None] * left[places]).sum(2), atol=1e-5)
    assert len(fewer) == len(left) and recall(places, best(left)) >= 0.99
    more = np.concatenate([left, QUERIES])  # each question's own vector is now the best row there is
    grown = fewer.added(more)
    assert grown.search(QUERIES, more, 1)[1].ravel().tolist() == list(range(len(left), len(more)))
    again = grown.without(np.arange(len(left), len(more)))
    np.testing.assert_array_equal(again.search(QUERIES, left, 10)[1], places)
    assert len(index) == 3000 and recall(index.search(QUERIES, VECTORS, 10)[1], best(VECTORS)) >= 0.99


def test_an_index_comes_back_from_its_files(index: RowIndex, tmp_path: Path) -> None:
    index.without([5]).write(tmp_path)
    left = np.delete(VECTORS, [5], axis=0)
    for mapped in (False, True):
        again = RowIndex.read(tmp_path, mapped=mapped)
        assert again is not None and len(again) == 2999
        np.testing.assert_array_equal(again.search(QUERIES, left, 5)[1], index.without([5]).search(QUERIES, left, 5)[1])
    assert RowIndex.read(tmp_path / "nothing") is None


def test_few_rows_are_all_found() -> None:
    few = RowIndex.build(VECTORS[:3])
    scores, places = few.search(QUERIES, VECTORS[:3], 5)
    assert places.shape == (20, 3) and (np.sort(places, axis=1) == [0, 1, 2]).all() and np.isfinite(scores).all()


@pytest.mark.slow
def test_the_index_stays_true_over_many_changes_of_many_rows() -> None:
    generator = np.random.default_rng(1)
    vectors = clustered(130_200, 64)
    vectors, queries = vectors[:-200], vectors[-200:]
    rows, waiting = vectors[:100_000], vectors[100_000:]
    index = RowIndex.build(rows)
    for change in range(3):
        _, nearest = index.search(queries[:50], rows, 1)  # what was found goes, and 9,950 others
        gone = np.unique(np.concatenate([nearest.ravel(), generator.choice(len(rows), 9_950, replace=False)]))
        new = np.concatenate([waiting[10_000 * change : 10_000 * (change + 1)], queries[50 + change : 51 + change]])
        rows = np.concatenate([np.delete(rows, gone, axis=0), new])
        index = index.without(gone).added(rows)
        assert len(index) == len(rows)
        scores, places = index.search(queries, rows, 10)
        np.testing.assert_allclose(scores, np.einsum("nd,nkd->nk", queries, rows[places]), atol=1e-5)
        assert recall(places, Rows(rows).nearest(queries, 10)[1]) >= 0.99
        assert places[50 + change, 0] == len(rows) - 1


# -------------------------------------------------------------------- in a retriever


@pytest.fixture
def retriever(
    toy_collection: Path, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Retriever:
    """300 documents, of which those of the toy are the last; an index from the first document on."""
    monkeypatch.setattr(retriever_module, "INDEX_FROM", 1)
    monkeypatch.setattr(searcher, "POOL", 120)
    toy = Collection.read(toy_collection).documents
    titles = [title for title, _, _ in TOY_DOCUMENTS.values()]
    more = [Document(f"more{n}", "", f"{titles[n % 6]} number {n} needs {'no ' * (n % 5)}care.") for n in range(294)]
    return Retriever.untrained((*more, *toy), Encoder.load(tiny_model("llama")), FeatureCache(tmp_path / "cache"))


def test_a_saved_retriever_with_many_documents_has_an_index(retriever: Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "saved")
    loaded = Retriever.load(tmp_path / "saved")
    assert loaded.row_index is not None and len(loaded.row_index) == 300
    exact = replace(loaded, row_index=None)
    for question in ("a leaking hose", "is the fan still good", "clean water"):
        assert [(hit.id, hit.score) for hit in loaded.search(question)] == [
            (hit.id, hit.score) for hit in exact.search(question)
        ]


def test_the_index_of_a_retriever_follows_add_and_remove(retriever: Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "saved")
    loaded = Retriever.load(tmp_path / "saved")
    changed = loaded.remove(["hose", "more3"]).add([Document("kettle", "Kettle", "Descale the kettle with vinegar.")])
    changed.save(tmp_path / "saved")
    again = Retriever.load(tmp_path / "saved")
    assert again.row_index is not None and len(again.row_index) == 299
    assert "kettle" in {hit.id for hit in again.search("Descale the kettle with vinegar.")}
    found = {
        hit.id for question in ("a leaking hose", "Display number 3 needs care") for hit in again.search(question, 100)
    }
    assert found and found.isdisjoint({"hose", "more3"})
    assert [hit.id for hit in again.search("fan")] == [hit.id for hit in replace(again, row_index=None).search("fan")]


def test_without_faiss_a_saved_index_is_left_alone(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever.save(tmp_path / "saved")
    for module in (row_index, retriever_module):
        monkeypatch.setattr(module, "is_installed", lambda: False)
    loaded = Retriever.load(tmp_path / "saved")
    assert loaded.row_index is None and loaded.search("Prime the pump with water").hits[0].id == "pump"
