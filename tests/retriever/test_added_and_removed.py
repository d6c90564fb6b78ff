"""Documents come and go: found at once, gone for good, the others as they were, and never half of it on disk."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import fedcar, tree
from support.processes import kill_itself, killed
from support.retrievers import check_equal, columns_of, learned_of, made

from fedcar.collection.collection import Collection, Document
from fedcar.common import folders as storage
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.retriever.retriever import Retriever
from fedcar.training.refine import MARGIN, refined

pytestmark = pytest.mark.filterwarnings("ignore:.* tokens and were cut")  # a document fills the encoder

QUESTIONS = ("the fan is broken", "blower sucker", "who charges the battery over night?", "water", "nothing of it")
NEW = (
    Document("kettle", "Kettle", "Descale the kettle with vinegar. Zyzzyva limescale comes back soon.", {"shelf": 3}),
    Document("lamp", "", "Let the lamp cool before you change the bulb."),
)
EVERYONE = ["fan", "pump", "filter", "display", "battery", "hose"]
KINDS = ("labels", "untrained", "head", "cosine", "query_map", "ridge")


@pytest.fixture(scope="module")
def encoder_folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return FeatureCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", params=KINDS)
def retriever(
    request: pytest.FixtureRequest, toy_collection: Path, encoder_folder: Path, cache: FeatureCache
) -> Retriever:
    documents = Collection.read(toy_collection).documents
    if request.param != "labels":  # longer, so that they are read token by token
        documents = tuple(replace(one, text=f"{one.text} Then clean the {one.title} and dry it.") for one in documents)
    retriever = made(request.param, documents, Encoder.load(encoder_folder), cache)
    assert retriever.evidence.deep == (request.param != "labels")
    return retriever


@pytest.fixture(scope="module")
def saved(
    toy_collection: Path, encoder_folder: Path, cache: FeatureCache, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    documents = Collection.read(toy_collection).documents
    made("ridge", documents, Encoder.load(encoder_folder), cache).save(folder / "retriever")
    return folder / "retriever"


@pytest.fixture
def place(saved: Path, tmp_path: Path) -> Path:
    """A folder of its own for each test: a saved retriever and a file of new documents."""
    shutil.copytree(saved, tmp_path / "place" / "retriever")
    write(tmp_path / "place" / "new.jsonl", *NEW)
    return tmp_path / "place"


def write(file: Path, *documents: Document) -> Path:
    lines = ({"_id": one.id, "title": one.title, "text": one.text, "metadata": one.metadata} for one in documents)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def hits(retriever: Retriever, k: int | None = None) -> list[list[tuple[str, float]]]:
    found = [retriever.search(question, k or len(retriever.documents)).hits for question in QUESTIONS]
    return [[(hit.id, round(hit.score, 4)) for hit in one] for one in found]


def touched(retriever: Retriever) -> set[str]:
    """The documents that have a row of their own."""
    rows = np.flatnonzero(retriever.head.active.numpy())
    if retriever.ridge is not None:
        rows = np.concatenate([rows, columns_of(retriever.ridge)])
    return {retriever.documents[row].id for row in rows}


# -------------------------------------------------------------------- add


def test_added_document_found_without_training(retriever: Retriever) -> None:
    added = retriever.add(NEW)
    assert added.search("the kettle with vinegar", 1).hits[0].id == "kettle"
    hit = added.search("let the lamp cool before you change the bulb", 1).hits[0]
    assert (hit.id, hit.text) == ("lamp", NEW[1].text)
    assert touched(added) == touched(retriever) and not added.head.rows[-2:].detach().any()


def test_added_the_others_stay_bit_for_bit(retriever: Retriever) -> None:
    before = learned_of(retriever)
    added = retriever.add(NEW)
    check_equal(learned_of(added), before)
    assert len(added.documents) == len(added.evidence) == len(retriever.documents) + 2
    np.testing.assert_array_equal(added.weights, retriever.weights)


def test_adding_makes_a_new_retriever(retriever: Retriever) -> None:
    before, expected = hits(retriever), learned_of(retriever)
    added = retriever.add(NEW)
    assert added is not retriever and len(retriever.documents) == len(retriever.evidence) == 6
    assert hits(retriever) == before
    check_equal(learned_of(retriever), expected)


def test_scores_of_the_others_change_only_by_how_rare_words_are(retriever: Retriever) -> None:
    """Cosine and what was learned stay; a document of no known word leaves the words' order as well."""
    reading = retriever.encoder.read(QUESTIONS)
    states, added = reading.states, retriever.add(NEW)
    n = len(retriever.documents)
    everyone = np.tile(np.arange(n), (len(QUESTIONS), 1))
    vectors = retriever.evidence.vectors(states)
    old, new = (
        one.evidence.features(QUESTIONS, states["pooled"], everyone, reading.tokens, vectors)
        for one in (retriever, added)
    )
    names = retriever.evidence.NAMES
    for name in ("cosine", "sentence"):
        np.testing.assert_allclose(new[..., names.index(name)], old[..., names.index(name)], atol=1e-6)
    for one in (everyone, None):
        np.testing.assert_allclose(
            added.learned(QUESTIONS, states, one)[:, :n], retriever.learned(QUESTIONS, states, one), atol=1e-4
        )


