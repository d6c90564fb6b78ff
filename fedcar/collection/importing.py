"""Import: make a collection from CSV, TSV, JSONL, Parquet, a folder of text or Markdown files, or a BEIR folder.

A table is label data (each label becomes a document, each text a query judged to it) or documents, to which a second
table may bring the questions. Nothing is written but the new collection.
"""

from __future__ import annotations

import csv
import importlib
import math
import os
import random
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fedcar.collection.collection import SPLITS, Collection, Document, Query, check_free, normalised
from fedcar.collection.lines import MAXIMUM_LINE_BYTES, check_identifier, check_text, json_objects, text_lines
from fedcar.errors import FedcarError, quoted

FORMATS = {".csv": "csv", ".tsv": "csv", ".tab": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
TEXT_FILES = (".txt", ".md", ".markdown")

IDENTIFIER_NAMES = ("_id", "id", "document_id", "doc_id", "docid", "corpus_id", "pid")
TITLE_NAMES = ("title", "heading", "headline")
TEXT_NAMES = ("text", "body", "content", "document", "passage", "paragraph", "sentence", "message", "utterance")
LABEL_NAMES = ("label", "intent", "category", "class", "target")
QUESTION_NAMES = ("question", "query", "question_text", "query_text", "utterance", "text")
QUESTION_DOCUMENT_NAMES = ("document_id", "document", "doc_id", "docid", "corpus_id", "pid", *LABEL_NAMES)
QUESTION_IDENTIFIER_NAMES = ("query_id", "question_id", "qid", "_id", "id")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation", "development"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
TRUTH_WORDS = {**dict.fromkeys(("true", "yes", "1", ""), True), **dict.fromkeys(("false", "no", "0"), False)}


class _Row(NamedTuple):
    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class _Table:
    path: Path
    columns: tuple[str, ...]
    rows: Sequence[_Row]

    def column(self, role: str, names: Sequence[str], given: str | None = None) -> str:
        """Return the column given or the one with the best-known name; refuse where there is none."""
        chosen = given if given in self.columns else None if given else self.guess(names)
        if chosen is None:
            there = quoted(", ".join(self.columns), 300)
            wanted = f"no column {quoted(given)}" if given else f"no column for the {role} ({', '.join(names)})"
            raise FedcarError(f"{self.path}:1: {wanted}; the columns are {there}: name one of them, or rename it")
        return chosen

    def guess(self, names: Sequence[str], besides: Sequence[str] = ()) -> str | None:
        """Return the column with the first of these names that is there, whatever its case, blanks and hyphens."""
        simple = {column.lower().replace(" ", "_").replace("-", "_"): column for column in reversed(self.columns)}
        return next((simple[name] for name in names if name in simple and simple[name] not in besides), None)


class _QuestionRow(NamedTuple):
    """One row of a table of questions; `document` is None where the question is unanswerable."""

    where: str
    id: str
    text: str
    client: str | None
    split: str
    document: str | None


class _JudgedQuestions(NamedTuple):
    queries: dict[str, Query]
    judgements: dict[str, dict[str, dict[str, int]]]


def import_collection(
    source: Path,
    out: Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    queries: Path | None = None,
    seed: int = 0,
) -> Collection:
    """Make a collection of a file or folder, write it to `out` as a BEIR folder, and return it.

    Columns not given are found by well-known names. Equal texts are merged into one query with all their judgements
    (the first one's id and client stay, so a question asked at two sites becomes one query of the first site). A column
    "split" is honoured; without one the distinct texts are split 70 / 10 / 20 by `seed`. Of a BEIR folder, queries
    whose id stands for several different ones are left out with their judgements (one FedcarWarning counts them).
    Raises FedcarError before anything is written.
    """
    source, out = Path(source), Path(out)
    check_free(out)
    try:
        is_folder = stat.S_ISDIR(source.stat().st_mode)
    except OSError as error:
        raise FedcarError(
            f"{source}: cannot be read ({error.strerror}); give a CSV, TSV, JSONL or Parquet file, or a folder"
        ) from error
    if label_column is not None and queries is not None:
        raise FedcarError(f"{source}: --label-column and --queries exclude each other; give one of them")
    if text_column is not None and text_column == label_column:
        raise FedcarError(f"{source}: --text-column and --label-column are the same; name two columns")
    if is_folder:
        collection = _import_folder(source, text_column or label_column)
    else:
        collection = _import_table(_read_table(source), text_column, label_column, queries is not None, seed)
    if queries is not None:
        collection = _with_queries(collection, Path(queries), seed)
    collection = replace(collection, name=out.resolve().name)
    collection.write(out)
    return collection


def _import_folder(folder: Path, column: str | None) -> Collection:
    if column is not None:
        raise FedcarError(f"{folder}: a folder has no column {quoted(column)}; leave the option out, or give a file")
    if (folder / "corpus.jsonl").exists():
        return Collection.read(folder, leave_out_ambiguous=True)
    return Collection(folder.name, tuple(_text_documents(folder)), {}, {})


def _import_table(
    table: _Table, text_column: str | None, label_column: str | None, with_queries: bool, seed: int
) -> Collection:
    # a "category" beside an id or a title is a remark on a document; the other names say label data
    of_documents = table.guess(("_id", *TITLE_NAMES)) is not None
    label_names = [name for name in LABEL_NAMES if not (of_documents and name == "category")]
    labelled = label_column or (not with_queries and table.guess(label_names))
    text = table.column("text", (*TEXT_NAMES, *QUESTION_NAMES) if labelled else TEXT_NAMES, text_column)
    if not labelled:
        return Collection(table.path.stem, tuple(_table_documents(table, text)), {}, {})
    label = table.column("label", label_names, label_column)
    asked = list(_asked(table, text, label))
    labels = sorted({row.document for row in asked if row.document is not None})
    if not labels:
        raise FedcarError(f"{table.path}:1: no label in column {quoted(label)}; give another column")
    documents = tuple(Document(label, "", label.replace("_", " ")) for label in labels)
    questions = _questions(asked, seed)
    return Collection(table.path.stem, documents, questions.queries, questions.judgements)


def _with_queries(collection: Collection, path: Path, seed: int) -> Collection:
    if collection.queries:
        raise FedcarError(f"{path}: the collection has its own queries.jsonl; leave --queries out")
    table = _read_table(path)
    text = table.column("question", QUESTION_NAMES)
    document = table.column("document id", QUESTION_DOCUMENT_NAMES)
    known = {document.id for document in collection.documents}
    asked = list(_asked(table, text, document))
    for question in asked:
        if question.document is not None and question.document not in known:
            raise FedcarError(
                f"{question.where}: document {quoted(question.document)} is not there; add it or correct the id"
            )
    questions = _questions(asked, seed)
    return replace(collection, queries=questions.queries, judgements=questions.judgements)


def _text_documents(folder: Path) -> Iterator[Document]:
    """Each text or Markdown file below the folder, hidden ones left out; the id is the path from the folder."""
    chosen = []
    for parent, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(parent).relative_to(folder)
        texts = [name for name in names if Path(name).suffix.lower() in TEXT_FILES and name[0] != "."]
        chosen += [here / name for name in texts if not (Path(parent) / name).is_fifo()]  # that would wait for ever
    if not chosen:
        raise FedcarError(f"{folder}: no {', '.join(TEXT_FILES)} file in it; give another folder, or a file")
    for name in sorted(chosen):
        path = folder / name
        text = "".join(line for _, line in text_lines(path)).replace("\r\n", "\n").strip()
        title = path.stem
        if path.suffix.lower() != ".txt":
            title, text = _markdown_heading(text, title)
        yield Document(check_identifier(name.as_posix(), quoted(str(path))), title, text)


def _refuse_unreadable(error: OSError) -> None:
    raise FedcarError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions or move it")


def _markdown_heading(text: str, otherwise: str) -> tuple[str, str]:
    """Return the first heading outside a code block, and the text; without it, where the text begins with it."""
    lines, fenced = text.split("\n"), False
    for position, line in enumerate(lines):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        heading = line.lstrip("#").strip().rstrip("#").strip()
        if not fenced and line.startswith("#") and line.lstrip("#")[:1] in (" ", "\t") and heading:
            return heading, "\n".join(lines[1:]).strip() if position == 0 else text
    return otherwise, text


def _table_documents(table: _Table, text: str) -> Iterator[Document]:
    identifier, title = table.guess(IDENTIFIER_NAMES, (text,)), table.guess(TITLE_NAMES, (text,))
    taken: set[str] = set()
    for number, row in enumerate(table.rows, start=1):
        document_id = check_identifier(_text(row, identifier), row.where) if identifier else str(number)
        if document_id in taken:
            raise FedcarError(f"{row.where}: id {quoted(document_id)} is taken by an earlier row; make it unique")
        taken.add(document_id)
        used = (identifier, title, text, "metadata")
        given = row.values.get("metadata")
        metadata = dict(given) if isinstance(given, dict) else {}
        metadata |= {key: value for key, value in row.values.items() if key not in used and _is_plain(value)}
        yield Document(document_id, _text(row, title), _text(row, text), metadata)


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int) and value != "" or isinstance(value, float) and math.isfinite(value)


