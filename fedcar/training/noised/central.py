"""`fedcar train --epsilon`: the questions of one place under differential privacy, as one device and its server.

How every job under epsilon begins and ends stands here too: `prepare` reads no private question, `conclude` neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from fedcar.collection.collection import Collection, Judged
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.statement import plain_words, to_json
from fedcar.retriever.prepare import prepare as read
from fedcar.retriever.questions import Questions
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.retriever import Retriever
from fedcar.training.job import NOBODY, Job
from fedcar.training.noised.clients import InTurn, NoisedClient
from fedcar.training.noised.plan import PrivatePlan, PrivateSettings
from fedcar.training.noised.server import Outcome, PrivateTraining
from fedcar.training.noised.sums import ClippedSums
from fedcar.training.settings import Choices
from fedcar.training.target import Target


def train_under_epsilon(
    collection: Collection,
    target: Target,
    encoder: Encoder,
    features: FeatureCache,
    report: Silent,
    choices: Choices,
) -> Retriever:
    """A retriever that satisfies (epsilon, delta)-differential privacy for every training question.

    All of train trains; dev is not read unless it was declared public. The statement is in `training.privacy` and goes
    with the retriever.

    Formal guarantees:
        no_private_question_changes_anything_un_noised.
    """
    settings = PrivateSettings(target, choices.method, choices.epochs, None, choices.adapter, choices.seed)
    job, plan = prepare(collection, settings, encoder, features, report)
    adapter = replace(settings, method=plan.method).module(encoder.embedding_width)
    training = read_privately(job.untrained, collection.judged("train"), features)
    source = NoiseSource(target.noise_seed)
    clients = InTurn([NoisedClient("this device", ClippedSums(job.untrained, training, adapter), source)])
    server = PrivateTraining(job.untrained, clients, plan, selection=public(job), adapter=adapter, report=report)
    return conclude(job, server.run(), plan)


def prepare(
    collection: Collection,
    settings: PrivateSettings,
    encoder: Encoder,
    features: FeatureCache,
    report: Silent,
    units: int | None = None,
) -> tuple[Job, PrivatePlan]:
    """What comes before any private question is read: search over the documents, and the plan for so many `units`."""
    settings.target.check(len(collection.judged("train")) if units is None else units)
    plan = settings.plan(len(collection.documents))
    untrained = Retriever.untrained(collection.documents, encoder, features, report)
    dev = public_dev(collection, settings.target)
    return Job.prepare(collection, untrained, features, report, selection=dev), plan


def public_dev(collection: Collection, target: Target) -> Judged:
    """The dev questions where they were declared public; none otherwise."""
    if not target.public_dev:
        return NOBODY
    dev = collection.judged("dev")
    if not len(dev):
        raise FedcarError("--public-dev: there is no dev split to choose by; bring qrels/dev.tsv, or leave it out")
    return dev


def public(job: Job) -> Questions | None:
    """The questions that may be chosen by; None where there are none."""
    return job.selection if len(job.selection) else None


def read_privately(untrained: Retriever, judged: Judged, features: FeatureCache) -> Questions:
    """Private questions made ready, without the progress and the warnings that count them."""
    cut = untrained.encoder.model.texts_cut
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FedcarWarning)
        questions = read(untrained, judged, features, Silent(), "training questions")
    untrained.encoder.model.texts_cut = cut
    return questions


def conclude(job: Job, outcome: Outcome, plan: PrivatePlan, federation: Mapping[str, Any] | None = None) -> Retriever:
    """The retriever that training came to, with what it tells; nothing in it comes from a private question.

    Without public dev questions confidence and threshold are those of no training at all.
    """
    documents_alone = replace(job.collection, queries={}, judgements={})
    assert outcome.statement is not None
    record = TrainingRecord(
        method=outcome.name,
        settings={**asdict(plan.target), "method": plan.method, "steps": plan.steps, "clip_norm": plan.clip_norm},
        federation=federation,
        collection={"name": job.collection.name, "documents_fingerprint": documents_alone.fingerprint},
        selection=dict(outcome.scores),
        history=outcome.records,
        privacy=to_json(outcome.statement),
    )
    job.report.say(plain_words(outcome.statement).splitlines()[0])
    return job.conclude(outcome.retriever, record)
