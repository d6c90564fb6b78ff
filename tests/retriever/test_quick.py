"""A quick start: a saved retriever without torch, from what an earlier search left in the cache."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command import environment, fedcar, python, tree
from support.retrievers import made

from fedcar.collection.collection import Collection
from fedcar.common.folders import write_folder
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.stored import MODEL, TOKENIZER
from fedcar.errors import FedcarError
from fedcar.retriever import quick, quick_writing
from fedcar.retriever.quick import quick_searcher
from fedcar.retriever.quick_writing import leave_quick_start
from fedcar.retriever.retriever import Retriever

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore:.* tokens and were cut", "ignore:.* have nothing but stop words")

QUESTIONS = ["the fan is broken", "blower sucker", "who charges the battery over night?", "ünknown Wörds, 3.5 %", "of"]
KINDS = ("head", "cosine", "query_map", "ridge", "adapter")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of each test's own, in which searches leave quick starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(quick_writing, "PACKAGES", ("onnxruntime", "onnxscript"))
    return tmp_path / "cache" / "fedcar" / "encoders"


@pytest.fixture(scope="module")
def retriever_of(
    toy_collection: Path, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Retriever]:
    states = FeatureCache(tmp_path_factory.mktemp("states"))

    def make(kind: str) -> Retriever:
        encoder = Encoder.load(tiny_model("bert"), "mean")
        documents = tuple(
            replace(one, text=f"{one.text} Then clean the {one.title} and dry it.", metadata={"shelf": [1, 2]})
            for one in Collection.read(toy_collection).documents
        )
        retriever = made("head" if kind == "adapter" else kind, documents, encoder, states)
        if kind == "adapter":
            adapter = Adapter("lowrank:2", encoder.embedding_width)
            adapter.left.data = torch.randn(adapter.left.shape, generator=torch.Generator().manual_seed(2))
            retriever = replace(retriever, encoder=encoder.with_adapter(adapter))
        return retriever

    return make


@pytest.fixture(scope="module")
def left(retriever_of: Callable[[str], Retriever], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the encoder without adapter leaves, written once."""
    place = tmp_path_factory.mktemp("left")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        patch.setattr(quick_writing, "PACKAGES", ("onnxruntime", "onnxscript"))
        leave_quick_start(retriever_of("head"))
    return place / "fedcar" / "encoders"


@pytest.fixture
def quick_start(left: Path, cache: Path) -> Path:
    """The encoder lies in the cache."""
    shutil.copytree(left, cache)
    (place,) = cache.iterdir()
    return place


