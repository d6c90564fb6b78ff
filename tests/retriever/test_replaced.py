"""Folders that are replaced while others read or change them: one version is read, and nothing is lost."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import fedcar
from support.processes import PROCESSES
from support.retrievers import made

from fedcar.collection.collection import Collection, Document
from fedcar.common import folders
from fedcar.common.folders import ReplacedError, opened_folder, seal_of, write_folder
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.export.bundle import load_bundle
from fedcar.export.bundle_writing import write_bundle
from fedcar.retriever.retriever import Retriever

pytestmark = pytest.mark.filterwarnings("ignore:.* tokens and were cut")  # the tiny encoder's window is short

QUESTION = "who looks after the pump"
GONE = ["fan", "display"]


@pytest.fixture(scope="module")
def source(toy_collection: Path, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved retriever; copy it, never write into it."""
    cache = FeatureCache(tmp_path_factory.mktemp("cache"))
    documents = Collection.read(toy_collection).documents
    folder = tmp_path_factory.mktemp("source") / "retriever"
    made("ridge", documents, Encoder.load(tiny_model("llama"), "mean"), cache).save(folder)
    return folder


@pytest.fixture
def place(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "retriever")


def replace_until(stop: Any, folder: Path) -> None:
    whole = Retriever.load(folder)
    fewer = whole.remove(GONE)
    while not stop.is_set():
        fewer.save(folder)
        whole.save(folder)


def test_what_is_checked_is_what_is_read(place: Path) -> None:
    """Forty loads while another process replaces the folder by one with fewer documents and back, without a pause."""
    whole = Retriever.load(place)
    expected = {len(one.documents): one.search(QUESTION, 2) for one in (whole, whole.remove(GONE))}
    stop, before, seen = PROCESSES.Event(), seal_of(place), set()
    writer = PROCESSES.Process(target=replace_until, args=(stop, place), daemon=True)
    writer.start()
    try:
        while seal_of(place) == before:
            assert writer.is_alive()
        for _ in range(40):
            retriever = Retriever.load(place)
            seen.add(len(retriever.documents))
            assert retriever.search(QUESTION, 2) == expected[len(retriever.documents)]
    finally:
        stop.set()
        writer.join(60)
    assert writer.exitcode == 0 and seen == set(expected), "it was not replaced in between"
    assert [file.name for file in place.parent.iterdir()] == ["retriever"], "what was replaced is gone"


