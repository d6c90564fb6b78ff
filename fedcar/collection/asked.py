"""Rows of a table as questions: equal texts merged, each in a split, and everything that happened to them counted."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from fedcar.collection.collection import SPLITS, Query, normalised
from fedcar.collection.columns import QUESTION_IDENTIFIER_NAMES, Columns
from fedcar.collection.lines import check_identifier
from fedcar.collection.normal_forms import composed, is_blank
from fedcar.collection.tables import Row, Table, cell_text
from fedcar.errors import FedcarError, quoted

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation", "development"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
NAMED_AT_MOST = 3
TRUTH_WORDS = {
    **dict.fromkeys(("true", "yes", "1", "1.0", ""), True),
    **dict.fromkeys(("false", "no", "0", "0.0"), False),
}


class SeveralAnswers(NamedTuple):
    """A question that more than one document answers."""

    text: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """What became of the rows and files that were read."""

    rows: int = 0  # of the table of questions
    merged: int = 0  # rows whose text an earlier row has
    merged_of_other_clients: int = 0
    several_answers: tuple[SeveralAnswers, ...] = ()
    in_several_splits: int = 0  # texts
    columns_not_read: tuple[str, ...] = ()
    files_not_read: tuple[str, ...] = ()
    hidden: int = 0  # files and folders
    front_matter: int = 0  # pages whose title and metadata are those of their front matter

    def as_json(self) -> dict[str, Any]:
        """The counts as a JSON object has them."""
        return asdict(self) | {"several_answers": [one._asdict() for one in self.several_answers]}

    def lines(self) -> Iterator[str]:
        """The counts as a reader is told them; what is 0 is not said."""
        if self.rows:
            merged = (
                f", {self.merged} merged with an earlier one of equal text" if self.merged else ", no two texts equal"
            )
            others = self.merged_of_other_clients
            clients = f" ({others} of another client, whose name went)" if others else ""
            yield f"rows: {self.rows} questions read{merged}{clients}"
        if self.several_answers:
            named = "; ".join(
                f"{quoted(one.text, 80)} ({quoted(', '.join(one.documents), 120)[1:-1]})"
                for one in self.several_answers[:NAMED_AT_MOST]
            )
            yield f"several answers: {len(self.several_answers)} questions, such as {named}"
        if self.in_several_splits:
            yield f"several splits: {self.in_several_splits} texts stand in more than one; evaluate leaves them out"
        if self.columns_not_read:
            yield f"columns not read: {', '.join(self.columns_not_read)}"
        if self.front_matter:
            yield f"front matter: of {self.front_matter} pages, its title is the title and the rest is metadata"
        if self.hidden:
            yield f"hidden: {self.hidden} names that begin with a dot, not read"


class Asked(NamedTuple):
    """One row of a table of questions; `document` is None where the question is unanswerable."""

    where: str
    id: str
    text: str
    client: str | None
    split: str
    document: str | None


@dataclass
class Questions:
    """Queries and judgements of a table, and how many rows and texts were not alone."""

    queries: dict[str, Query] = field(default_factory=dict)
    judgements: dict[str, dict[str, dict[str, int]]] = field(default_factory=lambda: {split: {} for split in SPLITS})
    merged_of_other_clients: int = 0
    in_several_splits: int = 0


def asked_rows(
    table: Table, text: str, document: str, answers: Sequence[str], columns: Columns, used: set[str]
) -> Iterator[Asked]:
    """Each row as a question; the columns that are read join `used`."""
    besides = (text, document)
    identifier = table.optional(QUESTION_IDENTIFIER_NAMES, "--id-column", columns.id_column, besides)
    client, split, answerable = (
        table.optional((name,), f"--{name}-column", getattr(columns, f"{name}_column"), besides)
        for name in ("client", "split", "answerable")
    )
    used |= {one for one in (identifier, client, split, answerable) if one}
    ids = table.identifiers(identifier) if identifier else [""] * len(table.rows)
    for row, own_id, document_id in zip(table.rows, ids, answers, strict=True):
        question = cell_text(row, text)
        if is_blank(question):
            raise FedcarError(f"{row.where}: empty query in column {quoted(text)}; fill it or remove the row")
        truth = TRUTH_WORDS.get(cell_text(row, answerable).strip().lower())
        if truth is None:
            raise FedcarError(f"{row.where}: answerable is {quoted(cell_text(row, answerable))}; write true or false")
        if truth and not document_id:
            raise FedcarError(
                f"{row.where}: no {quoted(document)}; fill it, remove the row, or say so in a column "
                '"answerable" (false)'
            )
        if not truth and document_id:
            raise FedcarError(f"{row.where}: answerable is false, yet column {quoted(document)} is filled; drop one")
        yield Asked(
            row.where,
            check_identifier(own_id, row.where) if identifier else "",
            question,
            composed(cell_text(row, client)).strip() or None,
            _split_word(row, split) if split else "",
            document_id if truth else None,
        )


def merged_questions(asked: Sequence[Asked], seed: int) -> Questions:
    groups: dict[str, list[Asked]] = {}
    for one in asked:
        groups.setdefault(normalised(one.text), []).append(one)
    splits = _seeded_splits(list(groups), seed)
    made = Questions()
    for number, (key, group) in enumerate(groups.items(), start=1):
        first = group[0]
        query_id, answerable = first.id or f"q{number}", first.document is not None
        if query_id in made.queries:
            raise FedcarError(f"{first.where}: id {quoted(query_id)} has another text in an earlier row; change one")
        for one in group:
            if (one.document is not None) != answerable:
                raise FedcarError(f"{one.where}: same text as {first.where}, but only one is answerable; correct one")
            if one.document is not None:
                made.judgements[one.split or splits[key]].setdefault(query_id, {})[one.document] = 1
        split = None if answerable else first.split or splits[key]
        made.queries[query_id] = Query(query_id, first.text, first.client, answerable, split)
        made.merged_of_other_clients += sum(one.client != first.client for one in group)
        made.in_several_splits += len({one.split for one in group}) > 1
    made.judgements = {split: judged for split, judged in made.judgements.items() if judged}
    return made


def counted(asked: Sequence[Asked], questions: Questions, table: Table, used: Iterable[str]) -> Counts:
    answers: dict[str, dict[str, None]] = {}
    for judged in questions.judgements.values():
        for query_id, scores in judged.items():
            answers.setdefault(query_id, {}).update(dict.fromkeys(scores))
    several = [SeveralAnswers(questions.queries[one].text, tuple(ids)) for one, ids in answers.items() if len(ids) > 1]
    return Counts(
        rows=len(asked),
        merged=len(asked) - len(questions.queries),
        merged_of_other_clients=questions.merged_of_other_clients,
        several_answers=tuple(several),
        in_several_splits=questions.in_several_splits,
        columns_not_read=(
            *(column for column in table.columns if column not in set(used)),
            *columns_without_name(table),
        ),
    )


def columns_without_name(table: Table) -> list[str]:
    return [f"{table.unnamed} without a name"] if table.unnamed else []


def _seeded_splits(texts: Sequence[str], seed: int) -> dict[str, str]:
    """Return the split of each distinct text: 20 % test and 10 % dev, each rounded, the rest train."""
    shuffled = list(texts)
    random.Random(seed).shuffle(shuffled)
    test, dev = (2 * len(shuffled) + 5) // 10, (len(shuffled) + 5) // 10
    return {
        text: "test" if place < test else "dev" if place < test + dev else "train"
        for place, text in enumerate(shuffled)
    }


def _split_word(row: Row, column: str) -> str:
    word = cell_text(row, column)
    if word.strip().lower() not in SPLIT_WORDS:
        raise FedcarError(f"{row.where}: split is {quoted(word)}; write one of {', '.join(SPLITS)} in every row")
    return SPLIT_WORDS[word.strip().lower()]
