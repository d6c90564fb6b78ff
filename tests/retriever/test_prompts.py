"""A retriever whose encoder has prompts and modules behind its pooling: trained, kept, bundled, exported alike."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedcar
from fedcar.collection.collection import Collection, Document
from fedcar.common.vectors import unit
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.export.bundle import load_bundle
from fedcar.export.stock import export
from fedcar.retriever.quick import quick_searcher
from fedcar.retriever.quick_writing import leave_quick_start
from fedcar.retriever.retriever import Retriever

QUERY, DOCUMENT = "query: ", "passage: "
QUESTIONS = ["who looks after the pump", "my display makes trouble", "where is the fan"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FedcarWarning)
        yield


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with prompts that are not pooled, two poolings side by side, and a dense layer behind."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    torch.manual_seed(0)
    modules = [
        Transformer(str(tiny_model("bert"))),
        Pooling(32, ("mean", "cls"), include_prompt=False),
        Dense(64, 24),
        Normalize(),
    ]
    place = tmp_path_factory.mktemp("encoder") / "folder"
    model = SentenceTransformer(modules=modules, prompts={"query": QUERY, "document": DOCUMENT}, device="cpu")
    model.max_seq_length = 40
    model.save(str(place))
    return place


@pytest.fixture(scope="module")
def trained(folder: Path, collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.mktemp("cache")
    return {
        method: fedcar.train(
            collection, encoder=str(folder), method=method, cache=cache, epochs=2 if method == "adapter" else None
        )
        for method in ("ridge", "adapter")
    }


def hits(searcher: Any) -> list[list[tuple[str, float]]]:
    return [[(hit.id, round(hit.score, 3)) for hit in answer] for answer in searcher.search_many(QUESTIONS, 3)]


@pytest.mark.parametrize("method", ["ridge", "adapter"])
def test_a_saved_retriever_reads_with_its_prompts(method: str, trained: dict[str, Any], tmp_path: Path) -> None:
    trained[method].save(tmp_path / "retriever")
    again = Retriever.load(tmp_path / "retriever")
    assert again.encoder.prompt == QUERY and again.encoder.for_documents.prompt == DOCUMENT
    assert hits(again) == hits(trained[method])
    about = json.loads((tmp_path / "retriever" / "retriever.json").read_text())["encoder"]
    assert about["manner"]["query_prompt"] == QUERY and about["pooling"] == "mean+cls"


def test_documents_are_read_with_their_own_prompt(trained: dict[str, Any], folder: Path) -> None:
    retriever, encoder = trained["ridge"], Encoder.load(folder)
    texts = [document.full_text for document in retriever.documents]
    expected = unit(encoder.for_documents.encode(texts))
    np.testing.assert_allclose(unit(retriever.evidence.embeddings[:]), expected, atol=1e-5)
    more = retriever.add([Document("new", "", "a tap that drips")])
    np.testing.assert_allclose(
        unit(more.evidence.embeddings[-1:]), unit(encoder.for_documents.encode(["a tap that drips"])), atol=1e-5
    )


def test_a_retriever_without_a_manner_reads_as_before_there_were_any(
    trained: dict[str, Any], tiny_model: Callable[..., Path], collection: Collection, tmp_path: Path
) -> None:
    retriever = fedcar.train(collection, encoder=str(tiny_model("bert")), method="ridge", cache=tmp_path / "cache")
    retriever.save(tmp_path / "retriever")
    about = json.loads((tmp_path / "retriever" / "retriever.json").read_text())["encoder"]
    assert set(about) == {"name", "revision", "weights_sha256", "fingerprint", "pooling"}


def test_another_dense_layer_is_refused(trained: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    import shutil

    trained["ridge"].save(tmp_path / "retriever")
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    weights = next(other.glob("2_*")) / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-2] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(FedcarError, match="other modules behind the encoder's pooling"):
        Retriever.load(tmp_path / "retriever", other)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="no ONNX exporter")
class TestWithoutTorch:
    @pytest.mark.parametrize("method", ["ridge", "adapter"])
    def test_a_bundle_reads_with_the_prompts(self, method: str, trained: dict[str, Any], tmp_path: Path) -> None:
        export(trained[method], tmp_path / "bundle", "bundle")
        assert hits(load_bundle(tmp_path / "bundle")) == hits(trained[method])

    def test_a_quick_start_reads_with_the_prompts(
        self, trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fedcar.retriever import quick_writing

        monkeypatch.setattr(quick_writing, "PACKAGES", ("onnxscript",))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        trained["ridge"].save(tmp_path / "retriever")
        leave_quick_start(trained["ridge"])
        searcher = quick_searcher(tmp_path / "retriever")
        assert searcher is not None and hits(searcher) == hits(trained["ridge"])

    def test_an_onnx_file_is_written(self, trained: dict[str, Any], tmp_path: Path) -> None:
        export(trained["ridge"], tmp_path / "onnx", "onnx")
        assert QUERY in (tmp_path / "onnx" / "README.md").read_text()


@pytest.mark.parametrize("method", ["ridge", "adapter"])
def test_an_exported_folder_keeps_prompts_and_modules(method: str, trained: dict[str, Any], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    export(trained[method], tmp_path / "exported")
    stock, encoder = SentenceTransformer(str(tmp_path / "exported"), device="cpu"), trained[method].encoder
    questions = unit(stock.encode_query(QUESTIONS, convert_to_numpy=True))
    documents = unit(stock.encode_document(QUESTIONS, convert_to_numpy=True))
    np.testing.assert_allclose(questions, unit(encoder.encode(QUESTIONS)), atol=1e-5)
    np.testing.assert_allclose(documents, unit(encoder.for_documents.encode(QUESTIONS)), atol=1e-5)


def test_prompts_that_are_given_are_kept(
    tiny_model: Callable[..., Path], collection: Collection, tmp_path: Path
) -> None:
    options = {"encoder": str(tiny_model("bert")), "method": "ridge", "cache": tmp_path / "cache"}
    retriever = fedcar.train(collection, query_prompt="fan ", document_prompt="pump ", **options)
    retriever.save(tmp_path / "retriever")
    assert Retriever.load(tmp_path / "retriever").encoder.prompt == "fan "
    plain = fedcar.train(collection, **options)
    assert np.abs(plain.evidence.embeddings[:] - retriever.evidence.embeddings[:]).max() > 1e-3


def test_info_says_the_prompts(trained: dict[str, Any], tmp_path: Path) -> None:
    from click.testing import CliRunner

    from fedcar.cli.contents import info

    trained["ridge"].save(tmp_path / "retriever")
    found = CliRunner().invoke(info, [str(tmp_path / "retriever"), "--json"])
    assert json.loads(found.stdout)["encoder"]["document_prompt"] == DOCUMENT
    assert CliRunner().invoke(info, [str(tmp_path / "retriever")]).exit_code == 0
