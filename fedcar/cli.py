"""The command line. Results go to stdout, progress and warnings to stderr; heavy imports wait until they are needed."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fedcar import __version__, cli_deploy
from fedcar.cli_bench import bench
from fedcar.cli_federate import federate
from fedcar.cli_options import (
    FOLDER,
    F,
    adapter_option,
    as_json,
    cache_option,
    delta_option,
    dry_run_option,
    encoder_option,
    pooling_option,
    seed_option,
)
from fedcar.cli_privacy import privacy
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.privacy.errors import PrivacyError

if TYPE_CHECKING:
    from fedcar.retriever import Retriever


INPUT_MISTAKE = 1
INTERRUPTED = 130
TRAINING_MODULES = ("torch", "transformers", "huggingface_hub", "tokenizers")

moved_encoder = click.option("--encoder", type=FOLDER, help="Where the encoder lies, if it has moved since training.")
RUNTIMES = "torch (float32), torch-bf16, openvino, openvino-bf16, onnx, onnx-int8, or auto: the fastest that agrees."


def runtime_option(default: str) -> Callable[[F], F]:
    """What the command encodes with."""
    options: dict[str, Any] = {"default": default, "show_default": True, "expose_value": False, "help": RUNTIMES}
    return click.option("--runtime", callback=lambda context, option, name: _use_runtime(name), **options)


def main() -> None:
    """Run the command line; a mistake in the input is one line and exit code 1, an interruption 130."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", FedcarWarning)
    try:
        commands(prog_name="fedcar", standalone_mode=False)
        sys.stdout.flush()
    except FedcarError as error:
        _leave(f"error: {error}", INPUT_MISTAKE)
    except PrivacyError as error:
        _leave(f"error: {error}", error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _leave("interrupted", INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "fedcar")
        _leave(f"error: {error.format_message()} (see {command} --help)", error.exit_code)
    except ModuleNotFoundError as error:
        _leave(f"error: {_to_install(error)}", INPUT_MISTAKE)
    except OSError as error:  # what no part of fedcar saw coming: a full disk behind stdout, a file that went away
        _abandon_stdout()
        where = error.filename or "standard output or a file"
        way_out = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the path and its permissions"
        _leave(f"error: {where}: {error.strerror or error}; {way_out}", INPUT_MISTAKE)
    except (MemoryError, RuntimeError) as error:
        _leave(f"error: {_too_large(error)}", INPUT_MISTAKE)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fedcar")
def commands() -> None:
    """Train a retriever on private questions without moving them."""


commands.add_command(federate)
commands.add_command(privacy)
for _command in cli_deploy.COMMANDS:
    commands.add_command(_command)


@commands.command()
@click.option("-o", "--out", type=FOLDER, default=Path("fedcar-demo"), show_default=True, help="The retriever to make.")
@cache_option
def demo(out: Path, cache: Path | None) -> None:
    """Train, evaluate and search on the packaged collection: under two minutes, offline."""
    from fedcar.demo import run_demo
    from fedcar.progress import Console

    run_demo(out, cache, Console())


@commands.command("import")
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
    from fedcar.importing import import_collection

    collection = import_collection(
        file, out, text_column=text_column, label_column=label_column, queries=queries, seed=seed
    )
    counts = {split: len(collection.judged(split)) for split in ("train", "dev", "test")}
    documents, asked = len(collection.documents), len(collection.queries)
    if as_json:
        _print_json({"collection": str(out), "documents": documents, "queries": asked, "judged": counts})
    else:
        judged = ", ".join(f"{count} {split}" for split, count in counts.items())
        click.echo(f"{out}: {documents} documents, {asked} queries (judged: {judged})")
        click.echo(f"next: fedcar train {out} -o RETRIEVER")


@commands.command()
@click.argument("collection", type=FOLDER)
@click.option("-o", "--out", type=FOLDER, required=True, help="The retriever to make; one that is there is replaced.")
@encoder_option
@pooling_option
@click.option("--method", type=click.Choice(["auto", "ridge", "head", "adapter"]), default="auto", show_default=True)
@adapter_option
@click.option("--head", type=click.Choice(["linear", "cosine"]), default="linear", show_default=True)
@click.option("--pre-classifier", default=0, show_default=True, help="Width of the pre-classifier layer; 0 for none.")
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory for the adapter, about a third more time.")
@click.option("--questions-from", help="An OpenAI-compatible server; the documents (no question) are sent to it.")
@click.option("--questions-model", help="The model that the server is asked for.")
@click.option("--epochs", type=int, help="[default: by method]  With --epsilon: noised steps.")
@click.option("--epsilon", type=float, help="Differential privacy for every training question; see docs/privacy.md.")
@delta_option
@click.option("--recipe", default="private", show_default=True, help="paper: for comparison, no formal guarantee.")
@click.option("--public-dev", is_flag=True, help="With --epsilon: dev is public, choices are made on it.")
@click.option(
    "--against-advice", is_flag=True, help="With --epsilon: train even where search is expected to be better."
)
@click.option("--adaptive-clip", is_flag=True, help="With --epsilon: the clip norm follows noised counts.")
@seed_option
@cache_option
@runtime_option("auto")
@click.option("--resume", is_flag=True, help="Go on from where an interrupted training stopped.")
@dry_run_option
@as_json
def train(
    collection: Path,
    out: Path,
    encoder: str | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - those of fedcar.train, under the same names
) -> None:
    """Train a retriever on COLLECTION and save it."""
    from fedcar.collection import Collection
    from fedcar.model_files import DEFAULT_ENCODER
    from fedcar.progress import Console
    from fedcar.retriever import KIND
    from fedcar.storage import check_target, remove_folder

    check_target(out, KIND)
    loaded = Collection.read(collection)
    encoder = encoder or DEFAULT_ENCODER
    checkpoint = out.resolve().with_name(f".{out.resolve().name}.training")
    if dry_run:
        from fedcar.train import plan

        _show_plan(plan(loaded, encoder=encoder, **options), as_json)
        return
    from fedcar.train import train as train_retriever

    found = _identity(checkpoint)
    if resume and not found:
        click.echo(f"{checkpoint}: no such checkpoint, so the training starts from the beginning", err=True)
    try:
        retriever = train_retriever(
            loaded, encoder=encoder, checkpoint=checkpoint, resume=resume, report=Console(), **options
        )
        retriever.save(out)
    except KeyboardInterrupt:
        kept = bool(found) if resume else _identity(checkpoint) != found
        what = "the finished epochs are kept" if kept else "what was encoded is kept"
        _leave(f"interrupted; {what}. To go on: {_this_command(resume=kept)}", INTERRUPTED)
    except FedcarError as error:
        if _identity(checkpoint) != found:
            go_on = f"the finished epochs are kept, to go on: {_this_command(resume=True)}"
            raise FedcarError(f"{error}; {go_on}") from error
        raise
    remove_folder(checkpoint)
    if as_json:
        _print_json({"retriever": str(out), **retriever.training})
    else:
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in retriever.training.get("seconds", {}).items())
        click.echo(f"{out}: saved ({seconds or 'the guarantee is in privacy.json'})")
        click.echo(f"next: fedcar evaluate {out} {collection}")


