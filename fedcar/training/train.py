"""Training: which methods are tried, what selection keeps, and why."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path

from fedcar.collection.collection import Collection, Judged
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
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of
from fedcar.training.checkpoint import Checkpoint
from fedcar.training.generated_questions import check_questions_from
from fedcar.training.generated_questions import questions_from as questions_by_model
from fedcar.training.gradient import fit
from fedcar.training.mixture import fit_mixture
from fedcar.training.noised.central import train_under_epsilon
from fedcar.training.noised.plan import DELTA, Target, make_plan
from fedcar.training.paper_recipe import no_guarantee
from fedcar.training.ridge import Summed, fit_ridge, too_many
from fedcar.training.selection import Candidate, FoldView, calibrated, candidate, select
from fedcar.training.settings import (
    Settings,
    choose_settings,
    is_small,
    of_adapter,
    refuse_with_epsilon_only,
    refuse_without_epsilon_only,
    suited,
    suited_to,
    with_recipe,
)

LEAST_PSEUDO = 0.01  # of the questions' weight


def train(
    collection: Collection,
    *,
    encoder: str | Path | Encoder = DEFAULT_ENCODER,
    pooling: str | None = None,
    method: str = "auto",
    adapter: str = "full",
    head: str = "linear",
    pre_classifier: int = 0,
    epochs: int | None = None,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    questions_from: str | None = None,
    questions_model: str | None = None,
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    report: Silent | None = None,
    epsilon: float | None = None,
    delta: float = DELTA,
    public_dev: bool = False,
    against_advice: bool = False,
    adaptive_clip: bool = False,
    noise_seed: int | None = None,
    recipe: str = "private",
) -> Retriever:
    """Train a retriever on the collection's training questions; without any, the retriever is hybrid search.

    `method`: `ridge` (rows in closed form), `head` (rows by gradient steps on cached hidden states), `adapter` (adapter
    and head, through the frozen blocks), or `auto`: from cheap to dear, keeping what selection prefers. `cache` is the
    folder of the hidden states; `checkpoint` a folder written after every epoch, from which `resume` goes on.
    `questions_from` is the address of an OpenAI-compatible server whose `questions_model` is sent the documents (no
    question) and asked what users would ask of them: pseudo-queries for ridge.

    `epsilon` trains under differential privacy (docs/privacy.md): class sums, head or adapter with noise, `epochs` full
    steps, no checkpoint. Dev is then not read, unless `public_dev` declares it public. `adaptive_clip` moves the clip
    norm by noised counts. `noise_seed` is for tests and makes epsilon infinite. `recipe` "paper" is that of arXiv
    2509.16508, without epsilon and without formal guarantee.

    Formal guarantees:
        never_below_baselines_on_selection_data: BM25, MIPS, hybrid, the evidence alone and every epoch are candidates;
            what is best on dev is kept (on a tenth of the training questions where there is no dev split). Where some
            documents have no training question, document folds count by the share of such documents, and nothing is
            kept that is below hybrid search there.
        same_seed_same_model, resumed_equals_uninterrupted: bitwise, on the same machine, from the same cache.
    """
    report = report or Silent()
    clock = Clock()
    settings = choose_settings(method, adapter, head, pre_classifier, epochs, seed, gradient_checkpointing)
    check_questions_from(questions_from, questions_model, method)
    settings = with_recipe(settings, recipe, method, epsilon)
    refuse_with_epsilon_only(epsilon, public_dev=public_dev, against_advice=against_advice, adaptive_clip=adaptive_clip)
    target = None
    if epsilon is not None:
        target = Target(epsilon, delta, "example", public_dev, noise_seed, against_advice, adaptive_clip)
        refuse_without_epsilon_only(head, pre_classifier, questions_from, resume)
        target.check()
    model = encoder if isinstance(encoder, Encoder) else Encoder.load(encoder, pooling)
    features = FeatureCache(Path(cache) if cache else None)
    if target is not None:
        return train_under_epsilon(
            collection, target, model, features, report, method=method, adapter=adapter, steps=epochs, seed=seed
        )
    model.runtime_name(
        [*(one.full_text for one in collection.documents), *(one.text for one in collection.queries.values())]
    )
    untrained = Retriever.untrained(
        collection.documents, model, features, report, head=head, pre_classifier=pre_classifier, seed=seed
    )
    settings = suited(settings, untrained)
    train_split, selection_split = split_for_selection(collection, seed)
    training = prepare(untrained, train_split, features, report, "training questions")
    selection = prepare(untrained, selection_split, features, report, "selection questions")
    nobody_answers = collection.unanswerable("dev")
    unanswerable = Judged(nobody_answers, ({},) * len(nobody_answers))
    unanswered = prepare(untrained, unanswerable, features, report, "unanswerable questions")
    clock.lap("encode")
    history, view = History(), FoldView.of(untrained, training, seed)
    if not len(training) and collection.queries and len(collection.documents) == 1:
        warn_of_narrow_data(collection)
    if len(training) and len(selection):
        warn_of_narrow_data(collection)
        store = Checkpoint(Path(checkpoint), fingerprints(collection, model, settings)) if checkpoint else None
        pseudo = pseudo_queries(collection.documents, seed)
        if questions_from is not None:
            documents, folder = collection.documents, features.folder
            pseudo += questions_by_model(questions_from, documents, model=questions_model, cache=folder, report=report)
        candidates = trained_candidates(
            untrained, training, selection, pseudo, settings, method, features, history, store, resume, report, view
        )
    else:
        if questions_from is not None:
            message = "not asked: its questions join real ones, and there are too few to learn from"
            warnings.warn(f"--questions-from: {message}", FedcarWarning, stacklevel=2)
        if len(training):
            message = "training questions without a dev split are too few to learn from and to check"
            warnings.warn(f"{len(training)} {message}; search is not trained", FedcarWarning, stacklevel=2)
        candidates = []
    kept = select(untrained, selection, candidates, view.standard, report)
    kept = replace(kept, retriever=calibrated(kept.retriever, selection, unanswered))
    clock.lap("train")
    claim = no_guarantee(kept.name, delta) if recipe == "paper" else None
    if claim is not None:
        report.say(plain_words(claim).splitlines()[0])
    kept.retriever.training = {
        "method": kept.name,
        "settings": asdict(settings),
        "collection": {"name": collection.name, "fingerprint": collection.fingerprint},
        "questions": len(training),
        "selection_questions": len(selection),
        "selection": {candidate.name: candidate.score.success for candidate in candidates},
        "history": history.records,
        "seconds": clock.seconds,
        "peak_memory_mb": peak_memory_mb(),
        **({"privacy": to_json(claim)} if claim is not None else {}),
    }
    return kept.retriever


def plan(
    collection: Collection,
    *,
    encoder: str,
    cache: str | Path | None = None,
    pooling: str | None = None,
    questions_from: str | None = None,
    questions_model: str | None = None,
    epsilon: float | None = None,
    delta: float = DELTA,
    public_dev: bool = False,
    against_advice: bool = False,
    adaptive_clip: bool = False,
    recipe: str = "private",
    **options: object,
) -> dict[str, object]:
    """What `train` would do with the same arguments, without doing it: counts, encoder, settings of gradient steps."""
    settings = choose_settings(**options)  # type: ignore[arg-type]
    settings = with_recipe(settings, recipe, str(options["method"]), epsilon)
    refuse_with_epsilon_only(epsilon, public_dev=public_dev, against_advice=against_advice, adaptive_clip=adaptive_clip)
    check_questions_from(questions_from, questions_model, str(options["method"]))
    model = Encoder.load(encoder, pooling)
    training, selection = split_for_selection(collection, settings.seed)
    noised: dict[str, object] = {}
    if epsilon is not None:
        target = Target(epsilon, delta, "example", public_dev, None, against_advice, adaptive_clip)
        refuse_without_epsilon_only(settings.head, settings.pre_classifier, questions_from, False)
        target.check(len(collection.judged("train")))
        found = make_plan(target, str(options["method"]), len(collection.documents), steps=options["epochs"])  # type: ignore[arg-type]
        noised = {"privacy": found.in_words()}
    if noised:
        return {"documents": len(collection.documents), "encoder": model.name, **noised}
    deep = reads_tokens(collection.documents, model)
    used = asdict(suited_to(settings, model, deep))
    also: dict[str, object] = {}
    if options["method"] == "auto" and is_small(model):
        of_the_adapter = asdict(suited_to(of_adapter(settings), model, deep))
        also = {"and an adapter": {name: value for name, value in of_the_adapter.items() if value != used[name]}}
    return {
        "documents": len(collection.documents),
        "training questions": len(training),
        "selection questions": len(selection),
        "encoder": f"{model.name} ({model.dimension} wide, pooling {model.pooling}, {model.fingerprint[:12]})",
        **used,
        "method": options["method"],
        **also,
        "documents sent to": questions_from or "nobody",
    }


def fingerprints(collection: Collection, encoder: Encoder, settings: Settings) -> dict[str, object]:
    """What a checkpoint belongs to; another collection, encoder or setting cannot be resumed from it."""
    return {"collection": collection.fingerprint, "encoder": encoder.fingerprint, "settings": asdict(settings)}


def trained_candidates(
    untrained: Retriever,
    training: Questions,
    selection: Questions,
    pseudo: PseudoQueries,
    settings: Settings,
    method: str,
    cache: FeatureCache,
    history: History,
    checkpoint: Checkpoint | None,
    resume: bool,
    report: Silent,
    view: FoldView,
) -> list[Candidate]:
    """What the method offers, from cheap to dear: the evidence with learned weights, ridge, head, adapter."""
    mixed, standard = with_mixture(untrained, training), view.standard
    candidates = [candidate("evidence", standard.fitted(mixed), selection, standard, report)]
    if method in ("auto", "ridge"):
        texts = [("ridge", PseudoQueries())]
        if can_matter(pseudo, training):
            texts.append(("ridge+pseudo", pseudo))
        reasons = {name: too_many(mixed, training, one) for name, one in texts}
        possible = [(name, one) for name, one in texts if not reasons[name]]
        for name, reason in reasons.items():
            if reason:
                report.say(f"{name}: {reason}")
        summed = Summed.of(mixed, training, cache, settings.seed, possible[-1][1]) if possible else None
        for name, one in possible:
            fitted = fit_ridge(mixed, training, cache, settings.seed, one, summed)
            candidates.append(candidate(name, fitted, selection, standard, report))
    if method in ("auto", "head", "adapter"):
        folds = view.folds[:1] if settings.method == "adapter" else view.folds
        fitted = fit(mixed, training, selection, settings, history, checkpoint, resume, report, folds, standard)
        candidates.append(candidate(settings.method, fitted, selection, standard, report))
    if method == "auto" and is_small(untrained.encoder):
        chosen = suited(of_adapter(settings), untrained)
        folds = view.folds[:1]
        fitted = fit(mixed, training, selection, chosen, History(), None, False, report, folds, standard)
        candidates.append(candidate("adapter", fitted, selection, standard, report))
    return candidates


def can_matter(pseudo: PseudoQueries, training: Questions) -> bool:
    """Whether pseudo-queries can change the rows: a document has no question, or they weigh a hundredth of them."""
    asked = {document for judged in training.relevant for document, score in judged.items() if score > 0}
    return not asked.issuperset(pseudo.document_ids) or float(pseudo.weights.sum()) >= LEAST_PSEUDO * len(training)


def with_mixture(untrained: Retriever, training: Questions) -> Retriever:
    """The untrained retriever with weights of the evidence learned on the training questions."""
    weights = fit_mixture(untrained.features(training), training.relevance, untrained.weights)
    return replace(untrained, weights=weights_of(weights[:LEARNED]))