def _asked(table: _Table, text: str, document: str) -> Iterator[_QuestionRow]:
    identifier = table.guess(QUESTION_IDENTIFIER_NAMES, (text, document))
    client, split, answerable = (table.guess((name,)) for name in ("client", "split", "answerable"))
    for row in table.rows:
        question, document_id = _text(row, text), _text(row, document).strip()
        if not question.strip():
            raise FedcarError(f"{row.where}: empty query in column {quoted(text)}; fill it or remove the row")
        truth = TRUTH_WORDS.get(_text(row, answerable).strip().lower())
        if truth is None:
            raise FedcarError(f"{row.where}: answerable is {quoted(_text(row, answerable))}; write true or false")
        if truth and not document_id:
            raise FedcarError(
                f"{row.where}: no {quoted(document)}; fill it, remove the row, or say so in a column "
                '"answerable" (false)'
            )
        if not truth and document_id:
            raise FedcarError(f"{row.where}: answerable is false, yet column {quoted(document)} is filled; drop one")
        yield _QuestionRow(
            row.where,
            check_identifier(_text(row, identifier), row.where) if identifier else "",
            question,
            _text(row, client).strip() or None,
            _split_word(row, split) if split else "",
            check_identifier(document_id, row.where) if truth else None,
        )


def _questions(asked: Sequence[_QuestionRow], seed: int) -> _JudgedQuestions:
    groups: dict[str, list[_QuestionRow]] = {}
    for question in asked:
        groups.setdefault(normalised(question.text), []).append(question)
    splits = _seeded_splits(list(groups), seed)
    queries: dict[str, Query] = {}
    judgements: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
    for number, (key, group) in enumerate(groups.items(), start=1):
        first = group[0]
        query_id, answerable = first.id or f"q{number}", first.document is not None
        if query_id in queries:
            raise FedcarError(f"{first.where}: id {quoted(query_id)} has another text in an earlier row; change one")
        for question in group:
            if (question.document is not None) != answerable:
                raise FedcarError(
                    f"{question.where}: same text as {first.where}, but only one is answerable; correct one"
                )
            if question.document is not None:
                judgements[question.split or splits[key]].setdefault(query_id, {})[question.document] = 1
        split = None if answerable else first.split or splits[key]
        queries[query_id] = Query(query_id, first.text, first.client, answerable, split)
    return _JudgedQuestions(queries, {split: judged for split, judged in judgements.items() if judged})


