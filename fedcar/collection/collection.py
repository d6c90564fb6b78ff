"""A collection: documents, queries and judgements, read from and written to a BEIR folder."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fedcar.collection.judgements import Ids, read_judgements
from fedcar.collection.lines import (
    check_identifier,
    json_objects,
    record_identifier,
    record_metadata,
    record_text,
    windows_remarks,
)
from fedcar.collection.normal_forms import caseless, composed, is_blank, look_alikes
from fedcar.collection.sources import is_there
from fedcar.common.folders import new_folder
from fedcar.errors import FedcarError, FedcarWarning, quoted, typed_path

SPLITS = ("train", "dev", "test")
SPLIT_FILES = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
PACKED = ".gz"


@dataclass(frozen=True, slots=True)
class Document:
    """One document; its row in the head has the document's position in the collection."""

    id: str
    title: str = ""
    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def reads_as(self, other: Document) -> bool:
        """Whether title and text, which are all that is read of a document, are the same."""
        return (self.title, self.text) == (other.title, other.text)

    @property
    def full_text(self) -> str:
        """Title + ". " + text; the one there is where the other is empty, "" for an empty document."""
        if not self.text.strip():
            return self.title if self.title.strip() else ""
        return f"{self.title}. {self.text}" if self.title.strip() else self.text


@dataclass(frozen=True, slots=True)
class Query:
    """One question; `split` counts only where it is unanswerable, otherwise its judgements say the split."""

    id: str
    text: str
    client: str | None = None
    answerable: bool = True
    split: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Judged:
    """The judged queries of one split in the order of its file; relevant[i] is {document id: score}, with zeros."""

    queries: tuple[Query, ...]
    relevant: tuple[Mapping[str, int], ...]

    def __len__(self) -> int:
        """Return the number of judged queries."""
        return len(self.queries)

    @property
    def texts(self) -> list[str]:
        """The text of each query, in order."""
        return [query.text for query in self.queries]


