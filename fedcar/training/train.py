"""Training: which methods are tried, what selection keeps, and why."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedcar.collection.collection import Collection, Document
from fedcar.collection.importing import with_public_questions
from fedcar.collection.persons import persons_of
from fedcar.collection.pseudo_queries import PseudoQueries, pseudo_queries
from fedcar.collection.splits import split_for_selection, warn_of_narrow_data
from fedcar.common.measure import Clock
from fedcar.common.progress import Silent
from fedcar.encoder.both import price_of
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.reference import reference_states
from fedcar.errors import FedcarWarning
from fedcar.head.feature_map import FeatureMap
from fedcar.head.head import Head
from fedcar.retriever.evidence import SHORT, median_words, reads_tokens
from fedcar.retriever.questions import Questions
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of
from fedcar.training.checkpoint import Checkpoint, Course
from fedcar.training.expected import expected
from fedcar.training.gains import FEW, Measured, Proof, left_out_scores, measures
from fedcar.training.generated_questions import questions_from as questions_by_model
from fedcar.training.gradient import fit, with_proof
from fedcar.training.job import Job, Splits, conclude, prepare
from fedcar.training.mixture import fit_mixture
from fedcar.training.noised.central import train_under_epsilon
from fedcar.training.noised.public import with_public_rows
from fedcar.training.noised.settings import PrivateSettings
from fedcar.training.noised.tally import Counting
from fedcar.training.paper_recipe import no_guarantee
from fedcar.training.ridge import Summed, fit_ridge, too_many
from fedcar.training.selection import (
    Candidate,
    Fitted,
    FoldView,
    Standard,
    Weighting,
    candidate,
    cheaper_unless_better,
    select,
)
from fedcar.training.settings import Settings, TrainingSettings, both_loaded, is_small, of_adapter, suited, suited_to

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from fedcar.training.settings import TrainingOptions

LEAST_PSEUDO = 0.01  # of the questions' weight
MOST_CELLS = 100_000_000  # training questions times rows, up to which `auto` tries gradient steps over rows


def train(
    collection: Collection,
    settings: TrainingSettings | None = None,
    *,
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    report: Silent | None = None,
    **changes: Unpack[TrainingOptions],
) -> Retriever:
    """Train a retriever on the collection's training questions; without any, the retriever is hybrid search.

    What it is asked for are `settings`, or its fields by name: train(collection, method="head", epochs=3); see
    `TrainingSettings` for what each does. `cache` is the folder of the hidden states; `checkpoint` a folder written
    after every epoch, from which `resume` goes on.

    Formal guarantees:
        never_below_hybrid_on_selection_data: what is kept is hybrid search, or better than it by a bound on the paired
            difference, in success@1 and nDCG@10. BM25, MIPS, the evidence alone and what was trained have to show that
            on dev (a tenth of the training questions where there is no dev split), and where dev is small on training
            questions that were left out. Where some documents have no training question, document folds count by the
            share of such documents, and nothing is kept that is below hybrid search there.
        same_seed_same_model, resumed_equals_uninterrupted: bitwise, on the same machine, from the same cache.
    """
    report, clock = report or Silent(), Clock()
    options = replace(settings or TrainingSettings(), **changes)
    steps = options.steps(resume)
    encoder, features = both_loaded(options), FeatureCache(Path(cache) if cache else None)
    if options.target is not None:
        if options.public is not None:
            collection = with_public_questions(collection, Path(options.public), dev=options.public_dev)
        private = PrivateSettings(options.target, options.method, options.epochs, None, options.adapter, options.seed)
        asked = generated(options, collection.documents, features, report)
        counting = Counting(options.ledger, options.no_ledger, options.budget)
        return train_under_epsilon(collection, private, encoder, features, report, asked, counting)
    encoder.runtime_name(
        [
            *(document.full_text for document in collection.documents),
            *(query.text for query in collection.queries.values()),
        ]
    )
    head, layer, seed = options.head, options.pre_classifier, options.seed
    untrained = Retriever.untrained(
        collection.documents, encoder, features, report, head=head, pre_classifier=layer, seed=seed
    )
    steps = suited(steps, untrained)
    both = prepare(collection, untrained, features, report, Splits.in_one_place(collection, seed))
    job = replace(both, untrained=replace(untrained, encoder=encoder.alone))
    clock.lap("encode")
    view, course = FoldView.of(untrained, job.training, seed), Course(resume=resume)
    candidates, over_both = list[Candidate](), list[Candidate]()
    if enough(job, options.questions_from):
        if checkpoint is not None:
            kept_in = Checkpoint(Path(checkpoint), fingerprints(collection, encoder, steps))
            course = replace(course, checkpoint=kept_in)
        pseudo = pseudo_of(job, options)
        candidates = trained_candidates(job, options.method, steps, pseudo, view, course)
        over_both = candidates_over_both(both, candidates, steps, pseudo, view)
    chosen = select(job.untrained, job.selection, candidates, view.standard, report)
    if over_both:
        dearer = max(over_both, key=lambda one: one.gain[:2])
        chosen = cheaper_unless_better(chosen, dearer, job.selection, view.standard.share, report)
    record = TrainingRecord(
        settings=asdict(steps),
        questions=len(job.training),
        selection={candidate.name: candidate.score.success for candidate in (*candidates, *over_both)},
        history=course.history.records,
    )
    claim = no_guarantee(chosen.name, options.delta) if options.recipe == "paper" else None
    return conclude(job, chosen, record, claim, clock)


def enough(job: Job, questions_from: str | None) -> bool:
    """Whether there are questions to learn from and to choose by; warns where there are few, or none."""
    if not len(job.training) and job.collection.queries and len(job.collection.documents) == 1:
        warn_of_narrow_data(job.collection)
    if len(job.training) and len(job.selection):
        warn_of_narrow_data(job.collection)
        return True
    if questions_from is not None:
        message = "not asked: its questions join real ones, and there are too few to learn from"
        warnings.warn(f"--questions-from: {message}", FedcarWarning, stacklevel=3)
    if len(job.training):
        message = "training questions without a dev split are too few to learn from and to check"
        warnings.warn(f"{len(job.training)} {message}; search is not trained", FedcarWarning, stacklevel=3)
    return False


def pseudo_of(job: Job, options: TrainingSettings) -> PseudoQueries:
    """The documents' own pseudo-queries, and what a language model would ask of them where one was named."""
    documents = job.collection.documents
    asked = generated(options, documents, job.features, job.report)
    return pseudo_queries(documents, options.seed) + asked


