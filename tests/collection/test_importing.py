"""Import: each kind of source, the columns found, the split, and what is refused."""

from __future__ import annotations

import csv
import json
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command import REPOSITORY

from fedcar.collection.collection import SPLITS, Collection, Document, Query, normalised
from fedcar.collection.importing import import_collection
from fedcar.errors import FedcarError, FedcarWarning

MEDQUAD = REPOSITORY.parent / "shared" / "data" / "medquad"
LABELLED = [("where is my card", "card_arrival"), ("card not here yet", "card_arrival"), ("pin please", "get_pin")]


def labelled_rows(count: int) -> list[dict[str, str]]:
    return [{"text": f"question number {number}", "label": f"label_{number % 3}"} for number in range(count)]


def write(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    """Write rows in the format that the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


def judged(collection: Collection) -> dict[str, set[str]]:
    """Return {query text: document ids} over all splits."""
    found: dict[str, set[str]] = {}
    for split in SPLITS:
        for query_id, scores in collection.judgements.get(split, {}).items():
            found.setdefault(collection.queries[query_id].text, set()).update(scores)
    return found


def checked(source: Path, out: Path, **options: Any) -> Collection:  # noqa: ANN401
    """Import, and see that what was written reads back as what was returned."""
    collection = import_collection(source, out, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Collection.read(out) == collection
    return collection


# Label data


@pytest.mark.parametrize(
    ("name", "delimiter"),
    [
        ("a.csv", ","),
        ("a.csv", ";"),
        ("a.csv", "\t"),
        ("a.tsv", "\t"),
        ("a.tsv", ","),
        ("a.jsonl", ""),
        ("a.parquet", ""),
    ],
)
def test_label_data_of_each_format(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = [{"text": f'{text}, "so"; {delimiter}a\nb', "label": label} for text, label in LABELLED]
    collection = checked(write(tmp_path / name, rows, delimiter), tmp_path / "out")
    assert collection.name == "out"
    assert collection.documents == (Document("card_arrival", "", "card arrival"), Document("get_pin", "", "get pin"))
    assert judged(collection) == {row["text"]: {row["label"]} for row in rows}


def test_columns_may_be_named(tmp_path: Path) -> None:
    rows = [{"v1": "ham", "v2": "hello"}, {"v1": "spam", "v2": "win"}]
    collection = checked(write(tmp_path / "a.csv", rows), tmp_path / "out", text_column="v2", label_column="v1")
    assert judged(collection) == {"hello": {"ham"}, "win": {"spam"}}


def test_column_names_are_found_whatever_their_case(tmp_path: Path) -> None:
    rows = [{"Utterance": "hello", "Intent": "greet", "other": "x"}]
    assert judged(checked(write(tmp_path / "a.csv", rows), tmp_path / "out")) == {"hello": {"greet"}}


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,,\nhello,greet,,\n")
    assert judged(checked(tmp_path / "a.csv", tmp_path / "out")) == {"hello": {"greet"}}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_labels_may_be_numbers(tmp_path: Path, name: str) -> None:
    rows = [{"text": "hello", "label": 0}, {"text": "win", "label": 1}]
    with pytest.warns(FedcarWarning, match="all 2 labels are numbers"):
        collection = checked(write(tmp_path / name, rows), tmp_path / "out")
    assert judged(collection) == {"hello": {"0"}, "win": {"1"}}


def test_equal_texts_are_merged_and_keep_both_judgements(tmp_path: Path) -> None:
    rows = [{"text": "Hello  there", "label": "a"}, {"text": "hello there ", "label": "b"}]
    assert judged(checked(write(tmp_path / "a.csv", rows), tmp_path / "out")) == {"Hello  there": {"a", "b"}}


def test_bom_crlf_and_blank_lines_in_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\r\n\r\nhello,greet\r\n,\r\n")
    assert judged(checked(tmp_path / "a.csv", tmp_path / "out")) == {"hello": {"greet"}}


def test_a_field_over_the_csv_limit_is_read_and_the_limit_put_back(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)
    checked(write(tmp_path / "a.csv", [{"text": "x" * 200_000, "label": "a"}]), tmp_path / "out")
    assert csv.field_size_limit() == 131_072


# The split


def test_the_split_is_70_10_20_and_seeded(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", labelled_rows(200))
    first = checked(source, tmp_path / "1")
    assert [len(first.judged(split)) for split in SPLITS] == [140, 20, 40]
    again, other = checked(source, tmp_path / "2"), checked(source, tmp_path / "3", seed=1)
    assert again.fingerprint == first.fingerprint != other.fingerprint


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1, max_size=60), seed=st.integers(0, 5))
def test_no_text_stands_in_two_splits(tmp_path_factory: pytest.TempPathFactory, texts: list[str], seed: int) -> None:
    folder = tmp_path_factory.mktemp("split")
    rows = [
        {"text": random.Random(place).choice([text, text.upper()]), "label": "x"} for place, text in enumerate(texts)
    ]
    collection = import_collection(write(folder / "a.jsonl", rows), folder / "out", seed=seed)
    by_split = [{normalised(text) for text in collection.judged(split).texts} for split in SPLITS]
    assert sum(map(len, by_split)) == len(set.union(*by_split)) == len(set(texts))
    assert by_split[0], "train is never empty"
    assert not collection.trained_on("dev") and not collection.trained_on("test")


def test_a_split_column_is_honoured(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "label": "x", "split": "Training"},
        {"text": "b", "label": "x", "split": "validation"},
        {"text": "c", "label": "x", "split": "test"},
        {"text": "A", "label": "y", "split": "test"},
    ]
    collection = checked(write(tmp_path / "a.csv", rows), tmp_path / "out")
    assert [collection.judged(split).texts for split in SPLITS] == [["a"], ["b"], ["a", "c"]]
    assert collection.trained_on("test") == {"q1"}


# Documents, and questions beside them

DOCUMENTS = [
    {"id": "fan", "title": "Fan", "text": "Clean the fan.", "site": "north"},
    {"id": "pump", "title": "Pump", "text": "Prime the pump.", "site": ""},
]
QUESTIONS = [
    {"question": "fan stops", "document_id": "fan", "client": "north", "answerable": "true"},
    {"question": "pump dry", "document_id": "pump", "client": "", "answerable": ""},
    {"question": "Fan stops", "document_id": "pump", "client": "south", "answerable": "yes"},
    {"question": "who won?", "document_id": "", "client": "", "answerable": "False"},
]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_documents_of_each_format(tmp_path: Path, name: str) -> None:
    collection = checked(write(tmp_path / name, DOCUMENTS), tmp_path / "out")
    assert collection.documents == (
        Document("fan", "Fan", "Clean the fan.", {"site": "north"}),
        Document("pump", "Pump", "Prime the pump."),
    )
    assert not collection.queries and not collection.judgements


@pytest.mark.parametrize("name", ["q.csv", "q.jsonl", "q.parquet"])
def test_documents_with_questions(tmp_path: Path, name: str) -> None:
    source, questions = write(tmp_path / "a.csv", DOCUMENTS), write(tmp_path / name, QUESTIONS)
    collection = checked(source, tmp_path / "out", queries=questions)
    assert judged(collection) == {"fan stops": {"fan", "pump"}, "pump dry": {"pump"}}
    assert collection.queries["q1"] == Query("q1", "fan stops", "north")
    unanswerable = collection.queries["q3"]
    assert not unanswerable.answerable and unanswerable.split in SPLITS


def test_ids_of_questions_are_kept(tmp_path: Path) -> None:
    rows = [
        {"id": "7", "query": "fan stops", "corpus-id": "fan"},
        {"id": "7", "query": "fan stops", "corpus-id": "pump"},
    ]
    source, questions = write(tmp_path / "a.csv", DOCUMENTS), write(tmp_path / "q.csv", rows)
    assert list(checked(source, tmp_path / "out", queries=questions).queries) == ["7"]


def test_documents_without_ids_are_numbered(tmp_path: Path) -> None:
    collection = checked(write(tmp_path / "a.csv", [{"text": "one"}, {"text": "two"}]), tmp_path / "out")
    assert [document.id for document in collection.documents] == ["1", "2"]


def test_a_category_beside_a_title_is_metadata(tmp_path: Path) -> None:
    rows = [{"title": "Fan", "text": "Clean it.", "category": "air"}]
    assert checked(write(tmp_path / "a.csv", rows), tmp_path / "out").documents == (
        Document("1", "Fan", "Clean it.", {"category": "air"}),
    )


def test_a_folder_of_text_and_markdown(tmp_path: Path) -> None:
    files = {
        "notes/fan.md": "# The fan #\n\nClean it.\n",
        "notes/deep/pump.md": "Intro\n\n```sh\n# a remark\n```\n## Pump\nPrime it.\n",
        "notes/plain.txt": "# no heading here\r\nline",
        "notes/empty.md": "",
        "notes/.hidden/x.md": "hidden",
        "notes/.hidden.txt": "hidden",
        "notes/table.csv": "not text",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content.encode())
    questions = write(tmp_path / "q.csv", [{"question": "fan stops", "document": "fan.md"}])
    with pytest.warns(FedcarWarning, match="1 files not read: table.csv"):
        collection = checked(tmp_path / "notes", tmp_path / "notes" / "out", queries=questions)
    assert collection.documents == (
        Document("deep/pump.md", "Pump", files["notes/deep/pump.md"].strip()),
        Document("empty.md", "empty", ""),
        Document("fan.md", "The fan", "Clean it."),
        Document("plain.txt", "plain", "# no heading here\nline"),
    )
    assert judged(collection) == {"fan stops": {"fan.md"}}
    assert {path.name for path in (tmp_path / "notes").iterdir()} == {
        "fan.md", "deep", "plain.txt", "empty.md", ".hidden", ".hidden.txt", "table.csv", "out",
    }  # fmt: skip


def test_a_beir_folder_is_checked_and_copied(tmp_path: Path) -> None:
    first = checked(write(tmp_path / "a.csv", labelled_rows(30)), tmp_path / "first")
    second = checked(tmp_path / "first", tmp_path / "second")
    assert second.name == "second" and second.fingerprint == first.fingerprint
    (tmp_path / "first" / "queries.jsonl").write_text("{}\n")
    with pytest.raises(FedcarError, match=r'queries\.jsonl:1: no "_id"'):
        import_collection(tmp_path / "first", tmp_path / "third")


def test_ambiguous_queries_of_a_beir_folder_are_left_out(tmp_path: Path) -> None:
    first = checked(write(tmp_path / "a.csv", labelled_rows(30)), tmp_path / "first")
    train, dev = first.judged("train").queries[0], first.judged("dev").queries[0]
    with (tmp_path / "first" / "queries.jsonl").open("a") as file:
        file.write(json.dumps({"_id": train.id, "text": "another question"}) + "\n")
        file.write(json.dumps({"_id": dev.id, "text": dev.text}) + "\n")
    with pytest.raises(FedcarError, match=r"queries\.jsonl:31: .* fedcar import .*first --out NEW"):
        Collection.read(tmp_path / "first")
    with pytest.warns(FedcarWarning) as caught:
        second = import_collection(tmp_path / "first", tmp_path / "second")
    assert len(caught) == 1
    assert "(2 queries, 1 judgements); 1 lines repeat" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Collection.read(tmp_path / "second") == second
    assert set(first.queries) - set(second.queries) == {train.id}
    assert train.id not in second.judgements["train"]


def test_a_question_asked_at_two_sites_is_one_query_of_the_first(tmp_path: Path) -> None:
    rows = [
        {"text": "fan stops", "label": "fan", "client": "north"},
        {"text": "Fan  stops", "label": "pump", "client": "south"},
    ]
    collection = checked(write(tmp_path / "a.csv", rows), tmp_path / "out")
    assert collection.queries == {"q1": Query("q1", "fan stops", "north")}
    assert judged(collection) == {"fan stops": {"fan", "pump"}}


@pytest.mark.skipif(not MEDQUAD.is_dir(), reason=f"no {MEDQUAD}")
def test_medquad_is_read_after_import(tmp_path: Path) -> None:
    with pytest.warns(FedcarWarning, match=r"8 ids .* \(40 queries, 54 judgements\); 0 lines"):
        collection = import_collection(MEDQUAD, tmp_path / "out")
    assert Collection.read(tmp_path / "out") == collection


# What is refused: name -> file name, content, place named after the file, words of the message, options

REFUSED: dict[str, tuple[str, str | bytes, str, str, dict[str, Any]]] = {
    "missing text column": ("a.csv", "v1,v2\nham,hello\n", ":1: ", 'columns are "v1, v2"', {}),
    "text column not there": ("a.csv", "text,label\na,b\n", ":1: ", 'no column "txt"', {"text_column": "txt"}),
    "label column not there": ("a.csv", "text,label\na,b\n", ":1: ", 'no column "lbl"', {"label_column": "lbl"}),
    "empty file": ("a.csv", "", ":1: ", "no rows", {}),
    "header only": ("a.csv", "text,label\n", ":1: ", "no rows", {}),
    "empty JSONL": ("a.jsonl", "\n", ":1: ", "no rows", {}),
    "row without label": ("a.csv", "text,label\na,b\n\nc,\n", ":4: ", 'no "label"', {}),
    "row without text": ("a.csv", "text,label\n ,b\n", ":2: ", "empty query", {}),
    "label key missing in a line": (
        "a.jsonl",
        '{"text": "a", "label": "b"}\n{"text": "c"}\n',
        ":2: ",
        'no "label"',
        {},
    ),
    "label is a list": ("a.jsonl", '{"text": "a", "label": ["b"]}\n', ":1: ", "must be text", {}),
    "broken JSON": ("a.jsonl", '{"text": \n', ":1: ", "broken JSON", {}),
    "too many columns": ("a.csv", 'text,label\n"a\nb",c\nd,e,f\n', ":4: ", "3 columns where the header has 2", {}),
    "open quote": ("a.csv", 'text,label\na,b\n"c,d\n', ":3: ", "broken CSV", {}),
    "column named twice": ("a.csv", "text,text,label\na,b,c\n", ":1: ", 'two columns are named "text"', {}),
    "invalid UTF-8": ("a.csv", b"text,label\ncaf\xe9,b\n", ":2: ", "not valid UTF-8", {}),
    "NUL byte": ("a.csv", b"text,label\na\0,b\n", ":2: ", "NUL byte", {}),
    "unknown split": ("a.csv", "text,label,split\na,b,later\n", ":2: ", 'split is "later"', {}),
    "no split in a row": ("a.csv", "text,label,split\na,b,train\nc,d,\n", ":3: ", 'split is ""', {}),
    "answerable in other words": ("a.csv", "text,label,answerable\na,b,maybe\n", ":2: ", '"maybe"', {}),
    "unanswerable with a label": ("a.csv", "text,label,answerable\na,b,no\n", ":2: ", "drop one", {}),
    "same text answerable and not": ("a.csv", "text,label,answerable\na,b,\nA,,no\n", ":3: ", "only one is", {}),
    "no label at all": ("a.csv", "text,label,answerable\na,,no\n", ":1: ", "no label", {}),
    "tab in a label": ("a.jsonl", '{"text": "a", "label": "b\\tc"}\n', ":1: ", "a tab", {}),
    "duplicate document id": ("a.csv", "id,text\n1,a\n1,b\n", ":3: ", "make it unique", {}),
    "empty document id": ("a.csv", "id,text\n,a\n", ":2: ", 'empty "_id"', {}),
    "not Parquet": ("a.parquet", "text,label\n", ": ", "not readable as Parquet", {}),
    "unknown kind": ("a.xlsx", "x", ": ", "of no known kind", {}),
    "label column and questions": (
        "a.csv",
        "text,label\na,b\n",
        ": ",
        "exclude each other",
        {"label_column": "label", "queries": Path("q.csv")},
    ),
}


@pytest.mark.parametrize(("name", "content", "place", "words", "options"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, place: str, words: str, options: dict[str, Any]
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FedcarError) as caught:
        import_collection(tmp_path / name, tmp_path / "out", **options)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}{place}")
    assert words in message and "; " in message
    assert "\n" not in message and len(message) < 500
    assert [path.name for path in tmp_path.iterdir()] == [name]


QUESTIONS_REFUSED: dict[str, tuple[str, str, str]] = {
    "unknown document": ("question,document\na,fan\nb,fen\n", ":3: ", 'document "fen" is not there'),
    "no document column": ("question,answer\na,b\n", ":1: ", "no column for the document id"),
    "no question column": ("ask,document\na,b\n", ":1: ", "no column for the question"),
    "one id for two texts": ("id,question,document\n1,a,fan\n1,b,fan\n", ":3: ", "another text"),
    "no document": ("question,document\na,\n", ":2: ", 'no "document"'),
}


@pytest.mark.parametrize(("content", "place", "words"), QUESTIONS_REFUSED.values(), ids=QUESTIONS_REFUSED)
def test_questions_refused_in_one_line(tmp_path: Path, content: str, place: str, words: str) -> None:
    source, questions = write(tmp_path / "a.csv", DOCUMENTS), tmp_path / "q.csv"
    questions.write_text(content)
    with pytest.raises(FedcarError) as caught:
        import_collection(source, tmp_path / "out", queries=questions)
    assert str(caught.value).startswith(f"{questions}{place}")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_out_that_exists_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(FedcarError, match="out: exists and is not an empty folder"):
        import_collection(tmp_path / "not-there.csv", tmp_path / "out")


@pytest.mark.parametrize(("make", "words"), [(False, "cannot be read"), (True, r"no \.txt, \.md, \.markdown file")])
def test_a_source_without_content_is_refused(tmp_path: Path, make: bool, words: str) -> None:
    if make:
        (tmp_path / "source").mkdir()
    with pytest.raises(FedcarError, match=words):
        import_collection(tmp_path / "source", tmp_path / "out")


def test_options_that_a_folder_cannot_take_are_refused(tmp_path: Path) -> None:
    first = checked(write(tmp_path / "a.csv", labelled_rows(9)), tmp_path / "first")
    assert first.queries
    with pytest.raises(FedcarError, match='a folder has no column "text"'):
        import_collection(tmp_path / "first", tmp_path / "out", text_column="text")
    with pytest.raises(FedcarError, match="has its own queries.jsonl"):
        import_collection(tmp_path / "first", tmp_path / "out", queries=tmp_path / "a.csv")


def test_without_pyarrow_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FedcarError, match=r"a\.parquet: Parquet needs pyarrow; pip install 'fedcar\[data\]'"):
        import_collection(tmp_path / "a.parquet", tmp_path / "out")
