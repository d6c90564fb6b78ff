"""Options that several commands have in common; torch-free, like every module that `fedcar --help` reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from fedcar.federation.rounds.settings import RoundSettings
    from fedcar.training.target import Target

F = TypeVar("F", bound=Callable[..., Any])


class Place(click.Path):
    """A file or folder; an empty word, such as a variable that is not set, is none (and not the current folder)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        return super().convert(given(ctx, param, value), param, ctx)


class Text(click.types.StringParamType):
    """Words in any script, also where the system's language is one of ASCII alone (LANG=C): they come as UTF-8."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        value = super().convert(value, param, ctx)
        with suppress(UnicodeError):
            return os.fsencode(value).decode()
        return value


def given(ctx: click.Context | None, param: click.Parameter | None, value: Any) -> Any:  # noqa: ANN401
    """As a callback: the value, if it is not empty."""
    if value == "":
        raise click.BadParameter("nothing is given; name one, or leave the option out", ctx, param)
    return value


class WithWords(click.Command):
    """A command that takes words: a question such as "-5 degrees" is none of its options, and needs no " -- ".

    So is whatever begins with "-", is no option's name and holds a blank or begins with a number; with
    `ignore_unknown_options` whatever is no option's name.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the words last, behind a "--"."""
        named = {name: one for one in self.get_params(ctx) for name in one.opts if isinstance(one, click.Option)}
        options: list[str] = []
        words: list[str] = []
        rest = iter(args)
        for arg in rest:
            name, _, value = arg.partition("=")
            if arg == "--":
                words += rest
            elif arg in named and not getattr(named[arg], "is_flag", False):
                options += [arg, *islice(rest, 1)]
            elif name in named or _is_short(arg, named):
                options.append(arg)
            elif arg.startswith("-") and len(arg) > 1 and not ctx.ignore_unknown_options and not _is_word(name):
                options.append(arg)  # click says what is like it
            else:
                words.append(arg)
        return super().parse_args(ctx, [*options, "--", *words])


def _is_short(arg: str, named: Collection[str]) -> bool:
    """Whether this is a short option with its number, as in -k5."""
    return arg[:2] in named and arg[2:].strip().isdecimal()


