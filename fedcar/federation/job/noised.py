"""The folder and the record of a job under epsilon."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedcar.collection.collection import Collection
from fedcar.collection.partition import PARTS
from fedcar.common.files import replace_json
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.ledgers import file_name, opened_ledger
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.remote.noised import RemoteCohort, RemoteDevices
from fedcar.federation.rounds.record import Watch
from fedcar.federation.rounds.run_folder import RunFolder, refuse_another
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.wire.setup import heads_in_text
from fedcar.privacy.ledger import LedgerHead
from fedcar.privacy.noise import NoiseSource
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.clients import NoisedClient, NoisedClients
from fedcar.training.noised.plan import PrivatePlan
from fedcar.training.noised.record import ExchangeRecord
from fedcar.training.noised.settings import PrivateSettings
from fedcar.training.noised.sums import ClippedSums
from fedcar.training.noised.tally import LEDGER, Spent
from fedcar.training.target import Target

PRIVATE = "private.json"  # beside the history: the run's name, what it belongs to, where each ledger stood last
COINS = "coins.json"  # unit "client" over a network: who was drawn for the exchange that is not done yet


def check_participation(target: Target, rounds: RoundSettings) -> None:
    if target.unit != "client" and rounds.participation != 1:
        raise FedcarError(
            f"--participation: with --unit {target.unit} every client takes part in every round; leave it out"
        )


def settings_of(method: str, adapter: str, target: Target, rounds: RoundSettings) -> PrivateSettings:
    """What the plan follows from: a round is a step, and clients are drawn for it where they are what is hidden."""
    rate = rounds.participation if target.unit == "client" else None
    return PrivateSettings(target, method, rounds.rounds or None, rate, adapter, rounds.seed)


def over_a_network(
    network: RemoteNetwork, plan: PrivatePlan, place: PrivateRun, ledgers: Path, rounds: RoundSettings
) -> RemoteDevices | RemoteCohort:
    """The same behind a network: each device keeps its own ledger, for unit "client" the server."""
    if plan.target.unit == "client":
        door = device("server", None, plan, place, ledgers, 0)
        return RemoteCohort(network, plan, door, rounds, place.folder / COINS)
    return RemoteDevices(network, plan, place, rounds)


def noting(place: PrivateRun, clients: NoisedClients, watch: Watch) -> Callable[[ExchangeRecord], None]:
    """After every exchange: the ledgers' heads and the record on disk, then whoever watches."""

    def noted(record: ExchangeRecord) -> None:
        place.done(record, clients.heads)
        watch(record, {})

    return noted


def device(
    name: str, sums: ClippedSums | None, plan: PrivatePlan, place: PrivateRun, ledgers: Path, number: int
) -> NoisedClient:
    """A client with its ledger; refuses one that the server knows to be longer."""
    head = place.heads.get(name)
    ledger = opened_ledger(ledgers / file_name(name) / LEDGER, head, plan.target, kept=ledgers != place.clients)
    seed = plan.target.noise_seed
    source = NoiseSource(None if seed is None else seed + number)
    return NoisedClient(name, sums, source, ledger, place.name, head)


