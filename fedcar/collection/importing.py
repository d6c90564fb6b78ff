"""Import: make a collection from CSV, TSV, JSONL, Parquet, a folder of text or Markdown files, or a BEIR folder.

A table is label data (each label becomes a document, each text a query judged to it), questions with their answers
(each answer becomes a document) or documents, to which a second table may bring the questions. Nothing is written but
the new collection, and nothing is left out or merged without being counted.
"""

from __future__ import annotations

import datetime
import json
import math
import stat
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from fedcar.collection.asked import Counts, Questions, asked_rows, columns_without_name, counted, merged_questions
from fedcar.collection.collection import (
    Collection,
    Document,
    alike_remark,
    check_free,
    client_remarks,
    label_text,
    normalised,
    read_documents,
)
from fedcar.collection.columns import (
    IDENTIFIER_NAMES,
    MISSING_WORDS,
    QUESTION_DOCUMENT_NAMES,
    QUESTION_NAMES,
    TITLE_NAMES,
    Columns,
    check_columns,
    is_of_texts,
    text_and_label,
)
from fedcar.collection.lines import check_identifier, json_objects
from fedcar.collection.normal_forms import composed, is_blank, look_alikes
from fedcar.collection.pages import read_pages
from fedcar.collection.sources import as_file
from fedcar.collection.tables import POINT_ZERO, Table, cell_text, kind_of_file
from fedcar.errors import FedcarError, FedcarWarning, quoted

PUBLIC_IDS = "public\t"  # how the ids of a file of public questions begin: a collection's hold no tab


class Imported(NamedTuple):
    """A collection made of other people's files, and what became of them."""

    collection: Collection
    counts: Counts


def import_collection(
    source: Path, out: Path, *, queries: Path | None = None, seed: int = 0, **columns: str | None
) -> Collection:
    """As `imported`, with the fields of Columns by name; the collection alone."""
    return imported(source, out, Columns(**columns), queries=queries, seed=seed).collection


def imported(
    source: Path, out: Path, columns: Columns | None = None, *, queries: Path | None = None, seed: int = 0
) -> Imported:
    """Make a collection of a file or folder, write it to `out` as a BEIR folder, and return it with what was counted.

    Columns not given are found by well-known names. Equal texts are merged into one query with all their judgements
    (the first one's id and client stay, so a question asked at two sites becomes one query of the first site). A column
    "split" is honoured; without one the distinct texts are split 70 / 10 / 20 by `seed`. Ids are composed (NFC). Of a
    BEIR folder, queries whose id stands for several different ones are left out with their judgements (one
    FedcarWarning counts them). Warns too about labels that look alike or are bare numbers, and files not read.
    Raises FedcarError before anything is written.
    """
    source, out, columns = Path(source), Path(out), columns or Columns()
    check_free(out)
    with as_file(source) as file, nullcontext() if queries is None else as_file(Path(queries)) as questions:
        collection, counts = _made(file, columns, questions, seed)
    collection = replace(collection, name=out.resolve().name)
    collection.write(out)
    if counts.rows:  # of a BEIR folder reading it has said so
        for remark in client_remarks(collection.queries.values()):
            warnings.warn(f"{out}: {remark}", FedcarWarning, stacklevel=2)
    return Imported(collection, counts)


def imported_documents(source: Path, columns: Columns | None = None) -> Imported:
    """The documents of whatever `imported` takes, without questions; nothing is written.

    JSON lines with "_id" are read as in corpus.jsonl. Other tables are documents whatever their columns are called,
    and must have one of ids: it is by these that documents are known later. A label is metadata here.
    """
    source, columns = Path(source), columns or Columns()
    with as_file(source) as file:
        is_folder = _is_folder(file)
        check_columns(file, columns, is_folder, False)
        corpus = _corpus_of(file) if is_folder else file
        if corpus is None:
            return _import_folder(file)
        if is_folder or columns == Columns() and _has_own_ids(corpus):
            return Imported(Collection(file.stem, read_documents(corpus), {}, {}), Counts())
        table = Table.read(file)
        text, _ = text_and_label(table, columns, True)
        table.column("id", IDENTIFIER_NAMES, "--id-column", columns.id_column, (text,))
        return _documents_alone(table, text, columns, True)


def _has_own_ids(file: Path) -> bool:
    """Whether it is JSON lines whose first object has an "_id"; without any object it is refused as such, too."""
    return kind_of_file(file) == "jsonl" and all("_id" in record for _, record in islice(json_objects(file), 1))


def _made(source: Path, columns: Columns, queries: Path | None, seed: int) -> Imported:
    is_folder = _is_folder(source)
    check_columns(source, columns, is_folder, queries is not None)
    if is_folder:
        found = _import_folder(source)
    else:
        found = _import_table(Table.read(source), columns, queries is not None, seed)
    if queries is not None:
        found = _with_queries(found, queries, columns, seed)
    return found


