"""`fedcar train --epsilon`: the questions of one place under differential privacy, as one device and its server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedcar.collection.collection import Collection
from fedcar.collection.persons import persons_of
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.privacy.noise import NoiseSource
from fedcar.retriever.questions import Questions
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.retriever import Retriever
from fedcar.training.job import Job, Splits, conclude, prepare
from fedcar.training.noised.clients import InTurn, NoisedClient
from fedcar.training.noised.plan import PrivatePlan
from fedcar.training.noised.server import Outcome, PrivateTraining
from fedcar.training.noised.settings import PrivateSettings
from fedcar.training.noised.sums import ClippedSums
from fedcar.training.selection import NOTHING, Candidate


def train_under_epsilon(
    collection: Collection, settings: PrivateSettings, encoder: Encoder, features: FeatureCache, report: Silent
) -> Retriever:
    """A retriever that satisfies (epsilon, delta)-differential privacy for every training question, or every person.

    All of train trains; dev is not read unless it was declared public. The statement is in `training["privacy"]` and
    goes with the retriever.

    Formal guarantees:
        no_private_question_changes_anything_un_noised.
    """
    questions, target = collection.judged("train"), settings.target
    persons = persons_of(questions, target.column) if target.column is not None else None
    target.check(len(questions) if persons is None else len(set(persons)))
    plan = settings.plan(len(collection.documents))
    splits = Splits.under_epsilon(collection, target.public_dev, questions)
    untrained = Retriever.untrained(collection.documents, encoder, features, report)
    job = prepare(collection, untrained, features, report, splits)
    module = settings.module(encoder.embedding_width)
    sums = ClippedSums(untrained, job.training, module, persons)
    device = NoisedClient("this device", sums, NoiseSource(target.noise_seed))
    selection = chosen_by(job)
    server = PrivateTraining(untrained, InTurn([device]), plan, selection=selection, adapter=module, report=report)
    return concluded(job, server.run(), plan)


def chosen_by(job: Job) -> Questions | None:
    """The questions that choices are made on; None where none were declared public."""
    return job.selection if len(job.selection) else None


def concluded(job: Job, outcome: Outcome, plan: PrivatePlan, federation: Mapping[str, Any] | None = None) -> Retriever:
    """The retriever of a run under epsilon, with its statement and its record; `federation` says who took part.

    No number, hash or time in it comes from a private question.
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
    return conclude(job, Candidate(outcome.name, outcome.retriever, NOTHING), record, outcome.statement)
