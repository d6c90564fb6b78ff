"""Collection: what is read, what is accepted with one warning, and when two are the same."""

from __future__ import annotations

import gzip
import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.beir import ASKED, CORPUS, DOCUMENTS, HEADER, QUERIES, TRAIN, lines, put, read_silently, standard
from support.command import REPOSITORY

from fedcar.collection.collection import SPLITS, Collection, Document, Judged, Query, normalised
from fedcar.errors import FedcarError, FedcarWarning, quoted

# What is read


def test_reads_documents_queries_and_judgements(tmp_path: Path) -> None:
    collection = read_silently(put(tmp_path / "machines", {}))
    assert collection.name == "machines"
    assert collection.documents[0] == Document("fan", "Fan", "Clean the fan.")
    assert collection.queries["q1"] == Query("q1", "fan stops", client="north")
    assert collection.queries["q3"] == Query("q3", "who won?", answerable=False, split="test")
    assert collection.seen_documents() == {"fan", "pump"}


def test_judged_follows_the_file_and_keeps_zero_scores(tmp_path: Path) -> None:
    collection = read_silently(put(tmp_path, {}))
    train = collection.judged("train")
    assert isinstance(train, Judged) and len(train) == 2
    assert train.texts == ["pump is dry", "fan stops"]
    assert train.relevant == ({"pump": 2, "fan": 0}, {"fan": 1})
    assert [query.id for query in collection.judged("test").queries] == ["q4"]  # q2 has but a zero there
    assert [query.id for query in collection.unanswerable("test")] == ["q3"]
    assert collection.unanswerable("dev") == ()


def test_trained_on_are_the_queries_whose_normalised_text_stands_in_train(tmp_path: Path) -> None:
    collection = read_silently(put(tmp_path, {}))
    assert collection.trained_on("dev") == {"q2"}
    assert collection.trained_on("test") == {"q4"}  # "Fan  STOPS " is "fan stops"


@pytest.mark.parametrize("ask", ["judged", "unanswerable", "trained_on"])
def test_an_unknown_split_is_refused(tmp_path: Path, ask: str) -> None:
    with pytest.raises(FedcarError, match=r'split: "validation" is none of train, dev, test'):
        getattr(read_silently(put(tmp_path, {})), ask)("validation")


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [("Fan", "Clean it.", "Fan. Clean it."), ("Fan", " ", "Fan"), ("", "Clean it.", "Clean it."), (" ", "", "")],
)
def test_full_text(title: str, text: str, expected: str) -> None:
    assert Document("d", title, text).full_text == expected


def test_documents_and_queries_are_hashable_and_frozen() -> None:
    assert len({Document("d", metadata={"a": 1}), Query("q", "x")}) == 2
    with pytest.raises(AttributeError):
        Document("d").id = "e"  # type: ignore[misc]


# What is accepted


CRLF: dict[str, str | bytes | None] = {name: text.replace("\n", "\r\n") for name, text in standard().items()}
BOM: dict[str, str | bytes | None] = {name: b"\xef\xbb\xbf" + text.encode() for name, text in standard().items()}
SILENT: dict[str, dict[str, str | bytes | None]] = {
    "blank lines": {name: content.replace("\n", "\n \n\n") for name, content in standard().items()},
    "no last line end": {name: content.rstrip("\n") for name, content in standard().items()},
}


@pytest.mark.parametrize("files", SILENT.values(), ids=SILENT)
def test_accepted_silently_and_equal(tmp_path: Path, files: dict[str, str | bytes | None]) -> None:
    plain, other = read_silently(put(tmp_path / "a", {})), read_silently(put(tmp_path / "b", files))
    assert replace(other, name="a") == plain
    assert other.fingerprint == plain.fingerprint


def changed(name: str, before: str, after: str) -> dict[str, str | bytes | None]:
    assert before in standard()[name]
    return {name: standard()[name].replace(before, after)}


