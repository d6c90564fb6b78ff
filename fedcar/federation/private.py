"""`fedcar federate --epsilon`: every client noises and charges what it gives out; the server adds up what it gets."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedcar.adapter import Adapter
from fedcar.collection import Collection
from fedcar.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.evaluate import evaluate
from fedcar.features import FeatureCache
from fedcar.federation.local import Federation, Watch
from fedcar.federation.run_folder import RunFolder, refuse_another
from fedcar.federation.settings import RoundSettings
from fedcar.measure import Clock
from fedcar.model_files import DEFAULT_ENCODER
from fedcar.partition import partition
from fedcar.privacy.ledger import Budget, Head, Ledger
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.statement import plain_words, to_json
from fedcar.private_central import calibrated, prepare_privately, prepared, public_questions, record_of
from fedcar.private_plan import PrivatePlan, Target
from fedcar.private_sums import Asked, Cohort, Device
from fedcar.private_training import Outcome, PrivateTraining
from fedcar.progress import Silent
from fedcar.questions import Questions
from fedcar.retriever import Retriever
from fedcar.storage import write_json

PRIVATE = "private.json"  # beside the history: the run's name, what it belongs to, where each ledger stood last
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
) -> Federation:
    """Train one retriever over clients that each noise their own sums (unit "example"), or over noised sums of clients.

    A round is one full-batch step (`adapter`: one over the questions drawn for it), in which each client gives out one
    noised sum. `ledgers` is the folder of the clients' ledgers, RUN/clients by default: a client whose ledger has no
    room left refuses before it trains. Un-noised settings (weights by n_i, shared moments, compression) have no part.

    Formal guarantees:
        no_private_question_changes_anything_un_noised; refused_before_the_budget_is_crossed;
        resumed_equals_uninterrupted: stored updates are sent again unchanged, the server makes the same of them.
    """
    report, seconds, rounds = report or Silent(), Clock(), rounds or RoundSettings()
    model = encoder if isinstance(encoder, Encoder) else Encoder.load(encoder, pooling)
    features = FeatureCache(Path(cache) if cache else None)
    train_split = collection.judged("train")
    parts = partition(train_split, kind, clients, rounds.seed)
    units = len(parts) if target.unit == "client" else len(train_split)
    rate = rounds.participation if target.unit == "client" else None
    if target.unit == "example" and rounds.participation != 1:
        raise FedcarError("--participation: with --unit example every client takes part in every round; leave it out")
    untrained, plan = prepared(collection, target, model, features, report, method, rounds.rounds or None, units, rate)
    if target.unit == "client" and len(parts) < UNIT_NEEDS_CLIENTS:
        report.say(f"{len(parts)} clients: hiding a whole client takes hundreds; --unit example hides each question")
    place = PrivateRun(Path(run), resume, belongs_to(collection, model, plan, kind, sorted(parts), rounds.seed))
    module = Adapter(adapter, model.embedding_width, rounds.seed) if plan.method == "adapter" else None
    training = prepare_privately(untrained, train_split, features)
    shares = {name: Asked(untrained, training.take(rows), module) for name, rows in sorted(parts.items())}
    books = Path(ledgers or place.clients)
    devices: list[Device] | list[Cohort]
    if target.unit == "example":
        devices = [
            device(name, asked, plan, place, books, number) for number, (name, asked) in enumerate(shares.items())
        ]
    else:
        members = list(shares.values())
        devices = [Cohort(members, device("server", members[0], plan, place, books, 0))]
    selection = public_questions(collection, target, untrained, features, report)
    seconds.lap("encode")

    def noted(record: Mapping[str, Any]) -> None:
        place.note(record, [one.device if isinstance(one, Cohort) else one for one in devices])
        watch(shown(record))

    server = PrivateTraining(untrained, devices, plan, selection=selection, adapter=module, report=report, watch=noted)
    outcome = server.run()
    seconds.lap("rounds")
    retriever = calibrated(outcome.retriever, collection, selection, features, report)
    retriever.training = record_of(collection, outcome, plan, selection)
    retriever.training["federation"] = {"clients": len(parts), "partition": kind, "unit": target.unit}
    return finished(retriever, outcome, place, collection, selection, cache, seconds, report)


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
    write_json(place.folder / "privacy.json", statement)
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


def device(name: str, asked: Asked, plan: PrivatePlan, place: PrivateRun, ledgers: Path, number: int) -> Device:
    """A client with its ledger, which is made where there is none; refuses one that the server knows to be longer."""
    label = quote(name, safe="")
    label = label if len(label) <= 80 else hashlib.sha256(name.encode()).hexdigest()[:24]
    ledger = Ledger(ledgers / label / "ledger.jsonl")
    head = place.heads.get(name)
    if not ledger.path.exists() and head is None:
        seeded = plan.target.noise_seed is not None  # then every charge is infinite, and so must the budget be
        budget = Budget(float("inf") if seeded else plan.target.epsilon, plan.target.delta)
        ledger.create(budget)
    ledger.open(head)
    seed = plan.target.noise_seed
    source = NoiseSource(None if seed is None else seed + number)
    return Device(name, asked, source, ledger, place.name, head)


class PrivateRun:
    """The run folder: RUN/history.jsonl, RUN/private.json, and RUN/clients where the ledgers are not elsewhere."""

    def __init__(self, folder: Path, resume: bool, belongs_to: Mapping[str, Any]) -> None:
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
        else:
            self.history.start(False)
        self.noted = len(self.history.records())
        self.write()

    def note(self, record: Mapping[str, Any], devices: list[Device]) -> None:
        """An exchange is done: the ledgers' heads, then the record, unless it stands there from before a resume."""
        self.heads |= {one.name: one.known_head for one in devices if one.known_head is not None}
        self.write()
        if record["round"] >= self.noted:
            self.history.append(record)

    def write(self) -> None:
        heads = {name: [head.number, head.hash] for name, head in self.heads.items()}
        whole = self.folder / f".{PRIVATE}"
        write_json(whole, {"run": self.name, "belongs_to": self.belongs_to, "heads": heads})
        whole.replace(self.folder / PRIVATE)


def belongs_to(
    collection: Collection, model: Encoder, plan: PrivatePlan, kind: str, clients: list[str], seed: int
) -> dict[str, Any]:
    """What a run belongs to, without a hash of any private question."""
    documents = replace(collection, queries={}, judgements={}).fingerprint
    settings = {**asdict(plan.target), "method": plan.method, "steps": plan.steps, "partition": kind, "seed": seed}
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
