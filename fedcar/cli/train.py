"""`fedcar train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedcar.cli.options import (
    FOLDER,
    adapter_option,
    as_json,
    because_option,
    cache_option,
    delta_option,
    dry_run_option,
    encoder_option,
    pooling_option,
    prompt_options,
    public_option,
    runtime_option,
    seed_option,
    with_ledger,
)
from fedcar.cli.output import INTERRUPTED, echo, leave, print_json, show_plan, this_command
from fedcar.errors import FedcarError, typed_path


@click.command()
@click.argument("collection", type=FOLDER)
@click.option("-o", "--out", type=FOLDER, required=True, help="The retriever to make; one that is there is replaced.")
@encoder_option
@pooling_option
@prompt_options
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
@click.option(
    "--unit",
    default="example",
    show_default=True,
    help="With --epsilon: example (a question) or person=COLUMN (a field of their metadata).",
)
@click.option("--public-dev", is_flag=True, help="With --epsilon: dev is public, it teaches un-noised and chooses.")
@public_option
@because_option
@click.option(
    "--against-advice", is_flag=True, help="With --epsilon: train even where search is expected to be better."
)
@click.option("--adaptive-clip", is_flag=True, help="With --epsilon: the clip norm follows noised counts.")
@with_ledger
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
    **options: Any,  # noqa: ANN401 - those of fedcar.training.train, under the same names
) -> None:
    """Train a retriever on COLLECTION and save it."""
    from fedcar.collection.collection import Collection
    from fedcar.common.folders import check_target, remove_folder, seal_of
    from fedcar.common.progress import Console
    from fedcar.encoder.model_files import DEFAULT_ENCODER
    from fedcar.retriever.parts import KIND

    check_target(out, KIND)
    loaded = Collection.read(collection)
    encoder = encoder or DEFAULT_ENCODER
    checkpoint = out.resolve().with_name(f".{out.resolve().name}.training")
    if dry_run:
        from fedcar.training.train import plan

        show_plan(plan(loaded, encoder=encoder, **options), as_json)
        return
    from fedcar.training.train import train as train_retriever

    checkpoint_before = seal_of(checkpoint)
    if resume and not checkpoint_before:
        echo(f"{checkpoint}: no such checkpoint, so the training starts from the beginning", err=True)
    try:
        retriever = train_retriever(
            loaded, encoder=encoder, checkpoint=checkpoint, resume=resume, report=Console(), **options
        )
        retriever.save(out)
    except KeyboardInterrupt:
        has_checkpoint = bool(checkpoint_before) if resume else seal_of(checkpoint) != checkpoint_before
        what = "the finished epochs are kept" if has_checkpoint else "what was encoded is kept"
        leave(f"interrupted; {what}. To go on: {this_command(resume=has_checkpoint)}", INTERRUPTED)
    except FedcarError as error:
        if seal_of(checkpoint) != checkpoint_before:
            go_on = f"the finished epochs are kept, to go on: {this_command(resume=True)}"
            raise FedcarError(f"{error}; {go_on}") from error
        raise
    remove_folder(checkpoint)
    if as_json:
        print_json({"retriever": str(out), **retriever.training.to_json()})
    else:
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in (retriever.training.seconds or {}).items())
        echo(f"{out}: saved ({seconds or 'the guarantee is in privacy.json'})")
        echo(f"next: fedcar evaluate {typed_path(out)} {typed_path(collection)}")


COMMANDS = (train,)
