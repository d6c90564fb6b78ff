"""`fedcar federate`: the command and its live table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcar.cli_options import (
    FOLDER,
    adapter_option,
    as_json,
    cache_option,
    delta_option,
    dry_run_option,
    encoder_option,
    pooling_option,
    seed_option,
    together,
)
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from fedcar.federation.local import Over
    from fedcar.federation.settings import RoundSettings
    from fedcar.progress import Silent

COLUMNS = ("round", "selection", "MIPS", "hybrid", "central", "loss", "clients", "refused", "failed", "kB", "s")

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
    click.option("--average", default="mean", show_default=True, help="mean or trimmed (robust)."),
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
with_privacy = together(  # what goes with --epsilon, likewise
    delta_option,
    click.option(
        "--unit", default="example", show_default=True, help="With --epsilon: example (a question) or client."
    ),
    click.option("--public-dev", is_flag=True, help="With --epsilon: dev is public, choices are made on it."),
    click.option("--against-advice", is_flag=True, help="With --epsilon: train where search is expected to be better."),
    click.option("--adaptive-clip", is_flag=True, help="With --epsilon: the clip norm follows noised counts."),
    click.option("--held-out", is_flag=True, help="With --epsilon: clients' dev questions count, noised, at the end."),
)


@click.command()
@click.argument("collection", type=FOLDER)
@click.option(
    "-o", "--out", type=FOLDER, required=True, help="Where the retriever is saved; replaces a retriever there."
)
@click.option("--clients", type=int, help="How many clients.  [default with --partition client: the natural ones]")
@click.option("--partition", "kind", default="iid", show_default=True, help="iid, dirichlet:ALPHA or client.")
@click.option("--method", type=click.Choice(["ridge", "head", "adapter"]), default="head", show_default=True)
@adapter_option
@encoder_option
@pooling_option
@click.option("--rounds", type=int, help="[default: as many as make the epochs of central training]")
@with_settings
@click.option(
    "--clock", help='Devices and network to plan for: "bandwidth=20mbps,latency=50ms".  [default: this machine]'
)
@click.option("--engine", type=click.Choice(["local", "flower"]), default="local", show_default=True)
@click.option("--epsilon", type=float, help="A privacy budget; without it the federation runs un-noised.")
@with_privacy
@click.option("--recipe", default="private", show_default=True, help="paper: for comparison, no formal guarantee.")
@click.option("--ledgers", type=FOLDER, help="Folder of the clients' ledgers, kept over runs.  [default: RUN/clients]")
@click.option("--no-privacy", is_flag=True, help="Un-noised on purpose.")
@click.option("--no-central", is_flag=True, help="Leave out central training, which is there for comparison.")
@click.option("--run", type=FOLDER, help="Folder of history and checkpoints.  [default: RETRIEVER.run]")
@cache_option
@click.option("--resume", is_flag=True, help="Go on from the last finished round.")
@dry_run_option
@as_json
def federate(
    collection: Path,
    out: Path,
    clients: int | None,
    kind: str,
    method: str,
    adapter: str,
    encoder: str | None,
    pooling: str | None,
    rounds: int | None,
    clock: str | None,
    engine: str,
    epsilon: float | None,
    delta: float,
    unit: str,
    recipe: str,
    public_dev: bool,
    against_advice: bool,
    adaptive_clip: bool,
    held_out: bool,
    ledgers: Path | None,
    no_privacy: bool,
    no_central: bool,
    run: Path | None,
    cache: Path | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the settings of the rounds
) -> None:
    """Train one retriever over simulated clients; a question never leaves its client."""
    _refuse_together(epsilon, no_privacy, recipe)
    if engine == "flower" and clock is not None:
        raise FedcarError("--engine flower: measures real seconds; leave --clock out, or give --engine local")
    from fedcar.collection import Collection
    from fedcar.federation.clock import parse_clock
    from fedcar.partition import parse
    from fedcar.progress import Console
    from fedcar.retriever import KIND
    from fedcar.storage import check_target

    settings = round_settings(rounds, options)
    parse(kind)
    virtual = parse_clock(clock)
    check_target(out, KIND)
    run = run or out.with_name(f"{out.name}.run")
    loaded = Collection.read(collection)
    from fedcar.federation.local import federate as run_federation
    from fedcar.federation.local import plan
    from fedcar.model_files import DEFAULT_ENCODER
    from fedcar.train import refuse_with_epsilon_only

    encoder = encoder or DEFAULT_ENCODER
    report = Console()
    refuse_with_epsilon_only(
        epsilon, public_dev=public_dev, against_advice=against_advice, adaptive_clip=adaptive_clip, held_out=held_out
    )
    if epsilon is not None:
        from fedcar.private_plan import Target

        target = Target(epsilon, delta, unit, public_dev, None, against_advice, adaptive_clip, held_out)
        target.check()
        _federate_under_epsilon(
            loaded, target, out, run, as_json, dry_run, collection, clients=clients, kind=kind, encoder=encoder,
            pooling=pooling, method=method, adapter=adapter, rounds=settings, ledgers=ledgers, cache=cache,
            resume=resume, report=report, engine=engine,
        )  # fmt: skip
        return
    if dry_run:
        _show_plan(
            plan(loaded, clients=clients, kind=kind, encoder=encoder, method=method, adapter=adapter, rounds=settings),
            as_json,
        )
        return
    if not no_privacy and recipe != "paper":
        report.say(
            "no --epsilon: un-noised, as a simulation; over a network what clients send would give questions away"
        )
    try:
        with live_table() as watch, _over(engine, cache, settings.deadline, report) as over:
            result = run_federation(
                loaded, run=run, clients=clients, kind=kind, encoder=encoder, pooling=pooling, method=method,
                adapter=adapter, rounds=settings, recipe=recipe, clock=virtual, compare=not no_central, cache=cache,
                resume=resume, report=report, watch=watch, over=over,
            )  # fmt: skip
    except KeyboardInterrupt:
        report.say(f"finished rounds are kept in {run}: the same command with --resume goes on from there")
        raise
    result.retriever.save(out)
    if as_json:
        _print_json(result)
    else:
        _print_summary(result, out, collection)


def _refuse_together(epsilon: float | None, no_privacy: bool, recipe: str) -> None:
    if epsilon is not None and no_privacy:
        raise FedcarError("--epsilon and --no-privacy: one or the other")
    if recipe not in ("private", "paper"):
        raise FedcarError(f'--recipe "{recipe}": not known; give private or paper')
    if recipe == "paper" and epsilon is not None:
        raise FedcarError(f"--recipe paper --epsilon {epsilon:g}: that recipe has no epsilon; leave one of them out")


def _federate_under_epsilon(
    loaded: Any,  # noqa: ANN401 - a Collection, a Target: importing them here would import torch
    target: Any,  # noqa: ANN401
    out: Path,
    run: Path,
    as_json: bool,
    dry_run: bool,
    collection: Path,
    engine: str,
    **options: Any,  # noqa: ANN401
) -> None:
    """Under a budget: the same output, the statement with it; exit code 3 where a client refused."""
    from fedcar.federation.private import federate_under_epsilon
    from fedcar.partition import partition
    from fedcar.private_plan import make_plan

    if dry_run:
        parts = partition(loaded.judged("train"), options["kind"], options["clients"], options["rounds"].seed)
        target.check(len(parts) if target.unit == "client" else len(loaded.judged("train")))
        rate = options["rounds"].participation if target.unit == "client" else None
        steps = options["rounds"].rounds or None
        found = make_plan(target, options["method"], len(loaded.documents), steps=steps, sampling_rate=rate)
        _show_plan({"documents": len(loaded.documents), "clients": sorted(parts), **found.in_words()}, as_json)
        return
    deadline = options["rounds"].deadline
    with live_table() as watch, _over(engine, options["cache"], deadline, options["report"]) as over:
        result = federate_under_epsilon(loaded, target, run=run, watch=watch, over=over, **options)
    result.retriever.save(out)
    if as_json:
        _print_json(result)
    else:
        _print_summary(result, out, collection)
    if result.refusal is not None:
        raise result.refusal


def round_settings(rounds: int | None, options: dict[str, Any]) -> RoundSettings:
    """The options of the rounds as settings, checked."""
    from fedcar.federation.settings import RoundSettings

    options["weight"] = options["weight"] or ("row" if options["private_documents"] else "step")
    if options["server_rate"] is None:
        options["server_rate"] = 0.01 if options["server_optimizer"] == "adam" else 1.0
    if rounds is not None and rounds < 1:
        raise FedcarError(f"--rounds {rounds}: must be 1 or more")
    settings = RoundSettings(rounds=rounds or 0, **options)
    settings.check()
    return settings


@contextmanager
def _over(engine: str, cache: Path | None, deadline: float | None, report: Silent) -> Iterator[Over | None]:
    """Where the clients are: None for this process."""
    if engine == "local":
        yield None
        return
    from fedcar.cli_deploy import extra

    with extra():
        from fedcar.federation import flower  # noqa: F401 - said at once where it is missing
        from fedcar.federation.loopback import over_flower
    with over_flower(cache, deadline, report) as over:
        yield over


@contextmanager
def live_table() -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A context whose value shows each round's record on stderr: a growing table on a terminal, a line otherwise."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda record: print(_line(record), file=sys.stderr, flush=True)  # noqa: T201 - progress
        return
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="right")
    with Live(table, console=console, auto_refresh=False) as live:

        def show(record: Mapping[str, Any]) -> None:
            table.add_row(*_cells(record))
            live.update(table, refresh=True)

        yield show


def _cells(record: Mapping[str, Any]) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        str(record["round"]),
        *(number(record.get(name), ".3f") for name in ("selection", "mips", "hybrid", "central")),
        number(record["loss"], ".4f"),
        str(len(record["clients"])),
        str(len(record["refused"])),
        str(len(record["failed"])),
        f"{(record['bytes_down'] + record['bytes_up']) / 1000:.0f}",
        f"{record['clock_seconds']:.2f}",
    ]


def _line(record: Mapping[str, Any]) -> str:
    cells = ", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, _cells(record), strict=True) if cell)
    reasons = {**record["refused"], **record["failed"]}
    return cells + "".join(f"; {client}: {reason}" for client, reason in reasons.items())


def _show_plan(what: Mapping[str, Any], as_json: bool) -> None:
    import json

    click.echo(json.dumps(what) if as_json else "\n".join(f"{name}: {value}" for name, value in what.items()))


def _print_json(result: Any) -> None:  # noqa: ANN401 - a Federation; importing it here would import torch
    import json

    content = {
        "run": str(result.run),
        "rounds": result.rounds,
        "central": result.central,
        "federated": result.federated,
        "bytes_per_round": result.bytes_per_round,
        "seconds": result.seconds,
        "privacy": result.privacy,
    }
    click.echo(json.dumps(content, ensure_ascii=False))


def _print_summary(result: Any, out: Path, collection: Path) -> None:  # noqa: ANN401 - as above
    for name in ("central", "federated"):
        metrics = getattr(result, name)
        if metrics:
            click.echo(
                f"{name:<10} " + ", ".join(f"{key} {value:.3f}" for key, value in metrics.items() if key != "queries")
            )
    clock = sum(record["clock_seconds"] for record in result.rounds)
    traffic = f"{result.bytes_per_round / 1000:.0f} kB a round"
    how = "un-noised"
    if result.privacy is not None:
        sure = result.privacy["guarantee"]
        how = f"epsilon {result.privacy['epsilon']:.3g}, see privacy.json" if sure else "no formal guarantee"
    click.echo(f"{len(result.rounds)} rounds, {traffic}, {clock:.1f} s by the clock, {how}")
    click.echo(f"{out}: saved (run: {result.run})")
    click.echo(f"next: fedcar evaluate {out} {collection}")