@dataclass(frozen=True)
class Collection:
    """Documents, queries by id, and judgements as {split: {query id: {document id: score}}}."""

    name: str
    documents: tuple[Document, ...]
    queries: Mapping[str, Query]
    judgements: Mapping[str, Mapping[str, Mapping[str, int]]]
    folder: Path | None = field(default=None, compare=False)  # where it was read from

    @classmethod
    def read(cls, folder: str | Path, *, leave_out_ambiguous: bool = False, part: bool = False) -> Collection:
        """Read a BEIR folder and check all of it.

        An "_id" on several lines of queries.jsonl is refused. With `leave_out_ambiguous` the queries of an "_id" whose
        lines differ are left out with their judgements, and equal lines count as one. With `part` it is one side of a
        federation, whose missing splits others have.

        Raises FedcarError at the first mistake. Warns (FedcarWarning) once each about a BOM, CRLF, queries left out or
        repeated, empty documents, a missing train or dev split, no queries, no judgement for any query or for some,
        and unanswerable queries without a split.
        """
        folder = Path(folder)
        _check_folder(folder)
        files = _Files.of(folder)
        documents = read_documents(folder / files.documents)
        queries_file = folder / files.queries
        asked = _read_queries(queries_file, leave_out_ambiguous) if is_there(queries_file) else _QueryLines({}, {}, 0)
        left_out = dict.fromkeys(asked.ambiguous, 0)
        answerable = {query_id: query.answerable for query_id, query in asked.queries.items()}
        document_ids = Ids({document.id: None for document in documents})
        judgements = {}
        for split, name in files.judgements.items():
            if found := read_judgements(folder / name, answerable, document_ids, left_out):
                judgements[split] = found
        collection = cls(folder.resolve().name, documents, asked.queries, judgements, folder.resolve())
        repeated = _repeat_remarks(asked, left_out, queries_file)
        marks = windows_remarks(folder, (files.documents, files.queries, *files.judgements.values()))
        for message in (*files.remarks(folder), *marks, *repeated, *_remarks(collection, folder, part)):
            warnings.warn(message, FedcarWarning, stacklevel=2)
        return collection

    def write(self, folder: str | Path) -> None:
        """Write a BEIR folder whole or not at all; refuses a folder that exists and is not empty."""
        check_free(Path(folder))
        for identifier in (*(document.id for document in self.documents), *self.queries):
            check_identifier(identifier, f"collection {quoted(self.name)}")
        try:
            with new_folder(Path(folder)) as temporary:
                (temporary / "qrels").mkdir()
                _write_lines(temporary / "corpus.jsonl", map(document_line, self.documents))
                _write_lines(temporary / "queries.jsonl", map(_query_line, self.queries.values()))
                for split, judgements in self.judgements.items():
                    _write_lines(temporary / "qrels" / f"{split}.tsv", _judgement_lines(judgements))
        except (OSError, TypeError, ValueError) as error:  # a disk, or metadata that JSON does not know
            reason = getattr(error, "strerror", None) or quoted(str(error))
            raise FedcarError(f"{folder}: cannot be written ({reason}); nothing was kept") from error

    def judged(self, split: str) -> Judged:
        """Return the queries of the split with at least one judgement of score 1 or more; may be none."""
        judgements = self.judgements.get(_checked_split(split), {})
        chosen = [query_id for query_id, scores in judgements.items() if any(scores.values())]
        return Judged(
            tuple(self.queries[query_id] for query_id in chosen), tuple(judgements[query_id] for query_id in chosen)
        )

    def unanswerable(self, split: str) -> tuple[Query, ...]:
        """Return the queries of the split that no document answers."""
        _checked_split(split)
        return tuple(query for query in self.queries.values() if not query.answerable and query.split == split)

    def seen_documents(self) -> frozenset[str]:
        """Return the ids of the documents with a training judgement of score 1 or more."""
        scores = self.judgements.get("train", {}).values()
        return frozenset(document_id for one in scores for document_id, score in one.items() if score)

    def trained_on(self, split: str) -> set[str]:
        """Return the ids of the queries of the split, judged or unanswerable, whose normalised text stands in train."""
        training = {normalised(query.text) for query in (*self.judged("train").queries, *self.unanswerable("train"))}
        asked = (*self.judged(split).queries, *self.unanswerable(split))
        return {query.id for query in asked if normalised(query.text) in training}

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of documents, queries and judgements, without the name.

        The order of documents (rows) and of judged queries (training) counts; the order of JSON keys, of queries.jsonl
        and of one query's judgements does not.
        """
        digest = hashlib.sha256()
        encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
        for document in self.documents:
            row = ["document", document.id, document.title, document.text, dict(document.metadata)]
            digest.update(f"{encode(row)}\n".encode())
        for _, query in sorted(self.queries.items()):
            settings = [query.client, query.answerable, query.split, dict(query.metadata)]
            digest.update(f"{encode(['query', query.id, query.text, *settings])}\n".encode())
        for split in SPLITS:
            for query_id, scores in self.judgements.get(split, {}).items():
                digest.update(f"{encode(['judgement', split, query_id, dict(scores)])}\n".encode())
        return digest.hexdigest()


def normalised(text: str) -> str:
    """Return the text by which two queries count as equal: `caseless`, stripped, white space collapsed."""
    return " ".join(caseless(text).split())


def label_text(label: str) -> str:
    """What the document of a label says before anything is learned of it."""
    return label.replace("_", " ")


def alike_remark(groups: Sequence[Sequence[str]], what: str) -> str:
    """How many labels or the like look the same, with the first of them."""
    names = quoted(", ".join(name for group in groups for name in group), 120).strip('"')
    return f'{sum(map(len, groups))} {what} differ only in case, blanks, "_" or "-": {names}'


def client_remarks(queries: Iterable[Query]) -> Iterator[str]:
    """A line about clients that look the same: under a budget a client, one that counts as two is promised too much."""
    clients = dict.fromkeys(query.client for query in queries if query.client is not None)
    if alike := look_alikes(clients):
        yield f"{alike_remark(alike, 'clients')}; they count as different ones, write them alike if they are not"


def read_documents(path: Path) -> tuple[Document, ...]:
    """Read lines as in corpus.jsonl: at least one, ids unique."""
    documents: dict[str, Document] = {}
    for where, record in json_objects(path):
        document_id = record_identifier(record, where)
        if document_id in documents:
            raise FedcarError(f'{where}: "_id" {quoted(document_id)} is taken by an earlier line; make it unique')
        title, text = record_text(record, "title", where), record_text(record, "text", where)
        documents[document_id] = Document(document_id, title, text, record_metadata(record, where))
    if not documents:
        raise FedcarError(f'{path}:1: no document; write one a line, {{"_id": "...", "title": "...", "text": "..."}}')
    return tuple(documents.values())


def _check_folder(folder: Path) -> None:
    """Refuse what is not a readable folder with a corpus.jsonl."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise FedcarError(
            f"{folder}: cannot be read as a collection ({error.strerror}); give a folder with corpus.jsonl, "
            "or make one: fedcar import FILE --out COLLECTION"
        ) from error
    if "corpus.jsonl" not in names and f"corpus.jsonl{PACKED}" not in names:
        raise FedcarError(
            f"{folder}: no corpus.jsonl; a collection needs one, or make one: fedcar import FILE --out COLLECTION"
        )


