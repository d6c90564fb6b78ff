"""`fedcar federate --epsilon`: every client noises and charges what it gives out; the server adds up what it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedcar.collection.collection import Collection, Judged, Query
from fedcar.collection.importing import PUBLIC_IDS
from fedcar.collection.partition import UNNAMED, Partition, partition_by_question
from fedcar.collection.persons import partition_of_persons, persons_of
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.errors import FedcarError
from fedcar.evaluation.evaluate import evaluate
from fedcar.federation.job.job import bytes_per_round
from fedcar.federation.job.noised import (
    PrivateRun,
    belongs_to,
    check_participation,
    device,
    noting,
    over_a_network,
    settings_of,
    stated,
)
from fedcar.federation.ledgers import file_name, opened_ledger
from fedcar.federation.rounds.record import Watch
from fedcar.federation.simulate.federate import share_of
from fedcar.federation.simulate.settings import Federation, NoisedFederation
from fedcar.privacy.ledger import Ledger
from fedcar.retriever.retriever import Retriever
from fedcar.training.job import NO_QUESTIONS, Job, Splits, prepare, prepare_privately
from fedcar.training.noised.central import concluded
from fedcar.training.noised.clients import Cohort, HeldOut, InTurn, NoisedClients
from fedcar.training.noised.plan import PrivatePlan
from fedcar.training.noised.public import PublicQuestions, with_public_rows
from fedcar.training.noised.server import PrivateTraining, held_out_counts
from fedcar.training.noised.sums import ClippedSums
from fedcar.training.noised.tally import LEDGER, Tallied, tally_of
from fedcar.training.settings import loaded
from fedcar.training.target import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fedcar.federation.simulate.settings import NoisedOptions

UNIT_NEEDS_CLIENTS = 200


@dataclass(frozen=True)
class SharedOut:
    """Which questions (rows) each client has, who asked each where persons are the unit, and how many units there are.

    Of iid and dirichlet clients one has all questions of a person.
    """

    parts: Partition
    persons: Sequence[str] | None
    units: int

    @classmethod
    def of(
        cls, collection: Collection, questions: Judged, target: Target, kind: str, clients: int | None, seed: int
    ) -> SharedOut:
        everyone = names_clients(collection)
        if target.column is None:
            parts = partition_by_question(questions, kind, clients, seed, everyone)
            return cls(parts, None, len(parts) if target.unit == "client" else len(questions))
        if kind == "client":
            raise FedcarError(
                "--partition client: a person may have asked at several clients, each with noise of its own; give "
                "--partition iid or dirichlet:ALPHA, which keep persons together, or --unit example"
            )
        persons = persons_of(questions, target.column)
        parts = partition_of_persons(questions, persons, kind, clients, seed)
        return cls(parts, persons, len(set(persons)))

    def persons_at(self, client: str) -> list[str] | None:
        """Who asked each of the client's questions."""
        return None if self.persons is None else [self.persons[row] for row in self.parts[client].tolist()]


