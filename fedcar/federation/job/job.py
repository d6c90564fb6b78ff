"""What every federated job does between `prepare` and `conclude`: settings, mixture, rounds, candidates, selection."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedcar.collection.pseudo_queries import PseudoQueries, pseudo_queries
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.remote.held_out import candidate_by, select_by
from fedcar.federation.remote.mixture import RemoteMixture
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.remote.ridge import RemoteRidge
from fedcar.federation.remote.rounds import RemoteRounds
from fedcar.federation.rounds.aggregate import FIXED
from fedcar.federation.rounds.client import Client, first_moments
from fedcar.federation.rounds.clients import RoundClients
from fedcar.federation.rounds.clock import VirtualClock
from fedcar.federation.rounds.in_process import LocalNetwork
from fedcar.federation.rounds.record import Record, RoundRecord, Watch
from fedcar.federation.rounds.round import federated_round
from fedcar.federation.rounds.run_folder import RunFolder
from fedcar.federation.rounds.server_selection import ServerSelection
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import Enrolled, ServerState
from fedcar.federation.sums.harm import SumsJudge
from fedcar.federation.sums.mixture import MixtureTerms, federated_mixture
from fedcar.federation.sums.ridge import RidgeMember, feature_map, federated_ridge, gather, rows_of
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of
from fedcar.training.clients import Clients, InProcess
from fedcar.training.gradient import Trainer, prepared, with_learned
from fedcar.training.job import Job
from fedcar.training.selection import Candidate, Score, Standard, baseline_weights, best_weights, candidate, select
from fedcar.training.settings import Settings, TrainingSettings, choose_settings, suited_to


@dataclass(frozen=True)
class FederatedJob:
    """A job whose training questions are on clients: in this process (`shares`), or behind a `network`.

    `folder` is that of history and checkpoint, `resume` goes on from there, `watch` gets each round's record. Round
    times are by the virtual `clock` where clients are in this process.
    """

    job: Job
    method: str
    settings: Settings
    rounds: RoundSettings
    folder: RunFolder
    shares: Mapping[str, Questions] = field(default_factory=dict)
    network: RemoteNetwork | None = None
    clock: VirtualClock = field(default_factory=VirtualClock)
    resume: bool = False
    watch: Watch = lambda record, beside: None


class Learned(NamedTuple):
    """What the rounds came to: candidates, what document folds ask of them, the records of the rounds."""

    candidates: list[Candidate]
    standard: Standard
    records: list[RoundRecord]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records as they stand in the history."""
        return [record.to_json() for record in self.records]


def check_method(method: str, adapter: str, rounds: RoundSettings) -> None:
    """Refuse, before long work, a method or settings that make no sense."""
    rounds.check()
    choose_settings(TrainingSettings(method=method, adapter=adapter, seed=rounds.seed))
    if rounds.share == "adapter" and method != "adapter":
        raise FedcarError(
            f"--share adapter: the method {method} has no adapter; give --method adapter or --share adapter+head"
        )


def fitted(method: str, adapter: str, seed: int, encoder: Encoder, deep: bool) -> Settings:
    """Settings of central training that fit the encoder and the documents, see `suited_to`."""
    return suited_to(choose_settings(TrainingSettings(method=method, adapter=adapter, seed=seed)), encoder, deep)


def matched(settings: Settings, rounds: RoundSettings, questions: int, clients: int) -> tuple[Settings, RoundSettings]:
    """Settings of training and of the rounds with the same number of epochs in all.

    Where a query map is trained, the local batches of a cohort make up one central batch, so that a round makes as many
    steps as a central epoch: the map, which every question moves, needs them. An adapter would need them too, but its
    many steps on few documents' questions drift too far where clients differ much (docs/log.md).
    """
    number = rounds.rounds or max(1, round(settings.epochs / rounds.local_epochs))
    settings = replace(settings, epochs=number * rounds.local_epochs)
    averaged = settings.query_map and rounds.local_optimizer == "shared"
    cohort = max(1, round(rounds.participation * clients)) if averaged else 1
    size = max(1, round(settings.batch_size / cohort))
    return settings, replace(rounds, rounds=number, questions=questions, batch_size=size)