def generated(
    options: TrainingSettings, documents: Sequence[Document], features: FeatureCache, report: Silent
) -> PseudoQueries:
    """What a language model would ask of the documents; nothing where none was named."""
    if options.questions_from is None:
        return PseudoQueries()
    return questions_by_model(
        options.questions_from, documents, model=options.questions_model, cache=features.folder, report=report
    )


def plan(
    collection: Collection,
    settings: TrainingSettings | None = None,
    *,
    cache: str | Path | None = None,
    **changes: Unpack[TrainingOptions],
) -> dict[str, object]:
    """What `train` would do with the same arguments, without doing it: counts, encoder, settings of gradient steps."""
    options = replace(settings or TrainingSettings(), **changes)
    steps, encoder = options.steps(), both_loaded(options)
    training, selection = split_for_selection(collection, options.seed)
    if options.target is not None:
        training = collection.judged("train")
        column = options.target.column
        options.target.check(len(set(persons_of(training, column))) if column is not None else len(training))
        if options.public is not None:
            collection = with_public_questions(collection, Path(options.public), dev=options.public_dev)
        private = PrivateSettings(options.target, options.method, options.epochs, None, options.adapter, options.seed)
        public = Splits.under_epsilon(collection, options.target.has_public).public
        private = with_public_rows(private, public, len(collection.documents))
        in_words = private.plan(len(collection.documents)).in_words()
        return {"documents": len(collection.documents), "encoder": encoder.name, "privacy": in_words}
    deep = reads_tokens(collection.documents, encoder)
    used = asdict(suited_to(steps, encoder, deep))
    also: dict[str, object] = {}
    if options.method == "auto" and is_small(encoder):
        of_the_adapter = asdict(suited_to(of_adapter(steps), encoder, deep))
        also = {"and an adapter": {name: value for name, value in of_the_adapter.items() if value != used[name]}}
    return {
        "documents": len(collection.documents),
        "training questions": len(training),
        "selection questions": len(selection),
        "encoder": encoder.in_words,
        **used,
        "method": options.method,
        **also,
        "expected": expected(
            len(collection.documents),
            len(training) if len(selection) else 0,
            median_words(collection.documents) <= SHORT,
        ),
        "documents sent to": options.questions_from or "nobody",
    }


