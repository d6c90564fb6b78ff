"""A run of a real federation under epsilon: the same exchanges as in process, with noise and ledgers on the devices."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedcar.collection.collection import Collection
from fedcar.common.files import replace_json
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.errors import FedcarError
from fedcar.federation.deploy.options import DEVICES, RETRIEVER, RunOptions
from fedcar.federation.job.noised import PrivateRun, belongs_to, check_participation, noting, over_a_network, shown
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.remote.noised import Exchanges
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.privacy.statement import to_json
from fedcar.retriever.retriever import Retriever
from fedcar.training.job import Job
from fedcar.training.noised.central import conclude, public, public_dev
from fedcar.training.noised.plan import PrivateSettings
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.target import Target


def under_epsilon(options: RunOptions, target: Target, rounds: RoundSettings, ledgers: str | None) -> RunOptions:
    """The options of a run with this target; FedcarError for what makes no sense, before any device is asked."""
    target.check()
    check_participation(target, rounds)
    if options.over_selection != 1.0:
        raise FedcarError(
            "--over-selection: with --epsilon every answer has been charged and is waited for; leave it out"
        )
    if ledgers is not None and target.unit == "example":
        raise FedcarError(
            "--ledgers: with --unit example each device keeps its own (fedcar join --ledger); leave it out"
        )
    plan = settings_of(options.method, options.adapter, target, rounds).plan(1)  # of how many documents plays no part
    exchanges = plan.steps + 1 + (plan.count is not None) + (plan.held_out is not None)
    return replace(options, target=asdict(target), ledgers=ledgers, exchanges=exchanges)


def settings_of(method: str, adapter: str, target: Target, rounds: RoundSettings) -> PrivateSettings:
    rate = rounds.participation if target.unit == "client" else None
    return PrivateSettings(target, method, rounds.rounds or None, rate, adapter, rounds.seed)


def train_privately_over(
    network: RemoteNetwork,
    untrained: Retriever,
    run: Path,
    options: RunOptions,
    rounds: RoundSettings,
    collection: Collection,
    report: Silent,
    watch: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """All exchanges of the plan, from where the run stands; the retriever is RUN/retriever, the claim RUN/privacy.json.

    `refused` is what a device said that would have crossed its budget; the retriever is then the one so far.
    """
    assert options.target is not None
    start, features = time.monotonic(), FeatureCache(Path(options.cache) if options.cache else None)
    target = Target(**options.target)
    settings = settings_of(options.method, options.adapter, target, rounds)
    plan = settings.plan(len(untrained.documents))
    job = Job.prepare(collection, untrained, features, report, selection=public_dev(collection, target))
    members = kept_devices(run, network, rounds.quorum, report)
    target.check(len(members) if target.unit == "client" else None)
    belongs = belongs_to(collection, untrained.encoder, plan, "devices", members, rounds.seed)
    place = PrivateRun(run, True, belongs, new=False)
    network.private(settings, place.name)
    books = Path(options.ledgers) if options.ledgers else place.clients
    crowd, store = over_a_network(network, plan, place, books, rounds), Exchanges(run / "exchanges")
    report.say(f"{len(members)} devices; {time.monotonic() - start:.0f} s to the first exchange")
    server = PrivateTraining(
        untrained, crowd, plan, store=store, selection=public(job), report=report, watch=noting(place, crowd, watch),
        adapter=settings.module(untrained.encoder.embedding_width),
    )  # fmt: skip
    outcome = server.run()
    assert outcome.statement is not None
    statement = to_json(outcome.statement)
    replace_json(run / "privacy.json", statement)
    about = {"clients": len(members), "unit": target.unit, "run": run.name}
    conclude(job, outcome, plan, about).save(run / RETRIEVER)
    if outcome.refusal is None:
        shutil.rmtree(store.folder, ignore_errors=True)
    records = [shown(record) for record in outcome.records]
    return {
        "run": str(run), "retriever": str(run / RETRIEVER), "rounds": records,
        "selection": max(outcome.scores.values(), default=None),
        "bytes_per_round": sum(one["bytes_up"] + one["bytes_down"] for one in records) // max(1, len(records)),
        "seconds": {"all": round(time.monotonic() - start, 1)}, "privacy": statement,
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