def test_a_replaced_folder_waits_for_its_readers(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("old", "new"):
        writer = threading.Thread(
            target=write_folder,
            args=(target, "kind", lambda folder: (folder / "a").write_text(content)),  # noqa: B023
        )
        if content == "old":
            writer.start()
            writer.join(10)
            continue
        with opened_folder(target, "kind") as opened:
            writer.start()
            while (target / "a").read_text() != "new":
                assert writer.is_alive()
            assert (opened / "a").read_text() == "old" and writer.is_alive(), "the old one is still there to be read"
        writer.join(10)
        assert not writer.is_alive()
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_without_an_exchange_in_one_step_a_slow_reader_stops_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former folder is left to the next writer, as it is where folders are exchanged."""
    monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    monkeypatch.setattr(folders, "READERS_SECONDS", 0.1)
    target = tmp_path / "folder"

    def write(content: str) -> None:
        write_folder(target, "kind", lambda folder: (folder / "a").write_text(content))

    write("first")
    with opened_folder(target, "kind") as opened:
        write("second")
        write("third")
        assert (opened / "a").read_text() == "first" and (target / "a").read_text() == "third"
    write("fourth")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_who_saw_no_folder_replaces_none(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    nothing = seal_of(target)
    write_folder(target, "kind", lambda folder: (folder / "a").write_text("somebody else's"))
    with pytest.raises(ReplacedError, match="changed by somebody else meanwhile"):
        write_folder(target, "kind", lambda folder: (folder / "a").write_text("mine"), nothing)
    assert (target / "a").read_text() == "somebody else's"


def test_where_folders_cannot_be_opened_a_replaced_one_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_open_shared", lambda folder: None)
    target = tmp_path / "folder"
    write_folder(target, "kind", lambda folder: (folder / "a").write_text("old"))
    with opened_folder(target, "kind") as opened:
        assert (opened / "a").read_text() == "old"
    with pytest.raises(ReplacedError, match="folder: was replaced while it was read; try again"):
        with opened_folder(target, "kind"):
            write_folder(target, "kind", lambda folder: (folder / "a").write_text("new"))


def test_parts_of_different_numbers_are_refused(place: Path) -> None:
    """As an older fedcar, or a hand, could have mixed them; the hashes are right."""
    lines = (place / "documents.jsonl").read_text().splitlines(keepends=True)

    def mix(folder: Path) -> None:
        for file in place.iterdir():
            if not file.name.startswith("manifest"):
                shutil.copy(file, folder)
        (folder / "documents.jsonl").write_text("".join(lines[:-1]))

    write_folder(place, "retriever", mix)
    with pytest.raises(FedcarError, match=r"retriever: its parts have 5 and 6 documents; restore the folder from a co"):
        Retriever.load(place)


def test_a_changed_file_is_named_by_the_folder_that_was_given(place: Path) -> None:
    (place / "documents.jsonl").write_text("")
    with pytest.raises(FedcarError) as caught:
        Retriever.load(place)
    assert str(caught.value).startswith(f"{place / 'documents.jsonl'}: does not match its sha256")


def new_document(file: Path, identifier: str) -> Path:
    file.write_text(json.dumps({"_id": identifier, "title": identifier, "text": f"About the {identifier}."}) + "\n")
    return file


def add(ready: Any, folder: Path, file: Path) -> None:
    ready.wait(60)
    result = fedcar("add", folder, file)
    assert result.code == 0, result


def test_of_two_writers_at_the_same_moment_neither_is_lost(place: Path, tmp_path: Path) -> None:
    names = ["kettle", "lamp", "drill"]
    ready = PROCESSES.Barrier(len(names))
    writers = [
        PROCESSES.Process(target=add, args=(ready, place, new_document(tmp_path / f"{name}.jsonl", name)), daemon=True)
        for name in names
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * len(names)
    assert {document.id for document in Retriever.load(place).documents} >= set(names)


@pytest.mark.parametrize("always", [False, True])
def test_who_was_changed_meanwhile_changes_what_is_there_then(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: bool
) -> None:
    add, others = Retriever.add, []

    def interfere(self: Retriever, documents: Any, *arguments: Any) -> Retriever:
        if always or not others:
            others.append(f"other-{len(others)}")
            add(Retriever.load(place), [Document(others[-1], "", "About something else.")]).save(place)
        return add(self, documents, *arguments)

    monkeypatch.setattr(Retriever, "add", interfere)
    result = fedcar("add", place, new_document(tmp_path / "new.jsonl", "kettle"))
    there = {document.id for document in Retriever.load(place).documents}
    if always:
        assert result.code == 1 and result.err.rstrip().endswith(
            "others change it all the time, so nothing was written; try again"
        )
        assert "kettle" not in there
    else:
        assert result.code == 0 and there >= {"kettle", "other-0"}


def test_a_bundle_stays_what_was_loaded(place: Path, tmp_path: Path) -> None:
    retriever, bundle = Retriever.load(place), tmp_path / "bundle"
    write_bundle(retriever, bundle)
    loaded, untouched = load_bundle(bundle), load_bundle(bundle)
    expected = untouched.search(QUESTION)
    assert pickle.loads(pickle.dumps(loaded)).search(QUESTION) == expected
    write_bundle(retriever.remove(["pump"]), bundle)
    assert loaded.search(QUESTION) == expected, "read in full before it was replaced"
    with pytest.raises(ReplacedError, match="bundle: replaced since it was loaded, so it cannot be copied; load it ag"):
        pickle.loads(pickle.dumps(loaded))