def _is_folder(source: Path) -> bool:
    try:
        return stat.S_ISDIR(source.stat().st_mode)
    except OSError as error:
        raise FedcarError(
            f"{source}: cannot be read ({error.strerror}); give a CSV, TSV, JSONL or Parquet file, or a folder"
        ) from error


def _corpus_of(folder: Path) -> Path | None:
    """The documents of a BEIR folder; None where it is another one."""
    files = [folder / name for name in ("corpus.jsonl", "corpus.jsonl.gz")]
    return next((file for file in files if file.exists()), None)


def _import_folder(folder: Path) -> Imported:
    if _corpus_of(folder) is not None:
        return Imported(Collection.read(folder, leave_out_ambiguous=True), Counts())
    pages = read_pages(folder)
    counts = Counts(
        files_not_read=tuple(pages.not_read),
        hidden=pages.hidden,
        front_matter=pages.front_matter,
    )
    return Imported(Collection(folder.name, tuple(pages.documents), {}, {}), counts)


def _import_table(table: Table, columns: Columns, with_queries: bool, seed: int) -> Imported:
    text, label = text_and_label(table, columns, with_queries)
    if label is None:
        return _documents_alone(table, text, columns, with_queries)
    labels = table.identifiers(label) if not is_of_texts(table, label) else None
    if columns.title_column is not None and labels is not None:
        raise FedcarError(f"{table.path}: --title-column: a label has no title; leave the option out")
    documents, answers = _documents_of(table, label, labels, columns)
    if not documents:
        raise FedcarError(f"{table.path}:1: no label in column {quoted(label)}; give another column")
    used = {text, label}
    asked = list(asked_rows(table, text, label, answers, columns, used))
    if labels is not None:
        _warn_of_labels(table, [document.id for document in documents])
    elif title := table.optional(TITLE_NAMES, "--title-column", columns.title_column, (text, label)):
        used.add(title)
    questions = merged_questions(asked, seed)
    collection = Collection(table.path.stem, documents, questions.queries, questions.judgements)
    return Imported(collection, counted(asked, questions, table, used))


def _documents_alone(table: Table, text: str, columns: Columns, with_queries: bool) -> Imported:
    used: set[str] = {text, "metadata"}
    documents = tuple(_table_documents(table, text, columns, used))
    others = [column for column in table.columns if column not in used]
    if not with_queries and others and len(used) == 2:
        warnings.warn(
            f"{table.path}: no label, so each of the {len(documents)} rows became a document and none a question; if "
            f"one of {quoted(', '.join(others), 120)} says the answer, type --label-column NAME",
            FedcarWarning,
            stacklevel=4,
        )
    dropped = [column for column in others if any(_left_out(row.values.get(column)) for row in table.rows)]
    counts = Counts(columns_not_read=(*dropped, *columns_without_name(table)))
    return Imported(Collection(table.path.stem, documents, {}, {}), counts)


def _documents_of(
    table: Table, label: str, labels: Sequence[str] | None, columns: Columns
) -> tuple[tuple[Document, ...], list[str]]:
    """The documents that labels or answers become, and the id of each row's, "" where there is none.

    A label is its document's id and, with blanks, its text. Answers are numbered in the order of the table; equal ones
    are one document, whose title is that of its first row.
    """
    if labels is not None:
        return tuple(Document(one, "", label_text(one)) for one in sorted({*labels} - {""})), list(labels)
    title = table.optional(TITLE_NAMES, "--title-column", columns.title_column, (label,))
    documents: dict[str, Document] = {}
    answers = []
    for row in table.rows:
        answer = composed(cell_text(row, label)).strip()
        if is_blank(answer):
            answers.append("")
            continue
        number = str(len(documents) + 1)
        answers.append(documents.setdefault(answer, Document(number, cell_text(row, title), answer)).id)
    return tuple(documents.values()), answers


def _warn_of_labels(table: Table, labels: Sequence[str]) -> None:
    if groups := look_alikes(labels):
        warnings.warn(
            f"{table.path}: {alike_remark(groups, 'labels')}; they stay {sum(map(len, groups))} documents, whose "
            "questions count against each other: write them alike in the file",
            FedcarWarning,
            stacklevel=4,
        )
    if missing := [label for label in labels if label.lower() in MISSING_WORDS]:
        warnings.warn(
            f"{table.path}: {quoted(', '.join(missing), 120)} became a document, though other tools write that where "
            "there is nothing; if so, remove its rows, or empty the cells and say answerable false",
            FedcarWarning,
            stacklevel=4,
        )
    if all(label.removesuffix(".0").isdigit() for label in labels):
        warnings.warn(
            f"{table.path}: all {len(labels)} labels are numbers, so no document says what it is about; write their "
            "names in the file where there are any",
            FedcarWarning,
            stacklevel=4,
        )