PACKED = {name: gzip.compress(text.encode()) for name, text in standard().items()}
AS_IN_THE_WILD: dict[str, dict[str, str | bytes | None]] = {
    "packed": {**dict.fromkeys(PACKED), **{f"{name}.gz": packed for name, packed in PACKED.items()}},
    "packed, without saying so": {**PACKED},
    "UTF-16": {name: text.encode("utf-16") for name, text in standard().items()},
    "UTF-16, big-endian": {name: b"\xfe\xff" + text.encode("utf-16-be") for name, text in standard().items()},
    "UTF-32": {name: text.encode("utf-32") for name, text in standard().items()},
    "validation.tsv": {"qrels/dev.tsv": None, "qrels/validation.tsv": standard()["qrels/dev.tsv"]},
    "val.tsv, packed": {"qrels/dev.tsv": None, "qrels/val.tsv.gz": PACKED["qrels/dev.tsv"]},
    "scores with a point": changed("qrels/train.tsv", "pump\t2\nq2\tfan\t0\n", "pump\t2.0\nq2\tfan\t0.0\n"),
    "TREC, by tabs": {"qrels/dev.tsv": "q2\t0\tpump\t1\n"},
    "TREC, by blanks": {"qrels/dev.tsv": "q2 Q0  pump 1\n"},
    "TREC, with a header": {"qrels/dev.tsv": "qid\titer\tdocno\trel\nq2\t0\tpump\t1\n"},
    "answerable of null": changed("queries.jsonl", '{"client": "north"}', '{"client": "north", "answerable": null}'),
}


@pytest.mark.parametrize("files", AS_IN_THE_WILD.values(), ids=AS_IN_THE_WILD)
def test_files_as_they_are_in_the_wild_read_as_equal(tmp_path: Path, files: dict[str, str | bytes | None]) -> None:
    plain, other = read_silently(put(tmp_path / "a", {})), read_silently(put(tmp_path / "b", files))
    assert replace(other, name="a") == plain
    assert other.fingerprint == plain.fingerprint


def test_a_title_of_null_is_no_title(tmp_path: Path) -> None:
    collection = read_silently(put(tmp_path, changed("corpus.jsonl", '"title": "Fan"', '"title": null')))
    assert collection.documents[0] == Document("fan", "", "Clean the fan.")


def test_judgements_below_0_are_read_as_0_and_counted(tmp_path: Path) -> None:
    put(tmp_path, {"qrels/test.tsv": HEADER + "q4\tfan\t1\nq4\tpump\t-1\nq2\tfan\t-2\n"})
    with pytest.warns(FedcarWarning, match=r"qrels/test\.tsv: 2 judgements below 0; read as 0, not relevant"):
        collection = Collection.read(tmp_path)
    assert collection.judgements["test"] == {"q4": {"fan": 1, "pump": 0}, "q2": {"fan": 0}}
    assert [query.id for query in collection.judged("test").queries] == ["q4"]


def test_a_client_in_two_normal_forms_is_one(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "Süd") for form in ("NFC", "NFD")]
    asked = [{**query, "metadata": {"client": one}} for query, one in zip(QUERIES, forms, strict=False)]
    collection = read_silently(put(tmp_path, {"queries.jsonl": lines(*asked, *QUERIES[2:])}))
    assert {collection.queries[name].client for name in ("q1", "q2")} == {"Süd"}