def _seeded_splits(texts: Sequence[str], seed: int) -> dict[str, str]:
    """Return the split of each distinct text: 20 % test and 10 % dev, each rounded, the rest train."""
    shuffled = list(texts)
    random.Random(seed).shuffle(shuffled)
    test, dev = (2 * len(shuffled) + 5) // 10, (len(shuffled) + 5) // 10
    return {
        text: "test" if place < test else "dev" if place < test + dev else "train"
        for place, text in enumerate(shuffled)
    }


def _split_word(row: _Row, column: str) -> str:
    word = _text(row, column)
    if word.strip().lower() not in SPLIT_WORDS:
        raise FedcarError(f"{row.where}: split is {quoted(word)}; write one of {', '.join(SPLITS)} in every row")
    return SPLIT_WORDS[word.strip().lower()]


def _text(row: _Row, column: str | None) -> str:
    """Return the cell as text; numbers and true / false are written out, nothing is ""."""
    value = row.values.get(column) if column is not None else None
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool):
        value = str(value).lower()
    if not isinstance(value, str | int | float):
        raise FedcarError(f"{row.where}: {quoted(column)} is {quoted(value)}; it must be text")
    return check_text(str(value), str(column), row.where)


def _read_table(path: Path) -> _Table:
    kind = FORMATS.get(path.suffix.lower())
    if not path.exists():
        raise FedcarError(f"{path}: no such file; check the path")
    if kind is None:
        raise FedcarError(f"{path}: of no known kind; give a file that ends in {', '.join(FORMATS)}, or a folder")
    rows = list({"csv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}[kind](path))
    if not rows:
        raise FedcarError(f"{path}:1: no rows; give a file with a row for each text")
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    return _Table(path, columns, rows)


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    return (_Row(where, record) for where, record in json_objects(path))


def _csv_rows(path: Path) -> Iterator[_Row]:
    limit = csv.field_size_limit(MAXIMUM_LINE_BYTES)  # a setting of the csv module: put back at the end
    header: list[str] = []
    start = 1
    try:
        delimiter = _delimiter(path)
        reader = csv.reader((line for _, line in text_lines(path)), delimiter=delimiter, strict=True)
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _checked_header(cells, where)
            elif len(cells) != len(header):
                raise FedcarError(
                    f"{where}: {len(cells)} columns where the header has {len(header)}; put a text with {delimiter!r} "
                    "or a line end in it in double quotes"
                )
            else:
                yield _Row(where, {name: cell for name, cell in zip(header, cells, strict=True) if name})
    except csv.Error as error:
        if "new-line character" in str(error):
            raise FedcarError(f"{path}:{start}: lines that end in CR alone; save the file with LF or CRLF") from error
        raise FedcarError(f"{path}:{start}: broken CSV ({error}); write a quote inside quotes twice") from error
    finally:
        csv.field_size_limit(limit)


def _delimiter(path: Path) -> str:
    """Return comma, semicolon or tab: the one that cuts the header into the most columns."""
    header = next((line for _, line in text_lines(path) if line.strip()), "")
    delimiters = ",;\t" if path.suffix.lower() == ".csv" else "\t,;"
    return max(delimiters, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def _checked_header(cells: Sequence[str], where: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise FedcarError(f"{where}: two columns are named {quoted(twice[0])}; the first row must name each once")
    return header


def _parquet_rows(path: Path) -> Iterator[_Row]:
    try:
        arrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ImportError as error:
        raise FedcarError(f"{path}: Parquet needs pyarrow; pip install 'fedcar[data]'") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield _Row(f"{path}:{number}", values)
    except (OSError, ValueError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise FedcarError(f"{path}: not readable as Parquet ({quoted(reason, 120)}); give a whole file") from error
