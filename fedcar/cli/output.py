"""How a command ends: one JSON object or lines on stdout, a mistake as one line on stderr."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any, NoReturn

import click

INPUT_MISTAKE = 1
INTERRUPTED = 130


def show_plan(what: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(what)
        return
    for name, value in what.items():
        click.echo(f"{name}: {value}")


def print_json(content: object) -> None:
    click.echo(json.dumps(content, ensure_ascii=False))


def this_command(*, resume: bool) -> str:
    """The command line as it was typed, with or without --resume."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["fedcar", *arguments, *(["--resume"] if resume else [])])


def leave(message: str, code: int) -> NoReturn:
    click.echo(" ".join(message.splitlines()), err=True)
    sys.exit(code)
