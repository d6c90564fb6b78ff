"""`fedcar train --epsilon`: the questions of one place under differential privacy, as one device and its server."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from typing import Any

from fedcar.collection.collection import Collection, Judged
from fedcar.common.progress import Silent
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.statement import plain_words, to_json
from fedcar.retriever.calibration import Calibration
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.clients import InTurn, NoisedClient
from fedcar.training.noised.plan import PrivatePlan, Target, make_plan
from fedcar.training.noised.server import Outcome, PrivateTraining
from fedcar.training.noised.sums import ClippedSums


def train_under_epsilon(
    collection: Collection,
    target: Target,
    encoder: Encoder,
    features: FeatureCache,
    report: Silent,
    *,
    method: str = "auto",
    adapter: str = "full",
    steps: int | None = None,
    seed: int = 0,
) -> Retriever:
    """A retriever that satisfies (epsilon, delta)-differential privacy for every training question.

    All of train trains; dev is not read unless it was declared public. The statement is in `training["privacy"]` and
    goes with the retriever.

    Formal guarantees:
        no_private_question_changes_anything_un_noised.
    """
    untrained, plan = prepared(collection, target, encoder, features, report, method, steps)
    module = Adapter(adapter, encoder.embedding_width, seed) if plan.method == "adapter" else None
    training = prepare_privately(untrained, collection.judged("train"), features)
    selection = public_questions(collection, target, untrained, features, report)
    source = NoiseSource(target.noise_seed)
    device = NoisedClient("this device", ClippedSums(untrained, training, module), source)
    crowd = InTurn([device])
    outcome = PrivateTraining(untrained, crowd, plan, selection=selection, adapter=module, report=report).run()
    retriever = calibrated(outcome.retriever, collection, selection, features, report)
    retriever.training = record_of(collection, outcome, plan, selection)
    assert outcome.statement is not None
    report.say(plain_words(outcome.statement).splitlines()[0])
    return retriever


def prepared(
    collection: Collection,
    target: Target,
    encoder: Encoder,
    features: FeatureCache,
    report: Silent,
    method: str,
    steps: int | None,
    units: int | None = None,
    sampling_rate: float | None = None,
) -> tuple[Retriever, PrivatePlan]:
    """What comes before any question is read: search over the documents, and the plan."""
    target.check(len(collection.judged("train")) if units is None else units)
    plan = make_plan(target, method, len(collection.documents), steps=steps, sampling_rate=sampling_rate)
    return Retriever.untrained(collection.documents, encoder, features, report), plan


def prepare_privately(untrained: Retriever, judged: Judged, features: FeatureCache) -> Questions:
    """As `questions.prepare`, without the progress and the warnings that count these questions."""
    cut = untrained.encoder.model.texts_cut
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FedcarWarning)
        found = prepare(untrained, judged, features, Silent(), "training questions")
    untrained.encoder.model.texts_cut = cut
    return found


def public_questions(
    collection: Collection, target: Target, untrained: Retriever, features: FeatureCache, report: Silent
) -> Questions | None:
    """The dev questions where they were declared public; None, and unread, otherwise."""
    if not target.public_dev:
        return None
    dev = collection.judged("dev")
    if not len(dev):
        raise FedcarError("--public-dev: there is no dev split to choose by; bring qrels/dev.tsv, or leave it out")
    return prepare(untrained, dev, features, report, "public dev questions")


def calibrated(
    retriever: Retriever, collection: Collection, selection: Questions | None, features: FeatureCache, report: Silent
) -> Retriever:
    """Confidence and threshold from the public dev questions; without them those of no training at all."""
    if selection is None:
        return replace(retriever, calibration=Calibration())
    nobody_answers = collection.unanswerable("dev")
    judged = Judged(nobody_answers, ({},) * len(nobody_answers))
    unanswered = prepare(retriever, judged, features, report, "unanswerable questions")
    others = retriever.scores_of(unanswered) if len(unanswered) else None
    return replace(
        retriever,
        calibration=Calibration.fit(retriever.scores_of(selection), selection.relevance > 0, others),
    )


def record_of(
    collection: Collection, outcome: Outcome, plan: PrivatePlan, selection: Questions | None
) -> dict[str, Any]:
    """What the retriever tells of its training. No number, hash or time in it comes from a private question."""
    documents_alone = replace(collection, queries={}, judgements={})
    assert outcome.statement is not None
    return {
        "method": outcome.name,
        "settings": {**asdict(plan.target), "method": plan.method, "steps": plan.steps, "clip_norm": plan.clip_norm},
        "collection": {"name": collection.name, "documents_fingerprint": documents_alone.fingerprint},
        "questions": None,
        "selection_questions": len(selection) if selection is not None else 0,
        "selection": dict(outcome.scores),
        "history": outcome.records,
        "privacy": to_json(outcome.statement),
    }
