"""`fedcar import, add, update, remove`: documents come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedcar.cli.options import FOLDER, TEXT, WithWords, as_json, moved_encoder, together
from fedcar.cli.output import echo, print_json
from fedcar.errors import FedcarError, typed_path

if TYPE_CHECKING:
    from fedcar.collection.asked import Counts
    from fedcar.collection.collection import Document
    from fedcar.retriever.retriever import Retriever

ATTEMPTS = 10  # to change a retriever that others change too


@click.command("import")
@click.argument("file", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The collection to make, a new folder.")
@click.option("--text-column", help="Column of the text, of a question or document.  [default: by its name]")
@click.option("--label-column", help="Column of the label or answer: each becomes a document.  [default: by its name]")
@click.option("--id-column", help="Column of the id, of a document or a labelled question.  [default: by its name]")
@click.option("--title-column", help="Column of the title of a document or answer.  [default: by its name]")
@click.option("--client-column", help="Column of who asked, the natural partition.  [default: client]")
@click.option("--split-column", help="Column of train, dev or test.  [default: split; else 70 / 10 / 20]")
@click.option("--answerable-column", help="Column of true, or false where nothing answers.  [default: answerable]")
@click.option("--queries", type=FOLDER, help="A file of questions with the id of the document that answers each.")
@click.option("--query-column", help="With --queries: its column of the question.  [default: by its name]")
@click.option("--document-column", help="With --queries: its column of the document's id.  [default: by its name]")
@click.option("--seed", default=0, show_default=True, help="Seed of the split, where the file has none.")
@as_json
def import_file(file: Path, out: Path, queries: Path | None, seed: int, as_json: bool, **columns: str | None) -> None:
    """Make a collection from a CSV, TSV, JSONL or Parquet FILE or a folder of text / Markdown files.

    FILE may be packed (.gz). docs/import.md says which column names are known and what is done with what.
    """
    from fedcar.collection.columns import Columns
    from fedcar.collection.importing import imported

    collection, counts = imported(file, out, Columns(**columns), queries=queries, seed=seed)
    judged = {split: len(collection.judged(split)) for split in ("train", "dev", "test")}
    documents, asked = len(collection.documents), len(collection.queries)
    if as_json:
        print_json(
            {"collection": str(out), "documents": documents, "queries": asked, "judged": judged} | counts.as_json()
        )
        return
    splits = ", ".join(f"{count} {split}" for split, count in judged.items())
    echo(f"{out}: {documents} documents, {asked} queries (judged: {splits})")
    _say(counts)
    typed = typed_path(out)
    if asked:
        echo(f"next: fedcar train {typed} -o RETRIEVER")
    else:
        echo(f"next: without questions fedcar train {typed} -o RETRIEVER makes a search; to learn, add --queries")


_of_documents = together(
    click.argument("retriever", type=FOLDER),
    click.argument("file", type=FOLDER),
    click.option("--text-column", help="Column of the text.  [default: by its name]"),
    click.option("--id-column", help="Column of the id.  [default: by its name]"),
    click.option("--title-column", help="Column of the title.  [default: by its name]"),
)


@click.command()
@_of_documents
@click.option("--refine", is_flag=True, help="Solve the new documents' rows on their titles and sentences.")
@moved_encoder
@as_json
def add(retriever: Path, file: Path, refine: bool, encoder: Path | None, as_json: bool, **columns: str | None) -> None:
    """Add the documents of FILE to RETRIEVER, found at once.

    FILE is what `import` takes: lines as in corpus.jsonl, another table with a column of ids, or a folder of pages.
    """
    documents, counts = _read(file, columns)
    left = _edit(retriever, encoder, lambda loaded: _added(loaded, documents, refine))
    if as_json:
        print_json({"retriever": str(retriever), "added": len(documents), "documents": left} | _not_read(counts))
    else:
        echo(f"{retriever}: {len(documents)} added, {left} documents")
        _say(counts)


@click.command()
@_of_documents
@click.option("--forget", is_flag=True, help="Forget what questions taught about them, too.")
@moved_encoder
@as_json
def update(
    retriever: Path, file: Path, forget: bool, encoder: Path | None, as_json: bool, **columns: str | None
) -> None:
    """Replace documents of RETRIEVER by those of FILE with the same ids; of their former texts nothing is left.

    FILE is what `add` takes. What questions taught about a document stays, unless --forget is given.
    """
    from fedcar.common.progress import Console

    documents, counts = _read(file, columns)
    changed = 0

    def change(loaded: Retriever) -> Retriever:
        nonlocal changed
        before = {document.id: document for document in loaded.documents}
        result = loaded.update(documents, Console(), forget=forget)
        changed = sum(forget or before[one.id] != one for one in documents)
        return result

    left = _edit(retriever, encoder, change)
    if as_json:
        print_json({"retriever": str(retriever), "updated": changed, "documents": left} | _not_read(counts))
    else:
        alike = f" ({len(documents) - changed} as they were)" if changed < len(documents) else ""
        echo(f"{retriever}: {changed} updated{alike}, {left} documents")
        _say(counts)


def _read(file: Path, columns: Mapping[str, str | None]) -> tuple[Sequence[Document], Counts]:
    from fedcar.collection.columns import Columns
    from fedcar.collection.importing import imported_documents

    collection, counts = imported_documents(file, Columns(**columns))
    return collection.documents, counts


def _not_read(counts: Counts) -> dict[str, object]:
    return {"columns_not_read": counts.columns_not_read, "files_not_read": counts.files_not_read}


def _say(counts: Counts) -> None:
    for line in counts.lines():
        echo(line)


@click.command(cls=WithWords, context_settings={"ignore_unknown_options": True})  # an id may begin with "-"
@click.argument("retriever", type=FOLDER)
@click.argument("ids", metavar="ID...", type=TEXT, nargs=-1, required=True)
@moved_encoder
@as_json
def remove(retriever: Path, ids: tuple[str, ...], encoder: Path | None, as_json: bool) -> None:
    """Remove documents from RETRIEVER for good: text, vectors, row, and the words that only they had."""
    removed = len(set(ids))
    left = _edit(retriever, encoder, lambda loaded: loaded.remove(ids))
    if as_json:
        print_json({"retriever": str(retriever), "removed": removed, "documents": left})
    else:
        echo(f"{retriever}: {removed} removed, {left} documents")


def _edit(folder: Path, encoder: Path | None, change: Callable[[Retriever], Retriever]) -> int:
    """Replace a saved retriever by what `change` makes of it, in one step; how many documents it then has.

    Where somebody else has replaced it meanwhile, theirs is changed in turn: what neither has done is lost.
    """
    from fedcar.common.folders import ReplacedError, check_target, seal_of
    from fedcar.retriever.parts import KIND
    from fedcar.retriever.retriever import Retriever

    for _ in range(ATTEMPTS):
        before = seal_of(folder)
        loaded = Retriever.load(folder, encoder)
        check_target(folder, KIND)
        changed = change(loaded)
        with suppress(ReplacedError):
            changed.save(folder, replaces=before)
            return len(changed.documents)
    raise FedcarError(f"{folder}: others change it all the time, so nothing was written; try again")


def _added(retriever: Retriever, documents: Sequence[Document], refine: bool) -> Retriever:
    """With these documents, and where it is asked for with rows solved for them."""
    from fedcar.common.progress import Console
    from fedcar.training.refine import refined

    report = Console()
    added = retriever.add(documents, report)
    return refined(added, len(documents), report) if refine else added


COMMANDS = (import_file, add, update, remove)
