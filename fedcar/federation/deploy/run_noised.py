"""A run of a real federation under epsilon: the same exchanges as in process, with noise and ledgers on the devices."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedcar.collection.importing import with_public_questions
from fedcar.common.files import remove_tree, replace_json
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.errors import FedcarError
from fedcar.federation.deploy.options import DEVICES, HEADS, RETRIEVER, RunOptions, ServedRun
from fedcar.federation.job.job import bytes_per_round
from fedcar.federation.job.noised import (
    PrivateRun,
    belongs_to,
    check_participation,
    noting,
    over_a_network,
    settings_of,
    stated,
)
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.remote.noised import Exchanges, RemoteCohort
from fedcar.federation.rounds.record import shown
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.retriever.retriever import Retriever
from fedcar.training.job import Splits, prepare
from fedcar.training.noised.central import concluded
from fedcar.training.noised.public import PublicQuestions, with_public_rows
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.tally import Spent
from fedcar.training.target import Target


def under_epsilon(options: RunOptions, target: Target, rounds: RoundSettings, ledgers: str | None) -> RunOptions:
    """The options of a run with this target; FedcarError for what makes no sense, before any device is asked."""
    target.check()
    check_participation(target, rounds)
    if options.over_selection != 1.0:
        raise FedcarError(
            "--over-selection: with --epsilon every answer has been charged and is waited for; leave it out"
        )
    if ledgers is not None and target.unit != "client":
        raise FedcarError(
            f"--ledgers: with --unit {target.unit} each device keeps its own (fedcar join --ledger); leave it out"
        )
    plan = settings_of(options.method, options.adapter, target, rounds).plan(1)  # of how many documents plays no part
    exchanges = plan.steps + 1 + (plan.count is not None) + (plan.held_out is not None)
    return replace(options, target=asdict(target), ledgers=ledgers, exchanges=exchanges)


def train_privately_over(network: RemoteNetwork, untrained: Retriever, run: ServedRun) -> dict[str, Any]:
    """All exchanges of the plan, from where the run stands; the retriever is RUN/retriever, the claim RUN/privacy.json.

    `refused` is what a device said that would have crossed its budget; the retriever is then the one so far.
    """
    options, report, collection = run.options, run.report, run.collection
    assert options.target is not None
    features = FeatureCache(Path(options.cache) if options.cache else None)
    rounds, target = RoundSettings(**options.rounds), Target(**options.target)
    settings = settings_of(options.method, options.adapter, target, rounds)
    if options.public is not None:
        collection = with_public_questions(collection, Path(options.public), dev=options.public_dev)
    splits = Splits.under_epsilon(collection, target.has_public)
    settings = with_public_rows(settings, splits.public, len(untrained.documents))
    plan = settings.plan(len(untrained.documents))
    job = prepare(collection, untrained, features, report, splits)
    members = kept_devices(run.folder, network, rounds.quorum, report)
    target.check(len(members) if target.unit == "client" else None)
    belongs = belongs_to(collection, untrained.encoder, plan, "devices", members, rounds.seed)
    place = PrivateRun(run.folder, True, belongs, new=False, former=run.folder.parent.with_name(HEADS))
    network.private(settings, place.name)
    ledgers = Path(options.ledgers) if options.ledgers else place.clients
    clients = over_a_network(network, plan, place, ledgers, rounds)
    store = Exchanges(run.folder / "exchanges")
    report.say(f"{len(members)} devices")
    server = PrivateTraining(
        untrained, clients, plan, store=store, public=PublicQuestions.of(job), report=report,
        watch=noting(place, clients, run.watch), adapter=settings.module(untrained.encoder.embedding_width),
    )  # fmt: skip
    outcome = server.run()
    told = {"clients": len(members), "unit": target.unit, "run": run.folder.name}
    told |= {"marked": network.marked} if network.marked else {}
    spent = Spent(*clients.spent(target.delta)) if isinstance(clients, RemoteCohort) else place.spent
    retriever = concluded(job, outcome, plan, told, spent)
    statement = stated(run.folder, retriever)
    retriever.save(run.folder / RETRIEVER)
    if outcome.refusal is None:
        remove_tree(store.folder)
    records = [shown(record) for record in outcome.records]
    return {
        "run": str(run.folder), "retriever": str(run.folder / RETRIEVER), "rounds": records,
        "selection": outcome.selection, "bytes_per_round": bytes_per_round(outcome.records),
        "seconds": {}, "privacy": statement,
        "refused": str(outcome.refusal) if outcome.refusal is not None else None,
    }  # fmt: skip


def kept_devices(run: Path, network: RemoteNetwork, quorum: float, report: Silent) -> list[str]:
    """Who takes part: asked once a run and kept beside it, so that a device that is gone does not end it."""
    file = run / DEVICES
    if file.exists():
        members = json.loads(file.read_text(encoding="utf-8"))
        network.clients = {name: network.clients[name] for name in members}
        return sorted(members)
    for name, reason in network.greet(quorum).items():
        report.say(f"{name} takes no part: {reason}")
    replace_json(file, sorted(network.clients))
    return sorted(network.clients)
