"""`fedcar evaluate, search, export`: what is done with a retriever that is there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedcar.cli.options import FOLDER, TEXT, WithWords, as_json, cache_option, moved_encoder, runtime_option
from fedcar.cli.output import echo, print_json
from fedcar.errors import FedcarError, typed_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedcar.retriever.searcher import Answer, Searcher


@click.command()
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
    from fedcar.collection.collection import Collection
    from fedcar.common.progress import Console
    from fedcar.evaluation.evaluate import evaluate as measure
    from fedcar.retriever.retriever import Retriever

    loaded = Retriever.load(retriever, encoder)
    result = measure(loaded, Collection.read(collection), split, cache=cache, run=run, report=Console())
    if as_json:
        print_json(result)
    else:
        from fedcar.cli.tables import print_evaluation

        print_evaluation(result)


@click.command(cls=WithWords)
@click.argument("retriever", metavar="RETRIEVER|BUNDLE", type=FOLDER)
@click.argument("question", type=TEXT, required=False)
@click.option("-k", default=5, show_default=True, help="How many documents.")
@click.option(
    "--file", type=FOLDER, help='A file of questions instead: one a line, or .jsonl with "text"; - for stdin.'
)
@click.option("--risk", type=float, help="Answer where at most this share of such answers is wrong, say .05.")
@moved_encoder
@as_json
def search(
    retriever: Path,
    question: str | None,
    k: int,
    file: Path | None,
    risk: float | None,
    encoder: Path | None,
    as_json: bool,
) -> None:
    """Find the documents of a retriever or an exported bundle that answer QUESTION.

    With --file those that answer each question of a file, in its order; with --json an object on a line for each.
    """
    if (question is None) == (file is None):
        raise click.UsageError("give a question, or a file of questions with --file")
    searcher, afterwards = _searchable(retriever, encoder)
    if question is not None:
        _show(searcher.search(question, k, risk), as_json)
    elif file is not None:
        _search_file(searcher, file, k, risk, as_json)
    sys.stdout.flush()
    afterwards()


def _search_file(searcher: Searcher, file: Path, k: int, risk: float | None, as_json: bool) -> None:
    """Answer all questions, and show each part as soon as it is searched."""
    from fedcar.collection.question_files import read_questions
    from fedcar.common.progress import Console
    from fedcar.retriever.searcher import READ_AT_ONCE

    questions = read_questions(file)
    with Console().track("searching", len(questions)) as advance:
        for start in range(0, len(questions), READ_AT_ONCE):
            part = questions[start : start + READ_AT_ONCE]
            answers = searcher.search_many([one.text for one in part], k, risk)
            for asked, answer in zip(part, answers, strict=True):
                _show(answer, as_json, asked.id, heading=True)
            advance(len(part))


def _show(answer: Answer, as_json: bool, identifier: str | None = None, *, heading: bool = False) -> None:
    if as_json:
        from dataclasses import asdict

        print_json(({} if identifier is None else {"id": identifier}) | asdict(answer))
    else:
        from fedcar.cli.tables import print_answer

        print_answer(answer, heading)


@click.command()
@click.argument("retriever", type=FOLDER)
@click.option("--format", "export_format", type=click.Choice(["transformers", "onnx", "bundle"]), required=True)
@click.option("--precision", type=click.Choice(["fp32", "int8"]), default="fp32", show_default=True)
@click.option("--out", type=FOLDER, required=True, help="The folder to make; it must not exist or be empty.")
@moved_encoder
@as_json
def export(retriever: Path, export_format: str, precision: str, out: Path, encoder: Path | None, as_json: bool) -> None:
    """Write RETRIEVER as a folder that other programs read (a stock model, or ONNX), or as a bundle without torch."""
    from fedcar.export.stock import check_export
    from fedcar.export.stock import export as export_retriever
    from fedcar.retriever.retriever import Retriever

    check_export(out, export_format, precision)
    loaded = Retriever.load(retriever, encoder)
    export_retriever(loaded, out, export_format, precision)
    if as_json:
        documents, dimension = len(loaded.documents), loaded.encoder.dimension
        print_json({"folder": str(out), "format": export_format, "documents": documents, "dimension": dimension})
    else:
        readers = {
            "transformers": "SentenceTransformer and AutoModel read it, README.md says what is what",
            "onnx": "ONNX Runtime reads it, README.md says what is what",
            "bundle": f'next: fedcar search {typed_path(out)} "QUESTION"',
        }
        echo(f"{out}: written; {readers[export_format]}")


def _searchable(folder: Path, encoder: Path | None) -> tuple[Searcher, Callable[[], None]]:
    """The retriever or the bundle, without torch where that can be; what is done when its answers are shown."""
    from fedcar.common.folders import kind_of

    if kind_of(folder) == "bundle":
        if encoder is not None:
            raise FedcarError(f"--encoder {encoder}: a bundle has its own; leave this out")
        from fedcar.export.bundle import load_bundle

        return load_bundle(folder), lambda: None
    from fedcar.retriever.quick import quick_searcher

    if (quick := quick_searcher(folder, encoder)) is not None:
        return quick, lambda: None
    from fedcar.common.progress import Console
    from fedcar.retriever.quick_writing import leave_quick_start
    from fedcar.retriever.retriever import Retriever

    loaded = Retriever.load(folder, encoder)
    return loaded, lambda: leave_quick_start(loaded, Console())


COMMANDS = (evaluate, search, export)
