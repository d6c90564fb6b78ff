"""Documents replaced by others with their ids: found by the new text, nothing of the old one left, rows kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.command import fedcar, tree
from support.retrievers import check_equal, columns_of, learned_of, made

from fedcar.collection.collection import Collection, Document
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.row_index import is_installed

pytestmark = pytest.mark.filterwarnings("ignore:.* tokens and were cut")  # a document fills the encoder

KINDS = ("labels", "head", "cosine", "query_map", "ridge")
OLD = Document("pump", "Pump", "Zyzzyva water leaves the pump. Then clean the Pump and dry it.", {"shelf": 1})
NEW = Document("pump", "Pump", "Open the valve with a xylophone. Then clean the Pump and dry it.", {"shelf": 2})


@pytest.fixture(scope="module", params=KINDS)
def retriever(
    request: pytest.FixtureRequest,
    toy_collection: Path,
    tiny_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Retriever:
    """With OLD in the place of the pump, which is not touched in training; fan, filter and display are."""
    documents = Collection.read(toy_collection).documents
    if request.param != "labels":
        documents = tuple(replace(one, text=f"{one.text} Then clean the {one.title} and dry it.") for one in documents)
    documents = tuple(OLD if one.id == "pump" else one for one in documents)
    return made(request.param, documents, Encoder.load(tiny_model("llama")), FeatureCache(tmp_path_factory.mktemp("c")))


def changed(retriever: Retriever, identifier: str, more: str) -> Document:
    document = next(one for one in retriever.documents if one.id == identifier)
    return replace(document, text=f"{document.text} {more}")


def test_updated_document_found_by_its_new_text(retriever: Retriever, tmp_path: Path) -> None:
    updated = retriever.update([NEW])
    hit = updated.search(NEW.text, 1).hits[0]
    assert (hit.id, hit.text, hit.metadata) == ("pump", NEW.text, {"shelf": 2})
    assert [one.id for one in updated.documents].count("pump") == 1 and len(updated.documents) == 6
    assert retriever.documents[1] == OLD, "the one that was asked stays as it is"
    updated.save(tmp_path / "retriever")
    written = tree(tmp_path / "retriever")
    assert all(b"yzzyva" not in content.lower() for content in written.values() if content)
    again = Retriever.load(tmp_path / "retriever")
    assert [hit.id for hit in again.search("water", 6)] == [hit.id for hit in updated.search("water", 6)]
    fresh = retriever.remove(["pump"]).add([NEW])  # nobody asked about it, so that is the same
    ours, theirs = learned_of(updated), learned_of(fresh)
    del ours["pump"]["row"], theirs["pump"]["row"]  # they are not active, so they count for nothing
    check_equal(ours, theirs)


def test_update_keeps_what_questions_taught(retriever: Retriever) -> None:
    updated = retriever.update([changed(retriever, "fan", "It has a filter."), NEW])
    before, after = learned_of(retriever), learned_of(updated)
    assert [one.id for one in updated.documents][-2:] == ["fan", "pump"]
    check_equal(after, {name: parts for name, parts in before.items() if name not in ("fan", "pump")})
    for name in ("row", "active", *({"ridge", "words"} & set(before["fan"]))):
        np.testing.assert_array_equal(after["fan"][name], before["fan"][name], err_msg=name)
    assert not np.array_equal(after["fan"]["embedding"], before["fan"]["embedding"])


def test_a_row_solved_from_the_former_text_goes(retriever: Retriever) -> None:
    if retriever.ridge is None:
        pytest.skip("only ridge tells such a row from one of questions")
    solved = retriever.documents[int(retriever.ridge.pseudo_documents[0])].id
    updated = retriever.update([changed(retriever, solved, "It is new.")])
    assert updated.ridge is not None and len(updated.ridge.pseudo_documents) == 0
    assert updated.ridge.weights.shape[1] == len(columns_of(updated.ridge)) == 2


def test_forgetting_is_removing_and_adding(retriever: Retriever) -> None:
    document = changed(retriever, "fan", "It has a filter.")
    updated, fresh = retriever.update([document], forget=True), retriever.remove(["fan"]).add([document])
    assert updated.documents == fresh.documents
    check_equal(learned_of(updated), learned_of(fresh))
    same = next(one for one in retriever.documents if one.id == "fan")
    assert not retriever.update([same], forget=True).has_row[-1], "of a text that stays, too"


def test_where_only_the_metadata_changes_nothing_moves(retriever: Retriever) -> None:
    updated = retriever.update([replace(OLD, metadata={"shelf": 9}), retriever.documents[0]])
    assert updated.documents[1].metadata == {"shelf": 9} and updated.documents == retriever.documents[:1] + (
        replace(OLD, metadata={"shelf": 9}),
    ) + tuple(retriever.documents[2:])
    assert updated.head is retriever.head and updated.evidence is retriever.evidence


def test_all_at_once(retriever: Retriever) -> None:
    updated = retriever.update([replace(one, title=f"{one.title} two") for one in retriever.documents])
    assert [one.id for one in updated.documents] == [one.id for one in retriever.documents]
    np.testing.assert_array_equal(updated.has_row, retriever.has_row)


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([], "no document to update"),
        ([NEW, NEW], 'document "pump": given twice'),
        ([NEW, Document("nobody", "x"), Document("none", "x")], 'document "nobody" and 1 more: not in the retriever'),
    ],
)
def test_what_cannot_be_updated(retriever: Retriever, documents: list[Document], said: str) -> None:
    with pytest.raises(FedcarError, match=said):
        retriever.update(documents)


def test_an_index_follows(retriever: Retriever) -> None:
    if not is_installed():
        pytest.skip("faiss is not installed")
    from fedcar.retriever.row_index import RowIndex

    indexed = replace(retriever, row_index=RowIndex.build(retriever.evidence.embeddings)).update([NEW])
    assert indexed.row_index is not None and len(indexed.row_index) == 6
    embeddings = indexed.evidence.embeddings
    _, places = indexed.row_index.search(embeddings, embeddings, 1)
    assert places[:, 0].tolist() == list(range(6))


# -------------------------------------------------------------------- at the command line


@pytest.fixture
def folder(retriever: Retriever, tmp_path: Path) -> Path:
    retriever.save(tmp_path / "retriever")
    return tmp_path / "retriever"


def test_update_list_and_info_by_the_command_line(folder: Path, retriever: Retriever) -> None:
    file = folder.with_name("new.csv")
    hose = next(one for one in retriever.documents if one.id == "hose")
    file.write_text("id,title,body,shelf\npump,Pump,Open the valve with a xylophone.,2\n", "utf-8")
    result = fedcar("update", folder, file, "--json")
    assert {"retriever": str(folder), "updated": 1, "documents": 6}.items() <= result.json.items(), result.err
    found = fedcar("search", folder, "the xylophone", "-k", 1, "--json").json["hits"][0]
    assert found["id"] == "pump" and found["metadata"] == {"shelf": "2"}
    assert fedcar("update", folder, file).out == f"{folder}: 0 updated (1 as they were), 6 documents\n"
    listed = fedcar("list", folder, "--json").json["documents"]
    assert [one["id"] for one in listed][-1] == "pump" and {"id": "hose", "title": hose.title, "row": False} in listed
    assert sum(one["row"] for one in listed) == int(retriever.has_row.sum())
    about = fedcar("info", folder, "--json").json
    assert about["kind"] == "retriever" and about["documents"] == 6 and about["epsilon"] is None
    assert about["rows"] == int(retriever.has_row.sum()) and about["encoder"]["pooling"] == "mean"
    assert about["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert f"documents: {about['documents']}" in fedcar("info", folder).out.splitlines()


def test_what_has_no_documents_is_not_listed(tmp_path: Path) -> None:
    result = fedcar("list", tmp_path)
    assert result.code == 1 and "no retriever and no bundle" in result.err
    assert fedcar("info", tmp_path).code == 1


def test_add_takes_what_import_takes(folder: Path) -> None:
    pages = folder.with_name("pages")
    pages.mkdir()
    (pages / "kettle.md").write_text("# Kettle\nDescale it with vinegar.\n", "utf-8")
    table = folder.with_name("more.tsv")
    table.write_text("slug\tbody\tshelf\nlamp\tLet the lamp cool down.\t3\n", "utf-8")
    added = fedcar("add", folder, table, "--id-column", "slug", "--json")
    assert added.json["added"] == 1 and added.json["columns_not_read"] == []
    assert fedcar("add", folder, pages, "--json").json["documents"] == 8
    hits = {hit["id"]: hit for hit in fedcar("search", folder, "vinegar for the lamp", "-k", 8, "--json").json["hits"]}
    assert hits["lamp"]["metadata"] == {"shelf": "3"} and any("vinegar" in hit["text"] for hit in hits.values())
    refused = fedcar("add", folder, table)
    assert refused.code == 1 and "--id-column" in refused.err, "without ids nobody could name them later"


def test_add_reads_lines_as_in_a_corpus_as_before(folder: Path) -> None:
    file = folder.with_name("more.jsonl")
    file.write_text(
        json.dumps({"_id": "lamp", "text": "Let it cool.", "label": "x"}) + '\n{"text": "no id"}\n', "utf-8"
    )
    result = fedcar("add", folder, file)
    assert result.code == 1 and 'more.jsonl:2: no "_id"' in result.err
