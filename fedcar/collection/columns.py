"""Which column of a table is which: the names that are known, and those that an option gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from fedcar.collection.tables import Table, cell_text, simple
from fedcar.errors import FedcarError, quoted

IDENTIFIER_NAMES = ("_id", "id", "document_id", "doc_id", "docid", "corpus_id", "pid")
TITLE_NAMES = ("title", "heading", "headline")
TEXT_NAMES = ("text", "body", "content", "document", "passage", "paragraph", "sentence", "message", "utterance")
LABEL_NAMES = ("label", "intent", "category", "class", "target")
QUESTION_NAMES = ("question", "query", "question_text", "query_text", "utterance", "text")
ASKED_NAMES = QUESTION_NAMES[:4]  # whose column holds questions and nothing else
ANSWER_NAMES = ("answer", "response", "reply", "solution")
ANSWERED_BY_NAMES = (*ANSWER_NAMES, "document", "passage", "paragraph", "context", "article", "content", "body", "text")
QUESTION_DOCUMENT_NAMES = ("document_id", "document", "doc_id", "docid", "corpus_id", "pid", *LABEL_NAMES)
QUESTION_IDENTIFIER_NAMES = ("query_id", "question_id", "qid", "_id", "id")
MISSING_WORDS = ("nan", "na", "n/a", "<na>", "null", "none", "nil", "#n/a")
LONGEST_LABEL = 200  # characters; a longer one is a text, not a name


@dataclass(frozen=True)
class Columns:
    """Which column is which, where their names do not say so; the last two are of the table of questions."""

    text_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    title_column: str | None = None
    client_column: str | None = None
    split_column: str | None = None
    answerable_column: str | None = None
    query_column: str | None = None
    document_column: str | None = None


def check_columns(source: Path, columns: Columns, is_folder: bool, with_queries: bool) -> None:
    """Refuse options that exclude each other."""
    if columns.label_column is not None and with_queries:
        raise FedcarError(f"{source}: --label-column and --queries exclude each other; give one of them")
    given: dict[str, str] = {}
    for name, column in asdict(columns).items():
        if column is None:
            continue
        option, of_questions = _option(name), name in ("query_column", "document_column")
        if of_questions and not with_queries:
            instead = "--text-column" if name == "query_column" else "--label-column"
            raise FedcarError(f"{source}: {option} names a column of the --queries file; for FILE type {instead}")
        if is_folder and name in ("text_column", "label_column", "id_column", "title_column"):
            raise FedcarError(
                f"{source}: a folder has no column {quoted(column)}; leave the option out, or give a file"
            )
        place = f"{of_questions or with_queries and name[:2] in ('cl', 'sp', 'an')} {column}"
        if place in given:
            raise FedcarError(f"{source}: {given[place]} and {option} are the same; name two columns")
        given[place] = option


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def text_and_label(table: Table, columns: Columns, with_queries: bool) -> tuple[str, str | None]:
    """The column of the text, and that of the label or answer; None where rows are documents."""
    given_text = table.given(columns.text_column, "--text-column")
    given_label = table.given(columns.label_column, "--label-column")
    besides = tuple(one for one in (given_text, given_label) if one)
    # a "category" beside an id or a title is a remark on a document; the other names say label data
    of_documents = table.guess(("_id", *TITLE_NAMES), besides) is not None
    label_names = [name for name in LABEL_NAMES if not (of_documents and name == "category")]
    label = given_label or (None if with_queries else table.guess(label_names, besides, "--label-column"))
    asked = given_text or table.guess(ASKED_NAMES, besides)
    if asked and not given_label and not with_queries:
        answer = table.guess(ANSWER_NAMES, (asked,), "--label-column")
        if answer and label:
            raise FedcarError(
                f"{table.path}:1: a question may lead to its {quoted(answer)} or its {quoted(label)}; choose with "
                f"--label-column {answer} or --label-column {label}"
            )
        if answer is None and label is None and simple(asked) in ASKED_NAMES:
            answer = table.guess((*ANSWER_NAMES, "context") if of_documents else ANSWERED_BY_NAMES, (asked,))
        if answer:
            return asked, answer
    names = tuple(dict.fromkeys((*TEXT_NAMES, *QUESTION_NAMES))) if label else TEXT_NAMES
    besides = (label,) if label else ()
    if asked and not label and not with_queries and not given_text and table.guess(QUESTION_DOCUMENT_NAMES):
        raise FedcarError(
            f"{table.path}:1: questions and the ids of their documents, without the documents; give those as FILE, and "
            f"this one with --queries"
        )
    text = given_text or table.column("text", names, _way_out(with_queries), None, besides)
    return text, label


def _way_out(with_queries: bool) -> str:
    return "--text-column" if with_queries else "--text-column (and the label's with --label-column)"


def is_of_texts(table: Table, label: str) -> bool:
    """Whether the column holds answers, texts that no id can be made of."""
    if simple(label) in ANSWERED_BY_NAMES:
        return True
    cells = (cell_text(row, label).strip() for row in table.rows)
    return any(len(cell) > LONGEST_LABEL or "\n" in cell for cell in cells)
