"""Federation in this process: the same clients, rounds and checks as over a network, beside a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedcar.collection.collection import Collection, Judged
from fedcar.collection.partition import partition
from fedcar.collection.splits import split_for_selection
from fedcar.common.history import History
from fedcar.common.measure import Clock
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.errors import FedcarError
from fedcar.evaluation.evaluate import evaluate
from fedcar.federation.job.job import (
    Watch,
    baselines,
    check_method,
    fitted,
    matched,
    of_a_client,
    ridge_candidates,
    train_rounds,
    with_federated_mixture,
)
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.rounds.clock import VirtualClock
from fedcar.federation.rounds.run_folder import RunFolder
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.privacy.statement import plain_words, to_json
from fedcar.retriever.evidence import reads_tokens
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.retriever import Retriever
from fedcar.training.checkpoint import Course
from fedcar.training.job import Job
from fedcar.training.paper_recipe import no_guarantee
from fedcar.training.selection import FoldView, Standard, candidate, select
from fedcar.training.settings import Choices, Settings, with_recipe
from fedcar.training.target import DELTA
from fedcar.training.train import trained_candidates

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Over(Protocol):
    """Puts clients behind a network: untrained retriever, each client's collection, folder of their ledgers if kept."""

    def __call__(
        self, untrained: Retriever, shares: Mapping[str, Collection], ledgers: Path | None = None
    ) -> RemoteNetwork: ...


@dataclass(frozen=True)
class Federation:
    """What a federation came to; the fields are those of `fedcar federate --json` (docs/cli.md)."""

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
    job = Job.prepare(collection, untrained, features, report, training=train_split, selection=selection_split)
    training, selection = job.training, job.selection
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
        central = central_training(folder, job, method, settings, measure)
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
    claim = no_guarantee(kept.name, DELTA) if recipe == "paper" else None
    record = TrainingRecord(
        method=kept.name,
        settings=asdict(settings),
        federation={**asdict(rounds), "partition": kind, "clients": len(parts), "mixture_rounds": mixture_rounds},
        questions=len(training),
        history=records,
        privacy=to_json(claim) if claim is not None else None,
    )
    retriever = job.conclude(kept.retriever, record)
    if claim is not None:
        report.say(plain_words(claim).splitlines()[0])
    federated = measure(retriever)
    seconds.lap("evaluate")
    per_round = sum(record["bytes_down"] + record["bytes_up"] for record in records) // max(1, len(records))
    return Federation(
        retriever, Path(run), records, central.get("central"), federated, per_round, seconds.seconds,
        dict(record.privacy) if record.privacy is not None else None,
    )  # fmt: skip


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


def share_of(collection: Collection, judged: Judged, rows: NDArray[np.int64]) -> Collection:
    """The collection as one client has it: all documents, and of the training questions its own."""
    own = {judged.queries[row].id: dict(judged.relevant[row]) for row in rows}
    queries = {query: collection.queries[query] for query in own}
    return Collection(collection.name, collection.documents, queries, {"train": own})


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
    job: Job,
    method: str,
    settings: Settings,
    measure: Callable[[Retriever], dict[str, float] | None],
) -> dict[str, Any]:
    """The same training with all questions in one place: its measures and its selection score; done once a run."""
    known = folder.central()
    if known is not None:
        return known
    job = replace(job, report=Silent())
    view, choices = FoldView.of(job.untrained, job.training, settings.seed), Choices(method=method, seed=settings.seed)
    candidates = trained_candidates(job, choices, settings, Course(History()), view)
    kept = select(job.untrained, job.selection, candidates, view.standard, job.report)
    result = {"central": measure(kept.retriever), "selection": kept.score.success}
    folder.keep_central(result)
    return result


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
