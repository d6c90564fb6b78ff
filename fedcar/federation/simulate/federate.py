"""Federation in this process: the same clients, rounds and checks as over a network, beside a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.collection.collection import Collection, Judged
from fedcar.collection.partition import PARTS, partition
from fedcar.collection.pseudo_queries import pseudo_queries
from fedcar.collection.splits import split_for_selection
from fedcar.common.measure import Clock
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.evaluation.evaluate import evaluate
from fedcar.federation.job.job import (
    FederatedJob,
    baselines,
    bytes_per_round,
    check_method,
    fitted,
    learn,
    matched,
    of_a_client,
    selected,
    with_federated_mixture,
)
from fedcar.federation.rounds.record import Watch
from fedcar.federation.rounds.run_folder import RunFolder
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.settings import Federation, PlainFederation
from fedcar.retriever.evidence import reads_tokens
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.retriever import Retriever
from fedcar.training.checkpoint import Course
from fedcar.training.job import Job, Splits, conclude, prepare
from fedcar.training.paper_recipe import no_guarantee
from fedcar.training.selection import FoldView, select
from fedcar.training.settings import Settings, loaded, with_recipe
from fedcar.training.target import DELTA
from fedcar.training.train import trained_candidates

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from fedcar.federation.simulate.settings import PlainOptions


def federate(
    collection: Collection,
    settings: PlainFederation | None = None,
    *,
    run: str | Path,
    cache: str | Path | None = None,
    resume: bool = False,
    report: Silent | None = None,
    watch: Watch = lambda record, beside: None,
    **changes: Unpack[PlainOptions],
) -> Federation:
    """Train one retriever over clients simulated in this process, without noise; central training for comparison.

    With noise: `federate_under_epsilon`. What it is asked for are `settings`, or its fields by name: federate(
    collection, run="run", clients=3, method="ridge"); see `PlainFederation`. First the mixture of the evidence (see
    `mixture`), then rounds of `method`. `run` is the folder of history and checkpoint, `watch` gets each round's
    record, and what stands beside it.

    Formal guarantees:
        over_a_network_equals_in_process: the same state after every round, with hidden states from the same cache.
        resumed_equals_uninterrupted: bitwise on the same machine, also after kill -9.
        same_seed_same_model: the same, as long as the clock drops nobody by measured seconds.
    """
    report, seconds = report or Silent(), Clock()
    federation = replace(settings, **changes) if settings is not None else PlainFederation(**changes)
    check_method(federation.method, federation.adapter, federation.rounds)
    encoder, features = loaded(federation.encoder, federation.pooling), FeatureCache(Path(cache) if cache else None)
    splits, parts = divided(collection, federation)
    folder = RunFolder(Path(run))
    folder.start(resume)
    untrained = Retriever.untrained(collection.documents, encoder, features, report, seed=federation.rounds.seed)
    job = prepare(collection, untrained, features, report, splits)
    seconds.lap("encode")
    steps = fitted(
        federation.method, federation.adapter, federation.rounds.seed, untrained.encoder, untrained.evidence.deep
    )
    steps, rounds = matched(steps, federation.rounds, len(job.training), len(parts))
    steps = with_recipe(steps, federation.recipe, federation.method, None)
    folder.belongs_to = belongs_to(job, steps, rounds, federation, len(parts))
    measure = partial(measured, collection=collection, cache=cache)
    central = central_training(folder, job, federation.method, steps, measure) if federation.compare else {}
    seconds.lap("central")
    network = None
    if federation.over is not None:
        assert splits.training is not None
        collections = {name: share_of(collection, splits.training, rows) for name, rows in parts.items()}
        network = federation.over(untrained, collections)
        network.enrol(1.0)
        seconds.lap("start")
    shares = {name: job.training.take(rows) for name, rows in parts.items()}
    mixed, mixture_rounds = with_federated_mixture(untrained, shares, network)
    federated = FederatedJob(
        job, federation.method, steps, rounds, folder, shares, network, federation.clock, resume, watch
    )  # fmt: skip
    learned = learn(federated, mixed, {**baselines(untrained, job.selection), "central": central.get("selection")})
    seconds.lap("rounds")
    chosen = selected(job, mixed, learned, {})
    told = {**asdict(rounds), "partition": federation.kind, "clients": len(parts), "mixture_rounds": mixture_rounds}
    record = TrainingRecord(asdict(steps), learned.history, len(job.training), federation=told)
    claim = no_guarantee(chosen.name, DELTA) if federation.recipe == "paper" else None
    retriever = conclude(job, chosen, record, claim, in_one_place=False)
    measures = measure(retriever)
    seconds.lap("evaluate")
    return Federation(
        retriever, Path(run), learned.records, central.get("central"), measures, bytes_per_round(learned.records),
        seconds.seconds, retriever.training.privacy,
    )  # fmt: skip


def divided(collection: Collection, federation: PlainFederation) -> tuple[Splits, dict[str, NDArray[np.int64]]]:
    """The questions to learn from and to choose by, and which of the former each client has."""
    splits = Splits.in_one_place(collection, federation.rounds.seed)
    assert splits.training is not None
    parts = partition(splits.training, federation.kind, federation.clients, federation.rounds.seed)
    if not len(splits.selection):
        few = len(splits.training)
        raise FedcarError(f"{few} training questions and no dev split: too few to choose by; bring a dev split")
    return splits, parts


def belongs_to(
    job: Job, settings: Settings, rounds: RoundSettings, federation: PlainFederation, clients: int
) -> dict[str, object]:
    """What a run belongs to; another collection, encoder or setting cannot be resumed from it."""
    who = {"partition": federation.kind, "parts": PARTS, "clients": clients, "clock": str(federation.clock)}
    return {
        "collection": job.collection.fingerprint,
        "encoder": job.untrained.encoder.state_fingerprint,
        "settings": {**who, **asdict(rounds), **asdict(settings)},
    }


def share_of(collection: Collection, judged: Judged, rows: NDArray[np.int64]) -> Collection:
    """The collection as one client has it: all documents, and of the training questions its own."""
    judgements = {judged.queries[row].id: dict(judged.relevant[row]) for row in rows}
    queries = {query: collection.queries[query] for query in judgements}
    return Collection(collection.name, collection.documents, queries, {"train": judgements})


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
    untrained, quiet = job.untrained, replace(job, report=Silent())
    pseudo, view = (
        pseudo_queries(untrained.documents, settings.seed),
        FoldView.of(untrained, job.training, settings.seed),
    )
    candidates = trained_candidates(quiet, method, settings, pseudo, view, Course())
    chosen = select(untrained, job.selection, candidates, view.standard, Silent())
    result = {"central": measure(chosen.retriever), "selection": chosen.score.success}
    folder.keep_central(result)
    return result


def plan(
    collection: Collection,
    *,
    clients: int | None,
    kind: str,
    encoder: str | Path | Encoder,
    method: str,
    adapter: str,
    rounds: RoundSettings,
) -> dict[str, Any]:
    """What `federate` would do with the same arguments, without doing it."""
    check_method(method, adapter, rounds)
    model = loaded(encoder, None)
    training, selection = split_for_selection(collection, rounds.seed)
    parts = partition(training, kind, clients, rounds.seed)
    settings = fitted(method, adapter, rounds.seed, model, reads_tokens(collection.documents, model))
    settings, rounds = matched(settings, rounds, len(training), len(parts))
    return {
        "documents": len(collection.documents),
        "training questions": {name: len(rows) for name, rows in parts.items()},
        "selection questions": len(selection),
        "encoder": model.in_words,
        "rounds": asdict(rounds),
        "local training": asdict(of_a_client(settings, rounds)),
    }
