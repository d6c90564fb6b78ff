"""Federation in this process: the same clients, rounds and checks as over a network, beside a virtual clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fedcar.collection import Collection, Judged
from fedcar.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.evaluate import evaluate
from fedcar.evidence import reads_tokens
from fedcar.features import FeatureCache
from fedcar.federation.client import Client, first_moments
from fedcar.federation.clock import VirtualClock
from fedcar.federation.held_out import candidate_by
from fedcar.federation.judge import Judge
from fedcar.federation.mixture import Evidence, federated_mixture
from fedcar.federation.network import LocalNetwork
from fedcar.federation.remote import RemoteNetwork
from fedcar.federation.remote_ridge import RemoteRidge
from fedcar.federation.ridge_round import LocalRidge, RidgeClients, feature_map, federated_ridge
from fedcar.federation.round import Enrolled, ServerState, federated_round
from fedcar.federation.run_folder import RunFolder
from fedcar.federation.server import FIXED
from fedcar.federation.settings import RoundSettings
from fedcar.fit import Settings, Trainer, prepared, with_learned
from fedcar.history import History
from fedcar.measure import Clock
from fedcar.model_files import DEFAULT_ENCODER
from fedcar.paper_recipe import no_guarantee
from fedcar.partition import partition
from fedcar.privacy.statement import plain_words, to_json
from fedcar.private_plan import DELTA
from fedcar.progress import Silent
from fedcar.pseudo_queries import PseudoQueries, pseudo_queries
from fedcar.questions import Questions, prepare, split_for_selection
from fedcar.retriever import LEARNED, Retriever, weights_of
from fedcar.selection import Score, Standard, baseline_weights, best_weights
from fedcar.train import (
    Candidate,
    FoldView,
    calibrated,
    candidate,
    choose_settings,
    select,
    suited_to,
    trained_candidates,
    with_recipe,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Watch = Callable[[Mapping[str, Any]], None]


class Over(Protocol):
    """Puts clients behind a network: untrained retriever, each client's collection, folder of their ledgers if kept."""

    def __call__(
        self, untrained: Retriever, shares: Mapping[str, Collection], ledgers: Path | None = None
    ) -> RemoteNetwork: ...


@dataclass(frozen=True)
class Federation:
    """What a federation came to; the fields are those of `fedcar federate --json` (design, section 4)."""

    retriever: Retriever
    run: Path
    rounds: list[dict[str, Any]]
    central: dict[str, float] | None
    federated: dict[str, float] | None
    bytes_per_round: int
    seconds: dict[str, float]
    privacy: dict[str, Any] | None = None
    refusal: Exception | None = None  # of a client whose budget would have been crossed; the retriever so far is kept