def _is_word(name: str) -> bool:
    return any(map(str.isspace, name)) or name.lstrip("-")[:1].isdecimal()


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown by --help in this order."""

    def decorated(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


FOLDER = Place(path_type=Path)
TEXT = Text()
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
encoder_option = click.option(
    "--encoder",
    default=None,
    callback=given,
    help="A model on the hub, a folder, a file.gguf, smollm2; to train, two: A+B.  [default: all-MiniLM-L6-v2]",
)
moved_encoder = click.option("--encoder", type=FOLDER, help="Where the encoder lies, if it has moved since training.")
POOLING = "mean, last, cls, max, mean_sqrt_len_tokens, weightedmean, or several: cls+mean.  [default: as declared]"
PROMPT = "Text before every {0}, as the model was trained.  [default: what the model declares]"
pooling_option = click.option("--pooling", help=POOLING)
prompt_options = together(
    click.option("--query-prompt", help=PROMPT.format("question")),
    click.option("--document-prompt", help=PROMPT.format("document")),
)
adapter_option = click.option("--adapter", default="full", show_default=True, help="full, lowrank:R or diagonal.")
cache_option = click.option("--cache", type=FOLDER, help="Folder of the hidden states.  [default: the user's cache]")
seed_option = click.option("--seed", default=0, show_default=True)
delta_option = click.option(
    "--delta", default=1e-5, show_default=True, help="With --epsilon; below 1 / training questions."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything and say what would be done.")
RUNTIMES = "torch (float32), torch-bf16, openvino, openvino-bf16, onnx, onnx-int8, or auto: the fastest that agrees."


def runtime_option(default: str) -> Callable[[F], F]:
    """What the command encodes with."""
    options: dict[str, Any] = {"default": default, "show_default": True, "expose_value": False, "help": RUNTIMES}
    return click.option("--runtime", callback=lambda context, option, name: use_runtime(name), **options)


def use_runtime(name: str) -> None:
    from fedcar.encoder.runtimes import names

    names.use(name)


with_ledger = together(  # where train and federate are counted
    click.option(
        "--ledger", type=FOLDER, help="With --epsilon: a ledger's file or folder.  [default: the collection's own]"
    ),
    click.option("--no-ledger", is_flag=True, help="With --epsilon: count this run nowhere."),
    click.option("--budget", type=float, help="With --epsilon: what all runs of the ledger may spend, from now on."),
)
with_settings = together(  # the rounds', which federate and run have in common
    click.option("--local-epochs", default=1, show_default=True, help="Epochs over a client's questions a round."),
    click.option("--participation", default=1.0, show_default=True, help="Share of the clients asked each round."),
    click.option(
        "--quorum",
        default=0.5,
        show_default=True,
        help="Share of those asked that must answer; else the round is repeated.",
    ),
    click.option(
        "--deadline", type=float, help="Seconds by the clock after which an answer is too late.  [default: none]"
    ),
    click.option("--weight", help="step (FedNova), question (n_i / n) or row.  [default: step; row for private ones]"),
    click.option(
        "--average",
        default="auto",
        show_default=True,
        help="mean, clipped, trimmed; auto: clipped from 5 on.",
    ),
    click.option("--server-optimizer", default="average", show_default=True, help="average or adam (FedAdam)."),
    click.option("--server-rate", type=float, help="[default: 1 for average, 0.01 for adam]"),
    click.option(
        "--local-optimizer", default="shared", show_default=True, help="Adam's moments: shared, kept or reset."
    ),
    click.option("--proximal", default=0.0, show_default=True, help="mu of FedProx; 0 for none."),
    click.option(
        "--share", default="adapter+head", show_default=True, help="adapter+head, or adapter: rows stay local."
    ),
    click.option("--compression", default="none", show_default=True, help="none (lossless), bfloat16 or int8."),
    click.option("--private-documents", is_flag=True, help="A document's row goes only to the clients that own it."),
    seed_option,
)
public_option = click.option(
    "--public",
    type=FOLDER,
    help="With --epsilon: a file of public questions and their documents' ids; they teach un-noised, and choose.",
)
because_option = click.option(
    "--public-because", type=TEXT, callback=given, help="With --public-dev or --public: why; the statement keeps it."
)
with_privacy = together(  # what goes with --epsilon, likewise
    delta_option,
    click.option(
        "--unit",
        default="example",
        show_default=True,
        help="With --epsilon: example (a question), person=COLUMN (a field of their metadata) or client.",
    ),
    click.option("--public-dev", is_flag=True, help="With --epsilon: dev is public, it teaches un-noised and chooses."),
    public_option,
    because_option,
    click.option("--against-advice", is_flag=True, help="With --epsilon: train where search is expected to be better."),
    click.option("--adaptive-clip", is_flag=True, help="With --epsilon: the clip norm follows noised counts."),
    click.option("--held-out", is_flag=True, help="With --epsilon: clients' dev questions count, noised, at the end."),
)


def round_settings(rounds: int | None, options: dict[str, Any]) -> RoundSettings:
    """The options of the rounds as settings, checked."""
    from fedcar.federation.rounds.settings import RoundSettings

    options["weight"] = options["weight"] or ("row" if options["private_documents"] else "step")
    if options["server_rate"] is None:
        options["server_rate"] = 0.01 if options["server_optimizer"] == "adam" else 1.0
    if rounds is not None and rounds < 1:
        raise FedcarError(f"--rounds {rounds}: must be 1 or more")
    settings = RoundSettings(rounds=rounds or 0, **options)
    settings.check()
    return settings


def refuse_both(epsilon: float | None, no_privacy: bool) -> None:
    if epsilon is not None and no_privacy:
        raise FedcarError("--epsilon and --no-privacy: one or the other")


def privacy_target(epsilon: float | None, **options: Any) -> Target | None:  # noqa: ANN401
    """The target of --epsilon and of the options of `with_privacy`; None for an un-noised run, which takes none."""
    from fedcar.training.settings import refuse_with_epsilon_only
    from fedcar.training.target import Target

    public = options.pop("public") is not None
    flags = {name: value for name, value in options.items() if isinstance(value, bool)}
    worded = {"unit": options["unit"] != "example", "public_because": options["public_because"] is not None}
    refuse_with_epsilon_only(epsilon, **flags, **worded, public=public)
    return None if epsilon is None else Target(epsilon, **options, public_file=public)


@contextmanager
def extra() -> Iterator[None]:
    """One line where the extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("flwr", "cryptography", "uvicorn", "starlette"):
            raise
        raise FedcarError(
            f'{error.name} is missing: the real federation needs pip install "fedcar[federation]" and Python 3.11'
        ) from error