def test_added_equals_having_been_there_from_the_start(
    toy_collection: Path, encoder_folder: Path, cache: FeatureCache
) -> None:
    documents, encoder = Collection.read(toy_collection).documents, Encoder.load(encoder_folder)
    added = made("untrained", documents[:4], encoder, cache).add(documents[4:])
    whole = replace(made("untrained", documents, encoder, cache), weights=added.weights)
    for one, other in zip(hits(added), hits(whole), strict=True):
        assert [name for name, _ in one] == [name for name, _ in other]
        np.testing.assert_allclose([score for _, score in one], [score for _, score in other], atol=0.05)


def test_an_empty_document_is_added_with_a_warning_and_never_returned(retriever: Retriever) -> None:
    with pytest.warns(FedcarWarning, match="1 of 2 documents to add are empty; kept, never returned") as said:
        added = retriever.add([NEW[0], Document("blank", " ", "\n")])
    assert sum("are empty" in str(one.message) for one in said) == 1  # that a text is cut is said once an encoder
    assert added.documents[-1].id == "blank"
    assert all("blank" not in dict(found) for found in hits(added))
    assert not added.head.embeddings[-1].any()


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([], "no document to add"),
        ([NEW[0], NEW[0]], 'document "kettle": given twice'),
        ([NEW[0], Document("fan", "x"), Document("pump", "x")], 'document "fan" and 1 more: in the retriever already'),
        ([Document("", "x")], 'empty "_id"'),
        ([Document("a\tb", "x")], "has a tab"),
        ([Document("nul", "x\0")], "a NUL character"),
    ],
)
def test_what_cannot_be_added(retriever: Retriever, documents: list[Document], said: str) -> None:
    before = hits(retriever)
    with pytest.raises(FedcarError, match=said):
        retriever.add(documents)
    assert hits(retriever) == before


# -------------------------------------------------------------------- refine


@pytest.mark.parametrize("kind", ["ridge", "head"])
def test_refining_touches_no_other_row(
    toy_collection: Path, encoder_folder: Path, cache: FeatureCache, kind: str
) -> None:
    retriever = made(kind, Collection.read(toy_collection).documents, Encoder.load(encoder_folder), cache)
    before = learned_of(retriever)
    with pytest.warns(FedcarWarning, match="are empty"):
        changed = refined(retriever.add([*NEW, Document("blank", "", "")]), 3)
    check_equal(learned_of(changed), before)
    assert touched(changed) == touched(retriever) | {"kettle", "lamp"}
    questions = ["Kettle", "Let the lamp cool before you change the bulb."]
    states = changed.encoder.encode_states(questions)
    learned = changed.learned(questions, states)[:, -3:, 0]
    assert not learned[:, 2].any()
    if kind == "ridge":
        np.testing.assert_allclose(learned[:, :2], np.eye(2), atol=0.3)
    else:  # what the row gives is what was missing; the lamp was MARGIN ahead without it
        plain = retriever.add(NEW).head(torch.from_numpy(states["pooled"])).detach().numpy()
        missing = np.delete(plain, 6, axis=1).max(axis=1)[0] + MARGIN - plain[0, 6]
        assert learned[0, 0] == pytest.approx(missing, rel=0.3) and missing > 1
        assert learned[1, 0] <= 0 and not learned[:, 1].any()
    again = changed.remove(["kettle", "lamp", "blank"])
    check_equal(learned_of(again), before)
    assert hits(again) == hits(retriever)