def _with_queries(found: Imported, path: Path, columns: Columns, seed: int) -> Imported:
    collection = found.collection
    if collection.queries:
        raise FedcarError(f"{path}: the collection has its own queries.jsonl; leave --queries out")
    questions, counts = asked_of(collection.documents, path, columns, seed)
    both = replace(
        counts,
        columns_not_read=(*found.counts.columns_not_read, *counts.columns_not_read),
        files_not_read=found.counts.files_not_read,
        hidden=found.counts.hidden,
        front_matter=found.counts.front_matter,
    )
    return Imported(replace(collection, queries=questions.queries, judgements=questions.judgements), both)


def asked_of(
    documents: Sequence[Document], path: Path, columns: Columns | None = None, seed: int = 0
) -> tuple[Questions, Counts]:
    """The questions of a table that names the document which answers each; FedcarError where one is not there."""
    columns, table = columns or Columns(), Table.read(path)
    given = table.given(columns.document_column, "--document-column")
    text = table.column("question", QUESTION_NAMES, "--query-column", columns.query_column, (given,) if given else ())
    document = given or table.column("document id", QUESTION_DOCUMENT_NAMES, "--document-column", None, (text,))
    known = {one.id for one in documents}
    looks = {_loosely(one): one for one in known}
    answers = []
    for row, wanted in zip(table.rows, table.identifiers(document), strict=True):
        one = _known(wanted, known)
        if one is None:
            likely = f"; is it {quoted(looks[_loosely(wanted)])}?" if _loosely(wanted) in looks else ""
            raise FedcarError(f"{row.where}: document {quoted(wanted)} is not there{likely}; add it or correct the id")
        answers.append(one)
    used = {text, document}
    asked = list(asked_rows(table, text, document, answers, replace(columns, id_column=None), used))
    questions = merged_questions(asked, seed)
    return questions, counted(asked, questions, table, used)


def with_public_questions(collection: Collection, file: Path, *, dev: bool = False) -> Collection:
    """The collection with the questions of a file as its dev split, whatever split they name; with `dev` beside it.

    The file is a table as `--queries` of an import takes it. Without `dev` no judgement of the collection's own dev
    split is left, nor which of its questions nothing answers. No id of a collection begins as those of the file do.
    """
    with as_file(file) as path:
        asked, _ = asked_of(collection.documents, path)
    own, judgements = dict(collection.queries), dict(collection.judgements)
    if not dev:
        judgements["dev"] = {}
        own = {one: replace(query, split=None) if query.split == "dev" else query for one, query in own.items()}
    public = {}
    for one, query in asked.queries.items():
        split = query.split if query.answerable else "dev"
        public[PUBLIC_IDS + one] = replace(query, id=PUBLIC_IDS + one, split=split)
    judged = {PUBLIC_IDS + one: scores for split in asked.judgements.values() for one, scores in split.items()}
    dev_split = {**judgements.get("dev", {}), **judged}
    return replace(collection, queries={**own, **public}, judgements={**judgements, "dev": dev_split})


def _known(wanted: str, known: Container[str]) -> str | None:
    """The document of that id; "1.0" is "1" where that is there and "1.0" is not, and the other way round."""
    if not wanted or wanted in known:
        return wanted
    other = wanted.removesuffix(".0") if POINT_ZERO.fullmatch(wanted) else f"{wanted}.0"
    return other if other in known else None


def _loosely(identifier: str) -> str:
    """An id without case, leading zeros and the ending of a file."""
    return normalised(Path(identifier).stem if "." in identifier else identifier).lstrip("0")


def _table_documents(table: Table, text: str, columns: Columns, used: set[str]) -> Iterator[Document]:
    title = table.optional(TITLE_NAMES, "--title-column", columns.title_column, (text,))
    identifier = table.optional(IDENTIFIER_NAMES, "--id-column", columns.id_column, (text,))
    used |= {one for one in (title, identifier) if one}
    ids = table.identifiers(identifier) if identifier else [str(number) for number in range(1, len(table.rows) + 1)]
    taken: set[str] = set()
    for row, document_id in zip(table.rows, ids, strict=True):
        check_identifier(document_id, row.where)
        if document_id in taken:
            raise FedcarError(f"{row.where}: id {quoted(document_id)} is taken by an earlier row; make it unique")
        taken.add(document_id)
        own = row.values.get("metadata")
        metadata = dict(own) if isinstance(own, dict) else {}
        metadata |= {
            key: _plain(value) for key, value in row.values.items() if key not in used and not _is_empty(value)
        }
        metadata = {key: value for key, value in metadata.items() if not _left_out(value)}
        yield Document(document_id, cell_text(row, title), cell_text(row, text), metadata)


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


def _is_empty(value: object) -> bool:
    return value is None or value == "" or isinstance(value, float) and math.isnan(value)


def _left_out(value: object) -> bool:
    """Whether JSON has no form for the value of a column."""
    if _is_empty(value):
        return False
    try:
        json.dumps(_plain(value), allow_nan=False)
    except (TypeError, ValueError):
        return True
    return False
