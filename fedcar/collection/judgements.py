"""The judgements of one split: BEIR's three columns or the four of TREC, checked line by line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedcar.collection.lines import text_lines
from fedcar.collection.normal_forms import composed
from fedcar.errors import FedcarError, FedcarWarning, quoted

NUMBER = re.compile(r"\s*[-+]?[\d.]+\s*", re.ASCII)
SCORE = re.compile(r"(-?[0-9]{1,9})(?:\.0{1,9})?", re.ASCII)  # whole numbers, also as a data frame writes them


class Ids:
    """Ids by what they look like: one in another normal form is found where no other looks like it."""

    def __init__(self, ids: Mapping[str, object]) -> None:
        self._ids = ids
        self._composed: dict[str, str | None] = {}
        for one in ids:
            if not one.isascii():
                self._composed[composed(one)] = None if composed(one) in self._composed else one

    def found(self, wanted: str) -> str | None:
        """The id as its own file writes it."""
        return wanted if wanted in self._ids else self._composed.get(composed(wanted))


def read_judgements(
    path: Path, answerable: Mapping[str, bool], documents: Ids, left_out: dict[str, int]
) -> dict[str, dict[str, int]]:
    """Read one split as {query id: {document id: score of 0 and up}}; lines of queries in `left_out` are but counted.

    `answerable` has every query. A score below 0, as TREC uses for what was never shown or is spam, is read as 0 (one
    FedcarWarning counts them).
    """
    judgements: dict[str, dict[str, int]] = {}
    queries, below = Ids(answerable), 0
    for where, query, document, score_text in _rows(path, answerable):
        score = _score(score_text, where)
        if query in left_out:
            left_out[query] += 1
            continue
        query_id, document_id = _checked(query, document, queries, documents, where)
        if score > 0 and not answerable[query_id]:
            raise FedcarError(
                f'{where}: query {quoted(query_id)} is "answerable": false, yet has a judgement of score {score}; '
                "drop one"
            )
        below += score < 0
        scores = judgements.setdefault(query_id, {})
        if scores.setdefault(document_id, max(score, 0)) != max(score, 0):
            raise FedcarError(
                f"{where}: query {quoted(query_id)} and document {quoted(document_id)} have the score "
                f"{scores[document_id]} on an earlier line and {score} here; keep one"
            )
    if below:
        warnings.warn(f"{path}: {below} judgements below 0; read as 0, not relevant", FedcarWarning, stacklevel=3)
    return judgements


def _rows(path: Path, answerable: Mapping[str, bool]) -> Iterator[tuple[str, str, str, str]]:
    """Where, query, document and score of every line below the header."""
    names, separator = 0, ""
    for number, line in text_lines(path):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        where = f"{path}:{number}"
        if not names:
            separator, names, is_header = _form(line, answerable, where)
            if is_header:
                continue
        columns = line.split(separator) if separator else line.split()
        if len(columns) != names:
            expected = (
                "write query-id, corpus-id and score with one tab between"
                if names == 3
                else "every line needs those of the first"
            )
            raise FedcarError(f"{where}: {len(columns)} columns, not {names}; {expected}")
        yield where, columns[0], columns[-2], columns[-1]
    if not names:
        raise FedcarError(f"{path}:1: no header row; make it query-id<tab>corpus-id<tab>score, or remove the file")


def _form(line: str, answerable: Mapping[str, bool], where: str) -> tuple[str, int, bool]:
    """What parts the columns ("" for any white space), how many there are, and whether the line is a header.

    TREC's four columns are query, iteration, document and score, by tabs or blanks and without a header.
    """
    columns = line.split("\t")
    if len(columns) == 3:
        if columns[0] in answerable or NUMBER.fullmatch(columns[2]):
            raise FedcarError(f"{where}: no header row; make the first line query-id<tab>corpus-id<tab>score")
        return "\t", 3, True
    separator = "\t" if len(columns) == 4 else ""
    four = columns if separator else line.split()
    if len(four) == 4 and (NUMBER.fullmatch(four[3]) or separator):
        return separator, 4, not NUMBER.fullmatch(four[3]) and four[0] not in answerable
    raise FedcarError(
        f"{where}: {len(columns)} columns, not 3; write query-id, corpus-id and score with one tab between"
    )


def _score(text: str, where: str) -> int:
    if not (found := SCORE.fullmatch(text.strip())):
        raise FedcarError(f"{where}: score {quoted(text)} is not an integer of 0 to 999999999; correct it")
    return int(found[1])


def _checked(query: str, document: str, queries: Ids, documents: Ids, where: str) -> tuple[str, str]:
    query_id, document_id = queries.found(query), documents.found(document)
    if query_id is None:
        raise FedcarError(f"{where}: query {quoted(query)} is not in queries.jsonl; add it or remove this line")
    if document_id is None:
        raise FedcarError(f"{where}: document {quoted(document)} is not in corpus.jsonl; add it or remove this line")
    return query_id, document_id