def federate_under_epsilon(
    collection: Collection,
    target: Target,
    *,
    run: str | Path,
    cache: str | Path | None = None,
    resume: bool = False,
    report: Silent | None = None,
    watch: Watch = lambda record, beside: None,
    **options: Unpack[NoisedOptions],
) -> Federation:
    """Train one retriever over clients that each noise their own sums, or (unit "client") over noised sums of clients.

    A round is one full-batch step (`adapter`: one over the questions drawn for it), in which each client gives out one
    noised sum. The options are the fields of `NoisedFederation`: a client whose ledger has no room left refuses before
    it trains. Un-noised settings (weights by n_i, shared moments, compression) have no part. With `over` noise and
    ledgers are the clients', but for unit "client".

    Formal guarantees:
        no_private_question_changes_anything_un_noised; refused_before_the_budget_is_crossed;
        resumed_equals_uninterrupted: stored updates are sent again unchanged, the server makes the same of them.
        over_a_network_equals_in_process: the same ledgers and statement; with noise that can be repeated the same rows.
    """
    report, federation = report or Silent(), NoisedFederation(target=target, **options)
    encoder, features = loaded(federation.encoder, federation.pooling), FeatureCache(Path(cache) if cache else None)
    questions, seed = collection.judged("train"), federation.rounds.seed
    shared = SharedOut.of(collection, questions, target, federation.kind, federation.clients, seed)
    parts = shared.parts
    check_participation(target, federation.rounds)
    held_out = collection.judged("dev") if target.held_out else NO_QUESTIONS
    if target.held_out and not len(held_out):
        raise FedcarError("--held-out: there is no dev split whose questions could count; bring qrels/dev.tsv")
    of_dev = parts_of(collection, held_out, federation)  # also those that stand in train: no choice is made by train
    target.check(shared.units)
    settings = settings_of(federation.method, federation.adapter, target, federation.rounds)
    splits = Splits.under_epsilon(collection, target.has_public, questions if federation.over is None else None)
    settings = with_public_rows(settings, splits.public, len(collection.documents))
    plan = settings.plan(len(collection.documents))
    untrained = Retriever.untrained(collection.documents, encoder, features, report)
    if federation.kind == "client" and UNNAMED in parts:
        report.say(f'questions that name no client are those of "{UNNAMED}"')
    if target.unit == "client" and len(parts) < UNIT_NEEDS_CLIENTS:
        report.say(f"{len(parts)} clients: hiding a whole client takes hundreds; --unit example hides each question")
    place = PrivateRun(Path(run), resume, belongs_to(collection, encoder, plan, federation.kind, sorted(parts), seed))
    tally = tally_of(collection, plan, place.name, federation.counting, report.say)
    job = prepare(collection, untrained, features, report, splits)
    module, ledgers = settings.module(encoder.embedding_width), Path(federation.ledgers or place.clients)
    if federation.over is None:
        sums = {
            name: ClippedSums(untrained, job.training.take(rows), module, shared.persons_at(name))
            for name, rows in sorted(parts.items())
        }
        dev = prepare_privately(untrained, held_out, features)
        counts = {name: partial(held_out_counts, untrained, dev.take(rows), module) for name, rows in of_dev.items()}
        clients: NoisedClients = in_this_process(sums, plan, place, ledgers, counts)
    else:
        collections = {name: share_of(collection, questions, rows) for name, rows in parts.items()}
        for name in of_dev if target.held_out else ():
            collections[name] = with_held_out(collections[name], share_of(collection, held_out, of_dev[name]))
        if target.unit != "client":  # their budget is the user's word, before any device is asked
            for name in collections:
                opened_ledger(ledgers / file_name(name) / LEDGER, place.heads.get(name), target)
        network = federation.over(untrained, collections, ledgers if target.unit != "client" else None)
        network.private(settings, place.name)
        network.greet(1.0)
        clients = over_a_network(network, plan, place, ledgers, federation.rounds)
    if tally is not None:
        doors = ["server"] if target.unit == "client" else sorted(parts)
        lost = lost_by([ledgers / file_name(name) / LEDGER for name in doors], place)
        clients = Tallied(clients, tally, lost)
    server = PrivateTraining(
        untrained, clients, plan, public=PublicQuestions.of(job), adapter=module, report=report,
        watch=noting(place, clients, watch),
    )  # fmt: skip
    outcome = server.run()
    told = {"clients": len(parts), "partition": federation.kind, "unit": target.unit}
    retriever = concluded(job, outcome, plan, told, None if tally is None else tally.spent())
    statement = stated(place.folder, retriever)
    measures = measured(retriever, job)
    return Federation(
        retriever, place.folder, outcome.records, None, measures, bytes_per_round(outcome.records), {}, statement,
        outcome.refusal,
    )  # fmt: skip


def lost_by(files: Sequence[Path], place: PrivateRun) -> Callable[[int], int]:
    """How often an exchange of a run that is resumed was charged by a client and lost, at most; else never."""
    if not place.resumed:
        return lambda number: 0
    ledgers = [Ledger(file) for file in files if file.exists()]

    def lost(number: int) -> int:
        missing = [ledger for ledger in ledgers if ledger.stored_update(place.name, number) is None]
        return max((ledger.charges(place.name, number) for ledger in missing), default=0)

    return lost


def measured(retriever: Retriever, job: Job) -> dict[str, float] | None:
    """The measures on the dev questions where they were declared public; None, and nothing read, otherwise."""
    if not len(job.selection):
        return None
    judged, unanswerable = job.collection.judged("dev"), job.collection.unanswerable("dev")
    queries = {query.id: query for query in (*judged.queries, *unanswerable)}
    dev = dict(zip((query.id for query in judged.queries), judged.relevant, strict=True))
    public = replace(job.collection, queries=queries, judgements={"dev": dev})
    found = evaluate(retriever, public, "dev", cache=job.features.public.folder)
    measures: dict[str, float] = found["systems"]["retriever"]["all"]
    return measures


def names_clients(collection: Collection) -> list[Query]:
    """The questions whose clients' names are public: all of the collection, none of a file of public questions."""
    return [query for query in collection.queries.values() if not query.id.startswith(PUBLIC_IDS)]


def parts_of(collection: Collection, judged: Judged, federation: NoisedFederation) -> Partition:
    """Which of these questions each client has, by the same clients' names whichever questions are private."""
    everyone, seed = names_clients(collection), federation.rounds.seed
    return partition_by_question(judged, federation.kind, federation.clients, seed, everyone)


def with_held_out(share: Collection, held_out: Collection) -> Collection:
    """A client's collection with questions to count on as its dev split."""
    queries, dev = {**share.queries, **held_out.queries}, held_out.judgements["train"]
    return replace(share, queries=queries, judgements={**share.judgements, "dev": dev})


def in_this_process(
    sums: Mapping[str, ClippedSums],
    plan: PrivatePlan,
    place: PrivateRun,
    ledgers: Path,
    held_out: Mapping[str, HeldOut],
) -> InTurn:
    """Clients of this process, each with its ledger; for unit "client" one for all, which the server keeps."""
    if plan.target.unit == "client":
        return InTurn([Cohort(list(sums.values()), device("server", None, plan, place, ledgers, 0))])
    devices = [
        device(name, clipped_sums, plan, place, ledgers, number)
        for number, (name, clipped_sums) in enumerate(sums.items())
    ]
    for client in devices:
        client.held_out = held_out.get(client.name)
    return InTurn(devices)