def check_free(folder: Path) -> None:
    """Refuse an output folder that exists, unless it is an empty folder."""
    try:
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise FedcarError(f"{folder}: cannot be looked into ({error.strerror}); give another folder") from error
    if not free:
        raise FedcarError(f"{folder}: exists and is not an empty folder; give one that does not exist")


class _Files(NamedTuple):
    """Which files of a folder are read, by their names from it, and which of `qrels/` and packed ones are not."""

    documents: str
    queries: str
    judgements: dict[str, str]
    not_read: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> _Files:
        """A file that is there plain and packed is read plain; two files of judgements for one split are refused."""
        documents, queries = (_plain_or_packed(folder, name) for name in ("corpus.jsonl", "queries.jsonl"))
        judgements = {}
        for split, names in SPLIT_FILES.items():
            paths = (_plain_or_packed(folder, f"qrels/{name}.tsv") for name in names)
            if there := [path for path in paths if is_there(folder / path)]:
                judgements[split] = there[0]
            if len(there) > 1:
                raise FedcarError(f"{folder}: {there[0]} and {there[1]} are both judgements of {split}; keep one")
        read = {documents, queries, *judgements.values()}
        others = [f"{name}{PACKED}" for name in ("corpus.jsonl", "queries.jsonl")]
        others = [name for name in others if name not in read and is_there(folder / name)]
        if (folder / "qrels").is_dir():
            others += [f"qrels/{name}" for name in sorted(os.listdir(folder / "qrels")) if not name.startswith(".")]
        return cls(documents, queries, judgements, tuple(name for name in others if name not in read))

    def remarks(self, folder: Path) -> Iterator[str]:
        if self.not_read:
            splits = ", ".join(f"qrels/{split}.tsv" for split in SPLITS)
            listed = quoted(", ".join(self.not_read), 120).strip('"')
            yield f"{folder}: {len(self.not_read)} files not read: {listed} (judgements are read from {splits})"


def _plain_or_packed(folder: Path, name: str) -> str:
    packed = f"{name}{PACKED}"
    return packed if not is_there(folder / name) and is_there(folder / packed) else name


class _QueryLines(NamedTuple):
    """The queries by id, how many lines each ambiguous id has, and how many lines repeat an earlier one."""

    queries: dict[str, Query]
    ambiguous: dict[str, int]
    repeats: int


def _read_queries(path: Path, leave_out_ambiguous: bool) -> _QueryLines:
    found: dict[str, list[Query]] = {}
    for where, record in json_objects(path):
        query_id = record_identifier(record, where)
        if query_id in found and not leave_out_ambiguous:
            raise FedcarError(
                f'{where}: "_id" {quoted(query_id)} is taken by an earlier line; make it unique, or leave such queries '
                f"out: fedcar import {typed_path(path.parent)} --out NEW"
            )
        text = record_text(record, "text", where)
        if is_blank(text):
            raise FedcarError(f'{where}: empty query; write its "text" or remove the line')
        query = _query(query_id, text, record_metadata(record, where), where)
        found.setdefault(query_id, []).append(query)
    ambiguous = {query_id: len(same) for query_id, same in found.items() if any(one != same[0] for one in same)}
    queries = {query_id: same[0] for query_id, same in found.items() if query_id not in ambiguous}
    repeats = sum(len(found[query_id]) - 1 for query_id in queries)
    return _QueryLines(queries, ambiguous, repeats)


