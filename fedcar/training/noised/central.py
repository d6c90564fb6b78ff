"""`fedcar train --epsilon`: the questions of one place under differential privacy, as one device and its server."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from fedcar.collection.collection import Collection
from fedcar.collection.persons import persons_of
from fedcar.collection.pseudo_queries import PseudoQueries
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.privacy.noise import NoiseSource
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.retriever import Retriever
from fedcar.training.job import Job, Splits, conclude, prepare
from fedcar.training.noised.clients import InTurn, NoisedClient, NoisedClients
from fedcar.training.noised.plan import PrivatePlan
from fedcar.training.noised.public import PublicQuestions, with_public_rows
from fedcar.training.noised.server import Outcome, PrivateTraining
from fedcar.training.noised.settings import PrivateSettings
from fedcar.training.noised.sums import ClippedSums
from fedcar.training.noised.tally import Counting, Spent, Tallied, tally_of
from fedcar.training.selection import NOTHING, Candidate


def train_under_epsilon(
    collection: Collection,
    settings: PrivateSettings,
    encoder: Encoder,
    features: FeatureCache,
    report: Silent,
    generated: PseudoQueries | None = None,
    counting: Counting | None = None,
) -> Retriever:
    """A retriever that satisfies (epsilon, delta)-differential privacy for every training question, or every person.

    All of train trains; dev is not read unless it was declared public. `generated` are questions that came from the
    documents: like public ones they teach rows without noise, from which noised steps go on. The statement is in
    `training["privacy"]` and goes with the retriever. The run is charged to the ledger of the collection, see
    `Counting`; BudgetError, before anything is trained, where that has no room for it.

    Formal guarantees:
        no_private_question_changes_anything_un_noised.
    """
    questions, target = collection.judged("train"), settings.target
    persons = persons_of(questions, target.column) if target.column is not None else None
    target.check(len(questions) if persons is None else len(set(persons)))
    splits = Splits.under_epsilon(collection, target.has_public, questions)
    settings = with_public_rows(settings, splits.public, len(collection.documents))
    plan = settings.plan(len(collection.documents))
    tally = tally_of(collection, plan, secrets.token_hex(8), counting or Counting(), report.say)
    untrained = Retriever.untrained(collection.documents, encoder, features, report)
    job = prepare(collection, untrained, features, report, splits)
    module = settings.module(encoder.embedding_width)
    sums = ClippedSums(untrained, job.training, module, persons)
    device = NoisedClient("this device", sums, NoiseSource(target.noise_seed))
    public = PublicQuestions.of(job)
    if generated:
        public = public.with_generated(generated, untrained, features, report)
    clients: NoisedClients = InTurn([device]) if tally is None else Tallied(InTurn([device]), tally)
    server = PrivateTraining(untrained, clients, plan, public=public, adapter=module, report=report)
    outcome = server.run()
    if outcome.refusal is not None:  # another run has taken the room that was there
        raise outcome.refusal
    return concluded(job, outcome, plan, spent=None if tally is None else tally.spent())


def concluded(
    job: Job,
    outcome: Outcome,
    plan: PrivatePlan,
    federation: Mapping[str, Any] | None = None,
    spent: Spent | None = None,
) -> Retriever:
    """The retriever of a run under epsilon, with its statement and its record; `federation` says who took part.

    `spent` is what the ledgers count over all runs. No number, hash or time in it comes from a private question.
    """
    record = TrainingRecord(
        settings={
            **asdict(plan.target),
            "method": plan.method,
            "steps": plan.steps,
            "clip_norm": plan.clip_norm,
        },
        history=[record.to_json() for record in outcome.records],
        selection=dict(outcome.scores),
        federation=federation,
    )
    claim = outcome.statement
    if claim is not None and spent is not None:
        claim = replace(claim, spent_before=spent.before, spent_in_all=spent.in_all)
    return conclude(job, Candidate(outcome.name, outcome.retriever, NOTHING), record, claim)
