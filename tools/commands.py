"""docs/cli.md: every command with its options as click knows them, exit codes, and what --json prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from textwrap import fill

import click

from tools.shapes import drawn, shape
from tools.small_run import small_run

HEAD = """# The command line

Written by `make docs` from the program; a test compares. Do not edit it.

Results go to stdout, progress and warnings to stderr. With `--json` stdout is one JSON object on one line, in
UTF-8, or escaped where stdout is something else; tables spell out what a terminal cannot show. A question or id may
begin with "-"; one that looks like an option goes last, behind ` -- `. Hidden states are kept in the user's cache,
or where there is no home to write to in a temporary folder for this user alone, with a warning. The shapes below
come from a small real run. `number`, `text`, `bool` and `null` stand for values. A question mark says that a field
is not always there, `FIELD | FIELD` that several fields have one shape. Capitals stand for keys that are data.
"""
# why a command has no shape here: what it prints needs a federation that runs, or a longer benchmark
NOT_RUN = {
    "demo": "`retriever`, `evaluation` as `evaluate`, and `questions`: each with its hit `before` and `after`.",
    "serve": "One line once devices can reach it: `host`, `port`, `data_dir`, and the `devices` that are enrolled.",
    "enroll": "`file`: what the device joins with.",
    "join": "One line once it takes part: `node`, the address of the `server`, how many training `questions` it has.",
    "run": "As `federate`, with `run`, `retriever` and `privacy`; it needs devices that have joined.",
    "resume": "As `run`; with `--detach` both print `run` and `log`.",
    "status": "The server, its devices and its runs.",
    "doctor": "A list of checks, each with what was found and what to do.",
    "bench train": "As `bench step`; `machine` names the collection, the encoder and the peers that were left out.",
    "bench encode": "As `bench step`; `machine` has the cosine to float32 torch for each runtime.",
}

# what the small run does not show
MORE = {
    "search": "`answered` is true or false where a threshold could be learned, and `reason` null; "
    "else it is null, for this `reason`.",
}


def commands(command: click.Command | None = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its words after `fedcar`."""
    from fedcar.cli.commands import commands as root

    command = command or root
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from commands(command.commands[name], (*words, name))
    else:
        yield " ".join(words), command


def cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def usual(option: click.Option, said: str) -> str:
    """What an option is where it is not given: click's default, or what its help says in brackets."""
    if found := re.search(r"\[default: ([^\]]*)\]", said):
        return found[1]
    if option.required:
        return "(required)"
    default = option.default
    if option.is_flag or default is None or callable(default) or "UNSET" in repr(default).upper():
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def row(option: click.Option) -> str:
    said = option.help or ""
    name = ", ".join([*option.opts, *option.secondary_opts])
    if not option.is_flag:
        choices = getattr(option.type, "choices", None)
        name += " " + ("\\|".join(map(str, choices)) if choices else option.metavar or option.type.name.upper())
    sentence = cell(re.sub(r"\[default[^\]]*\]", "", said))
    return f"| `{name}` | {cell(usual(option, said))} | {sentence} |"


def section(words: str, command: click.Command, printed: dict[str, object]) -> list[str]:
    """One command: what it does, its arguments, its options, its JSON."""
    arguments = [one.make_metavar(click.Context(command)) for one in command.params if isinstance(one, click.Argument)]
    said = fill(cell((command.help or "").replace("|", "/")), 116, break_on_hyphens=False)
    lines = [f"## fedcar {words}", "", said, ""]
    lines += ["```", " ".join(["fedcar", words, *arguments, "[OPTIONS]"]), "```", ""]
    options = [option for option in command.params if isinstance(option, click.Option)]
    if options:
        lines += ["| option | default | what it says |", "|---|---|---|", *map(row, options), ""]
    if any("--json" in option.opts for option in options):
        if words in printed:
            lines += ["With `--json`:", "", "```", drawn(shape(printed[words])), "```", ""]
            lines += [MORE[words], ""] if words in MORE else []
        else:
            lines += [f"With `--json`: {NOT_RUN[words]}", ""]
    return lines


def exit_codes() -> list[str]:
    from fedcar.cli.output import INPUT_MISTAKE, INTERRUPTED
    from fedcar.privacy.errors import BudgetError

    codes = {
        0: "done",
        INPUT_MISTAKE: "a mistake in the input, or a refusal: one line on stderr, without a traceback",
        click.UsageError.exit_code: "a command, an option or a value that does not exist",
        BudgetError.exit_code: "a privacy budget would be crossed: nothing was read for it, the model so far is kept",
        INTERRUPTED: "interrupted (Ctrl-C or SIGTERM): what was finished is kept, the message says how to go on",
    }
    return ["## Exit codes", "", "| code | what it says |", "|---|---|", *(f"| {n} | {w} |" for n, w in codes.items())]


def page() -> str:
    """The whole page."""
    lines, printed = [HEAD], small_run().printed
    for words, command in commands():
        lines += section(words, command, printed)
    return "\n".join([*lines, *exit_codes()]) + "\n"
