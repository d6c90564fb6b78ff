"""`fedcar federate --epsilon`: every client noises and charges what it gives out; the server adds up what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedcar.collection.collection import Collection, Judged
from fedcar.collection.partition import partition
from fedcar.common.files import replace_json
from fedcar.common.measure import Clock
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.errors import FedcarError
from fedcar.evaluation.evaluate import evaluate
from fedcar.federation.job.job import Watch
from fedcar.federation.job.noised import (
    PrivateRun,
    belongs_to,
    check_participation,
    device,
    noting,
    over_a_network,
    shown,
)
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.federate import Federation, Over, share_of
from fedcar.privacy.statement import to_json
from fedcar.retriever.retriever import Retriever
from fedcar.training.job import Job
from fedcar.training.noised.central import conclude, prepare, public, read_privately
from fedcar.training.noised.clients import Clients, Cohort, HeldOut, InTurn
from fedcar.training.noised.plan import PrivatePlan, PrivateSettings
from fedcar.training.noised.server import Outcome, PrivateTraining, held_out_counts
from fedcar.training.noised.sums import ClippedSums
from fedcar.training.target import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNIT_NEEDS_CLIENTS = 200


def federate_under_epsilon(
    collection: Collection,
    target: Target,
    *,
    run: str | Path,
    clients: int | None,
    kind: str = "iid",
    encoder: str | Path | Encoder = DEFAULT_ENCODER,
    pooling: str | None = None,
    method: str = "head",
    adapter: str = "full",
    rounds: RoundSettings | None = None,
    ledgers: str | Path | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    report: Silent | None = None,
    watch: Watch = lambda record: None,
    over: Over | None = None,
) -> Federation:
    """Train one retriever over clients that each noise their own sums (unit "example"), or over noised sums of clients.

    A round is one full-batch step (`adapter`: one over the questions drawn for it), in which each client gives out one
    noised sum. `ledgers` is the folder of the clients' ledgers, RUN/clients by default: a client whose ledger has no
    room left refuses before it trains. Un-noised settings (weights by n_i, shared moments, compression) have no part.
    `over` puts the clients behind a network: then noise and ledgers are theirs (unit "example").

    Formal guarantees:
        no_private_question_changes_anything_un_noised; refused_before_the_budget_is_crossed;
        resumed_equals_uninterrupted: stored updates are sent again unchanged, the server makes the same of them.
        over_a_network_equals_in_process: the same ledgers and statement; with noise that can be repeated the same rows.
    """
    report, seconds, rounds = report or Silent(), Clock(), rounds or RoundSettings()
    model = encoder if isinstance(encoder, Encoder) else Encoder.load(encoder, pooling)
    features = FeatureCache(Path(cache) if cache else None)
    train_split = collection.judged("train")
    parts = partition(train_split, kind, clients, rounds.seed)
    units = len(parts) if target.unit == "client" else len(train_split)
    rate = rounds.participation if target.unit == "client" else None
    check_participation(target, rounds)
    held_out = collection.judged("dev") if target.held_out else Judged((), ())
    of_dev = partition_of_dev(held_out, kind, clients, rounds.seed) if target.held_out else {}
    settings = PrivateSettings(target, method, rounds.rounds or None, rate, adapter, rounds.seed)
    job, plan = prepare(collection, settings, model, features, report, units)
    untrained = job.untrained
    if target.unit == "client" and len(parts) < UNIT_NEEDS_CLIENTS:
        report.say(f"{len(parts)} clients: hiding a whole client takes hundreds; --unit example hides each question")
    place = PrivateRun(Path(run), resume, belongs_to(collection, model, plan, kind, sorted(parts), rounds.seed))
    module = replace(settings, method=plan.method).module(model.embedding_width)
    books = Path(ledgers or place.clients)
    if over is None:
        training = read_privately(untrained, train_split, features)
        asked = {name: ClippedSums(untrained, training.take(rows), module) for name, rows in sorted(parts.items())}
        dev = read_privately(untrained, held_out, features)
        counts = {name: partial(held_out_counts, untrained, dev.take(rows), module) for name, rows in of_dev.items()}
        crowd: Clients = in_this_process(asked, plan, place, books, counts)
    else:
        own = {name: share_of(collection, train_split, rows) for name, rows in parts.items()}
        for name in own.keys() & of_dev.keys():
            own[name] = with_held_out(own[name], share_of(collection, held_out, of_dev[name]))
        network = over(untrained, own, books if target.unit == "example" else None)
        network.private(settings, place.name)
        network.greet(1.0)
        crowd = over_a_network(network, plan, place, books, rounds)
    seconds.lap("encode")
    server = PrivateTraining(
        untrained, crowd, plan, selection=public(job), adapter=module, report=report,
        watch=noting(place, crowd, watch),
    )  # fmt: skip
    outcome = server.run()
    seconds.lap("rounds")
    retriever = conclude(job, outcome, plan, {"clients": len(parts), "partition": kind, "unit": target.unit})
    return finished(retriever, job, outcome, place, cache, seconds)


def partition_of_dev(held_out: Judged, kind: str, clients: int | None, seed: int) -> dict[str, NDArray[np.int64]]:
    """Which held-out question counts at which client. Also one that stands in train: no choice is made by train."""
    if not len(held_out):
        raise FedcarError("--held-out: there is no dev split whose questions could count; bring qrels/dev.tsv")
    return partition(held_out, kind, clients and min(clients, len(held_out)), seed)


def with_held_out(share: Collection, held_out: Collection) -> Collection:
    """A client's collection with questions to count on as its dev split."""
    queries, dev = {**share.queries, **held_out.queries}, held_out.judgements["train"]
    return replace(share, queries=queries, judgements={**share.judgements, "dev": dev})


def in_this_process(
    asked: Mapping[str, ClippedSums], plan: PrivatePlan, place: PrivateRun, books: Path, held_out: Mapping[str, HeldOut]
) -> InTurn:
    """Clients of this process, each with its ledger; for unit "client" one for all, which the server keeps."""
    if plan.target.unit == "client":
        return InTurn([Cohort(list(asked.values()), device("server", None, plan, place, books, 0))])
    devices = [device(name, one, plan, place, books, number) for number, (name, one) in enumerate(asked.items())]
    for one in devices:
        one.held_out = held_out.get(one.name)
    return InTurn(devices)


def finished(
    retriever: Retriever,
    job: Job,
    outcome: Outcome,
    place: PrivateRun,
    cache: str | Path | None,
    seconds: Clock,
) -> Federation:
    """The statement on disk, and the measures where they read public questions alone."""
    assert outcome.statement is not None
    statement = to_json(outcome.statement)
    replace_json(place.folder / "privacy.json", statement)
    measures = None
    if len(job.selection):
        dev_alone = replace(job.collection, judgements={"dev": job.collection.judgements["dev"]})
        measures = evaluate(retriever, dev_alone, "dev", cache=cache)["systems"]["retriever"]["all"]
    seconds.lap("evaluate")
    records = [shown(record) for record in outcome.records]
    traffic = sum(record["bytes_up"] + record["bytes_down"] for record in records) // max(1, len(records))
    return Federation(
        retriever,
        place.folder,
        records,
        None,
        measures,
        traffic,
        seconds.seconds,
        statement,
        outcome.refusal,
    )