def test_many_are_refined_in_parts(
    toy_collection: Path, encoder_folder: Path, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is solved together only says what the rows must not answer for: the neighbours say it otherwise."""
    retriever = made("ridge", Collection.read(toy_collection).documents, Encoder.load(encoder_folder), cache)
    together = refined(retriever.add(NEW), len(NEW))
    monkeypatch.setattr("fedcar.training.refine.REFINED_AT_ONCE", 1)
    apart = refined(retriever.add(NEW), len(NEW))
    assert touched(apart) == touched(together)
    check_equal(learned_of(apart), learned_of(retriever))
    states = retriever.encoder.encode_states(["Kettle", NEW[1].text])
    learned = apart.learned(["Kettle", NEW[1].text], states)[:, -2:, 0]
    np.testing.assert_allclose(learned, np.eye(2), atol=0.3)


@pytest.mark.parametrize("kind", ["untrained", "cosine", "query_map"])
def test_where_there_are_no_rows_to_solve_for_refining_says_so(
    toy_collection: Path, encoder_folder: Path, cache: FeatureCache, kind: str
) -> None:
    retriever = made(kind, Collection.read(toy_collection).documents, Encoder.load(encoder_folder), cache)
    with pytest.warns(FedcarWarning, match="no rows to solve for"):
        changed = refined(retriever.add(NEW), len(NEW))
    check_equal(learned_of(changed), learned_of(retriever.add(NEW)))


# -------------------------------------------------------------------- remove


@pytest.mark.filterwarnings("ignore:k is 7")
def test_removed_document_never_returns(retriever: Retriever, tmp_path: Path) -> None:
    """Neither from memory nor from disk, and nothing of it stands in any file."""
    removed = retriever.add(NEW).remove(["kettle", "pump"])
    removed.save(tmp_path / "retriever")
    for one in (removed, Retriever.load(tmp_path / "retriever")):
        for question in (*QUESTIONS, "kettle zyzzyva", "prime the pump with water"):
            assert {hit.id for hit in one.search(question, 7).hits}.isdisjoint({"kettle", "pump"})
    content = b"".join(part or b"" for part in tree(tmp_path / "retriever").values()).lower()
    for word in (b"kettle", b"zyzzyva", b"limescal", b"vinegar", b"pump", b"prime"):
        assert word not in content, word


def test_removed_the_others_stay_bit_for_bit(retriever: Retriever) -> None:
    before = learned_of(retriever)
    removed = retriever.remove(["fan", "display"])  # both with a row
    check_equal(learned_of(removed), {name: parts for name, parts in before.items() if name not in ("fan", "display")})
    assert [document.id for document in removed.documents] == ["pump", "filter", "battery", "hose"]
    assert touched(removed) == touched(retriever) - {"fan", "display"}


def test_add_then_remove_gives_the_original_hits(retriever: Retriever) -> None:
    again = retriever.add(NEW).remove([document.id for document in NEW])
    assert hits(again) == hits(retriever)
    check_equal(learned_of(again), learned_of(retriever))
    assert again.evidence.vocabularies() == retriever.evidence.vocabularies()


def test_remove_then_add_finds_it_again_as_untouched(retriever: Retriever) -> None:
    again = retriever.remove(["fan"]).add([retriever.documents[0]])
    assert again.documents[-1].id == "fan" and "fan" not in touched(again)
    assert {hit.id for hit in again.search("the blades of the fan", 6).hits} >= {"fan"}


def test_every_touched_document_can_go(retriever: Retriever, tmp_path: Path) -> None:
    left = retriever.remove(["fan", "filter", "display"])
    left.save(tmp_path / "retriever")
    assert hits(Retriever.load(tmp_path / "retriever")) == hits(left)
    assert not touched(left)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([], "no document to remove"),
        (["fan", "nobody", "none"], 'document "nobody" and 1 more: not in the retriever'),
        (EVERYONE, "all 6 documents would be removed"),
    ],
)
def test_what_cannot_be_removed(retriever: Retriever, ids: list[str], said: str) -> None:
    with pytest.raises(FedcarError, match=said):
        retriever.remove(ids)
    assert len(retriever.documents) == 6


# -------------------------------------------------------------------- on disk


def test_saved_after_adding_it_is_the_same(retriever: Retriever, tmp_path: Path) -> None:
    added = retriever.add(NEW)
    added.save(tmp_path / "retriever")
    loaded = Retriever.load(tmp_path / "retriever")
    assert loaded.documents == added.documents and hits(loaded) == hits(added)
    check_equal(learned_of(loaded), learned_of(added))
    more = loaded.add([Document("sieve", "Sieve", "Rinse the sieve.")])
    assert more.search("rinse the sieve", 1).hits[0].id == "sieve"


def test_add_and_remove_by_the_command_line(place: Path) -> None:
    folder = place / "retriever"
    before = tree(folder)
    result = fedcar("add", folder, place / "new.jsonl", "--json")
    assert {"retriever": str(folder), "added": 2, "documents": 8}.items() <= result.json.items(), result.err
    assert fedcar("search", folder, "the kettle with vinegar", "-k", 1, "--json").json["hits"][0]["id"] == "kettle"
    result = fedcar("remove", folder, "kettle", "lamp", "kettle", "--json")
    assert result.json == {"retriever": str(folder), "removed": 2, "documents": 6}
    assert tree(folder) == before, "add then remove leaves every byte"
    assert fedcar("add", folder, place / "new.jsonl", "--refine").out == f"{folder}: 2 added, 8 documents\n"
    assert fedcar("remove", folder, "kettle", "lamp").out == f"{folder}: 2 removed, 6 documents\n"


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ((NEW[0], NEW[0]), ':2: "_id" "kettle" is taken'),
        ((NEW[0], Document("fan", "Fan")), 'document "fan": in the retriever already'),
        ((), "no document"),
    ],
)
def test_a_file_that_is_refused_changes_nothing(
    place: Path, tmp_path: Path, documents: tuple[Document, ...], said: str
) -> None:
    before = tree(place)
    result = fedcar("add", place / "retriever", write(tmp_path / "bad.jsonl", *documents), "--refine")
    assert result.code == 1 and result.err.startswith("error: ") and result.err.count("\n") == 1 and said in result.err
    assert tree(place) == before


@pytest.mark.parametrize(
    ("ids", "said"),
    [(["nobody"], "not in the retriever"), (["fan", "pump", "filter", "display", "battery", "hose"], "all 6")],
)
def test_a_removal_that_is_refused_changes_nothing(place: Path, ids: list[str], said: str) -> None:
    before = tree(place)
    result = fedcar("remove", place / "retriever", *ids)
    assert result.code == 1 and result.err.count("\n") == 1 and said in result.err
    assert tree(place) == before


def saved_with_new(folder: Path, step: str) -> None:
    """Documents are added; the process is killed at this step of the writing."""
    whole = getattr(storage, step)

    def stop(*arguments: object) -> None:
        if step == "_exchange":
            whole(*arguments)
        kill_itself()

    setattr(storage, step, stop)
    Retriever.load(folder).add(NEW).save(folder)


@pytest.mark.parametrize(
    ("step", "documents"), [("write_json", 6), ("_seal", 6), ("_put_in_place", 6), ("_exchange", 8)]
)
def test_killed_in_the_middle_the_old_retriever_is_whole(place: Path, step: str, documents: int) -> None:
    """Killed while it writes there is the old one, killed right after the exchange the new one; never half."""
    folder = place / "retriever"
    assert killed(saved_with_new, folder, step)
    found = Retriever.load(folder)
    assert len(found.documents) == documents
    assert [file for file in place.iterdir() if file.name.startswith(".")]
    found.remove(["hose"]).save(folder)
    assert not [file for file in place.iterdir() if file.name.startswith(".")], "the next writing cleans up"


def test_nothing_of_an_added_document_reaches_the_cache(retriever: Retriever, cache: FeatureCache) -> None:
    before = tree(cache.folder)
    retriever.add(NEW)
    assert tree(cache.folder) == before


def test_warnings_are_about_what_is_added(retriever: Retriever) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FedcarWarning)
        warnings.filterwarnings("ignore", ".* were cut", FedcarWarning)  # said once an encoder
        retriever.add(NEW).remove(["kettle"])