@pytest.fixture
def copied(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the encoder again is copying, which takes no time."""
    (place,) = left.iterdir()

    def copied_from(_: Encoder, folder: Path) -> dict[str, Any]:
        for name in (MODEL, TOKENIZER):
            shutil.copy(place / name, folder)
        return dict(json.loads((place / "encoder.json").read_text()))

    monkeypatch.setattr(quick_writing, "write_encoder", copied_from)


@pytest.fixture
def saved(retriever_of: Callable[[str], Retriever], tmp_path: Path) -> Path:
    retriever_of("head").save(tmp_path / "retriever")
    return tmp_path / "retriever"


@pytest.mark.parametrize("kind", KINDS)
def test_quick_start_equals_retriever(
    retriever_of: Callable[[str], Retriever], kind: str, quick_start: Path, tmp_path: Path
) -> None:
    retriever = retriever_of(kind)
    retriever.save(tmp_path / "retriever")
    assert (quick_searcher(tmp_path / "retriever") is None) == (kind == "adapter"), "nobody has left that encoder yet"
    leave_quick_start(retriever)
    found = quick_searcher(tmp_path / "retriever")
    assert found is not None
    for ours, theirs in zip(found.search_many(QUESTIONS, 6), retriever.search_many(QUESTIONS, 6), strict=True):
        assert ours.answered == theirs.answered
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], rel=1e-4, abs=1e-4)
        for mine, wanted in zip(ours, theirs, strict=True):
            assert mine.id == wanted.id or abs(mine.score - wanted.score) <= 1e-5
            assert mine.metadata == {"shelf": [1, 2]}
    if retriever.ridge is not None:
        assert found.ridge is not None and found.ridge.feature_map.drawn is not None, "they lie in the cache"
        drawn = zip(found.ridge.feature_map.drawn, retriever.ridge.feature_map.frequencies, strict=True)
        assert all(np.array_equal(ours, theirs) for ours, theirs in drawn)
    np.testing.assert_array_equal(found.has_row, retriever.has_row)


@pytest.mark.usefixtures("quick_start")
def test_copied_and_pickled_it_is_the_same(saved: Path) -> None:
    found = quick_searcher(saved)
    assert found is not None
    wanted = found.search(QUESTIONS[0], 6)  # its files are open now
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert other.search(QUESTIONS[0], 6) == wanted


@pytest.mark.usefixtures("copied")
def test_quick_start_imports_no_torch(saved: Path, tmp_path: Path) -> None:
    """The first search leaves what the second needs; then torch and transformers cannot be imported at all."""
    first = fedcar("search", saved, "is the fan still good", "--json", "-k", "2").json
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "sys.argv = ['fedcar', *sys.argv[1:]]\n"
        "from fedcar.cli.main import main\n"
        "main()\n"
    )
    asked = ("search", saved, "is the fan still good", "--json", "-k", "2")
    for words in (asked, ("list", saved, "--json"), ("info", saved, "--json")):
        out, err = python(code, *words, env=environment(XDG_CACHE_HOME=str(tmp_path / "cache"))).communicate(
            timeout=120
        )
        assert err == ""
        if words == asked:
            assert [hit["id"] for hit in json.loads(out)["hits"]] == [hit["id"] for hit in first["hits"]]


@pytest.mark.usefixtures("copied")
def test_a_changed_quick_start_is_made_anew(saved: Path, quick_start: Path) -> None:
    assert quick_searcher(saved) is not None
    before = tree(quick_start)
    content = bytearray(before["encoder.onnx"] or b"")
    content[len(content) // 2] ^= 1
    (quick_start / "encoder.onnx").write_bytes(content)
    assert quick_searcher(saved) is None
    leave_quick_start(Retriever.load(saved))
    assert quick_searcher(saved) is not None and tree(quick_start).keys() == before.keys()


def test_what_onnx_cannot_express_is_tried_once(saved: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def refuse(*_: Any) -> None:
        tries.append(1)
        raise FedcarError("this model cannot be written")

    monkeypatch.setattr(quick_writing, "write_encoder", refuse)
    for _ in range(2):
        assert fedcar("search", saved, "fan").code == 0
    assert len(tries) == 1 and quick_searcher(saved) is None
    (place,) = cache.iterdir()
    assert cache.stat().st_mode & 0o077 == 0, "for its owner"
    assert json.loads((place / "encoder.json").read_text()) == {"reason": "this model cannot be written"}


def test_a_file_that_gives_other_states_does_not_stay(
    saved: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, write = Encoder.load(tiny_model("bert"), "cls"), quick_writing.write_encoder
    monkeypatch.setattr(quick_writing, "write_encoder", lambda encoder, folder: write(other, folder))
    leave_quick_start(Retriever.load(saved))
    assert quick_searcher(saved) is None


def test_a_quick_start_of_another_making_is_not_read(saved: Path, quick_start: Path) -> None:
    """As a later fedcar may leave it; its seal is right."""
    settings = json.loads((quick_start / "encoder.json").read_text())

    def write(folder: Path) -> None:
        for file in quick_start.iterdir():
            if not file.name.startswith("manifest"):
                shutil.copy(file, folder)
        (folder / "encoder.json").write_text(json.dumps(settings | {"of_later_versions": 1}))

    write_folder(quick_start, "quick start", write)
    assert quick_searcher(saved) is None


def test_a_full_disk_is_not_remembered_as_a_model_that_cannot_be_written(
    saved: Path, quick_start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise FedcarError("cannot be written") from OSError(28, "No space left on device")

    shutil.rmtree(quick_start)
    with monkeypatch.context() as patch:
        patch.setattr(quick_writing, "write_encoder", full)
        leave_quick_start(Retriever.load(saved))
    assert not quick_start.exists()
    leave_quick_start(Retriever.load(saved))
    assert quick_searcher(saved) is not None


def test_another_encoder_is_refused_as_ever(saved: Path, quick_start: Path, tiny_model: Callable[..., Path]) -> None:
    same, other = tiny_model("bert"), tiny_model("llama")
    assert quick_searcher(saved, same) is not None and quick_searcher(saved, other) is None
    result = fedcar("search", saved, "fan", "--encoder", other)
    assert result.code == 1 and "trained with an encoder of fingerprint" in result.err


def test_without_packages_or_room_it_works_as_before(
    saved: Path, left: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = Retriever.load(saved)
    monkeypatch.setattr(quick_writing, "PACKAGES", ("no_such_package",))
    leave_quick_start(retriever)
    assert not cache.exists()
    monkeypatch.setattr(quick_writing, "PACKAGES", ())
    monkeypatch.setattr(quick_writing, "MOST_PARAMETERS", 10)
    leave_quick_start(retriever)
    assert not cache.exists()
    monkeypatch.setattr(quick_writing, "MOST_PARAMETERS", 10**9)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    leave_quick_start(retriever)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(left, cache)
    assert quick_searcher(saved) is not None
    monkeypatch.setattr(quick, "find_spec", lambda name: None)
    assert quick_searcher(saved) is None


def test_a_changed_retriever_is_refused(saved: Path, quick_start: Path) -> None:
    (saved / "documents.jsonl").write_bytes((saved / "documents.jsonl").read_bytes().replace(b"fan", b"fun", 1))
    with pytest.raises(FedcarError, match="does not match its sha256"):
        quick_searcher(saved)
