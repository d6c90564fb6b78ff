"""Training: which methods are tried, what selection keeps, and why."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedcar.collection.collection import Collection
from fedcar.collection.pseudo_queries import PseudoQueries, pseudo_queries
from fedcar.collection.splits import split_for_selection, warn_of_narrow_data
from fedcar.common.history import History
from fedcar.common.measure import Clock, peak_memory_mb
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.errors import FedcarWarning
from fedcar.privacy.statement import plain_words, to_json
from fedcar.retriever.evidence import reads_tokens
from fedcar.retriever.questions import Questions
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of
from fedcar.training.checkpoint import Checkpoint, Course
from fedcar.training.generated_questions import questions_from
from fedcar.training.gradient import fit
from fedcar.training.job import Job
from fedcar.training.mixture import fit_mixture
from fedcar.training.noised.central import train_under_epsilon
from fedcar.training.noised.plan import make_plan
from fedcar.training.paper_recipe import no_guarantee
from fedcar.training.ridge import Summed, fit_ridge, too_many
from fedcar.training.selection import Candidate, FoldView, candidate, select
from fedcar.training.settings import Choices, Settings, is_small, of_adapter, suited, suited_to

LEAST_PSEUDO = 0.01  # of the questions' weight


def train(
    collection: Collection,
    choices: Choices | None = None,
    *,
    encoder: str | Path | Encoder = DEFAULT_ENCODER,
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    report: Silent | None = None,
    **changes: Any,  # noqa: ANN401 - fields of `Choices`
) -> Retriever:
    """Train a retriever on the collection's training questions; without any, the retriever is hybrid search.

    What can be chosen stands in `Choices`: give one, or its fields by their names, as in `train(collection,
    method="head", epochs=3)`. `cache` is the folder of the hidden states; `checkpoint` a folder written after every
    epoch, from which `resume` goes on.

    Formal guarantees:
        never_below_baselines_on_selection_data: BM25, MIPS, hybrid, the evidence alone and every epoch are candidates;
            what is best on dev is kept (on a tenth of the training questions where there is no dev split). Where some
            documents have no training question, document folds count by the share of such documents, and nothing is
            kept that is below hybrid search there.
        same_seed_same_model, resumed_equals_uninterrupted: bitwise, on the same machine, from the same cache.
    """
    choices, report, clock = replace(choices or Choices(), **changes), report or Silent(), Clock()
    settings, target = choices.settings(), choices.target(resume)
    if target is not None:
        target.check()
    model = encoder if isinstance(encoder, Encoder) else Encoder.load(encoder, choices.pooling)
    features = FeatureCache(Path(cache) if cache else None)
    if target is not None:
        return train_under_epsilon(collection, target, model, features, report, choices)
    model.runtime_name(
        [*(one.full_text for one in collection.documents), *(one.text for one in collection.queries.values())]
    )
    head, layer, seed = choices.head, choices.pre_classifier, choices.seed
    untrained = Retriever.untrained(
        collection.documents, model, features, report, head=head, pre_classifier=layer, seed=seed
    )
    settings = suited(settings, untrained)
    training, selection = split_for_selection(collection, seed)
    job = Job.prepare(collection, untrained, features, report, training=training, selection=selection)
    clock.lap("encode")
    store = Checkpoint(Path(checkpoint), fingerprints(collection, model, settings)) if checkpoint else None
    course, view = Course(History(), store, resume), FoldView.of(untrained, job.training, seed)
    candidates = trained_candidates(job, choices, settings, course, view) if can_learn(job, choices) else []
    kept = select(untrained, job.selection, candidates, view.standard, report)
    claim = no_guarantee(kept.name, choices.delta) if choices.recipe == "paper" else None
    record = TrainingRecord(
        method=kept.name,
        settings=asdict(settings),
        questions=len(job.training),
        selection={candidate.name: candidate.score.success for candidate in candidates},
        history=course.history.records,
        privacy=to_json(claim) if claim is not None else None,
    )
    retriever = job.conclude(kept.retriever, record)
    if claim is not None:
        report.say(plain_words(claim).splitlines()[0])
    clock.lap("train")
    told = replace(retriever.training, seconds=clock.seconds, peak_memory_mb=peak_memory_mb())
    return replace(retriever, training=told)


def can_learn(job: Job, choices: Choices) -> bool:
    """Whether there are questions to train on and to choose by; one warning where there are not."""
    if len(job.training) and len(job.selection):
        warn_of_narrow_data(job.collection)
        return True
    if not len(job.training) and job.collection.queries and len(job.collection.documents) == 1:
        warn_of_narrow_data(job.collection)
    if choices.questions_from is not None:
        message = "not asked: its questions join real ones, and there are too few to learn from"
        warnings.warn(f"--questions-from: {message}", FedcarWarning, stacklevel=3)
    if len(job.training):
        message = "training questions without a dev split are too few to learn from and to check"
        warnings.warn(f"{len(job.training)} {message}; search is not trained", FedcarWarning, stacklevel=3)
    return False


def plan(
    collection: Collection,
    choices: Choices | None = None,
    *,
    encoder: str,
    cache: str | Path | None = None,
    **changes: Any,  # noqa: ANN401 - fields of `Choices`
) -> dict[str, object]:
    """What `train` would do with the same arguments, without doing it: counts, encoder, settings of gradient steps."""
    choices = replace(choices or Choices(), **changes)
    settings, target = choices.settings(), choices.target()
    model = Encoder.load(encoder, choices.pooling)
    training, selection = split_for_selection(collection, settings.seed)
    if target is not None:
        target.check(len(collection.judged("train")))
        noised = make_plan(target, choices.method, len(collection.documents), steps=choices.epochs)
        return {"documents": len(collection.documents), "encoder": model.name, "privacy": noised.in_words()}
    deep = reads_tokens(collection.documents, model)
    used = asdict(suited_to(settings, model, deep))
    also: dict[str, object] = {}
    if choices.method == "auto" and is_small(model):
        of_the_adapter = asdict(suited_to(of_adapter(settings), model, deep))
        also = {"and an adapter": {name: value for name, value in of_the_adapter.items() if value != used[name]}}
    return {
        "documents": len(collection.documents),
        "training questions": len(training),
        "selection questions": len(selection),
        "encoder": f"{model.name} ({model.dimension} wide, pooling {model.pooling}, {model.fingerprint[:12]})",
        **used,
        "method": choices.method,
        **also,
        "documents sent to": choices.questions_from or "nobody",
    }


def fingerprints(collection: Collection, encoder: Encoder, settings: Settings) -> dict[str, object]:
    """What a checkpoint belongs to; another collection, encoder or setting cannot be resumed from it."""
    return {"collection": collection.fingerprint, "encoder": encoder.fingerprint, "settings": asdict(settings)}


def trained_candidates(
    job: Job, choices: Choices, settings: Settings, course: Course, view: FoldView
) -> list[Candidate]:
    """What the method offers, from cheap to dear: the evidence with learned weights, ridge, head, adapter."""
    training, selection, report, standard = job.training, job.selection, job.report, view.standard
    method, seed, mixed = choices.method, settings.seed, with_mixture(job.untrained, job.training)
    candidates = [candidate("evidence", standard.fitted(mixed), selection, standard, report)]
    if method in ("auto", "ridge"):
        pseudo = all_pseudo_queries(job, choices)
        texts = [("ridge", PseudoQueries())]
        if can_matter(pseudo, training):
            texts.append(("ridge+pseudo", pseudo))
        reasons = {name: too_many(mixed, training, queries) for name, queries in texts}
        possible = [(name, queries) for name, queries in texts if not reasons[name]]
        for name, reason in reasons.items():
            if reason:
                report.say(f"{name}: {reason}")
        summed = Summed.of(mixed, training, job.features, seed, possible[-1][1]) if possible else None
        for name, queries in possible:
            fitted = fit_ridge(mixed, training, job.features, seed, queries, summed)
            candidates.append(candidate(name, fitted, selection, standard, report))
    if method in ("auto", "head", "adapter"):
        checked = view.first if settings.method == "adapter" else view
        fitted = fit(mixed, job, settings, course, checked)
        candidates.append(candidate(settings.method, fitted, selection, standard, report))
    if method == "auto" and is_small(job.untrained.encoder):
        fitted = fit(mixed, job, suited(of_adapter(settings), job.untrained), Course(History()), view.first)
        candidates.append(candidate("adapter", fitted, selection, standard, report))
    return candidates


def all_pseudo_queries(job: Job, choices: Choices) -> PseudoQueries:
    """Titles and sentences of the documents, and what a language model would ask of them."""
    documents = job.collection.documents
    pseudo = pseudo_queries(documents, choices.seed)
    if choices.questions_from is None:
        return pseudo
    server, model, folder = choices.questions_from, choices.questions_model, job.features.folder
    return pseudo + questions_from(server, documents, model=model, cache=folder, report=job.report)


def can_matter(pseudo: PseudoQueries, training: Questions) -> bool:
    """Whether pseudo-queries can change the rows: a document has no question, or they weigh a hundredth of them."""
    asked = {document for judged in training.relevant for document, score in judged.items() if score > 0}
    return not asked.issuperset(pseudo.document_ids) or float(pseudo.weights.sum()) >= LEAST_PSEUDO * len(training)


def with_mixture(untrained: Retriever, training: Questions) -> Retriever:
    """The untrained retriever with weights of the evidence learned on the training questions."""
    weights = fit_mixture(untrained.features(training), training.relevance, untrained.weights)
    return replace(untrained, weights=weights_of(weights[:LEARNED]))
