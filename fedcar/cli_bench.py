"""The commands below `fedcar bench`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group("bench")
def bench() -> None:
    """Compare fedcar with what a user would pick instead."""


@bench.command("train")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option(
    "--against", metavar="PEER,...", help="sentence-transformers, sklearn, setfit, bm25s, hybrid.  [default: all]"
)
@click.option("--encoder", default=None, help="A model on the hub or a folder.  [default: all-MiniLM-L6-v2]")
@click.option("--pooling", type=click.Choice(["mean", "last", "cls"]), help="[default: what the model declares]")
@click.option("--runs", default=1, show_default=True, help="How often; the figures are medians.")
@click.option("--limit", default=0, help="At most so many training questions, for a quick look.  [default: all]")
@click.option("--epochs", default="1,3", show_default=True, help="Those of sentence-transformers, each run by itself.")
@click.option("--seed", default=0, show_default=True)
@click.option("--budget", default=900, show_default=True, help="Seconds that SetFit may train; beyond, it is left out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def train(
    collection: Path,
    against: str | None,
    encoder: str | None,
    pooling: str | None,
    runs: int,
    limit: int,
    epochs: str,
    seed: int,
    budget: int,
    as_json: bool,
) -> None:
    """Train fedcar and its peers on COLLECTION: quality on test, seconds and memory."""
    from fedcar.bench import TRAIN_PEERS, bench_train
    from fedcar.model_files import DEFAULT_ENCODER
    from fedcar.progress import Console

    result = bench_train(
        collection,
        against=_listed(against) if against is not None else TRAIN_PEERS,
        encoder=encoder or DEFAULT_ENCODER,
        pooling=pooling,
        runs=runs,
        limit=limit,
        epochs=_numbers(epochs),
        seed=seed,
        budget=budget,
        report=Console(),
    )
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
    else:
        from fedcar.tables import print_bench

        print_bench(result)


def _listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _numbers(words: str) -> list[int]:
    try:
        return [int(word) for word in _listed(words)]
    except ValueError as error:
        raise click.BadParameter(f'"{words}" is not a list of numbers, such as 1,3', param_hint="--epochs") from error
