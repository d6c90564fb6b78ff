"""The command line. Results go to stdout, progress and warnings to stderr; heavy imports wait until they are needed."""

from __future__ import annotations

import os
import sys
import warnings

import click
from click.shell_completion import shell_complete

from fedcar.cli import bench, contents, demo, deploy, documents, federate, privacy, search, train
from fedcar.cli.output import echo, prepare_streams
from fedcar.errors import FedcarWarning
from fedcar.version import __version__

COMPLETION = "_FEDCAR_COMPLETE"  # click's name of the variable by which a shell asks what may follow


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fedcar")
def commands() -> None:
    """Train a retriever on private questions without moving them."""


for _module in (bench, contents, demo, deploy, documents, federate, privacy, search, train):
    for _command in _module.COMMANDS:
        commands.add_command(_command)


def run() -> None:
    """Do what the words say. Not by click's own `main`, which prints an empty line where it is interrupted."""
    prepare_streams()
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", FedcarWarning)
    if asked := os.environ.get(COMPLETION):
        sys.exit(shell_complete(commands, {}, "fedcar", COMPLETION, asked))
    try:
        with commands.make_context("fedcar", sys.argv[1:]) as context:
            commands.invoke(context)
    except click.exceptions.Exit as end:  # --help and --version
        if end.exit_code:
            sys.exit(end.exit_code)
    sys.stdout.flush()


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, FedcarWarning):
        echo(f"warning: {message}", err=True)