@commands.command()
@click.argument("retriever", type=FOLDER)
@click.argument("collection", type=FOLDER)
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@click.option("--run", type=FOLDER, help="Write the retriever's ranking as a TREC run file.")
@moved_encoder
@cache_option
@runtime_option("torch")
@as_json
def evaluate(
    retriever: Path,
    collection: Path,
    split: str,
    run: Path | None,
    encoder: Path | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Measure BM25, MIPS, hybrid and RETRIEVER side by side on COLLECTION's judged queries."""
    from fedcar.collection import Collection
    from fedcar.evaluate import evaluate as measure
    from fedcar.progress import Console
    from fedcar.retriever import Retriever

    loaded = Retriever.load(retriever, encoder)
    result = measure(loaded, Collection.read(collection), split, cache=cache, run=run, report=Console())
    if as_json:
        _print_json(result)
    else:
        from fedcar.tables import print_evaluation

        print_evaluation(result)


@commands.command()
@click.argument("retriever", metavar="RETRIEVER|BUNDLE", type=FOLDER)
@click.argument("question")
@click.option("-k", default=5, show_default=True, help="How many documents.")
@moved_encoder
@as_json
def search(retriever: Path, question: str, k: int, encoder: Path | None, as_json: bool) -> None:
    """Find the documents of a retriever or an exported bundle that answer QUESTION."""
    from dataclasses import asdict

    answer = _searchable(retriever, encoder).search(question, k)
    if as_json:
        _print_json(asdict(answer))
    else:
        from fedcar.tables import print_answer

        print_answer(answer)


@commands.command()
@click.argument("retriever", type=FOLDER)
@click.argument("file", type=FOLDER)
@click.option("--refine", is_flag=True, help="Solve the new documents' rows on their titles and sentences.")
@moved_encoder
@as_json
def add(retriever: Path, file: Path, refine: bool, encoder: Path | None, as_json: bool) -> None:
    """Add the documents of FILE (lines as in corpus.jsonl) to RETRIEVER, found at once."""
    from fedcar.collection import read_documents
    from fedcar.progress import Console

    documents = read_documents(file)
    left = _edit(retriever, encoder, lambda loaded: loaded.add(documents, refine, Console()))
    if as_json:
        _print_json({"retriever": str(retriever), "added": len(documents), "documents": left})
    else:
        click.echo(f"{retriever}: {len(documents)} added, {left} documents")


@commands.command()
@click.argument("retriever", type=FOLDER)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@moved_encoder
@as_json
def remove(retriever: Path, ids: tuple[str, ...], encoder: Path | None, as_json: bool) -> None:
    """Remove documents from RETRIEVER for good: text, vectors, row, and the words that only they had."""
    removed = len(set(ids))
    left = _edit(retriever, encoder, lambda loaded: loaded.remove(ids))
    if as_json:
        _print_json({"retriever": str(retriever), "removed": removed, "documents": left})
    else:
        click.echo(f"{retriever}: {removed} removed, {left} documents")


@commands.command()
@click.argument("retriever", type=FOLDER)
@click.option("--format", "export_format", type=click.Choice(["transformers", "onnx", "bundle"]), required=True)
@click.option("--precision", type=click.Choice(["fp32", "int8"]), default="fp32", show_default=True)
@click.option("--out", type=FOLDER, required=True, help="The folder to make; it must not exist or be empty.")
@moved_encoder
@as_json
def export(retriever: Path, export_format: str, precision: str, out: Path, encoder: Path | None, as_json: bool) -> None:
    """Write RETRIEVER as a folder that other programs read (a stock model, or ONNX), or as a bundle without torch."""
    from fedcar.export import check_export
    from fedcar.export import export as export_retriever
    from fedcar.retriever import Retriever

    check_export(out, export_format, precision)
    loaded = Retriever.load(retriever, encoder)
    export_retriever(loaded, out, export_format, precision)
    if as_json:
        documents, dimension = len(loaded.documents), loaded.encoder.dimension
        _print_json({"folder": str(out), "format": export_format, "documents": documents, "dimension": dimension})
    else:
        readers = {
            "transformers": "SentenceTransformer and AutoModel read it, README.md says what is what",
            "onnx": "ONNX Runtime reads it, README.md says what is what",
            "bundle": f'next: fedcar search {shlex.quote(str(out))} "QUESTION"',
        }
        click.echo(f"{out}: written; {readers[export_format]}")


def _searchable(folder: Path, encoder: Path | None) -> Retriever:
    """The retriever, or the bundle: that one without torch."""
    from fedcar.storage import kind_of

    if kind_of(folder) == "bundle":
        if encoder is not None:
            raise FedcarError(f"--encoder {encoder}: a bundle has its own; leave this out")
        from fedcar.bundle import load_bundle

        return load_bundle(folder)
    from fedcar.retriever import Retriever

    return Retriever.load(folder, encoder)


def _edit(folder: Path, encoder: Path | None, change: Callable[[Retriever], Retriever]) -> int:
    """Replace a saved retriever by what `change` makes of it, in one step; how many documents it then has."""
    from fedcar.retriever import KIND, Retriever
    from fedcar.storage import check_target

    before = _identity(folder)
    loaded = Retriever.load(folder, encoder)
    check_target(folder, KIND)
    changed = change(loaded)
    if _identity(folder) != before:
        raise FedcarError(f"{folder}: changed by somebody else meanwhile, so nothing was written; try again")
    changed.save(folder)
    return len(changed.documents)


commands.add_command(bench)


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


def _identity(folder: Path) -> tuple[int, int] | None:
    """What changes when the folder is written anew; None where there is none."""
    try:
        status = (folder / "manifest.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _to_install(error: ModuleNotFoundError) -> str:
    """What to install for a module that is not there; an error of fedcar's own is one all the same."""
    name = (error.name or "").partition(".")[0]
    if name not in TRAINING_MODULES:
        raise error
    return f"{name} is not installed; pip install fedcar brings it"


def _too_large(error: MemoryError | RuntimeError) -> str:
    """What to do where memory ran out; torch has a RuntimeError for that, and any other one is fedcar's own."""
    said = str(error)
    if not isinstance(error, MemoryError) and "allocate memory" not in said and "out of memory" not in said:
        raise error
    return "out of memory; give smaller numbers, a smaller encoder or fewer documents"


def _use_runtime(name: str) -> None:
    from fedcar.runtime import choice

    choice.use(name)


def _this_command(*, resume: bool) -> str:
    """The command line as it was typed, with or without --resume."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["fedcar", *arguments, *(["--resume"] if resume else [])])


def _leave(message: str, code: int) -> NoReturn:
    click.echo(" ".join(message.splitlines()), err=True)
    sys.exit(code)


def _abandon_stdout() -> None:
    """Drop what could not be written, so that the interpreter does not try it again on its way out."""
    with suppress(OSError, ValueError):  # it may be closed, or no file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