def _query(query_id: str, text: str, metadata: dict[str, Any], where: str) -> Query:
    if not metadata:
        return Query(query_id, text)
    client, answerable = metadata.pop("client", None), metadata.pop("answerable", None)
    answerable = True if answerable is None else answerable
    if client is not None and not (isinstance(client, str) and client.strip()):
        raise FedcarError(f'{where}: "client" is {quoted(client)}; make it a string with a name, or leave it out')
    if not isinstance(answerable, bool):
        raise FedcarError(f'{where}: "answerable" is {quoted(answerable)}; it must be true or false, without quotes')
    split = metadata.get("split")
    if split in SPLITS:
        del metadata["split"]
    elif split is not None and not answerable:
        raise FedcarError(f'{where}: "split" is {quoted(split)}; it must be one of {", ".join(SPLITS)}')
    else:  # of an answerable query the judgements say the split: another word there is the user's own
        split = None
    return Query(query_id, text, None if client is None else composed(client), answerable, split, metadata)


def _repeat_remarks(asked: _QueryLines, left_out: Mapping[str, int], path: Path) -> Iterator[str]:
    if asked.ambiguous or asked.repeats:
        queries, judgements = sum(asked.ambiguous.values()), sum(left_out.values())
        yield (
            f"{path}: {len(asked.ambiguous)} ids stand for several different queries, left out ({queries} queries, "
            f"{judgements} judgements); {asked.repeats} lines repeat an equal query, kept once"
        )


def _remarks(collection: Collection, folder: Path, part: bool) -> Iterator[str]:
    documents, queries = collection.documents, collection.queries
    if empty := sum(not document.full_text for document in documents):
        yield f"{folder / 'corpus.jsonl'}: {empty} of {len(documents)} documents empty; kept, never returned"
    yield from _alike_remarks(collection, folder)
    if not queries:
        if not part:
            yield f"{folder}: 0 queries (queries.jsonl); documents only, there is nothing to train or evaluate on"
        return
    unanswerable = [query for query in queries.values() if not query.answerable]
    if not unanswerable and not any(len(collection.judged(split)) for split in SPLITS):
        yield f"{folder}: none of the {len(queries)} queries has a judgement of 1 or more in qrels/; all are ignored"
        return
    if homeless := sum(query.split is None for query in unanswerable):
        yield f'{folder / "queries.jsonl"}: {homeless} unanswerable queries without "split"; ignored'
    judged = set().union(*collection.judgements.values())
    if unjudged := sum(query.answerable and query.id not in judged for query in queries.values()):
        yield f"{folder / 'queries.jsonl'}: {unjudged} queries without a judgement in qrels/; ignored"
    for split, consequence in (("train", "nothing is trained"), ("dev", "nothing is held out to choose by")):
        if not part and not len(collection.judged(split)):
            yield f"{folder}: no {split} split (0 judged queries in qrels/{split}.tsv); {consequence}"


def _alike_remarks(collection: Collection, folder: Path) -> Iterator[str]:
    labels = [one.id for one in collection.documents if not one.title and one.text == label_text(one.id)]
    if alike := look_alikes(labels):
        yield f"{folder / 'corpus.jsonl'}: {alike_remark(alike, 'documents')}; they stay apart"
    for remark in client_remarks(collection.queries.values()):
        yield f"{folder / 'queries.jsonl'}: {remark}"


def _checked_split(split: str) -> str:
    if split not in SPLITS:
        raise FedcarError(f"split: {quoted(split)} is none of {', '.join(SPLITS)}; give one of these")
    return split


def document_line(document: Document) -> str:
    """The document as a line of corpus.jsonl, without its end."""
    record: dict[str, Any] = {"_id": document.id, "title": document.title, "text": document.text}
    if document.metadata:
        record["metadata"] = dict(document.metadata)
    return json.dumps(record, ensure_ascii=False)


def _query_line(query: Query) -> str:
    metadata = dict(query.metadata)
    if query.client is not None:
        metadata["client"] = query.client
    if not query.answerable:
        metadata["answerable"] = False
    if query.split is not None:
        metadata["split"] = query.split
    record: dict[str, Any] = {"_id": query.id, "text": query.text}
    return json.dumps(record | {"metadata": metadata} if metadata else record, ensure_ascii=False)


def _judgement_lines(judgements: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    yield "query-id\tcorpus-id\tscore"
    for query_id, scores in judgements.items():
        for document_id, score in scores.items():
            yield f"{query_id}\t{document_id}\t{score}"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
