"""The bundle: the retriever's own answers from ONNX Runtime, with no torch in the process."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import environment, fedcar, python, tree
from support.retrievers import made
from support.six_languages import COLLECTIONS, whole

from fedcar.collection.collection import Collection, Document
from fedcar.collection.wording import BY_LANGUAGE, Wording
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.export.bundle import load_bundle
from fedcar.export.bundle_writing import check_search, write_bundle
from fedcar.retriever.calibration import Calibration
from fedcar.retriever.retriever import Retriever

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

QUESTIONS = (
    "the fan is broken",
    "blower sucker",
    "who charges the battery over night?",
    "ünknown Wörds, 3.5 %",
    "of the",
)
LONG = "who changes the filter every month, and who charges the battery? " * 5
# (family, pooling, what was learned, whether there is an adapter): every part of the score, every pooling
SHAPES = [
    ("bert", "mean", "ridge", True),
    ("llama", "last", "query_map", True),
    pytest.param(("bert", "cls", "cosine", False), marks=pytest.mark.slow),
    pytest.param(("roberta", "last", "labels", False), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def documents(toy_collection: Path) -> tuple[Document, ...]:
    found = Collection.read(toy_collection).documents
    longer = tuple(replace(one, text=f"{one.text} Then clean the {one.title} and dry it.") for one in found)
    return (
        *longer,
        Document("empty", "", " "),
        Document("notes", "", "line one\nline two ünd drei", {"pages": [1, 2]}),
    )


def retriever_of(
    folder: Path, pooling: str, kind: str, adapter: bool, documents: tuple[Document, ...], cache: Path
) -> Retriever:
    encoder = Encoder.load(folder, pooling)
    retriever = made(kind, documents, encoder, FeatureCache(cache))
    if adapter:
        inserted = Adapter("full", encoder.embedding_width)
        generator = torch.Generator().manual_seed(2)
        inserted.difference.data = torch.randn(inserted.difference.shape, generator=generator) * 0.2
        retriever = replace(retriever, encoder=encoder.with_adapter(inserted))
    width = encoder.dimension
    calibration = Calibration(
        1.0, threshold=0.5, hits=(0.1, 0.8, -0.2, 0.05), answerable=(0.1,) * 10, centre=(width**-0.5,) * width
    )
    return replace(retriever, calibration=calibration)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(
    request: pytest.FixtureRequest,
    documents: tuple[Document, ...],
    tiny_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Retriever, Path]:
    """A retriever and its bundle in fp32."""
    family, pooling, kind, adapter = request.param
    folder = tmp_path_factory.mktemp("bundle")
    retriever = retriever_of(tiny_model(family), pooling, kind, adapter, documents, folder / "cache")
    before, adapter = retriever.encoder.encode(QUESTIONS), retriever.encoder.adapter
    write_bundle(retriever, folder / "bundle")
    assert retriever.encoder.adapter is adapter, "the retriever is as before"
    np.testing.assert_array_equal(retriever.encoder.encode(QUESTIONS), before)
    return retriever, folder / "bundle"


@pytest.fixture(scope="module")
def saved(
    documents: tuple[Document, ...], tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    retriever_of(tiny_model("bert"), "mean", "head", False, documents, folder / "cache").save(folder / "retriever")
    return folder / "retriever"


@pytest.fixture(scope="module")
def bundle(saved: Path) -> Path:
    out = saved.with_name("bundle")
    assert fedcar("export", saved, "--format", "bundle", "--precision", "int8", "--out", out).code == 0
    return out


def test_bundle_equals_retriever(pair: tuple[Retriever, Path]) -> None:
    retriever, folder = pair
    found = load_bundle(folder)
    for question in (*QUESTIONS, LONG):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that LONG is cut
            ours, theirs = found.search(question, 8), retriever.search(question, 8)
        assert len(ours.hits) == len(theirs.hits) == 7, "never the empty document"
        assert (ours.answered, ours.reason) == (theirs.answered, theirs.reason)
        for mine, wanted in zip(ours, theirs, strict=True):
            assert abs(mine.score - wanted.score) <= 1e-4 * max(1, abs(wanted.score))
            assert mine.id == wanted.id or abs(mine.score - wanted.score) <= 1e-5
            assert mine.confidence is not None and wanted.confidence is not None
            assert abs(mine.confidence - wanted.confidence) <= 1e-4
            if mine.id == wanted.id:
                assert (mine.title, mine.text) == (wanted.title, wanted.text)


def test_the_adapter_counts_in_a_bundle(pair: tuple[Retriever, Path]) -> None:
    retriever, folder = pair
    encoder = load_bundle(folder).encoder
    reading = encoder.read(QUESTIONS)
    np.testing.assert_array_equal(encoder.encode(QUESTIONS), reading.adapted)
    changed = float(np.abs(reading.adapted - reading.states["pooled"]).max())
    assert changed > 0.01 if retriever.encoder.adapter is not None else changed == 0


def test_the_bundle_holds_the_documents_as_they_are(pair: tuple[Retriever, Path]) -> None:
    retriever, folder = pair
    stored = load_bundle(folder).documents
    assert tuple(stored) == retriever.documents and stored[-1] == retriever.documents[-1]
    assert [one.metadata for one in stored] == [one.metadata for one in retriever.documents]
    assert stored[1:3] == list(retriever.documents[1:3])
    with pytest.raises(IndexError):
        stored[len(stored)]


def test_bundle_imports_no_torch(bundle: Path) -> None:
    """In a real process in which torch and transformers cannot be imported at all."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "sys.argv = ['fedcar', 'search', sys.argv[1], 'is the fan still good', '--json', '-k', '2']\n"
        "from fedcar.cli.main import main\n"
        "main()\n"
    )
    out, err = python(code, bundle, env=environment()).communicate(timeout=120)
    assert err == "" and json.loads(out)["hits"][0]["id"] == "fan"
    needed = (bundle / "requirements.txt").read_text(encoding="utf-8").split()
    assert "onnxruntime" in needed and not {"torch", "transformers"} & set(needed)