def fingerprints(collection: Collection, encoder: Encoder, settings: Settings) -> dict[str, object]:
    """What a checkpoint belongs to; another collection, encoder or setting cannot be resumed from it."""
    return {"collection": collection.fingerprint, "encoder": encoder.state_fingerprint, "settings": asdict(settings)}


def trained_candidates(
    job: Job, method: str, settings: Settings, pseudo: PseudoQueries, view: FoldView, course: Course
) -> list[Candidate]:
    """What the method offers, from cheap to dear: the evidence with learned weights, ridge, head, adapter."""
    training, selection, report, standard = job.training, job.selection, job.report, view.standard
    few = len(selection) < FEW
    mixed, of_evidence = fitted_evidence(job.untrained, training, settings.seed, standard, few)
    candidates = [candidate("evidence", of_evidence, selection, standard, report)]
    if method in ("auto", "ridge"):
        texts = [("ridge", PseudoQueries())]
        if can_matter(pseudo, training):
            texts.append(("ridge+pseudo", pseudo))
        reasons = {name: too_many(mixed, training, joined) for name, joined in texts}
        possible = [(name, joined) for name, joined in texts if not reasons[name]]
        for name, reason in reasons.items():
            if reason:
                report.say(f"{name}: {reason}")
        summed = Summed.of(mixed, training, job.features, settings.seed, possible[-1][1]) if possible else None
        for name, joined in possible:
            fitted = fit_ridge(mixed, training, job.features, settings.seed, joined, summed, few)
            candidates.append(candidate(name, fitted, selection, standard, report))
    dear = too_dear(training, settings) if method == "auto" and len(candidates) > 1 else ""
    if dear:
        report.say(f"head: {dear}")
    elif method in ("auto", "head", "adapter"):
        fitted = fitted_head(mixed, job, settings, view, course)
        candidates.append(candidate(settings.method, fitted, selection, standard, report))
    if method == "auto" and not dear and is_small(job.untrained.encoder):
        chosen = suited(of_adapter(settings), job.untrained)
        fitted = fit(mixed, training, selection, chosen, Course(), report, view.folds[:1], standard)
        candidates.append(candidate("adapter", fitted, selection, standard, report))
    return candidates


def candidates_over_both(
    both: Job, candidates: Sequence[Candidate], settings: Settings, pseudo: PseudoQueries, view: FoldView
) -> list[Candidate]:
    """The better ridge and the head, those of them that were tried, learned again over the states of both encoders.

    Nothing where there is one encoder; what the second costs is said.
    """
    names, second = [one.name for one in candidates], both.untrained.encoder.beside
    tried = [one for one in candidates if one.name in ("ridge", "ridge+pseudo")]
    if second is None or not (tried or "head" in names):
        return []
    training, selection, report, few = both.training, both.selection, both.report, len(both.selection) < FEW
    price = price_of(second, selection.texts)
    costs = f"{price.milliseconds:.1f} ms a question more, {price.megabytes:,.0f} MB of weights"
    report.say(f"{second.name} beside {both.untrained.encoder.name}: {costs}")
    over_both = []
    if tried:
        better = max(tried, key=lambda one: one.gain[:2])
        joined = pseudo if better.name == "ridge+pseudo" else PseudoQueries()
        mixed = with_mixture(both.untrained, training)
        fitted = fit_ridge(mixed, training, both.features, settings.seed, joined, few=few)
        over_both.append(candidate(f"{better.name}+both", fitted, selection, view.standard, report))
    if "head" in names:
        of_both = with_head_over_both(both, settings.seed)
        mixed = with_mixture(of_both.untrained, training)
        fitted = fitted_head(mixed, of_both, settings, view, Course())
        over_both.append(candidate("head+both", fitted, selection, view.standard, report))
    return over_both


