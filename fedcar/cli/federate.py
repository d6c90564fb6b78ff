"""`fedcar federate`: the command and its live table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcar.cli.options import (
    FOLDER,
    adapter_option,
    as_json,
    cache_option,
    dry_run_option,
    encoder_option,
    pooling_option,
    privacy_target,
    prompt_options,
    refuse_both,
    round_settings,
    with_ledger,
    with_privacy,
    with_settings,
)
from fedcar.cli.output import echo, echo_blamed, print_json, show_plan
from fedcar.cli.tables import live_table
from fedcar.errors import FedcarError, typed_path

if TYPE_CHECKING:
    from fedcar.common.progress import Silent
    from fedcar.federation.simulate.settings import Over


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
@prompt_options
@click.option("--rounds", type=int, help="[default: as many as make the epochs of central training]")
@with_settings
@click.option(
    "--clock", help='Devices and network to plan for: "bandwidth=20mbps,latency=50ms".  [default: this machine]'
)
@click.option("--engine", type=click.Choice(["local", "flower"]), default="local", show_default=True)
@click.option("--epsilon", type=float, help="A privacy budget; without it the federation runs un-noised.")
@with_privacy
@with_ledger
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
    query_prompt: str | None,
    document_prompt: str | None,
    rounds: int | None,
    clock: str | None,
    engine: str,
    epsilon: float | None,
    delta: float,
    unit: str,
    recipe: str,
    public_dev: bool,
    public: Path | None,
    public_because: str | None,
    against_advice: bool,
    adaptive_clip: bool,
    held_out: bool,
    ledgers: Path | None,
    ledger: Path | None,
    no_ledger: bool,
    budget: float | None,
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
    from fedcar.collection.collection import Collection
    from fedcar.collection.partition import parse
    from fedcar.common.folders import check_target
    from fedcar.common.progress import Console
    from fedcar.federation.rounds.clock import parse_clock
    from fedcar.retriever.parts import KIND

    settings = round_settings(rounds, options)
    parse(kind)
    virtual = parse_clock(clock)
    check_target(out, KIND)
    run = run or out.with_name(f"{out.name}.run")
    loaded = Collection.read(collection)
    from fedcar.encoder.encoder import Encoder
    from fedcar.encoder.model_files import DEFAULT_ENCODER
    from fedcar.federation.simulate.federate import federate as run_federation
    from fedcar.federation.simulate.federate import plan
    from fedcar.training.noised.tally import Counting
    from fedcar.training.settings import refuse_with_epsilon_only

    name = encoder or DEFAULT_ENCODER
    named: str | Encoder = name
    if any(given is not None for given in (pooling, query_prompt, document_prompt)):
        named = Encoder.load(name, pooling, query_prompt=query_prompt, document_prompt=document_prompt)
    report = Console()
    target = privacy_target(
        epsilon, delta=delta, unit=unit, public_dev=public_dev, public=public, against_advice=against_advice,
        adaptive_clip=adaptive_clip, held_out=held_out, public_because=public_because,
    )  # fmt: skip
    refuse_with_epsilon_only(epsilon, ledger=ledger is not None, no_ledger=no_ledger, budget=budget is not None)
    if target is not None:
        target.check()
        if public is not None:
            from fedcar.collection.importing import with_public_questions

            loaded = with_public_questions(loaded, public, dev=public_dev)
        _federate_under_epsilon(
            loaded, target, out, run, as_json, dry_run, collection, clients=clients, kind=kind, encoder=named,
            pooling=pooling, method=method, adapter=adapter, rounds=settings, ledgers=ledgers, cache=cache,
            resume=resume, report=report, engine=engine, counting=Counting(ledger, no_ledger, budget),
        )  # fmt: skip
        return
    if dry_run:
        show_plan(
            plan(loaded, clients=clients, kind=kind, encoder=named, method=method, adapter=adapter, rounds=settings),
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
                loaded, run=run, clients=clients, kind=kind, encoder=named, pooling=pooling, method=method,
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
    refuse_both(epsilon, no_privacy)
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
    from fedcar.federation.simulate.noised import SharedOut, federate_under_epsilon

    if dry_run:
        from fedcar.federation.job.noised import settings_of
        from fedcar.training.job import Splits
        from fedcar.training.noised.public import with_public_rows

        seed, documents = options["rounds"].seed, len(loaded.documents)
        shared = SharedOut.of(loaded, loaded.judged("train"), target, options["kind"], options["clients"], seed)
        target.check(shared.units)
        settings = settings_of(options["method"], options["adapter"], target, options["rounds"])
        public = Splits.under_epsilon(loaded, target.has_public).public
        noised_plan = with_public_rows(settings, public, documents).plan(documents)
        show_plan({"documents": documents, "clients": sorted(shared.parts), **noised_plan.in_words()}, as_json)
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


@contextmanager
def _over(engine: str, cache: Path | None, deadline: float | None, report: Silent) -> Iterator[Over | None]:
    """Where the clients are: None for this process."""
    if engine == "local":
        yield None
        return
    from fedcar.cli.options import extra

    with extra():
        from fedcar.federation.simulate.over_flower import over_flower
        from fedcar.federation.wire import flower  # noqa: F401 - said at once where it is missing
    with over_flower(cache, deadline, report) as over:
        yield over


def _print_json(result: Any) -> None:  # noqa: ANN401 - a Federation; importing it here would import torch
    from fedcar.federation.rounds.record import shown

    content = {
        "run": str(result.run),
        "rounds": [shown(record) for record in result.rounds],
        "central": result.central,
        "federated": result.federated,
        "bytes_per_round": result.bytes_per_round,
        "seconds": result.seconds,
        "privacy": result.privacy,
    }
    print_json(content)


def _print_summary(result: Any, out: Path, collection: Path) -> None:  # noqa: ANN401 - as above
    for name in ("central", "federated"):
        metrics = getattr(result, name)
        if metrics:
            echo(f"{name:<10} " + ", ".join(f"{key} {value:.3f}" for key, value in metrics.items() if key != "queries"))
    clock = sum(getattr(record, "clock_seconds", 0.0) for record in result.rounds)
    traffic = f"{result.bytes_per_round / 1000:.0f} kB a round"
    how = "un-noised"
    if result.privacy is not None:
        sure = result.privacy["guarantee"]
        how = f"epsilon {result.privacy['epsilon']:.3g}, see privacy.json" if sure else "no formal guarantee"
    seconds = f"{clock:.1f} s by the clock, " if clock else ""  # under epsilon none are kept
    echo(f"{len(result.rounds)} rounds, {traffic}, {seconds}{how}")
    echo_blamed([record.to_json() for record in result.rounds])
    echo(f"{out}: saved (run: {result.run})")
    echo(f"next: fedcar evaluate {typed_path(out)} {typed_path(collection)}")


COMMANDS = (federate,)
