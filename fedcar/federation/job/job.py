"""What every federated job does around its rounds: settings, mixture, rounds, candidates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedcar.collection.pseudo_queries import PseudoQueries, pseudo_queries
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.remote.held_out import candidate_by
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.remote.ridge import RemoteRidge
from fedcar.federation.rounds.aggregate import FIXED
from fedcar.federation.rounds.client import Client, first_moments
from fedcar.federation.rounds.clock import VirtualClock
from fedcar.federation.rounds.in_process import LocalNetwork
from fedcar.federation.rounds.round import federated_round
from fedcar.federation.rounds.run_folder import RunFolder
from fedcar.federation.rounds.server_selection import ServerSelection
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import Enrolled, ServerState
from fedcar.federation.sums.mixture import MixtureTerms, federated_mixture
from fedcar.federation.sums.ridge import LocalRidge, RidgeClients, feature_map, federated_ridge
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of
from fedcar.training.gradient import Trainer, prepared, with_learned
from fedcar.training.selection import Candidate, Score, Standard, baseline_weights, best_weights, candidate
from fedcar.training.settings import Choices, Settings, suited_to

Watch = Callable[[Mapping[str, Any]], None]


def check_method(method: str, adapter: str, rounds: RoundSettings) -> None:
    """Refuse, before long work, a method or settings that make no sense."""
    rounds.check()
    Choices(method=method, adapter=adapter, seed=rounds.seed).settings()
    if rounds.share == "adapter" and method != "adapter":
        raise FedcarError(
            f"--share adapter: the method {method} has no adapter; give --method adapter or --share adapter+head"
        )


def fitted(method: str, adapter: str, seed: int, encoder: Encoder, deep: bool) -> Settings:
    """Settings of central training that fit the encoder and the documents, see `suited_to`."""
    return suited_to(Choices(method=method, adapter=adapter, seed=seed).settings(), encoder, deep)


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
        weights, number = network.mixture()
        return replace(untrained, weights=weights_of(weights[:LEARNED])), number
    evidence = {name: MixtureTerms.of(untrained.features(share), share.relevance) for name, share in shares.items()}
    weights, number = federated_mixture(evidence, untrained.weights)
    return replace(untrained, weights=weights_of(weights[:LEARNED])), number


def train_rounds(
    mixed: Retriever,
    shares: Mapping[str, Questions],
    selection: Questions,
    settings: Settings,
    rounds: RoundSettings,
    clock: VirtualClock,
    folder: RunFolder,
    resume: bool,
    watch: Watch,
    shown: Mapping[str, float | None],
    remote: RemoteNetwork | None = None,
) -> tuple[Retriever, list[dict[str, Any]], Score]:
    """Rounds of gradient training on top of the evidence: the best round's retriever, the history, the best score."""
    settings = of_a_client(settings, rounds)
    retriever = replace(mixed, weights=with_learned(mixed.weights), head=prepared(mixed.head, settings))
    if remote is not None:
        remote.begin(settings, rounds, mixed.weights)
        network: LocalNetwork | RemoteNetwork = remote
    else:
        members = {name: Client(name, retriever, share, settings) for name, share in shares.items()}
        network = LocalNetwork(members, rounds, clock)
    judge = ServerSelection(retriever, selection, settings)
    records = run_rounds(network, judge, rounds, folder, resume, watch, shown)
    return judge.finish(), records, judge.best.score


def run_rounds(
    network: LocalNetwork | RemoteNetwork,
    judge: ServerSelection,
    settings: RoundSettings,
    folder: RunFolder,
    resume: bool,
    watch: Watch,
    shown: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    """All rounds that are still to do, each with a checkpoint; returns the history."""
    enrolled = {name: client.enrol() for name, client in network.clients.items()}
    state = ServerState(0, first_tensors(judge.trainer, enrolled, settings))
    records: list[dict[str, Any]] = []
    before = folder.restore() if resume else None
    if before is not None:
        state, kept, judge.best, records = before
        for name, client in network.clients.items():
            client.load_kept(kept.get(name, {}), state.round)
    judge.active = state.tensors.get(FIXED[0], judge.active)
    for _ in range(state.round, settings.rounds):
        received = state
        state, record = federated_round(state, enrolled, settings, network, judge)
        judge.heard(received.round, received.tensors, record.get("held_out"))
        folder.write(state, {name: client.kept() for name, client in network.clients.items()}, judge.best, record)
        records.append(record)
        watch({**shown, **record})
    if isinstance(network, RemoteNetwork) and not len(judge.selection):
        judge.heard(state.round, state.tensors, network.held_out(state))
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
    active = torch.stack([one.row_questions > 0 for one in enrolled.values()]).any(0)
    return {**trained, FIXED[0]: active & (not trainer.settings.query_map)}


def ridge_candidates(
    mixed: Retriever,
    shares: Mapping[str, Questions],
    selection: Questions,
    features: FeatureCache,
    rounds: RoundSettings,
    folder: RunFolder,
    report: Silent,
    network: RemoteNetwork | None = None,
) -> tuple[list[Candidate], Standard, list[dict[str, Any]]]:
    """The one round of `ridge`, without and with pseudo-queries, and its record; nothing is kept to go on from."""
    found, records, standard = [], [], Standard()
    remote = None
    if network is not None:
        remote = RemoteRidge(network, mixed, feature_map(mixed, features, rounds.seed).dimension, rounds.seed)
    clients: RidgeClients = remote or LocalRidge(mixed, shares, features, rounds.seed)
    for name, pseudo in (("ridge", PseudoQueries()), ("ridge+pseudo", pseudo_queries(mixed.documents, rounds.seed))):
        start = time.perf_counter()
        one = federated_ridge(mixed, clients, features, rounds.seed, pseudo)
        standard = one.standard
        if remote is not None and not len(selection):
            found.append(candidate_by(remote.held_out_share, name, one.fitted, standard, report))
        else:
            found.append(candidate(name, one.fitted, selection, standard, report))
        record = {
            "round": 1,
            "what": name,
            "exchanges": one.exchanges,
            "selection": found[-1].score.success,
            "loss": None,
            "clients": sorted(clients.sums()),
            "questions": sum(part.statistics.questions for part in clients.sums().values()),
            "refused": {},
            "failed": dict(clients.failed),
            "bytes_down": one.bytes_down,
            "bytes_up": one.bytes_up,
            "client_seconds": dict(one.client_seconds),
            "clock_seconds": round(time.perf_counter() - start, 4),
        }
        records.append(record)
    if not folder.records():  # or it stands there from before a resume
        folder.append(records[-1])
    return found, standard, records[-1:]