def test_ids_in_another_normal_form_are_found(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Prüfung") for form in ("NFC", "NFD"))
    files: dict[str, str | bytes | None] = {
        "corpus.jsonl": lines({"_id": nfd, "text": "x"}),
        "queries.jsonl": lines({"_id": nfc, "text": "y"}),
        **dict.fromkeys(("qrels/dev.tsv", "qrels/test.tsv")),
        "qrels/train.tsv": HEADER + f"{nfd}\t{nfc}\t1\n",
    }
    with pytest.warns(FedcarWarning, match="no dev split"):
        assert Collection.read(put(tmp_path, files)).judgements == {"train": {nfc: {nfd: 1}}}


def test_a_question_in_another_normal_form_is_trained_on(tmp_path: Path) -> None:
    texts = [unicodedata.normalize(form, "wie prüfe ich das") for form in ("NFC", "NFD")]
    asked = [{"_id": "q1", "text": texts[0]}, *QUERIES[1:3], {"_id": "q4", "text": texts[1]}]
    assert read_silently(put(tmp_path, {"queries.jsonl": lines(*asked)})).trained_on("test") == {"q4"}


@pytest.mark.parametrize("files", [CRLF, BOM], ids=["CRLF", "BOM"])
def test_windows_files_are_read_as_equal(tmp_path: Path, files: dict[str, str | bytes | None]) -> None:
    plain = read_silently(put(tmp_path / "a", {}))
    with pytest.warns(FedcarWarning):
        other = Collection.read(put(tmp_path / "b", files))
    assert replace(other, name="a") == plain
    assert other.fingerprint == plain.fingerprint


def test_other_metadata_is_kept(tmp_path: Path) -> None:
    own = {**QUERIES[0], "metadata": {"split": "their word", "client": "south", "age": 3}}
    collection = read_silently(put(tmp_path, {"queries.jsonl": lines(own, *QUERIES[1:])}))
    assert collection.queries["q1"] == Query("q1", "fan stops", "south", metadata={"split": "their word", "age": 3})


FILES = "corpus.jsonl, queries.jsonl, qrels/train.tsv, qrels/dev.tsv, qrels/test.tsv"
WARNED: dict[str, tuple[dict[str, str | bytes | None], list[str]]] = {
    "CRLF": (CRLF, [f"CRLF ends 15 lines of {FILES}; read as LF"]),
    "CRLF in one line": ({"corpus.jsonl": standard()["corpus.jsonl"][:-1] + "\r\n"}, ["1 lines of corpus.jsonl;"]),
    "BOM": (BOM, [f"a BOM begins {FILES}; ignored"]),
    "a query that no judgement names": (
        {"queries.jsonl": lines(*QUERIES, {"_id": "q9", "text": "never judged"})},
        ["queries.jsonl: 1 queries without a judgement"],
    ),
    "all of these": (
        {**BOM, "queries.jsonl": lines(*QUERIES, {"_id": "q9", "text": "x"}).replace("\n", "\r\n")},
        ["a BOM begins corpus.jsonl, qrels/train.tsv", "CRLF ends 5 lines of queries.jsonl;", "1 queries without"],
    ),
    "empty documents": (
        {"corpus.jsonl": lines(*DOCUMENTS, {"_id": "e", "title": "", "text": " "}, {"_id": "f", "text": ""})},
        ["2 of 4 documents empty"],
    ),
    "no train split": ({"qrels/train.tsv": None}, ["1 queries without a judgement", "no train split"]),
    "no dev split": ({"qrels/dev.tsv": None}, ["no dev split"]),
    "header only": ({"qrels/dev.tsv": HEADER}, ["no dev split"]),
    "zero scores only": ({"qrels/dev.tsv": HEADER + "q2\tfan\t0\n"}, ["no dev split"]),
    "no train and no dev split": (
        {"qrels/train.tsv": None, "qrels/dev.tsv": None},
        ["1 queries without a judgement", "no train split", "no dev split"],
    ),
    "no queries.jsonl": (
        {name: None for name in standard() if name != "corpus.jsonl"},
        ["0 queries (queries.jsonl); documents only"],
    ),
    "no judgement at all": (
        {"queries.jsonl": lines(*QUERIES[:2]), **{f"qrels/{split}.tsv": None for split in SPLITS}},
        ["none of the 2 queries has a judgement"],
    ),
    "other files of judgements": (
        {"qrels/all.tsv": HEADER, "qrels/train.csv": HEADER, "corpus.jsonl.gz": b""},
        ["3 files not read: corpus.jsonl.gz, qrels/all.tsv, qrels/train.csv (judgements are read from qrels/train.tsv"],
    ),
    "labels that look alike": (
        {"corpus.jsonl": lines(*DOCUMENTS, *({"_id": one, "text": one} for one in ("Refund", "refund", "REFUND")))},
        ['3 documents differ only in case, blanks, "_" or "-": Refund, refund, REFUND; they stay apart'],
    ),
    "clients that look alike": (
        {"queries.jsonl": lines(QUERIES[0], {**QUERIES[1], "metadata": {"client": "North "}}, *QUERIES[2:])},
        ['queries.jsonl: 2 clients differ only in case, blanks, "_" or "-": north, North ; they count as different'],
    ),
    "unanswerable without split": (
        {"queries.jsonl": lines(*QUERIES, {"_id": "q9", "text": "x", "metadata": {"answerable": False}})},
        ['1 unanswerable queries without "split"'],
    ),
}


@pytest.mark.parametrize(("files", "expected"), WARNED.values(), ids=WARNED)
def test_accepted_with_one_warning(tmp_path: Path, files: dict[str, str | bytes | None], expected: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Collection.read(put(tmp_path, files))
    messages = [str(one.message) for one in caught]
    assert len(messages) == len(expected)
    for message, part in zip(messages, expected, strict=True):
        assert part in message and "\n" not in message
    assert all(one.category is FedcarWarning and one.filename == __file__ for one in caught)


def test_one_side_of_a_federation_misses_no_split(tmp_path: Path) -> None:
    """A server has no training questions, a device perhaps no dev split, and a server whose devices count has none."""
    for number, missing in enumerate((["qrels/train.tsv"], ["qrels/dev.tsv"], [n for n in standard() if n[0] != "c"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Collection.read(put(folder, dict.fromkeys(missing)), part=True)
        assert not [one for one in caught if "split" in str(one.message) or "0 queries" in str(one.message)]


# What is left out on demand

OTHER = {"_id": "q2", "text": "pump leaks"}
AMBIGUOUS: dict[str, tuple[list[dict[str, Any]], str, set[str]]] = {
    "other text": (
        [OTHER],
        "1 ids stand for several different queries, left out (2 queries, 4 judgements); 0 ",
        {"q2"},
    ),
    "repeated first": ([QUERIES[1], OTHER], "left out (3 queries, 4 judgements); 0 lines repeat", {"q2"}),
    "other client": ([{**QUERIES[1], "metadata": {"client": "south"}}], "left out (2 queries, 4 judgements)", {"q2"}),
    "unanswerable": ([{**QUERIES[2], "text": "who lost?"}], "left out (2 queries, 0 judgements)", {"q3"}),
    "equal": ([QUERIES[1], QUERIES[1]], "0 queries, 0 judgements); 2 lines repeat an equal query, kept once", set()),
    "both": ([OTHER, QUERIES[0]], "left out (2 queries, 4 judgements); 1 lines repeat", {"q2"}),
}


@pytest.mark.parametrize(("more", "words", "gone"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_queries_are_left_out_on_demand(
    tmp_path: Path, more: list[dict[str, Any]], words: str, gone: set[str]
) -> None:
    plain = read_silently(put(tmp_path / "a", {}))
    put(tmp_path / "b", {"queries.jsonl": lines(*QUERIES, *more)})
    with pytest.raises(FedcarError, match=r"_id.* is taken .* fedcar import .*b --out NEW"):
        Collection.read(tmp_path / "b")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        collection = Collection.read(tmp_path / "b", leave_out_ambiguous=True)
    about = [str(one.message) for one in caught if "several different" in str(one.message)]
    assert len(about) == 1 and words in about[0] and "\n" not in about[0]
    assert collection.queries == {key: query for key, query in plain.queries.items() if key not in gone}
    for split in SPLITS:
        expected = {key: scores for key, scores in plain.judgements[split].items() if key not in gone}
        assert collection.judgements.get(split, {}) == expected


def test_two_scores_of_an_ambiguous_query_are_no_mistake(tmp_path: Path) -> None:
    files = {
        "queries.jsonl": lines(*QUERIES, OTHER),
        "qrels/dev.tsv": HEADER + "q2\tpump\t1\nq2\tpump\t2\nq1\tfan\t1\n",
    }
    with pytest.warns(FedcarWarning, match="2 queries, 5 judgements"):
        collection = Collection.read(put(tmp_path, files), leave_out_ambiguous=True)
    assert collection.judgements["dev"] == {"q1": {"fan": 1}}


# Fingerprint


CHANGES: dict[str, dict[str, str | bytes | None]] = {
    "document text": {CORPUS: standard()[CORPUS].replace("Clean", "clean")},
    "title and text swapped": {CORPUS: lines({"_id": "fan", "title": "Clean the fan.", "text": "Fan"}, DOCUMENTS[1])},
    "document metadata": {CORPUS: lines({**DOCUMENTS[0], "metadata": {"a": 1}}, DOCUMENTS[1])},
    "document order": {CORPUS: lines(*reversed(DOCUMENTS))},
    "one more document": {CORPUS: lines(*DOCUMENTS, {"_id": "x", "text": "y"})},
    "query text": {ASKED: standard()[ASKED].replace("dry", "wet")},
    "query client": {ASKED: standard()[ASKED].replace("north", "south")},
    "unanswerable split": {ASKED: standard()[ASKED].replace('"test"', '"dev"')},
    "score": {TRAIN: standard()[TRAIN].replace("pump\t2", "pump\t1")},
    "zero score left out": {TRAIN: standard()[TRAIN].replace("q2\tfan\t0\n", "")},
    "judgement moved to dev": {"qrels/dev.tsv": standard()["qrels/dev.tsv"] + "q1\tfan\t1\n"},
    "order of training queries": {TRAIN: HEADER + "q1\tfan\t1\nq2\tpump\t2\nq2\tfan\t0\n"},
}


@pytest.mark.parametrize("files", CHANGES.values(), ids=CHANGES)
def test_fingerprint_changes(tmp_path: Path, files: dict[str, str | bytes | None]) -> None:
    plain, other = read_silently(put(tmp_path / "a", {})), read_silently(put(tmp_path / "b", files))
    assert plain.fingerprint != other.fingerprint
    assert len(plain.fingerprint) == 64


def test_fingerprint_ignores_name_key_order_and_order_of_queries(tmp_path: Path) -> None:
    other = {
        CORPUS: lines(*(dict(reversed(list(document.items()))) for document in DOCUMENTS)),
        ASKED: lines(*reversed(QUERIES)),
        TRAIN: HEADER + "q2\tfan\t0\nq2\tpump\t2\nq1\tfan\t1\nq1\tfan\t1\n",
    }
    plain, changed = read_silently(put(tmp_path / "a", {})), read_silently(put(tmp_path / "b", other))
    assert plain.fingerprint == changed.fingerprint


# Small things


@given(st.text())
def test_normalised_is_stable_and_ignores_case_and_white_space(text: str) -> None:
    assert normalised(f" \t{text}\n") == normalised(text) == normalised(text.casefold())
    assert normalised("Why  does\tIT stop? ") == "why does it stop?"


@given(st.text() | st.integers() | st.none() | st.lists(st.text()))
def test_quoted_is_one_short_line(value: object) -> None:
    assert len(quoted(value)) <= 60 and len(quoted(value).splitlines()) <= 1


@pytest.mark.parametrize("name", ["sms_spam", "banking77", "squad_part"])
def test_the_shared_collections_read(name: str) -> None:
    folder = REPOSITORY.parent / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    collection = read_silently(folder)
    assert len(collection.judged("train")) > 2000 and len(collection.judged("test")) > 1000
