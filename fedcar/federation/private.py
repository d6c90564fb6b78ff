"""`fedcar federate --epsilon`: every client noises and charges what it gives out; the server adds up what it gets."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcar.adapter import Adapter
from fedcar.collection import Collection, Judged
from fedcar.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.evaluate import evaluate
from fedcar.features import FeatureCache
from fedcar.federation.device_private import LEDGER, PrivateSettings, file_name, opened_ledger
from fedcar.federation.local import Federation, Over, Watch, share_of
from fedcar.federation.remote import RemoteNetwork
from fedcar.federation.remote_private import RemoteCohort, RemoteDevices
from fedcar.federation.run_folder import RunFolder, refuse_another
from fedcar.federation.settings import RoundSettings
from fedcar.measure import Clock
from fedcar.model_files import DEFAULT_ENCODER
from fedcar.partition import partition
from fedcar.privacy.ledger import Head
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.statement import plain_words, to_json
from fedcar.private_central import calibrated, prepare_privately, prepared, public_questions, record_of
from fedcar.private_devices import Cohort, Crowd, Device, HeldOut, InTurn
from fedcar.private_plan import PrivatePlan, Target
from fedcar.private_sums import Asked
from fedcar.private_training import Outcome, PrivateTraining, held_out_counts
from fedcar.progress import Silent
from fedcar.questions import Questions
from fedcar.retriever import Retriever
from fedcar.storage import replace_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PRIVATE = "private.json"  # beside the history: the run's name, what it belongs to, where each ledger stood last
COINS = "coins.json"  # unit "client" over a network: who was drawn for the exchange that is not done yet
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
    untrained, plan = prepared(collection, target, model, features, report, method, rounds.rounds or None, units, rate)
    if target.unit == "client" and len(parts) < UNIT_NEEDS_CLIENTS:
        report.say(f"{len(parts)} clients: hiding a whole client takes hundreds; --unit example hides each question")
    place = PrivateRun(Path(run), resume, belongs_to(collection, model, plan, kind, sorted(parts), rounds.seed))
    module = Adapter(adapter, model.embedding_width, rounds.seed) if plan.method == "adapter" else None
    books = Path(ledgers or place.clients)
    if over is None:
        training = prepare_privately(untrained, train_split, features)
        asked = {name: Asked(untrained, training.take(rows), module) for name, rows in sorted(parts.items())}
        dev = prepare_privately(untrained, held_out, features)
        counts = {name: partial(held_out_counts, untrained, dev.take(rows), module) for name, rows in of_dev.items()}
        crowd: Crowd = in_this_process(asked, plan, place, books, counts)
    else:
        own = {name: share_of(collection, train_split, rows) for name, rows in parts.items()}
        for name in own.keys() & of_dev.keys():
            own[name] = with_held_out(own[name], share_of(collection, held_out, of_dev[name]))
        network = over(untrained, own, books if target.unit == "example" else None)
        network.private(PrivateSettings(target, method, rounds.rounds or None, rate, adapter, rounds.seed), place.name)
        network.greet(1.0)
        crowd = over_a_network(network, plan, place, books, rounds)
    selection = public_questions(collection, target, untrained, features, report)
    seconds.lap("encode")
    server = PrivateTraining(
        untrained, crowd, plan, selection=selection, adapter=module, report=report,
        watch=noting(place, crowd, watch),
    )  # fmt: skip
    outcome = server.run()
    seconds.lap("rounds")
    retriever = calibrated(outcome.retriever, collection, selection, features, report)
    retriever.training = record_of(collection, outcome, plan, selection)
    retriever.training["federation"] = {"clients": len(parts), "partition": kind, "unit": target.unit}
    return finished(retriever, outcome, place, collection, selection, cache, seconds, report)


def partition_of_dev(held_out: Judged, kind: str, clients: int | None, seed: int) -> dict[str, NDArray[np.int64]]:
    """Which held-out question counts at which client. Also one that stands in train: no choice is made by train."""
    if not len(held_out):
        raise FedcarError("--held-out: there is no dev split whose questions could count; bring qrels/dev.tsv")
    return partition(held_out, kind, clients and min(clients, len(held_out)), seed)


def check_participation(target: Target, rounds: RoundSettings) -> None:
    if target.unit == "example" and rounds.participation != 1:
        raise FedcarError("--participation: with --unit example every client takes part in every round; leave it out")


def with_held_out(share: Collection, held_out: Collection) -> Collection:
    """A client's collection with questions to count on as its dev split."""
    queries, dev = {**share.queries, **held_out.queries}, held_out.judgements["train"]
    return replace(share, queries=queries, judgements={**share.judgements, "dev": dev})


