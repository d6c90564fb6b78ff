"""The command line. Results go to stdout, progress and warnings to stderr; heavy imports wait until they are needed."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from fedcar import __version__
from fedcar.errors import FedcarError, FedcarWarning

Command = TypeVar("Command", bound=Callable[..., None])
FOLDER = click.Path(path_type=Path)

INPUT_MISTAKE = 1
INTERRUPTED = 130

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
cache_option = click.option("--cache", type=FOLDER, help="Folder of the hidden states.  [default: the user's cache folder]")


def main() -> None:
    """Run the command line; a mistake in the input is one line and exit code 1, an interruption 130."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", FedcarWarning)
    try:
        commands(standalone_mode=False)
    except FedcarError as error:
        _leave(f"error: {error}", INPUT_MISTAKE)
    except (KeyboardInterrupt, click.Abort):
        _leave("interrupted", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fedcar")
def commands() -> None:
    """Train a retriever on private questions without moving them."""


@commands.command()
@click.option("-o", "--out", type=FOLDER, default=Path("fedcar-demo"), show_default=True, help="Where the retriever is saved.")
@cache_option
def demo(out: Path, cache: Path | None) -> None:
    """Train, evaluate and search on the packaged collection: under two minutes, offline."""
    from fedcar.demo import run_demo
    from fedcar.progress import Console

    run_demo(out, cache, Console())


@commands.command("import")
@click.argument("file", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The collection to make, a new folder.")
@click.option("--text-column", help="The column of the text.  [default: found by its name]")
@click.option("--label-column", help="The column of the label; each label becomes a document.  [default: found by its name]")
@click.option("--queries", type=FOLDER, help="A file of questions with the id of the document that answers each.")
@click.option("--seed", default=0, show_default=True, help="Seed of the split, where the file has none.")
@as_json
def import_file(
    file: Path, out: Path, text_column: str | None, label_column: str | None, queries: Path | None, seed: int, as_json: bool
) -> None:
    """Make a collection from a CSV, JSONL or Parquet FILE or a folder of text / Markdown files."""
    from fedcar.importing import import_collection

    collection = import_collection(
        file, out, text_column=text_column, label_column=label_column, queries=queries, seed=seed
    )
    counts = {split: len(collection.judged(split)) for split in ("train", "dev", "test")}
    result = {"collection": str(out), "documents": len(collection.documents), "queries": len(collection.queries), "judged": counts}
    if as_json:
        _print_json(result)
    else:
        judged = ", ".join(f"{count} {split}" for split, count in counts.items())
        click.echo(f"{out}: {result['documents']} documents, {result['queries']} queries (judged: {judged})")
        click.echo(f"next: fedcar train {out} -o RETRIEVER")


@commands.command()
@click.argument("collection", type=FOLDER)
@click.option("-o", "--out", type=FOLDER, required=True, help="Where the retriever is saved; replaces a retriever there.")
@click.option("--encoder", default=None, help="A model on the hub or a folder.  [default: all-MiniLM-L6-v2]")
@click.option("--pooling", type=click.Choice(["mean", "last", "cls"]), help="[default: what the model was trained with]")
@click.option("--method", type=click.Choice(["auto", "head", "adapter"]), default="auto", show_default=True)
@click.option("--adapter", default="full", show_default=True, help="full, lowrank:R or diagonal.")
@click.option("--head", type=click.Choice(["cosine", "linear"]), default="cosine", show_default=True)
@click.option("--pre-classifier", default=0, show_default=True, help="Width of the pre-classifier layer; 0 for none.")
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory for the adapter, about a third more time.")
@click.option("--epochs", type=int, help="[default: by method]")
@click.option("--seed", default=0, show_default=True)
@cache_option
@click.option("--resume", is_flag=True, help="Go on from where an interrupted training stopped.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be done.")
@as_json
def train(collection: Path, out: Path, encoder: str | None, resume: bool, dry_run: bool, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Train a retriever on COLLECTION and save it."""
    from fedcar.collection import Collection
    from fedcar.encoder import DEFAULT_ENCODER
    from fedcar.progress import Console
    from fedcar.retriever import KIND
    from fedcar.storage import check_target, remove_folder

    check_target(out, KIND)
    loaded = Collection.read(collection)
    encoder = encoder or DEFAULT_ENCODER
    checkpoint = out.with_name(f".{out.name}.training")
    if dry_run:
        from fedcar.train import plan

        _show_plan(plan(loaded, encoder=encoder, **options), as_json)
        return
    from fedcar.train import train as train_retriever

    try:
        retriever = train_retriever(
            loaded, encoder=encoder, checkpoint=checkpoint, resume=resume, report=Console(), **options
        )
    except KeyboardInterrupt:
        what = "finished epochs are" if checkpoint.exists() else "encoded texts are"
        _leave(f"interrupted; the {what} kept: the same command with --resume goes on from there", INTERRUPTED)
    retriever.save(out)
    remove_folder(checkpoint)
    if as_json:
        _print_json({"retriever": str(out), **retriever.training})
    else:
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in retriever.training["seconds"].items())
        click.echo(f"{out}: saved ({seconds})")
        click.echo(f"next: fedcar evaluate {out} {collection}")


@commands.command()
@click.argument("retriever", type=FOLDER)
@click.argument("collection", type=FOLDER)
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@click.option("--run", type=FOLDER, help="Write the retriever's ranking as a TREC run file.")
@cache_option
@as_json
def evaluate(retriever: Path, collection: Path, split: str, run: Path | None, cache: Path | None, as_json: bool) -> None:
    """Measure BM25, MIPS, hybrid and RETRIEVER side by side on COLLECTION's judged queries."""
    from fedcar.collection import Collection
    from fedcar.evaluate import evaluate as measure
    from fedcar.progress import Console
    from fedcar.retriever import Retriever

    loaded = Retriever.load(retriever)
    result = measure(loaded, Collection.read(collection), split, cache=cache, run=run, report=Console())
    if as_json:
        _print_json(result)
    else:
        from fedcar.tables import print_evaluation

        print_evaluation(result)


@commands.command()
@click.argument("retriever", type=FOLDER)
@click.argument("question")
@click.option("-k", default=5, show_default=True, help="How many documents.")
@as_json
def search(retriever: Path, question: str, k: int, as_json: bool) -> None:
    """Find the documents of RETRIEVER that answer QUESTION."""
    from dataclasses import asdict

    from fedcar.retriever import Retriever

    answer = Retriever.load(retriever).search(question, k)
    if as_json:
        _print_json(asdict(answer))
    else:
        from fedcar.tables import print_answer

        print_answer(answer)


def _show_plan(what: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(what)
        return
    for name, value in what.items():
        click.echo(f"{name}: {value}")


def _print_json(content: object) -> None:
    click.echo(json.dumps(content, ensure_ascii=False))


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, FedcarWarning):
        click.echo(f"warning: {message}", err=True)


def _leave(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)
