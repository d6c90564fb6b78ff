"""`fedcar import, add, remove`: documents come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedcar.cli.options import FOLDER, as_json, moved_encoder
from fedcar.cli.output import print_json
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from fedcar.collection.collection import Document
    from fedcar.retriever.retriever import Retriever


@click.command("import")
@click.argument("file", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The collection to make, a new folder.")
@click.option("--text-column", help="Column of the text.  [default: by its name]")
@click.option("--label-column", help="Column of the label: each one becomes a document.  [default: by its name]")
@click.option("--queries", type=FOLDER, help="A file of questions with the id of the document that answers each.")
@click.option("--seed", default=0, show_default=True, help="Seed of the split, where the file has none.")
@as_json
def import_file(
    file: Path,
    out: Path,
    text_column: str | None,
    label_column: str | None,
    queries: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Make a collection from a CSV, JSONL or Parquet FILE or a folder of text / Markdown files."""
    from fedcar.collection.importing import import_collection

    collection = import_collection(
        file, out, text_column=text_column, label_column=label_column, queries=queries, seed=seed
    )
    counts = {split: len(collection.judged(split)) for split in ("train", "dev", "test")}
    documents, asked = len(collection.documents), len(collection.queries)
    if as_json:
        print_json({"collection": str(out), "documents": documents, "queries": asked, "judged": counts})
    else:
        judged = ", ".join(f"{count} {split}" for split, count in counts.items())
        click.echo(f"{out}: {documents} documents, {asked} queries (judged: {judged})")
        click.echo(f"next: fedcar train {out} -o RETRIEVER")


@click.command()
@click.argument("retriever", type=FOLDER)
@click.argument("file", type=FOLDER)
@click.option("--refine", is_flag=True, help="Solve the new documents' rows on their titles and sentences.")
@moved_encoder
@as_json
def add(retriever: Path, file: Path, refine: bool, encoder: Path | None, as_json: bool) -> None:
    """Add the documents of FILE (lines as in corpus.jsonl) to RETRIEVER, found at once."""
    from fedcar.collection.collection import read_documents

    documents = read_documents(file)
    left = _edit(retriever, encoder, lambda loaded: _added(loaded, documents, refine))
    if as_json:
        print_json({"retriever": str(retriever), "added": len(documents), "documents": left})
    else:
        click.echo(f"{retriever}: {len(documents)} added, {left} documents")


@click.command()
@click.argument("retriever", type=FOLDER)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@moved_encoder
@as_json
def remove(retriever: Path, ids: tuple[str, ...], encoder: Path | None, as_json: bool) -> None:
    """Remove documents from RETRIEVER for good: text, vectors, row, and the words that only they had."""
    removed = len(set(ids))
    left = _edit(retriever, encoder, lambda loaded: loaded.remove(ids))
    if as_json:
        print_json({"retriever": str(retriever), "removed": removed, "documents": left})
    else:
        click.echo(f"{retriever}: {removed} removed, {left} documents")


def _edit(folder: Path, encoder: Path | None, change: Callable[[Retriever], Retriever]) -> int:
    """Replace a saved retriever by what `change` makes of it, in one step; how many documents it then has."""
    from fedcar.common.folders import check_target
    from fedcar.retriever.retriever import KIND, Retriever

    before = identity(folder)
    loaded = Retriever.load(folder, encoder)
    check_target(folder, KIND)
    changed = change(loaded)
    if identity(folder) != before:
        raise FedcarError(f"{folder}: changed by somebody else meanwhile, so nothing was written; try again")
    changed.save(folder)
    return len(changed.documents)


def _added(retriever: Retriever, documents: Sequence[Document], refine: bool) -> Retriever:
    """With these documents, and where it is asked for with rows solved for them."""
    from fedcar.common.progress import Console
    from fedcar.training.refine import refined

    report = Console()
    added = retriever.add(documents, report)
    return refined(added, len(documents), report) if refine else added


def identity(folder: Path) -> tuple[int, int] | None:
    """What changes when the folder is written anew; None where there is none."""
    try:
        status = (folder / "manifest.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


COMMANDS = (import_file, add, remove)
