"""The demo: the main job on the packaged collection, from training to answers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedcar.cli.options import FOLDER, cache_option

if TYPE_CHECKING:
    from rich.console import Console

    from fedcar.common.progress import Silent

# held-out questions in the words of the sites, picked to show what training changes
SHOWN = ("q0172", "q0207", "q0236")


@click.command()
@click.option("-o", "--out", type=FOLDER, default=Path("fedcar-demo"), show_default=True, help="The retriever to make.")
@cache_option
def demo(out: Path, cache: Path | None) -> None:
    """Train, evaluate and search on the packaged collection: under two minutes, offline."""
    from fedcar.common.progress import Console

    run_demo(out, cache, Console())


def run_demo(out: Path, cache: Path | None, report: Silent) -> None:
    """Train on the packaged collection, evaluate held out, answer three questions before and after, save to `out`."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

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
    console = Console(highlight=False)
    collection = Collection.read(COLLECTION)
    sites = {query.client for query in collection.queries.values()}
    console.print(
        f"[bold]The demo collection[/bold]: {len(collection.documents)} service documents of a fleet of robots,\n"
        f"{len(collection.judged('train'))} training questions asked at {len(sites)} sites\n"
    )
    retriever = train(collection, cache=cache, report=report)
    result = evaluate(retriever, collection, cache=cache, report=report)
    before = Retriever.untrained(collection.documents, retriever.encoder, FeatureCache(cache))
    retriever.save(out)
    print_evaluation(result)
    console.print("\n[bold]Three held-out questions[/bold], before training and after")
    judgements = collection.judgements["test"]
    for query_id in SHOWN:
        console.print()
        console.print(Padding(Text(collection.queries[query_id].text), (0, 0, 0, 2)))
        first = before.search(collection.queries[query_id].text, 1).hits[0]
        _show_hit(console, "before", first.title, first.id in judgements[query_id])
        hit = retriever.search(collection.queries[query_id].text, 1).hits[0]
        _show_hit(console, "after", hit.title, hit.id in judgements[query_id])
    for line in (
        f"\nThe retriever is saved in {out}. What to type next:",
        f'  fedcar search {shlex.quote(str(out))} "the scrubber leaves a wet trail behind it"',
        "  fedcar import QUESTIONS.csv --out COLLECTION   # a collection of your own data",
        "  fedcar train COLLECTION -o RETRIEVER           # a retriever for it",
    ):
        console.print(line, markup=False, soft_wrap=True)


def _show_hit(console: Console, when: str, title: str, right: bool) -> None:
    from rich.markup import escape

    mark = "[green]right[/green]" if right else "[red]wrong[/red]"
    console.print(f"    {when:<7} {mark}  {escape(title)}")


COMMANDS = (demo,)
