"""The commands below `fedcar bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedcar.cli.options import FOLDER, as_json, encoder_option, pooling_option, seed_option
from fedcar.cli.output import print_json


@click.group("bench")
def bench() -> None:
    """Compare fedcar with what a user would pick instead."""


@bench.command("train")
@click.argument("collection", type=FOLDER)
@click.option(
    "--against", metavar="PEER,...", help="sentence-transformers, sklearn, setfit, bm25s, hybrid.  [default: all]"
)
@encoder_option
@pooling_option
@click.option("--runs", default=1, show_default=True, help="How often; the figures are medians.")
@click.option("--limit", default=0, help="At most so many training questions, for a quick look.  [default: all]")
@click.option("--epochs", default="1,3", show_default=True, help="Those of sentence-transformers, each run by itself.")
@seed_option
@click.option("--budget", default=900, show_default=True, help="Seconds that SetFit may train; beyond, it is left out.")
@as_json
def train(
    collection: Path,
    against: str | None,
    encoder: str | None,
    epochs: str,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - fields of `Comparison`; so below
) -> None:
    """Train fedcar and its peers on COLLECTION: quality on test, seconds and memory."""
    from fedcar.bench.jobs import TRAIN_PEERS, Comparison, bench_train
    from fedcar.common.progress import Console
    from fedcar.encoder.model_files import DEFAULT_ENCODER

    peers = _listed(against) if against is not None else TRAIN_PEERS
    comparison = Comparison(peers, encoder or DEFAULT_ENCODER, epochs=_numbers(epochs), **options)
    result = bench_train(collection, comparison, Console())
    if as_json:
        print_json(result)
    else:
        from fedcar.cli.tables import print_bench

        print_bench(result)


clock_option = click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="cpu: CPU seconds, for a machine that does other work too.",
)


@bench.command("encode")
@click.argument("collection", type=FOLDER)
@click.option("--runtime", default="auto", show_default=True, metavar="NAME,...", help="Which of fedcar's runtimes.")
@encoder_option
@click.option("--questions", default=256, show_default=True)
@click.option("--paragraphs", default=64, show_default=True)
@click.option("--runs", default=5, show_default=True, help="How often; the figures are medians.")
@clock_option
@click.option("--success", is_flag=True, help="Also success@1 on the test questions by each runtime's embeddings.")
@as_json
def encode(collection: Path, runtime: str, encoder: str | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Encode COLLECTION's questions and paragraphs, beside SentenceTransformer.encode."""
    from fedcar.bench.encode import Encoding, bench_encode
    from fedcar.common.progress import Console
    from fedcar.encoder.model_files import DEFAULT_ENCODER
    from fedcar.encoder.runtimes.names import NAMES

    names = _listed(runtime)
    if not names or (unknown := [name for name in names if name not in (*NAMES, "auto")]):
        message = f'"{unknown[0] if names else runtime}" is not known; give auto or some of {", ".join(NAMES)}'
        raise click.BadParameter(message, param_hint="--runtime")
    result = bench_encode(collection, Encoding(names, encoder or DEFAULT_ENCODER, **options), Console())
    _show(result, as_json)


@bench.command("step")
@click.argument("collection", type=FOLDER)
@encoder_option
@click.option("--questions", default=2048, show_default=True, help="How many of its training questions.")
@click.option("--batch", default=64, show_default=True, help="Questions in a step of the adapter.")
@click.option("--paragraphs", default=16, show_default=True, help="Paragraphs in a step of the adapter.")
@click.option("--runs", default=5, show_default=True, help="How often; the figures are medians.")
@clock_option
@click.option("--memory/--no-memory", default=True, help="Beside full fine-tuning and LoRA, each in its own process.")
@as_json
def step(collection: Path, encoder: str | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Time the steps of training beside the products and passes they consist of, on COLLECTION; and their memory."""
    from fedcar.bench.step import Steps, bench_step
    from fedcar.common.progress import Console
    from fedcar.encoder.model_files import DEFAULT_ENCODER

    result = bench_step(collection, Steps(encoder or DEFAULT_ENCODER, **options), Console())
    _show(result, as_json)


@bench.command("search")
@click.option("--rows", default=1_000_000, show_default=True, help="How many made-up ones.")
@click.option("--cache", type=FOLDER, help="Search the hidden states of this cache instead.")
@click.option("--runs", default=20, show_default=True, help="Single questions timed; the figures are medians.")
@clock_option
@as_json
def search(as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Find the ten best of many rows: exact, in fewer bits, and by the index, beside faiss' IndexFlatIP."""
    from fedcar.bench.search import bench_search
    from fedcar.common.progress import Console

    _show(bench_search(report=Console(), **options), as_json)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    from fedcar.cli.tables import print_rows

    print_rows(result)


def _listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _numbers(words: str) -> list[int]:
    try:
        if numbers := [int(word) for word in _listed(words)]:
            return numbers
    except ValueError:
        pass
    raise click.BadParameter(f'"{words}" is not a list of numbers, such as 1,3', param_hint="--epochs")


COMMANDS = (bench,)
