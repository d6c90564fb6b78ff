"""What a command prints: one JSON object or lines on stdout, a mistake as one line on stderr, on whatever terminal."""

from __future__ import annotations

import codecs
import io
import json
import os
import shlex
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NoReturn

from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from rich.console import Console

INPUT_MISTAKE = 1
INTERRUPTED = 130
LINE = 100  # what is longer is shown in parts


def prepare_streams() -> None:
    """Make the standard streams take every text: what their encoding lacks is spelled out.

    Raises FedcarError where there is no standard output. Input and stderr that are closed become empty ones: the next
    file that is opened would be taken for them.
    """
    for name, mode in (("stdin", "r"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        raise FedcarError("standard output is closed; let it be a file, or /dev/null")
    codecs.register_error("fedcar.spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fedcar.spelled")


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """What an encoding lacks, as a codec's error handler: in plain letters where Unicode has some, or by number."""
    assert isinstance(error, UnicodeEncodeError)
    spelled = []
    for character in error.object[error.start : error.end]:
        plain = unicodedata.normalize("NFKD", character)
        spelled.append(plain if plain.isascii() else character.encode("ascii", "backslashreplace").decode())
    return "".join(spelled), error.end


def echo(line: str, err: bool = False) -> None:
    """Print a line on stdout or stderr; in the stream's own encoding and not flushed, other than by click.echo."""
    print(line, file=sys.stderr if err else sys.stdout)  # noqa: T201 - the one place that prints results


def echo_blamed(records: Sequence[Mapping[str, Any]]) -> None:
    """Who was refused in a run's rounds, how often and why, in lines of at most 80 columns."""
    reasons: dict[str, list[str]] = {}
    for record in records:
        for name, reason in record["refused"].items():
            reasons.setdefault(name, []).append(reason)
    for name, said in sorted(reasons.items()):
        line = f"{name}: refused in {len(said)} of {len(records)} rounds, last: {said[-1]}"
        for part in wrap(line, 80, subsequent_indent="  ", break_on_hyphens=False):
            echo(part)


@contextmanager
def console() -> Iterator[Console]:
    """What is printed within goes to stdout at its end; without a terminal it is 80 columns wide, or COLUMNS."""
    from rich.console import Console

    made = Console(highlight=False)
    with made.capture() as captured:  # rich would leave without a word where stdout is closed
        yield made
    sys.stdout.write(captured.get())


def show_plan(what: Mapping[str, Any], as_json: bool) -> None:
    """What --dry-run says: a line a name, or a line for each part where they are many."""
    if as_json:
        print_json(what)
        return
    for name, value in what.items():
        for line in _lines(f"{name}: ", value):
            echo(line)


def _lines(start: str, value: object) -> Iterator[str]:
    line = f"{start}{in_words(value)}"
    if len(line) <= LINE or not isinstance(value, Mapping | list):
        yield line
        return
    yield start.rstrip()
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from (f"  {line}" for line in _lines(f"{name}: ", part))
    else:
        yield from (f"- {in_words(part)}" for part in value)


def in_words(value: object) -> str:
    """A value for people: yes, no and none, and what lists and mappings hold; a "name" goes first."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        named = f"{value['name']}: " if "name" in value else ""
        parts = (f"{key} {in_words(part)}" for key, part in value.items() if key != "name")
        return named + (", ".join(parts) or "none")
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_json(content: object) -> None:
    """One line of JSON, which is UTF-8, or ASCII where stdout is something else."""
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    echo(json.dumps(content, ensure_ascii=encoding != "utf-8"))
    sys.stdout.flush()


def this_command(*, resume: bool) -> str:
    """The command line as it was typed, with or without --resume."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["fedcar", *arguments, *(["--resume"] if resume else [])])


def leave(message: str, code: int) -> NoReturn:
    with suppress(OSError):  # where stderr cannot be written to either, the code must say it
        echo(" ".join(message.splitlines()), err=True)
    sys.exit(code)
