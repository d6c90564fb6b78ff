"""What import makes of columns, and that nothing is left out, merged or doubled without being counted."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from fedcar.collection.asked import Counts, SeveralAnswers
from fedcar.collection.collection import Collection, Document, Query
from fedcar.collection.columns import Columns
from fedcar.collection.importing import Imported, imported, imported_documents
from fedcar.errors import FedcarError, FedcarWarning

DOCUMENTS = "id,title,text\nfan,Fan,Clean the fan.\npump,Pump,Prime the pump.\n"


def made(folder: Path, table: str, queries: str | None = None, name: str = "a.csv", **columns: str) -> Imported:
    """Import the text of one table or two, without a warning."""
    (folder / name).write_text(table)
    if queries is not None:
        (folder / "q.csv").write_text(queries)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = None if queries is None else folder / "q.csv"
        return imported(folder / name, folder / "out", Columns(**columns), queries=path)


def answers(collection: Collection) -> dict[str, set[str]]:
    """Each question and the texts of the documents that answer it."""
    texts = {document.id: document.text for document in collection.documents}
    found: dict[str, set[str]] = {}
    for scores in collection.judgements.values():
        for query_id, documents in scores.items():
            found.setdefault(collection.queries[query_id].text, set()).update(texts[one] for one in documents)
    return found


# What is counted


def test_merged_rows_several_answers_and_columns_not_read_are_counted(tmp_path: Path) -> None:
    table = (
        "text,label,client,split,extra,\n"
        "fan stops,a,north,train,1,\nFan  stops,b,south,test,2,x\nfan stops,a,north,train,3,\npump dry,b,south,dev,4,\n"
    )
    collection, counts = made(tmp_path, table)
    assert counts == Counts(
        rows=4,
        merged=2,
        merged_of_other_clients=1,
        several_answers=(SeveralAnswers("fan stops", ("a", "b")),),
        in_several_splits=1,
        columns_not_read=("extra", "1 without a name"),
    )
    assert len(collection.queries) == counts.rows - counts.merged
    assert list(counts.lines()) == [
        "rows: 4 questions read, 2 merged with an earlier one of equal text (1 of another client, whose name went)",
        'several answers: 1 questions, such as "fan stops" (a, b)',
        "several splits: 1 texts stand in more than one; evaluate leaves them out",
        "columns not read: extra, 1 without a name",
    ]
    assert json.loads(json.dumps(counts.as_json()))["several_answers"] == [
        {"text": "fan stops", "documents": ["a", "b"]}
    ]


def test_two_normal_forms_of_one_text_are_merged_and_counted(tmp_path: Path) -> None:
    table = f"text,label\nwie prüfe ich,a\n{normalize('NFD', 'Wie prüfe ich')},a\nwie\u200b prüfe ich,a\n"
    collection, counts = made(tmp_path, table)
    assert (len(collection.queries), counts.merged) == (1, 2)
    assert collection.queries["q1"].text == "wie prüfe ich"


def test_two_normal_forms_of_one_label_are_one_document(tmp_path: Path) -> None:
    table = f"text,label\na,Prüfung\nb,{normalize('NFD', 'Prüfung')}\n"
    assert made(tmp_path, table).collection.documents == (Document("Prüfung", "", "Prüfung"),)


def test_labels_that_look_alike_stay_apart_and_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,Refund\nb,refund\nc,refund \nd,RE FUND\ne,re_fund\nf,delivery\n")
    with pytest.warns(FedcarWarning) as caught:
        collection = imported(tmp_path / "a.csv", tmp_path / "out").collection
    assert [one.id for one in collection.documents] == ["RE FUND", "Refund", "delivery", "re_fund", "refund"]
    (message,) = [str(one.message) for one in caught]
    assert '4 labels differ only in case, blanks, "_" or "-": RE FUND, re_fund, Refund, refund; they stay' in message
    assert "write them alike" in message


def test_clients_that_look_alike_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,client\na,x,North\nb,y,north\nc,y,south\n")
    with pytest.warns(
        FedcarWarning, match='2 clients differ only in case, blanks, "_" or "-": North, north; they count'
    ):
        imported(tmp_path / "a.csv", tmp_path / "out")


def test_metadata_that_json_has_no_form_for_is_named(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    import datetime

    columns = {
        "text": ["a", "b"],
        "tags": [["x", "y"], None],
        "day": [datetime.date(2024, 5, 1), None],
        "picture": [b"\xff", None],
        "score": [0.5, float("nan")],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    with pytest.warns(FedcarWarning, match="each of the 2 rows became a document and none a question"):
        collection, counts = imported(tmp_path / "a.parquet", tmp_path / "out")
    assert dict(collection.documents[0].metadata) == {"tags": ["x", "y"], "day": "2024-05-01", "score": 0.5}
    assert not collection.documents[1].metadata
    assert counts.columns_not_read == ("picture",)


# What a person means by the columns


PAIRS = {
    "question;answer": "question;answer\nhow?;Like this.\nwhy?;Because.\nwho?;Because.\n",
    "query,document": "query,document\nhow?,Like this.\nwhy?,Because.\nwho?,Because.\n",
    "Question,Context": "Question,Context\nhow?,Like this.\nwhy?,Because.\nwho?,Because.\n",
    "question,text": "question,text\nhow?,Like this.\nwhy?,Because.\nwho?,Because.\n",
}


@pytest.mark.parametrize("table", PAIRS.values(), ids=PAIRS)
def test_questions_with_their_answers_make_each_answer_a_document(tmp_path: Path, table: str) -> None:
    collection = made(tmp_path, table).collection
    assert collection.documents == (Document("1", "", "Like this."), Document("2", "", "Because."))
    assert answers(collection) == {"how?": {"Like this."}, "why?": {"Because."}, "who?": {"Because."}}


def test_the_title_of_an_answer_is_its_document_s(tmp_path: Path) -> None:
    collection, counts = made(tmp_path, "title,question,answer\nFan,how?,Like this.\nFan,why?,Because.\n")
    assert [one.title for one in collection.documents] == ["Fan", "Fan"] and not counts.columns_not_read


def test_long_answers_are_texts_and_not_ids(tmp_path: Path) -> None:
    long = "Clean the fan. " * 20
    collection = made(tmp_path, f'text,label\nhow?,{long}\nwhy?,"two\nlines"\n').collection
    assert [(one.id, one.text) for one in collection.documents] == [("1", long.strip()), ("2", "two\nlines")]


def test_an_answer_beside_a_category_wants_to_hear_which(tmp_path: Path) -> None:
    table = "question,answer,category\nhow?,Like this.,x\n"
    with pytest.raises(FedcarError, match=r"--label-column answer or --label-column category$"):
        made(tmp_path, table)
    by_answer = made(tmp_path, table, label_column="answer")
    assert answers(by_answer.collection) == {"how?": {"Like this."}}
    assert by_answer.counts.columns_not_read == ("category",)


def test_the_text_column_is_never_its_own_label(tmp_path: Path) -> None:
    collection = made(tmp_path, "category,intent\nhow?,a\n", text_column="category").collection
    assert answers(collection) == {"how?": {"a"}}
    (tmp_path / "b").mkdir()
    collection = made(tmp_path / "b", "text,sentence\na,how?\n", label_column="text").collection
    assert answers(collection) == {"how?": {"a"}}


def test_a_text_column_alone_makes_documents_and_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Frage;Artikel\nkein VPN;VPN einrichten\n")
    with pytest.raises(FedcarError, match=r'"Frage, Artikel": name one of them with --text-column \(.*--label-column'):
        imported(tmp_path / "a.csv", tmp_path / "out")
    with pytest.warns(FedcarWarning, match=r'1 rows became a document .* "Artikel" says the answer, type --label-col'):
        found = imported(tmp_path / "a.csv", tmp_path / "out", Columns(text_column="Frage"))
    assert not found.collection.queries


def test_rows_with_an_unknown_column_become_documents_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Text;Kategorie\nhallo;gruss\n")
    with pytest.warns(FedcarWarning, match=r'became a document .* "Kategorie" says the answer, type --label-column'):
        collection = imported(tmp_path / "a.csv", tmp_path / "out").collection
    assert collection.documents == (Document("1", "", "hallo", {"Kategorie": "gruss"}),)


@pytest.mark.parametrize("word", ["NaN", "NA", "null", "None", "<NA>"])
def test_a_label_that_stands_for_nothing_elsewhere_is_warned_of(tmp_path: Path, word: str) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\nhello,greet\nyou,{word}\n")
    with pytest.warns(FedcarWarning, match=f'"{word}" became a document, though other tools write that where'):
        assert len(imported(tmp_path / "a.csv", tmp_path / "out").collection.documents) == 2


def test_every_column_can_be_named(tmp_path: Path) -> None:
    table = "Nr,Frage,Thema,Ort,Teil,klar\n7,wie?,fan,north,test,yes\n8,wer?,,south,dev,no\n9,wann?,pump,north,train,\n"
    columns = {"text": "Frage", "label": "Thema", "id": "Nr", "client": "Ort", "split": "Teil", "answerable": "klar"}
    collection, counts = made(tmp_path, table, **{f"{name}_column": column for name, column in columns.items()})
    assert list(collection.queries.values()) == [
        Query("7", "wie?", "north"),
        Query("8", "wer?", "south", answerable=False, split="dev"),
        Query("9", "wann?", "north"),
    ]
    assert collection.judgements == {"test": {"7": {"fan": 1}}, "train": {"9": {"pump": 1}}}
    assert not counts.columns_not_read


def test_columns_of_documents_and_their_questions_can_be_named(tmp_path: Path) -> None:
    documents, questions = "Nr,Name,Inhalt\n1,Fan,Clean it.\n", "Frage,Seite,Ort\nwie?,1,north\n"
    names = {"text": "Inhalt", "id": "Nr", "title": "Name", "query": "Frage", "document": "Seite", "client": "Ort"}
    columns = {f"{name}_column": column for name, column in names.items()}
    collection = made(tmp_path, documents, questions, **columns).collection
    assert collection.documents == (Document("1", "Fan", "Clean it."),)
    assert collection.queries == {"q1": Query("q1", "wie?", "north")}


MISNAMED: dict[str, tuple[dict[str, Any], str]] = {
    "not there": ({"client_column": "site"}, 'no column "site"; the columns are .*--client-column'),
    "twice": ({"client_column": "text", "split_column": "text"}, "--client-column and --split-column are the same"),
    "of another file": ({"query_column": "text"}, "--query-column names a column of the --queries file; .*--text-col"),
    "title of labels": ({"title_column": "extra"}, "--title-column: a label has no title"),
}


@pytest.mark.parametrize(("columns", "words"), MISNAMED.values(), ids=MISNAMED)
def test_columns_that_cannot_be_are_refused(tmp_path: Path, columns: dict[str, str], words: str) -> None:
    with pytest.raises(FedcarError, match=words):
        made(tmp_path, "text,label,extra\na,b,c\n", **columns)


def test_questions_without_their_documents_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FedcarError, match="without the documents; give those as FILE, and this one with --queries"):
        made(tmp_path, "question,document_id\nhow?,1\n")


# Ids


@pytest.mark.parametrize(
    ("documents", "asked"),
    [("1", "1.0"), ("1.0", "1"), ("Prüfung", normalize("NFD", "Prüfung")), (normalize("NFD", "é"), "é"), ("1", " 1 ")],
)
def test_an_id_is_found_in_another_form(tmp_path: Path, documents: str, asked: str) -> None:
    table = f"id,text\n{documents},x\nother,y\n"
    collection = made(tmp_path, table, f"question,document_id\nhow?,{asked}\n").collection
    assert answers(collection) == {"how?": {"x"}}


def test_an_id_that_is_there_as_it_stands_is_that_one(tmp_path: Path) -> None:
    table = "id,text\n1,x\n1.0,y\n"
    collection = made(tmp_path, table, "question,document_id\na,1\nb,1.0\n").collection
    assert answers(collection) == {"a": {"x"}, "b": {"y"}}


@pytest.mark.parametrize(("asked", "likely"), [("FAN", "fan"), ("fan.md", "fan"), ("pump ", None), ("fen", None)])
def test_an_id_that_is_not_there_is_refused_with_the_likely_one(tmp_path: Path, asked: str, likely: str | None) -> None:
    if asked.strip() in DOCUMENTS:
        assert made(tmp_path, DOCUMENTS, f"question,document\nhow?,{asked}\n").collection.queries
        return
    with pytest.raises(FedcarError) as caught:
        made(tmp_path, DOCUMENTS, f"question,document\nhow?,{asked}\n")
    assert f'document "{asked}" is not there' in str(caught.value)
    assert (f'; is it "{likely}"?' in str(caught.value)) == (likely is not None)


def test_a_question_that_cannot_be_seen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedcarError, match=r"a\.csv:2: empty query"):
        made(tmp_path, "text,label\n\u200b\ufeff,b\n")


# Documents alone, for a retriever that is there


def test_documents_of_a_table_whatever_its_label(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text,label,question\nfan,Clean the fan.,parts,why?\n")
    collection, counts = imported_documents(tmp_path / "a.csv")
    more = {"label": "parts", "question": "why?"}
    assert collection.documents == (Document("fan", "", "Clean the fan.", more),) and counts == Counts()
    assert not collection.queries


def test_documents_of_lines_of_a_corpus_and_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "fan", "title": null, "text": "Clean it.", "metadata": {"a": 1}}\n')
    (tmp_path / "qrels").mkdir()
    wanted = (Document("fan", "", "Clean it.", {"a": 1}),)
    for place in (tmp_path, tmp_path / "corpus.jsonl"):
        assert imported_documents(place).collection.documents == wanted, "without a word about its questions"


def test_documents_of_a_folder_of_pages(tmp_path: Path) -> None:
    (tmp_path / "fan.md").write_text("# Fan\nClean it.\n")
    (document,) = imported_documents(tmp_path).collection.documents
    assert document.id == "fan.md" and document.title == "Fan"


def test_documents_without_ids_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Clean the fan."}\n')
    with pytest.raises(FedcarError, match=r"a.jsonl:1: no column for the id .* --id-column"):
        imported_documents(tmp_path / "a.jsonl")