class PrivateRun:
    """The run folder: RUN/history.jsonl, RUN/private.json, and RUN/clients where the ledgers are not elsewhere."""

    def __init__(
        self, folder: Path, resume: bool, belongs_to: Mapping[str, Any], new: bool = True, former: Path | None = None
    ) -> None:
        """`new`: the folder is made here, and may hold nothing else before. `former`: the file of heads over runs."""
        self.folder, self.resumed = folder, False
        self.spent_by: dict[str, tuple[float, float]] = {}
        self.former_file, self.former = former, read_heads(former)
        self.clients = folder / "clients"
        self.history = RunFolder(folder)
        self.heads: dict[str, LedgerHead] = {}
        self.belongs_to = dict(belongs_to)
        self.name = secrets.token_hex(8)
        file = folder / PRIVATE
        if file.exists():
            if not resume:
                raise FedcarError(f"--run {folder}: holds a run; go on with --resume, or give another folder")
            content = json.loads(file.read_text(encoding="utf-8"))
            refuse_older(folder, content["belongs_to"])
            refuse_another(folder, content["belongs_to"], self.belongs_to)
            self.name, self.resumed = content["run"], True
            self.heads = {name: LedgerHead(*head) for name, head in content["heads"].items()}
            self.spent_by = {name: (before, in_all) for name, (before, in_all) in content.get("spent", {}).items()}
        elif new:
            self.history.start(False)
        self.noted = {record["round"] for record in self.history.records()}
        self.keep()

    @property
    def spent(self) -> Spent | None:
        """The most that a device's ledger said it had spent before this run, and with it; None where none said it."""
        if not self.spent_by:
            return None
        before, in_all = zip(*self.spent_by.values(), strict=True)
        return Spent(max(before), max(in_all))

    def in_text(self, name: str) -> str:
        """What a device is told of its ledgers, see `heads_in_text`."""
        return heads_in_text(self.heads.get(name), self.former.get(name, {}).values())

    def note(self, name: str, head: LedgerHead, before: float, in_all: float) -> bool:
        """Where a device's ledger stands, and what it says was spent; whether it had another ledger in former runs."""
        self.heads[name] = head
        if 0 <= before <= in_all:  # and not NaN
            self.spent_by[name] = (before, in_all)
        if not head.ledger:
            return False
        known = self.former.setdefault(name, {})
        another = bool(known) and head.ledger not in known
        known[head.ledger] = head
        return another

    def done(self, record: ExchangeRecord, heads: Mapping[str, LedgerHead]) -> None:
        """An exchange is done: the ledgers' heads, then the record, unless it stands there from before a resume."""
        self.heads |= heads
        self.keep()
        if record.round not in self.noted:
            self.history.append(record.to_json())

    def keep(self) -> None:
        """Write what is known of the ledgers: of this run, and over runs."""
        content = {"run": self.name, "belongs_to": self.belongs_to, "heads": in_json(self.heads)}
        replace_json(self.folder / PRIVATE, {**content, **({"spent": self.spent_by} if self.spent_by else {})})
        if self.former_file is not None and self.former:
            replace_json(self.former_file, {name: in_json(heads) for name, heads in self.former.items()})


def in_json(heads: Mapping[str, LedgerHead]) -> dict[str, list[int | str]]:
    """Heads of ledgers as they are kept; that of one run's ledger without the name of a ledger over runs."""
    return {
        name: [head.number, head.hash, *([head.ledger] if head.ledger else [])] for name, head in heads.items()
    }  # fmt: skip


def read_heads(file: Path | None) -> dict[str, dict[str, LedgerHead]]:
    """Of each device, by name, the heads of its ledgers over runs; FedcarError where the file says something else."""
    if file is None or not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: {ledger: LedgerHead(*head) for ledger, head in heads.items()} for name, heads in content.items()
        }  # fmt: skip
    except (ValueError, TypeError, AttributeError) as error:
        raise FedcarError(
            f"{file}: cannot be read; restore it from a backup: it is where devices' ledgers stood"
        ) from error


def belongs_to(
    collection: Collection, model: Encoder, plan: PrivatePlan, kind: str, clients: list[str], seed: int
) -> dict[str, Any]:
    """What a run belongs to, without a hash of any private question."""
    documents = replace(collection, queries={}, judgements={}).fingerprint
    rate = None if plan.step is None else plan.step.sampling_rate
    settings = {**asdict(plan.target), "method": plan.method, "steps": plan.steps, "partition": kind, "seed": seed}
    settings["participation"] = rate  # what a step was charged by
    return {
        "documents": documents, "encoder": model.state_fingerprint, "settings": {**settings, "clients": clients},
        "parts": PARTS,
    }  # fmt: skip


def refuse_older(folder: Path, before: Mapping[str, Any]) -> None:
    """A run of a time when clients were drawn over all questions at once, and seconds were recorded, cannot go on."""
    if before.get("parts") != PARTS:
        raise FedcarError(
            f"{folder}: its statement promises too much, since an earlier fedcar drew clients over all questions at "
            "once and recorded seconds; start a new run in another folder"
        )


def stated(folder: Path, retriever: Retriever) -> dict[str, Any]:
    """The statement of a run, beside its history as it is in the retriever."""
    statement = dict(retriever.training.privacy or {})
    replace_json(folder / "privacy.json", statement)
    return statement
