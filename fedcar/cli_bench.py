"""The commands below `fedcar bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


clock_option = click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="cpu: CPU seconds, for a machine that does other work too.",
)


@bench.command("encode")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--runtime", default="auto", show_default=True, metavar="NAME,...", help="Which of fedcar's runtimes.")
@click.option("--encoder", default=None, help="A model on the hub or a folder.  [default: all-MiniLM-L6-v2]")
@click.option("--questions", default=256, show_default=True)
@click.option("--paragraphs", default=64, show_default=True)
@click.option("--runs", default=5, show_default=True, help="How often; the figures are medians.")
@clock_option
@click.option("--success", is_flag=True, help="Also success@1 on the test questions by each runtime's embeddings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def encode(
    collection: Path,
    runtime: str,
    encoder: str | None,
    questions: int,
    paragraphs: int,
    runs: int,
    clock: str,
    success: bool,
    as_json: bool,
) -> None:
    """Encode COLLECTION's questions and paragraphs, beside SentenceTransformer.encode."""
    from fedcar.bench_encode import bench_encode
    from fedcar.model_files import DEFAULT_ENCODER
    from fedcar.progress import Console
    from fedcar.runtime.choice import NAMES

    names = _listed(runtime)
    if not names or (unknown := [name for name in names if name not in (*NAMES, "auto")]):
        message = f'"{unknown[0] if names else runtime}" is not known; give auto or some of {", ".join(NAMES)}'
        raise click.BadParameter(message, param_hint="--runtime")
    result = bench_encode(
        collection,
        runtimes=names,
        encoder=encoder or DEFAULT_ENCODER,
        questions=questions,
        paragraphs=paragraphs,
        runs=runs,
        clock=clock,
        success=success,
        report=Console(),
    )
    _show(result, as_json)


@bench.command("step")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--encoder", default=None, help="A model on the hub or a folder.  [default: all-MiniLM-L6-v2]")
@click.option("--questions", default=2048, show_default=True, help="How many of its training questions.")
@click.option("--batch", default=64, show_default=True, help="Questions in a step of the adapter.")
@click.option("--paragraphs", default=16, show_default=True, help="Paragraphs in a step of the adapter.")
@click.option("--runs", default=5, show_default=True, help="How often; the figures are medians.")
@clock_option
@click.option("--memory/--no-memory", default=True, help="Beside full fine-tuning and LoRA, each in its own process.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def step(
    collection: Path,
    encoder: str | None,
    questions: int,
    batch: int,
    paragraphs: int,
    runs: int,
    clock: str,
    memory: bool,
    as_json: bool,
) -> None:
    """Time the steps of training beside the products and passes they consist of, on COLLECTION; and their memory."""
    from fedcar.bench_step import bench_step
    from fedcar.model_files import DEFAULT_ENCODER
    from fedcar.progress import Console

    result = bench_step(
        collection,
        encoder=encoder or DEFAULT_ENCODER,
        questions=questions,
        batch=batch,
        paragraphs=paragraphs,
        runs=runs,
        clock=clock,
        memory=memory,
        report=Console(),
    )
    _show(result, as_json)


@bench.command("search")
@click.option("--rows", default=1_000_000, show_default=True, help="How many made-up ones.")
@click.option("--cache", type=click.Path(path_type=Path), help="Search the hidden states of this cache instead.")
@click.option("--runs", default=20, show_default=True, help="Single questions timed; the figures are medians.")
@clock_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def search(rows: int, cache: Path | None, runs: int, clock: str, as_json: bool) -> None:
    """Find the ten best of many rows: exact, in fewer bits, and by the index, beside faiss' IndexFlatIP."""
    from fedcar.bench_search import bench_search
    from fedcar.progress import Console

    _show(bench_search(rows, runs=runs, cache=cache, clock=clock, report=Console()), as_json)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    from fedcar.tables import print_rows

    print_rows(result)


def _listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _numbers(words: str) -> list[int]:
    try:
        return [int(word) for word in _listed(words)]
    except ValueError as error:
        raise click.BadParameter(f'"{words}" is not a list of numbers, such as 1,3', param_hint="--epochs") from error