def federate(
    collection: Collection,
    *,
    run: str | Path,
    clients: int | None,
    kind: str = "iid",
    encoder: str | Path | Encoder = DEFAULT_ENCODER,
    pooling: str | None = None,
    method: str = "head",
    adapter: str = "full",
    rounds: RoundSettings | None = None,
    recipe: str = "private",
    clock: VirtualClock | None = None,
    compare: bool = True,
    cache: str | Path | None = None,
    resume: bool = False,
    report: Silent | None = None,
    watch: Watch = lambda record: None,
    over: Over | None = None,
) -> Federation:
    """Train one retriever over clients simulated in this process, without noise; central training for comparison.

    With noise: `private.federate_under_epsilon`. `recipe` "paper" is noise too, without any formal guarantee.

    First the mixture of the evidence (see `mixture`), then rounds of `method`. `kind` is the partition, `run` the
    folder of history and checkpoint, `watch` gets each round's record. `rounds.rounds` 0 stands for as many as make the
    epochs of central training. `over` puts the clients behind a network, each with its own questions (see `loopback`).

    Formal guarantees:
        over_a_network_equals_in_process: the same state after every round, with hidden states from the same cache.
        resumed_equals_uninterrupted: bitwise on the same machine, also after kill -9.
        same_seed_same_model: the same, as long as the clock drops nobody by measured seconds.
    """
    report, seconds, clock = report or Silent(), Clock(), clock or VirtualClock()
    rounds = rounds or RoundSettings()
    check_method(method, adapter, rounds)
    model = encoder if isinstance(encoder, Encoder) else Encoder.load(encoder, pooling)
    features = FeatureCache(Path(cache) if cache else None)
    train_split, selection_split = split_for_selection(collection, rounds.seed)
    parts = partition(train_split, kind, clients, rounds.seed)
    if not len(selection_split):
        raise FedcarError(
            f"{len(train_split)} training questions and no dev split: too few to choose by; bring a dev split"
        )
    folder = RunFolder(Path(run))
    folder.start(resume)
    untrained = Retriever.untrained(collection.documents, model, features, report, seed=rounds.seed)
    training = prepare(untrained, train_split, features, report, "training questions")
    selection = prepare(untrained, selection_split, features, report, "selection questions")
    seconds.lap("encode")
    settings = fitted(method, adapter, rounds.seed, untrained.encoder, untrained.evidence.deep)
    settings, rounds = matched(settings, rounds, len(training), len(parts))
    settings = with_recipe(settings, recipe, method, None)
    folder.belongs_to = belongs_to(collection, model, settings, rounds, kind, len(parts), clock)

    def measure(retriever: Retriever) -> dict[str, float] | None:
        return measured(retriever, collection, cache)

    shown: dict[str, float | None] = {**baselines(untrained, selection)}
    central = {}
    if compare:
        central = central_training(folder, untrained, training, selection, method, settings, features, measure)
    seconds.lap("central")
    shares = {name: training.take(rows) for name, rows in parts.items()}
    network = None
    if over is not None:
        network = over(untrained, {name: share_of(collection, train_split, rows) for name, rows in parts.items()})
        network.enrol(1.0)
        seconds.lap("start")
    mixed, mixture_rounds = with_federated_mixture(untrained, shares, network)
    standard = Standard()
    if method == "ridge":
        found, standard, records = ridge_candidates(mixed, shares, selection, features, rounds, folder, report, network)
    else:
        shown["central"] = central.get("selection")
        trained, records, _ = train_rounds(
            mixed, shares, selection, settings, rounds, clock, folder, resume, watch, shown, network
        )
        found = [candidate(settings.method, standard.fitted(trained), selection, standard, report)]
    seconds.lap("rounds")
    first = candidate("evidence", standard.fitted(mixed), selection, standard, report)
    kept = select(untrained, selection, [first, *found], standard, report)
    nobody_answers = collection.unanswerable("dev")
    unanswerable = Judged(nobody_answers, ({},) * len(nobody_answers))
    unanswered = prepare(untrained, unanswerable, features, report, "unanswerable questions")
    kept = replace(kept, retriever=calibrated(kept.retriever, selection, unanswered))
    kept.retriever.training = {
        "method": kept.name,
        "settings": asdict(settings),
        "federation": {**asdict(rounds), "partition": kind, "clients": len(parts), "mixture_rounds": mixture_rounds},
        "collection": {"name": collection.name, "fingerprint": collection.fingerprint},
        "questions": len(training),
        "selection_questions": len(selection),
        "history": records,
    }
    federated = measure(kept.retriever)
    seconds.lap("evaluate")
    per_round = sum(record["bytes_down"] + record["bytes_up"] for record in records) // max(1, len(records))
    claim = None
    if recipe == "paper":
        claim = no_guarantee(kept.name, DELTA)
        kept.retriever.training["privacy"] = to_json(claim)
        report.say(plain_words(claim).splitlines()[0])
    return Federation(
        kept.retriever, Path(run), records, central.get("central"), federated, per_round, seconds.seconds,
        to_json(claim) if claim is not None else None,
    )  # fmt: skip


def check_method(method: str, adapter: str, rounds: RoundSettings) -> None:
    """Refuse, before long work, a method or settings that make no sense."""
    rounds.check()
    choose_settings(method, adapter, "linear", 0, None, rounds.seed, False)
    if rounds.share == "adapter" and method != "adapter":
        raise FedcarError(
            f"--share adapter: the method {method} has no adapter; give --method adapter or --share adapter+head"
        )


def fitted(method: str, adapter: str, seed: int, encoder: Encoder, deep: bool) -> Settings:
    """Settings of central training that fit the encoder and the documents, see `suited_to`."""
    return suited_to(choose_settings(method, adapter, "linear", 0, None, seed, False), encoder, deep)


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