def of_a_client(settings: Settings, rounds: RoundSettings) -> Settings:
    """Settings of local training: smaller batches, the head's rate larger by the root of how much smaller they are.

    The noise of a batch of B / K makes Adam's second moment K times as large and its steps sqrt(K) times as short; the
    mean over K clients takes the noise away again, but not the shortness.
    """
    rate = settings.head_rate * math.sqrt(settings.batch_size / rounds.batch_size)
    return replace(settings, batch_size=rounds.batch_size, head_rate=rate)


def baselines(untrained: Retriever, selection: Questions) -> dict[str, float]:
    """MIPS and hybrid on the selection questions, to stand beside each round."""
    low, high, mips, _ = baseline_weights()
    search = Standard().fitted
    hybrid = best_weights(search(untrained, (low, high)), selection)[1]
    return {"mips": best_weights(search(untrained, (mips,)), selection)[1].success, "hybrid": hybrid.success}


def with_federated_mixture(
    untrained: Retriever, shares: Mapping[str, Questions], network: RemoteNetwork | None = None
) -> tuple[Retriever, int]:
    """The untrained retriever with weights of the evidence learned over the clients, and the rounds that took."""
    if network is not None:
        weights, number = federated_mixture(RemoteMixture(network), untrained.weights, say=network.say)
    else:
        terms = {name: MixtureTerms.of(untrained.features(share), share.relevance) for name, share in shares.items()}
        weights, number = federated_mixture(InProcess(terms), untrained.weights)
    return replace(untrained, weights=weights_of(weights[:LEARNED])), number


def learn(federated: FederatedJob, mixed: Retriever, shown: Mapping[str, float | None]) -> Learned:
    """All rounds of the method on top of the mixture; `shown` stands beside each record that is watched."""
    if federated.method == "ridge":
        return ridge_candidates(federated, mixed)
    trained, records, score = train_rounds(federated, mixed, shown)
    job, name, standard = federated.job, federated.settings.method, Standard()
    if not len(job.selection):
        return Learned([Candidate(name, trained, score)], standard, records)
    return Learned([candidate(name, standard.fitted(trained), job.selection, standard, job.report)], standard, records)


def selected(job: Job, mixed: Retriever, learned: Learned, shares_right: Mapping[bytes, float]) -> Candidate:
    """What is kept of search, evidence and candidates.

    Without selection questions by `shares_right`, what the devices' held-out questions say of search (see `held_out`).
    """
    standard, report = learned.standard, job.report
    evidence = standard.fitted(mixed)
    if len(job.selection):
        first = candidate("evidence", evidence, job.selection, standard, report)
        return select(job.untrained, job.selection, [first, *learned.candidates], standard, report)
    first = candidate_by(shares_right, "evidence", evidence, standard, report)
    return select_by(shares_right, job.untrained, [first, *learned.candidates], standard, report)


def train_rounds(
    federated: FederatedJob, mixed: Retriever, shown: Mapping[str, float | None]
) -> tuple[Retriever, list[RoundRecord], Score]:
    """Rounds of gradient training on top of the evidence: the best round's retriever, the history, the best score."""
    rounds = federated.rounds
    settings = of_a_client(federated.settings, rounds)
    retriever = replace(mixed, weights=with_learned(mixed.weights), head=prepared(mixed.head, settings))
    if federated.network is not None:
        federated.network.begin(settings, rounds, mixed.weights)
        clients: RoundClients = RemoteRounds(federated.network)
    else:
        members = {name: Client(name, retriever, share, settings) for name, share in federated.shares.items()}
        clients = LocalNetwork(members, rounds, federated.clock)
    selection = ServerSelection(retriever, federated.job.selection, settings)
    records = run_rounds(clients, selection, rounds, federated.folder, federated.resume, federated.watch, shown)
    return selection.finish(), records, selection.best.score