def test_training_without_torch_says_what_to_install(toy_collection: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "sys.argv = ['fedcar', 'train', *sys.argv[1:]]\n"
        "from fedcar.cli.main import main\n"
        "main()\n"
    )
    process = python(code, toy_collection, "-o", tmp_path / "out", env=environment())
    _, err = process.communicate(timeout=120)
    assert err == "error: torch is not installed; pip install fedcar brings it\n" and process.returncode == 1


def test_in_eight_bits_a_bundle_is_near(saved: Path, bundle: Path) -> None:
    retriever, found = Retriever.load(saved), load_bundle(bundle)
    ours, theirs = found.encoder.encode(QUESTIONS), retriever.encoder.encode(QUESTIONS)
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.9
    alone = np.concatenate([found.encoder.encode([question]) for question in QUESTIONS])
    np.testing.assert_array_equal(ours, alone)  # no text depends on its batch
    assert load_bundle(bundle).head.rows.kind == "int8"


def test_load_rejects_a_changed_bundle(bundle: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(bundle, tmp_path / "bundle")
    content = bytearray((folder / "rows.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "rows.safetensors").write_bytes(content)
    result = fedcar("search", folder, "fan")
    assert result.code == 1 and "does not match its sha256" in result.err and result.err.count("\n") == 1


def test_a_bundle_is_for_searching_alone(bundle: Path, toy_collection: Path) -> None:
    before = tree(bundle)
    for words in (("evaluate", bundle, toy_collection), ("remove", bundle, "fan")):
        result = fedcar(*words)
        assert result.code == 1 and "a fedcar bundle, not a retriever" in result.err and result.err.count("\n") == 1
    assert tree(bundle) == before


def test_what_would_not_search_the_same_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedcar.encoder.runtimes import onnx_file

    retriever = Retriever.load(saved)
    other = Retriever.load(saved).encoder
    inserted = Adapter("full", other.embedding_width)
    inserted.difference.data[0] += 1.0
    other = other.with_adapter(inserted)
    write = onnx_file.write
    monkeypatch.setattr(
        onnx_file, "write", lambda model, file, precision, adapter: write(other.folded().model, file, precision)
    )
    with pytest.raises(FedcarError, match="gives other hidden states .*; use the retriever itself"):
        write_bundle(retriever, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_bundle_of_other_scores_is_refused(pair: tuple[Retriever, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """By its search, not only by its encoder."""
    retriever, folder = pair
    found = load_bundle(folder)
    check_search(retriever, found)
    found.weights = found.weights * 1.01
    with pytest.raises(FedcarError, match="gives other scores"):
        check_search(retriever, found)


@pytest.mark.filterwarnings("ignore:.*were cut", "ignore:the documents are in Chinese")
def test_a_saved_retriever_and_a_bundle_read_questions_as_their_documents_are_written(
    encoder_folder: Path, tmp_path: Path
) -> None:
    chinese = tuple(Document(f"d{row}", "", whole(text)) for row, (text, _) in enumerate(COLLECTIONS["zh"]))
    retriever = retriever_of(encoder_folder, "mean", "ridge", False, chinese, tmp_path / "cache")
    retriever.save(tmp_path / "retriever")
    write_bundle(retriever, tmp_path / "bundle")
    for again in (Retriever.load(tmp_path / "retriever"), load_bundle(tmp_path / "bundle")):
        assert again.evidence.wording == retriever.evidence.wording == Wording("zh", BY_LANGUAGE)
        assert again.ridge is not None and again.ridge.wording == again.evidence.wording
        ours, theirs = again.search("洗衣机晃动得厉害", 12), retriever.search("洗衣机晃动得厉害", 12)
        np.testing.assert_allclose([one.score for one in ours], [one.score for one in theirs], atol=1e-3)
        assert again.evidence.lexical(["洗衣机晃动得厉害"]).argmax() == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 of 1 queries have nothing but stop words")
def test_every_family_makes_a_bundle(model_folder: Path, documents: tuple[Document, ...], tmp_path: Path) -> None:
    for pooling in ("mean", "last"):
        retriever = retriever_of(model_folder, pooling, "head", True, documents, tmp_path / "cache")
        write_bundle(retriever, tmp_path / pooling)
        found = load_bundle(tmp_path / pooling)
        for question in QUESTIONS:
            ours, theirs = found.search(question, 3), retriever.search(question, 3)
            np.testing.assert_allclose([one.score for one in ours], [one.score for one in theirs], atol=1e-3)
