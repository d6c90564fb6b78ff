"""The audit of a collection: several runs of the product on some of its training questions, and every check on them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedcar.collection.collection import Collection, Judged
from fedcar.collection.splits import subset
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.privacy.audit import Check, certain, together
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.audit import checks
from fedcar.training.noised.audit.canaries import of_canaries, planted_run
from fedcar.training.noised.audit.definition import Blocks
from fedcar.training.noised.audit.residuals import Expected, residuals_of
from fedcar.training.noised.audit.trial import Setting, Trial, asked_again, run
from fedcar.training.noised.plan import HELD_OUT, make_plan
from fedcar.training.noised.sums import COUNT
from fedcar.training.target import Target

MOST_DOCUMENTS = 200
THROUGH_THE_ENCODER = 16  # questions that autograd takes through the encoder, each by itself, at every step
SHORT_STEPS = 10  # of the runs that try an option
HELD_OUT_QUESTIONS = 8
MEMBERS, MEMBER_RATE = 8, 0.3
MEMBER_STEPS = 24  # enough coins to tell those that are tossed in every second step alone
TIMES = 30  # that what is a single number is asked for again


def audit_collection(
    collection: Collection,
    target: Target,
    *,
    method: str = "head",
    encoder: Encoder,
    features: FeatureCache,
    questions: int = 200,
    seed: int = 0,
    report: Silent | None = None,
) -> list[Check]:
    """Every check on the code that trains, with some real training questions; a correct run is flagged at p < 1e-6.

    Four runs: the plan as asked for over two devices; with an adaptive clip norm and held-out questions; with clients
    as the unit; and over canaries. Nothing is spent on any ledger but those made here. An audit finds faults and
    proves no epsilon.
    """
    report = report or Silent()
    collection, train = some_of(
        collection, questions if method != "adapter" else min(questions, THROUGH_THE_ENCODER), seed
    )
    untrained = Retriever.untrained(collection.documents, encoder, features, report)
    fresh = copied(untrained)  # before any question is read
    asked = prepare(untrained, train, features, report, "questions")
    target = replace(target, against_advice=True)
    found: list[Check] = []
    for setting in settings_of(untrained, asked, target, method):
        report.say(f"{setting.name}: {len(asked)} questions, {setting.plan.steps} steps")
        plural = "" if setting.name == method else f"{setting.name}: "
        found += [replace(check, name=f"{plural}{check.name}") for check in of_setting(setting, fresh, asked)]
    return together(found)


def some_of(collection: Collection, questions: int, seed: int) -> tuple[Collection, Judged]:
    """So many training questions, in the collection's order, and the documents that answer them first of all others."""
    train = collection.judged("train")
    if len(train) < 2:
        raise FedcarError(
            f"{collection.name}: {len(train)} training questions; an audit takes two devices, so 2 or more"
        )
    order = set(np.random.default_rng(seed).permutation(len(train))[: max(2, questions)].tolist())
    chosen = subset(train, [row in order for row in range(len(train))])
    answering = {name for judged in chosen.relevant for name, score in judged.items() if score > 0}
    ranked = sorted(collection.documents, key=lambda document: document.id not in answering)[:MOST_DOCUMENTS]
    kept = {document.id for document in ranked}
    documents = tuple(document for document in collection.documents if document.id in kept)
    relevant = tuple({name: score for name, score in judged.items() if name in kept} for judged in chosen.relevant)
    return replace(collection, documents=documents), Judged(chosen.queries, relevant)


def settings_of(untrained: Retriever, asked: Questions, target: Target, method: str) -> Iterator[Setting]:
    """The runs: as it was asked for, with the options that change what leaves, with clients as the unit."""
    documents, sampled = len(untrained.documents), method == "adapter"
    blocks = Blocks(untrained.encoder) if sampled else None
    halves = {f"device {place + 1}": asked.take(rows) for place, rows in enumerate(parts(len(asked), 2))}
    yield Setting(method, untrained, make_plan(target, method, documents), halves, None, blocks)
    steps = None if method == "ridge" else SHORT_STEPS
    options = replace(target, held_out=True, adaptive_clip=method != "ridge")
    held_out = asked.take(np.arange(min(HELD_OUT_QUESTIONS, len(asked))))
    name = "held out" if method == "ridge" else "adaptive clip, held out"
    yield Setting(name, untrained, make_plan(options, method, documents, steps=steps), halves, held_out, blocks)
    members = {
        f"member {place + 1}": asked.take(rows)
        for place, rows in enumerate(parts(len(asked), min(MEMBERS, len(asked))))
    }
    steps, rate = (None, None) if method == "ridge" else (MEMBER_STEPS, MEMBER_RATE)
    plan = make_plan(replace(target, unit="client"), method, documents, steps=steps, sampling_rate=rate)
    yield Setting("unit client", untrained, plan, members, None, blocks)


def copied(retriever: Retriever) -> Retriever:
    """With rows and weights of its own."""
    return replace(retriever, head=copy.deepcopy(retriever.head), weights=retriever.weights.copy())


def parts(count: int, into: int) -> list[NDArray[np.int64]]:
    """Row numbers, dealt out in turn."""
    return [np.arange(first, count, into) for first in range(into)]


def of_setting(setting: Setting, fresh: Retriever, asked: Questions) -> Iterator[Check]:
    """One run, the same asked again, and a run over canaries."""
    before = checks.public_values(setting.untrained)
    before = {name: tensor.clone() for name, tensor in before.items()}
    with tempfile.TemporaryDirectory() as folder:
        trial = run(setting, Path(folder))
        yield from checks.books(trial)
        yield from checks.claims(trial)
    ask_again(trial)
    expected = Expected(setting.definitions(), setting.cohort)
    passes = {"stated": [*trial.exchanges, *trial.again], "quiet": [*trial.quiet, *trial.quiet_again]}
    found = residuals_of(expected, passes, tuple(setting.untrained.head.rows.shape))
    yield from checks.of_what_leaves(found)
    yield checks.across_kinds(found)
    yield checks.grid(trial)
    yield from checks.neighbours(setting, trial.exchanges)
    shares = parts(max(1, len(asked) // 2), len(setting.parts))
    others = {name: asked.take(rows) for name, rows in zip(setting.parts, shares, strict=True)}
    yield checks.choices(trial, fresh, replace(setting, untrained=fresh, parts=others))
    yield checks.documents_stay(before, setting.untrained, fresh)
    try:
        planted = planted_run(fresh, setting.plan, setting.module())
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        said = f"the run over canaries fails: {type(error).__name__}: {error}"
        yield certain("canaries can take the place of questions", False, said)
    else:
        yield from of_canaries(planted)


def ask_again(trial: Trial) -> None:
    """Small things many times at the stated noise, everything with next to none, and the first of it once more."""
    setting = trial.setting
    small = [one for one in trial.exchanges if one.request.release.name in (COUNT, HELD_OUT)]
    first = [one for one in trial.exchanges if one.request.number == 1]
    for _ in range(TIMES):
        trial.again += asked_again(setting.clients(), small, quiet=False)
    trial.again += asked_again(setting.clients(), first, quiet=False)
    trial.quiet += asked_again(setting.clients(), trial.exchanges, quiet=True)
    again = [one for one in trial.exchanges if one.request.number <= 3 or one.request.release.name == HELD_OUT]
    trial.quiet_again += asked_again(setting.clients(), again, quiet=True)