def in_this_process(
    asked: Mapping[str, Asked], plan: PrivatePlan, place: PrivateRun, books: Path, held_out: Mapping[str, HeldOut]
) -> InTurn:
    """Clients of this process, each with its ledger; for unit "client" one for all, which the server keeps."""
    if plan.target.unit == "client":
        return InTurn([Cohort(list(asked.values()), device("server", None, plan, place, books, 0))])
    devices = [device(name, one, plan, place, books, number) for number, (name, one) in enumerate(asked.items())]
    for one in devices:
        one.held_out = held_out.get(one.name)
    return InTurn(devices)


def over_a_network(
    network: RemoteNetwork, plan: PrivatePlan, place: PrivateRun, books: Path, rounds: RoundSettings
) -> RemoteDevices | RemoteCohort:
    """The same behind a network: each device keeps its own ledger, for unit "client" the server."""
    if plan.target.unit == "client":
        door = device("server", None, plan, place, books, 0)
        return RemoteCohort(network, plan, door, rounds, place.folder / COINS)
    return RemoteDevices(network, plan, place.heads, rounds)


def noting(place: PrivateRun, crowd: Crowd, watch: Watch) -> Watch:
    """After every exchange: the ledgers' heads and the record on disk, then whoever watches."""

    def noted(record: Mapping[str, Any]) -> None:
        place.note(record, crowd.heads)
        watch(shown(record))

    return noted


def finished(
    retriever: Retriever,
    outcome: Outcome,
    place: PrivateRun,
    collection: Collection,
    selection: Questions | None,
    cache: str | Path | None,
    seconds: Clock,
    report: Silent,
) -> Federation:
    """The statement on disk, and the measures where they read public questions alone."""
    assert outcome.statement is not None
    statement = to_json(outcome.statement)
    replace_json(place.folder / "privacy.json", statement)
    report.say(plain_words(outcome.statement).splitlines()[0])
    measures = None
    if selection is not None:
        public = replace(collection, judgements={"dev": collection.judgements["dev"]})
        measures = evaluate(retriever, public, "dev", cache=cache)["systems"]["retriever"]["all"]
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


def device(name: str, asked: Asked | None, plan: PrivatePlan, place: PrivateRun, ledgers: Path, number: int) -> Device:
    """A client with its ledger; refuses one that the server knows to be longer."""
    head = place.heads.get(name)
    ledger = opened_ledger(ledgers / file_name(name) / LEDGER, head, plan.target)
    seed = plan.target.noise_seed
    source = NoiseSource(None if seed is None else seed + number)
    return Device(name, asked, source, ledger, place.name, head)


class PrivateRun:
    """The run folder: RUN/history.jsonl, RUN/private.json, and RUN/clients where the ledgers are not elsewhere."""

    def __init__(self, folder: Path, resume: bool, belongs_to: Mapping[str, Any], new: bool = True) -> None:
        """`new`: the folder is made here, and may hold nothing else before."""
        self.folder = folder
        self.clients = folder / "clients"
        self.history = RunFolder(folder)
        self.heads: dict[str, Head] = {}
        self.belongs_to = dict(belongs_to)
        self.name = secrets.token_hex(8)
        file = folder / PRIVATE
        if file.exists():
            if not resume:
                raise FedcarError(f"--run {folder}: holds a run; go on with --resume, or give another folder")
            content = json.loads(file.read_text(encoding="utf-8"))
            refuse_another(folder, content["belongs_to"], self.belongs_to)
            self.name = content["run"]
            self.heads = {name: Head(number, digest) for name, (number, digest) in content["heads"].items()}
        elif new:
            self.history.start(False)
        self.noted = {record["round"] for record in self.history.records()}
        self.write()

    def note(self, record: Mapping[str, Any], heads: Mapping[str, Head]) -> None:
        """An exchange is done: the ledgers' heads, then the record, unless it stands there from before a resume."""
        self.heads |= heads
        self.write()
        if record["round"] not in self.noted:
            self.history.append(record)

    def write(self) -> None:
        heads = {name: [head.number, head.hash] for name, head in self.heads.items()}
        replace_json(self.folder / PRIVATE, {"run": self.name, "belongs_to": self.belongs_to, "heads": heads})


def belongs_to(
    collection: Collection, model: Encoder, plan: PrivatePlan, kind: str, clients: list[str], seed: int
) -> dict[str, Any]:
    """What a run belongs to, without a hash of any private question."""
    documents = replace(collection, queries={}, judgements={}).fingerprint
    rate = None if plan.step is None else plan.step.sampling_rate
    settings = {**asdict(plan.target), "method": plan.method, "steps": plan.steps, "partition": kind, "seed": seed}
    settings["participation"] = rate  # what a step was charged by
    return {"documents": documents, "encoder": model.fingerprint, "settings": {**settings, "clients": clients}}


def shown(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the columns of the live table; what would need an un-noised look is empty."""
    empty: dict[str, Any] = {
        "selection": None,
        "loss": None,
        "failed": {},
        "bytes_down": 0,
        "bytes_up": 0,
        "clock_seconds": 0.0,
    }
    return {**empty, **record}
