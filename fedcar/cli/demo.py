"""The demo: the main job on the packaged collection, from training to answers."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import click

from fedcar.cli.options import FOLDER, as_json, cache_option
from fedcar.cli.output import console, echo, print_json
from fedcar.errors import typed_path

if TYPE_CHECKING:
    from fedcar.collection.collection import Collection
    from fedcar.common.progress import Silent

# held-out questions in the words of the sites, picked to show what training changes
SHOWN = ("q0172", "q0207", "q0236")


@click.command()
@click.option("-o", "--out", type=FOLDER, default=Path("fedcar-demo"), show_default=True, help="The retriever to make.")
@cache_option
@as_json
def demo(out: Path, cache: Path | None, as_json: bool) -> None:
    """Train, evaluate and search on the packaged collection: under two minutes, offline."""
    from fedcar.common.progress import Console

    run_demo(out, cache, Console(), as_json)


def run_demo(out: Path, cache: Path | None, report: Silent, as_json: bool = False) -> None:
    """Train on the packaged collection, evaluate held out, answer three questions before and after, save to `out`."""
    from fedcar.cli.tables import print_evaluation
    from fedcar.collection.collection import Collection
    from fedcar.collection.demo import FOLDER as COLLECTION
    from fedcar.common.folders import check_target
    from fedcar.encoder.cache import FeatureCache
    from fedcar.evaluation.evaluate import evaluate
    from fedcar.retriever.parts import KIND
    from fedcar.retriever.retriever import Retriever
    from fedcar.training.train import train

    check_target(out, KIND)
    collection = Collection.read(COLLECTION)
    if not as_json:
        _show_collection(collection)
    retriever = train(collection, cache=cache, report=report)
    result = evaluate(retriever, collection, cache=cache, report=report)
    before = Retriever.untrained(collection.documents, retriever.encoder, FeatureCache(cache))
    retriever.save(out)
    questions = []
    for query_id in SHOWN:
        text = collection.queries[query_id].text
        first, hit = before.search(text, 1).hits[0], retriever.search(text, 1).hits[0]
        right = collection.judgements["test"][query_id]
        hits = {"before": first, "after": hit}
        questions.append(
            {"query": text}
            | {when: {"id": one.id, "title": one.title, "right": one.id in right} for when, one in hits.items()}
        )
    if as_json:
        print_json({"retriever": str(out), "evaluation": result, "questions": questions})
        return
    print_evaluation(result)
    _show_questions(questions)
    for line in (
        f"\nThe retriever is saved in {out}. What to type next:",
        f'  fedcar search {typed_path(out)} "the scrubber leaves a wet trail behind it"',
        "  fedcar import QUESTIONS.csv --out COLLECTION   # a collection of your own data",
        "  fedcar train COLLECTION -o RETRIEVER           # a retriever for it",
    ):
        echo(line)
    program = Path(sys.argv[0])
    if which("fedcar") is None and program.name == "fedcar" and program.is_file():
        echo(f"fedcar is {typed_path(program)} here; put its folder on your PATH.")


def _show_collection(collection: Collection) -> None:
    sites = {query.client for query in collection.queries.values()}
    with console() as screen:
        screen.print(
            f"[bold]The demo collection[/bold]: {len(collection.documents)} service documents of a fleet of robots,\n"
            f"{len(collection.judged('train'))} training questions asked at {len(sites)} sites\n"
        )
    sys.stdout.flush()


def _show_questions(questions: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.padding import Padding
    from rich.text import Text

    with console() as screen:
        screen.print("\n[bold]Three held-out questions[/bold], before training and after")
        for question in questions:
            screen.print()
            screen.print(Padding(Text(question["query"]), (0, 0, 0, 2)))
            for when in ("before", "after"):
                mark = "[green]right[/green]" if question[when]["right"] else "[red]wrong[/red]"
                screen.print(f"    {when:<7} {mark}  {escape(question[when]['title'])}")


COMMANDS = (demo,)
