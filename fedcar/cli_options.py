"""Options that several commands have in common; torch-free, like every module that `fedcar --help` reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Place(click.Path):
    """A file or folder; an empty word, such as a variable that is not set, is none (and not the current folder)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        return super().convert(given(ctx, param, value), param, ctx)


def given(ctx: click.Context | None, param: click.Parameter | None, value: Any) -> Any:  # noqa: ANN401
    """As a callback: the value, if it is not empty."""
    if value == "":
        raise click.BadParameter("nothing is given; name one, or leave the option out", ctx, param)
    return value


FOLDER = Place(path_type=Path)

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
encoder_option = click.option(
    "--encoder", default=None, callback=given, help="A model on the hub or a folder.  [default: all-MiniLM-L6-v2]"
)
pooling_option = click.option(
    "--pooling", type=click.Choice(["mean", "last", "cls"]), help="[default: what the model declares]"
)
adapter_option = click.option("--adapter", default="full", show_default=True, help="full, lowrank:R or diagonal.")
cache_option = click.option("--cache", type=FOLDER, help="Folder of the hidden states.  [default: the user's cache]")
seed_option = click.option("--seed", default=0, show_default=True)
delta_option = click.option(
    "--delta", default=1e-5, show_default=True, help="With --epsilon; below 1 / training questions."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything and say what would be done.")


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown by --help in this order."""

    def decorated(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated
