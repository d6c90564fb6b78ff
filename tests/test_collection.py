"""Collection: what is read, what is accepted with one warning, what is refused and how."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcar import lines as lines_module
from fedcar.collection import SPLITS, Collection, Document, Judged, Query, normalised, read_documents
from fedcar.errors import FedcarError, FedcarWarning, quoted

DOCUMENTS = [
    {"_id": "fan", "title": "Fan", "text": "Clean the fan."},
    {"_id": "pump", "title": "Pump", "text": "Prime the pump."},
]
QUERIES: list[dict[str, Any]] = [
    {"_id": "q1", "text": "fan stops", "metadata": {"client": "north"}},
    {"_id": "q2", "text": "pump is dry"},
    {"_id": "q3", "text": "who won?", "metadata": {"answerable": False, "split": "test"}},
    {"_id": "q4", "text": "Fan  STOPS "},
]
HEADER = "query-id\tcorpus-id\tscore\n"


def lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def standard() -> dict[str, str]:
    return {
        "corpus.jsonl": lines(*DOCUMENTS),
        "queries.jsonl": lines(*QUERIES),
        "qrels/train.tsv": HEADER + "q2\tpump\t2\nq2\tfan\t0\nq1\tfan\t1\n",
        "qrels/dev.tsv": HEADER + "q2\tpump\t1\n",
        "qrels/test.tsv": HEADER + "q4\tfan\t1\nq2\tfan\t0\n",
    }


def put(folder: Path, files: Mapping[str, str | bytes | None]) -> Path:
    """Write the standard collection with some files changed, or left out where None."""
    for name, content in {**standard(), **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read_silently(folder: Path) -> Collection:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Collection.read(folder)


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
        ["queries.jsonl: 1 of 5 queries without a judgement"],
    ),
    "all of these": (
        {**BOM, "queries.jsonl": lines(*QUERIES, {"_id": "q9", "text": "x"}).replace("\n", "\r\n")},
        ["a BOM begins corpus.jsonl, qrels/train.tsv", "CRLF ends 5 lines of queries.jsonl;", "1 of 5 queries"],
    ),
    "empty documents": (
        {"corpus.jsonl": lines(*DOCUMENTS, {"_id": "e", "title": "", "text": " "}, {"_id": "f", "text": ""})},
        ["2 of 4 documents empty"],
    ),
    "no train split": ({"qrels/train.tsv": None}, ["1 of 4 queries without a judgement", "no train split"]),
    "no dev split": ({"qrels/dev.tsv": None}, ["no dev split"]),
    "header only": ({"qrels/dev.tsv": HEADER}, ["no dev split"]),
    "zero scores only": ({"qrels/dev.tsv": HEADER + "q2\tfan\t0\n"}, ["no dev split"]),
    "no train and no dev split": (
        {"qrels/train.tsv": None, "qrels/dev.tsv": None},
        ["1 of 4 queries without a judgement", "no train split", "no dev split"],
    ),
    "no queries.jsonl": (
        {name: None for name in standard() if name != "corpus.jsonl"},
        ["0 queries (queries.jsonl); documents only"],
    ),
    "no judgement at all": (
        {"queries.jsonl": lines(*QUERIES[:2]), **{f"qrels/{split}.tsv": None for split in SPLITS}},
        ["none of the 2 queries has a judgement"],
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


# What is refused: name -> file changed, its content, the line named, words of the message

CORPUS, ASKED, TRAIN = "corpus.jsonl", "queries.jsonl", "qrels/train.tsv"
FIRST_DOCUMENT, FIRST_QUERY = lines(DOCUMENTS[0]), lines(QUERIES[0])
REFUSED: dict[str, tuple[str, str | bytes, int, str]] = {
    "broken JSON": (CORPUS, FIRST_DOCUMENT + '{"_id": "x", \n', 2, "broken JSON"),
    "broken JSON after blank lines": (CORPUS, "\n\n" + FIRST_DOCUMENT + "{\n", 4, "broken JSON"),
    "JSON nested without end": (CORPUS, "[" * 200_000 + "\n", 1, "broken JSON"),
    "NaN": (CORPUS, '{"_id": "a", "metadata": {"x": NaN}}\n', 1, "NaN is not JSON"),
    "a list": (CORPUS, '["fan", "text"]\n', 1, "not an object"),
    "a JSON array over lines": (CORPUS, "[\n", 1, "broken JSON"),
    "missing _id of a document": (CORPUS, FIRST_DOCUMENT + lines({"text": "x"}), 2, 'no "_id"'),
    "number as _id": (CORPUS, lines({"_id": 17, "text": "x"}), 1, 'write "17"'),
    "null as _id": (CORPUS, lines({"_id": None, "text": "x"}), 1, "not a string"),
    "empty _id": (CORPUS, lines({"_id": " ", "text": "x"}), 1, 'empty "_id"'),
    "duplicate _id of a document": (CORPUS, FIRST_DOCUMENT * 2, 2, "make it unique"),
    "tab in an _id": (CORPUS, lines({"_id": "a\tb", "text": "x"}), 1, "a tab or a line end"),
    "line end in an _id": (CORPUS, lines({"_id": "a\nb", "text": "x"}), 1, "a tab or a line end"),
    "title not a string": (CORPUS, lines({"_id": "a", "title": 5}), 1, '"title" is 5'),
    "text not a string": (CORPUS, lines({"_id": "a", "text": None}), 1, '"text" is None'),
    "metadata not an object": (CORPUS, lines({"_id": "a", "metadata": "x"}), 1, '"metadata" is "x"'),
    "no document": (CORPUS, "\n", 1, "no document"),
    "empty file": (CORPUS, "", 1, "no document"),
    "invalid UTF-8": (CORPUS, FIRST_DOCUMENT.encode() + b'{"_id": "caf\xe9"}\n', 2, "not valid UTF-8 (byte 13"),
    "UTF-16": (CORPUS, FIRST_DOCUMENT.encode("utf-16-le"), 1, "UTF-16"),
    "NUL byte": (CORPUS, FIRST_DOCUMENT + '{"_id": "a\0"}\n', 2, "NUL byte"),
    "escaped NUL": (CORPUS, '{"_id": "a", "text": "x\\u0000"}\n', 1, 'NUL character in "text"'),
    "half a surrogate pair": (CORPUS, '{"_id": "a", "text": "x\\ud83d"}\n', 1, "surrogate"),
    "missing _id of a query": (ASKED, lines({"text": "x"}), 1, 'no "_id"'),
    "duplicate _id of a query": (ASKED, FIRST_QUERY + lines({"_id": "q1", "text": "y"}), 2, "make it unique"),
    "empty query": (ASKED, lines({"_id": "q1", "text": "  "}), 1, "empty query"),
    "query without text": (ASKED, lines({"_id": "q1"}), 1, "empty query"),
    "client not a string": (ASKED, lines({"_id": "q1", "text": "x", "metadata": {"client": 3}}), 1, '"client" is 3'),
    "answerable not a boolean": (
        ASKED,
        lines({"_id": "q1", "text": "x", "metadata": {"answerable": "no"}}),
        1,
        '"answerable" is "no"',
    ),
    "unknown split": (
        ASKED,
        lines({"_id": "q1", "text": "x", "metadata": {"answerable": False, "split": "val"}}),
        1,
        '"split" is "val"',
    ),
    "judgement for an unknown query": (TRAIN, HEADER + "q99\tfan\t1\n", 2, 'query "q99" is not in queries.jsonl'),
    "judgement for an unknown document": (TRAIN, HEADER + "q1\tfen\t1\n", 2, 'document "fen" is not in corpus.jsonl'),
    "two columns": (TRAIN, HEADER + "q1\tfan\n", 2, "2 columns, not 3"),
    "four columns": (TRAIN, HEADER + "q1\t0\tfan\t1\n", 2, "4 columns, not 3"),
    "blanks for tabs": (TRAIN, HEADER + "q1 fan 1\n", 2, "1 columns, not 3"),
    "score with a point": (TRAIN, HEADER + "q1\tfan\t1.0\n", 2, "not an integer"),
    "score in words": (TRAIN, HEADER + "\nq1\tfan\tyes\n", 3, "not an integer"),
    "negative score": (TRAIN, HEADER + "q1\tfan\t-1\n", 2, "not an integer of 0"),
    "score of 5,000 digits": (TRAIN, HEADER + f"q1\tfan\t{'9' * 5000}\n", 2, "not an integer of 0"),
    "two scores for a pair": (TRAIN, HEADER + "q1\tfan\t1\nq1\tfan\t2\n", 3, "keep one"),
    "no header row": (TRAIN, "q1\tfan\t1\n", 1, "no header row"),
    "no header row, odd score": (TRAIN, "q1\tfan\tyes\n", 1, "no header row"),
    "empty judgement file": (TRAIN, "", 1, "no header row"),
    "unanswerable, yet judged": (TRAIN, HEADER + "q3\tfan\t1\n", 2, '"answerable": false'),
}


@pytest.mark.parametrize(("file", "content", "line", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(tmp_path: Path, file: str, content: str | bytes, line: int, words: str) -> None:
    with pytest.raises(FedcarError) as caught:
        Collection.read(put(tmp_path, {file: content}))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / file}:{line}: ")
    assert words in message and "; " in message
    assert "\n" not in message and len(message) < 400


def test_a_line_over_50_mb_is_refused_without_reading_it(tmp_path: Path) -> None:
    put(tmp_path, {})
    with (tmp_path / CORPUS).open("ab") as file:
        file.truncate(400_000_000)  # sparse: a line of zeros
    with pytest.raises(FedcarError, match=r"corpus\.jsonl:3: a line over 50 MB; cut"):
        Collection.read(tmp_path)


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {})
    monkeypatch.setattr(lines_module, "MAXIMUM_LINE_BYTES", len(FIRST_DOCUMENT))
    with pytest.raises(FedcarError, match=r"corpus\.jsonl:2: a line over"):
        read_documents(tmp_path / CORPUS)
    (tmp_path / CORPUS).write_text(FIRST_DOCUMENT)
    assert len(read_documents(tmp_path / CORPUS)) == 1


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: None, "cannot be read as a collection"),
        (lambda path: path.write_text("text"), "cannot be read as a collection"),
        (lambda path: path.mkdir(), "no corpus.jsonl"),
        (lambda path: (path / "corpus.jsonl").mkdir(parents=True), "cannot be read"),
    ],
    ids=["not there", "a file", "no corpus.jsonl", "corpus.jsonl is a folder"],
)
def test_not_a_collection_is_refused(tmp_path: Path, prepare: Any, words: str) -> None:  # noqa: ANN401
    prepare(tmp_path / "made")
    with pytest.raises(FedcarError) as caught:
        Collection.read(tmp_path / "made")
    assert words in str(caught.value) and str(tmp_path / "made") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", [".", "corpus.jsonl", "qrels"])
def test_no_permission_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "closed", {})
    path = tmp_path / "closed" / name
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with pytest.raises(FedcarError, match="cannot be read"):
            Collection.read(tmp_path / "closed")
    finally:
        path.chmod(mode)


# Writing


def test_round_trip(tmp_path: Path) -> None:
    extra = {"_id": "q1", "text": 'ünïcode   and "quotes"', "metadata": {"client": "a", "k": [1, None]}}
    document = {"_id": "läbel 1", "title": "T", "text": "two\nlines\u2028three", "metadata": {"url": "x"}}
    files = {"queries.jsonl": lines(extra, *QUERIES[1:]), "corpus.jsonl": lines(*DOCUMENTS, document)}
    original = read_silently(put(tmp_path / "a", files))
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "deep" / "er" / "a", tmp_path / "empty"):
        original.write(target)
        again = read_silently(target)
        assert replace(again, name="a") == original
        assert list(again.judgements["train"]) == list(original.judgements["train"])
        assert again.fingerprint == original.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "deep", "empty"]


IDENTIFIERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t\n\r"), min_size=1).filter(
    lambda text: bool(text.strip())
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.dictionaries(IDENTIFIERS, st.tuples(TEXTS, TEXTS), min_size=1, max_size=4),
    queries=st.dictionaries(IDENTIFIERS, TEXTS.filter(lambda text: bool(text.strip())), max_size=4),
    score=st.integers(0, 3),
)
def test_whatever_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    documents: dict[str, tuple[str, str]],
    queries: dict[str, str],
    score: int,
) -> None:
    target = tmp_path_factory.mktemp("written")
    first = next(iter(documents))
    original = Collection(
        target.name,
        tuple(Document(key, title, text) for key, (title, text) in documents.items()),
        {key: Query(key, text) for key, text in queries.items()},
        {"train": {key: {first: score} for key in queries}} if queries else {},
    )
    original.write(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FedcarWarning)
        again = Collection.read(target)
    assert again == original and again.fingerprint == original.fingerprint


def test_write_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    original = read_silently(put(tmp_path / "a", {}))
    before = sorted(tmp_path.rglob("*"))
    for target in (tmp_path / "a", tmp_path / "a" / "corpus.jsonl"):
        with pytest.raises(FedcarError, match="exists and is not an empty folder"):
            original.write(target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    original = read_silently(put(tmp_path / "a", {}))

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    expected = FedcarError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        original.write(tmp_path / "b")
    if expected is FedcarError:
        assert "cannot be written (No space left on device)" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "document",
    [Document("a\tb"), Document("a", text="\ud83d"), Document("a", metadata={"x": object()})],
    ids=["tab in an id", "surrogate", "metadata that is not JSON"],
)
def test_write_refuses_what_could_not_be_read_back(tmp_path: Path, document: Document) -> None:
    with pytest.raises(FedcarError) as caught:
        Collection("c", (document,), {}, {}).write(tmp_path / "c")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


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
    folder = Path(__file__).parents[2] / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    collection = read_silently(folder)
    assert len(collection.judged("train")) > 2000 and len(collection.judged("test")) > 1000