def with_head_over_both(both: Job, seed: int) -> Job:
    """The same with an untrained head over the states of both encoders."""
    head, reference = both.untrained.head, reference_states(both.untrained.encoder, both.features)
    centres = [FeatureMap.of_reference(states).centre for states in (reference, reference["beside"])]
    of_both = Head(
        head.embeddings.numpy(),
        centre=np.concatenate(centres),
        kind=head.kind,
        pre_classifier=head.pre_classifier,
        seed=seed,
        beside=len(centres[1]),
    )
    return replace(both, untrained=replace(both.untrained, head=of_both))


def fitted_head(mixed: Retriever, job: Job, settings: Settings, view: FoldView, course: Course) -> Fitted:
    """Gradient steps over the evidence, `mixed` with its learned weights.

    Where there are few questions to choose by, with what training questions say of it that were left out.
    """
    training, selection, report = job.training, job.selection, job.report
    folds = view.folds[:1] if settings.method == "adapter" else view.folds
    fitted = fit(mixed, training, selection, settings, course, report, folds, view.standard)
    if settings.method == "head" and len(selection) < FEW:
        again = partial(with_mixture, job.untrained)
        fitted = with_proof(fitted, again, training, selection, settings, report)
    return fitted


def too_dear(training: Questions, settings: Settings) -> str:
    """Why `auto` does not train rows by gradient steps, in words; empty where it does.

    Each step passes over all rows, so that an epoch takes questions times rows, where ridge takes one solution.
    """
    rows = len({document for judged in training.relevant for document, score in judged.items() if score > 0})
    if settings.query_map or rows * len(training) <= MOST_CELLS:
        return ""
    what = f"{len(training):,} questions in steps over {rows:,} rows take many times what ridge takes"
    return f"not tried: {what}; --method head trains it"


def can_matter(pseudo: PseudoQueries, training: Questions) -> bool:
    """Whether pseudo-queries can change the rows: a document has no question, or they weigh a hundredth of them."""
    judged_documents = {document for judged in training.relevant for document, score in judged.items() if score > 0}
    return not judged_documents.issuperset(pseudo.document_ids) or float(pseudo.weights.sum()) >= LEAST_PSEUDO * len(
        training
    )


def fitted_evidence(
    untrained: Retriever, training: Questions, seed: int, standard: Standard, few: bool
) -> tuple[Retriever, Fitted]:
    """The evidence with weights learned on the training questions, and what these say of it.

    Where there are `few` to choose by, each of them is asked of weights that were learned from others.
    """
    mixed, prior = with_mixture(untrained, training), untrained.weights
    if not few:
        return mixed, standard.fitted(mixed)
    features = untrained.features(training)

    def fit(others: NDArray[np.int64]) -> NDArray[np.float32]:
        return weights_of(fit_mixture(features[others], training.relevance[others], prior)[:LEARNED])

    (scores,) = left_out_scores(training.texts, seed, fit, [features])
    measured = Measured(training, measures(training, np.where(untrained.empty[training.candidates], -np.inf, scores)))
    return mixed, Fitted(mixed, (Weighting(mixed.weights, standard.success(mixed.weights), Proof(measured, measured)),))


def with_mixture(untrained: Retriever, training: Questions) -> Retriever:
    """The untrained retriever with weights of the evidence learned on the training questions."""
    weights = fit_mixture(untrained.features(training), training.relevance, untrained.weights)
    return replace(untrained, weights=weights_of(weights[:LEARNED]))