def run_rounds(
    clients: RoundClients,
    selection: ServerSelection,
    settings: RoundSettings,
    folder: RunFolder,
    resume: bool,
    watch: Watch,
    shown: Mapping[str, float | None],
) -> list[RoundRecord]:
    """All rounds that are still to do, each with a checkpoint; returns the history."""
    enrolled = {name: client.enrol() for name, client in clients.clients.items()}
    state = ServerState(0, first_tensors(selection.trainer, enrolled, settings))
    records: list[RoundRecord] = []
    before = folder.restore() if resume else None
    if before is not None:
        state, client_states, selection.best, records = before
        for name, client in clients.clients.items():
            client.load_kept(client_states.get(name, {}), state.round)
    selection.active = state.tensors.get(FIXED[0], selection.active)
    judge = selection.chances if len(selection.selection) else None
    for _ in range(state.round, settings.rounds):
        received = state
        state, record = federated_round(state, enrolled, settings, clients, selection, judge)
        selection.heard(received.round, received.tensors, record.held_out)
        client_states = {name: client.kept() for name, client in clients.clients.items()}
        folder.write(state, client_states, selection.best, record)
        records.append(record)
        watch(record, shown)
    if not len(selection.selection):
        selection.heard(state.round, state.tensors, clients.held_out(state))
    return records


def first_tensors(trainer: Trainer, enrolled: Mapping[str, Enrolled], settings: RoundSettings) -> dict[str, Tensor]:
    """The state before the first round: what is shared of the untrained retriever, and which rows any client trains."""
    trained = trainer.trained_tensors()
    if settings.share == "adapter":
        trained = {name: tensor for name, tensor in trained.items() if name.startswith("adapter.")}
    if settings.local_optimizer == "shared":
        trained.update(first_moments(trained))
    if settings.share == "adapter":
        return trained
    active = torch.stack([client.row_questions > 0 for client in enrolled.values()]).any(0)
    return {**trained, FIXED[0]: active & (not trainer.settings.query_map)}


def ridge_clients(federated: FederatedJob, mixed: Retriever) -> Clients:
    """Those who are asked in the round of `ridge`."""
    seed, network = federated.rounds.seed, federated.network
    fixed = feature_map(mixed, federated.job.features, seed)
    if network is not None:
        return RemoteRidge(network, len(mixed.documents), fixed.dimension, seed)
    return InProcess({name: RidgeMember(mixed, share, fixed, seed) for name, share in federated.shares.items()})


def ridge_candidates(federated: FederatedJob, mixed: Retriever) -> Learned:
    """The one round of `ridge`, without and with pseudo-queries, and its record; nothing is kept to go on from."""
    job, seed = federated.job, federated.rounds.seed
    candidates, records, standard = [], [], Standard()
    clients = ridge_clients(federated, mixed)
    judge = None
    if len(job.selection):
        judge = SumsJudge.of(job.selection, feature_map(mixed, job.features, seed), rows_of(mixed))
    gathered = gather(mixed, clients, judge)
    say = job.report.say if federated.network is None else federated.network.say
    for name, pseudo in (("ridge", PseudoQueries()), ("ridge+pseudo", pseudo_queries(mixed.documents, seed))):
        start = time.perf_counter()
        ridge = federated_ridge(mixed, clients, gathered, job.features, seed, pseudo, say)
        standard = ridge.standard
        if not len(job.selection):
            candidates.append(candidate_by(ridge.held_out, name, ridge.fitted, standard, job.report))
        else:
            candidates.append(candidate(name, ridge.fitted, job.selection, standard, job.report))
        record = RoundRecord(
            round=1,
            what=name,
            exchanges=ridge.exchanges,
            selection=candidates[-1].score.success,
            clients=list(gathered.sums),
            questions=sum(part.statistics.questions for part in gathered.sums.values()),
            refused=dict(gathered.refused),
            failed=dict(gathered.failed),
            bytes_down=ridge.bytes_down,
            bytes_up=ridge.bytes_up,
            client_seconds=dict(gathered.seconds),
            clock_seconds=round(time.perf_counter() - start, 4),
        )
        records.append(record)
    if not federated.folder.records():  # or it stands there from before a resume
        federated.folder.append(records[-1].to_json())
    return Learned(candidates, standard, records[-1:])


def bytes_per_round(records: Sequence[Record]) -> int:
    """What a round takes over the network, down and up, as a mean."""
    return sum(record.bytes_down + record.bytes_up for record in records) // max(1, len(records))