def belongs_to(
    collection: Collection,
    model: Encoder,
    settings: Settings,
    rounds: RoundSettings,
    kind: str,
    clients: int,
    clock: VirtualClock,
) -> dict[str, object]:
    """What a run belongs to; another collection, encoder or setting cannot be resumed from it."""
    together = {"partition": kind, "clients": clients, "clock": str(clock), **asdict(rounds), **asdict(settings)}
    return {"collection": collection.fingerprint, "encoder": model.fingerprint, "settings": together}


def baselines(untrained: Retriever, selection: Questions) -> dict[str, float]:
    """MIPS and hybrid on the selection questions, to stand beside each round."""
    low, high, mips, _ = baseline_weights()
    search = Standard().fitted
    hybrid = best_weights(search(untrained, (low, high)), selection)[1]
    return {"mips": best_weights(search(untrained, (mips,)), selection)[1].success, "hybrid": hybrid.success}


def share_of(collection: Collection, judged: Judged, rows: NDArray[np.int64]) -> Collection:
    """The collection as one client has it: all documents, and of the training questions its own."""
    own = {judged.queries[row].id: dict(judged.relevant[row]) for row in rows}
    queries = {query: collection.queries[query] for query in own}
    return Collection(collection.name, collection.documents, queries, {"train": own})


def with_federated_mixture(
    untrained: Retriever, shares: Mapping[str, Questions], network: RemoteNetwork | None = None
) -> tuple[Retriever, int]:
    """The untrained retriever with weights of the evidence learned over the clients, and the rounds that took."""
    if network is not None:
        weights, number = network.mixture()
        return replace(untrained, weights=weights_of(weights[:LEARNED])), number
    evidence = {name: Evidence.of(untrained.features(share), share.relevance) for name, share in shares.items()}
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
    judge = Judge(retriever, selection, settings)
    records = run_rounds(network, judge, rounds, folder, resume, watch, shown)
    return judge.finish(), records, judge.best.score


def run_rounds(
    network: LocalNetwork | RemoteNetwork,
    judge: Judge,
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


def measured(retriever: Retriever, collection: Collection, cache: str | Path | None) -> dict[str, float] | None:
    """The retriever's measures on the test questions (on dev without them); None without either."""
    for split in ("test", "dev"):
        if len(collection.judged(split)):
            result: dict[str, float] | None = evaluate(retriever, collection, split, cache=cache)["systems"][
                "retriever"
            ]["all"]
            return result
    return None


def central_training(
    folder: RunFolder,
    untrained: Retriever,
    training: Questions,
    selection: Questions,
    method: str,
    settings: Settings,
    features: FeatureCache,
    measure: Callable[[Retriever], dict[str, float] | None],
) -> dict[str, Any]:
    """The same training with all questions in one place: its measures and its selection score; done once a run."""
    known = folder.central()
    if known is not None:
        return known
    pseudo, view = pseudo_queries(untrained.documents, settings.seed), FoldView.of(untrained, training, settings.seed)
    candidates = trained_candidates(
        untrained, training, selection, pseudo, settings, method, features, History(), None, False, Silent(), view
    )
    kept = select(untrained, selection, candidates, view.standard, Silent())
    result = {"central": measure(kept.retriever), "selection": kept.score.success}
    if untrained.encoder.adapter is not None:
        untrained.encoder.remove_adapter()
    folder.keep_central(result)
    return result


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


def plan(
    collection: Collection,
    *,
    clients: int | None,
    kind: str,
    encoder: str | Path,
    method: str,
    adapter: str,
    rounds: RoundSettings,
) -> dict[str, Any]:
    """What `federate` would do with the same arguments, without doing it."""
    check_method(method, adapter, rounds)
    model = Encoder.load(encoder)
    training, selection = split_for_selection(collection, rounds.seed)
    parts = partition(training, kind, clients, rounds.seed)
    settings = fitted(method, adapter, rounds.seed, model, reads_tokens(collection.documents, model))
    settings, rounds = matched(settings, rounds, len(training), len(parts))
    return {
        "documents": len(collection.documents),
        "training questions": {name: len(rows) for name, rows in parts.items()},
        "selection questions": len(selection),
        "encoder": f"{model.name} ({model.dimension} wide, pooling {model.pooling}, {model.fingerprint[:12]})",
        "rounds": asdict(rounds),
        "local training": asdict(of_a_client(settings, rounds)),
    }
