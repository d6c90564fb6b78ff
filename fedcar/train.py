"""Training: which methods are tried, what selection keeps, and why."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from fedcar.adapter import parse_variant
from fedcar.calibration import Calibration
from fedcar.checkpoint import Checkpoint
from fedcar.collection import Collection, Judged
from fedcar.encoder import Encoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.evidence import reads_tokens
from fedcar.features import FeatureCache
from fedcar.fit import Settings, fit
from fedcar.folds import Fold, Folds
from fedcar.history import History
from fedcar.measure import Clock, peak_memory_mb
from fedcar.mixture import fit_mixture
from fedcar.model_files import DEFAULT_ENCODER, parameter_count
from fedcar.paper_recipe import no_guarantee
from fedcar.privacy.statement import PAPER_RECIPE, plain_words, to_json
from fedcar.private_central import train_under_epsilon
from fedcar.private_plan import DELTA, Target, make_plan
from fedcar.progress import Silent
from fedcar.pseudo_queries import PseudoQueries, check_questions_from, pseudo_queries
from fedcar.pseudo_queries import questions_from as questions_by_model
from fedcar.questions import Questions, prepare, split_for_selection, warn_of_narrow_data
from fedcar.retriever import LEARNED, Retriever, weights_of
from fedcar.ridge import Summed, fit_ridge, too_many
from fedcar.selection import Fitted, Score, Standard, baseline_weights, best_weights

MAP_EPOCHS = 6
LEAST_PSEUDO = 0.01  # of the questions' weight
SMALL_ENCODER = 5_000_000  # parameters
NOTHING = Score(True, 0.0, 0.0, 0.0)
METHODS = ("auto", "ridge", "head", "adapter")
RECIPES = ("private", "paper")


@dataclass(frozen=True)
class Candidate:
    """One trained retriever and what the selection questions say of it."""

    name: str
    retriever: Retriever
    score: Score


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


def choose_settings(
    method: str,
    adapter: str,
    head: str,
    pre_classifier: int,
    epochs: int | None,
    seed: int,
    gradient_checkpointing: bool,
) -> Settings:
    """The settings that follow from what the user chose."""
    if method not in METHODS:
        raise FedcarError(f'--method "{method}": not known; give one of {", ".join(METHODS)}')
    if epochs is not None and epochs < 1:
        raise FedcarError(f"--epochs {epochs}: must be 1 or more")
    if seed < 0:
        raise FedcarError(f"--seed {seed}: must be 0 or more")
    parse_variant(adapter)
    settings = Settings(
        method="adapter" if method == "adapter" else "head",
        seed=seed,
        head=head,
        pre_classifier=pre_classifier,
        adapter=adapter,
        gradient_checkpointing=gradient_checkpointing,
    )
    if method == "adapter":
        settings = of_adapter(settings)
    return settings if epochs is None else replace(settings, epochs=epochs)


def with_recipe(settings: Settings, recipe: str, method: str, epsilon: float | None) -> Settings:
    """The settings with the paper's recipe where it is asked for; it has no epsilon."""
    if recipe not in RECIPES:
        raise FedcarError(f'--recipe "{recipe}": not known; give one of {", ".join(RECIPES)}')
    if recipe == "private":
        return settings
    if epsilon is not None:
        raise FedcarError(f"--recipe paper --epsilon {epsilon:g}: {PAPER_RECIPE}; leave one of them out")
    if method not in ("head", "adapter"):
        raise FedcarError(f"--recipe paper: is for gradient steps; give --method head or adapter, not {method}")
    return replace(settings, recipe="paper")


def refuse_without_epsilon_only(head: str, pre_classifier: int, questions_from: str | None, resume: bool) -> None:
    """Refuse what training under epsilon does not have."""
    if head != "linear" or pre_classifier:
        raise FedcarError("--epsilon: the head is then linear, without pre-classifier layer; leave these options out")
    if questions_from is not None:
        raise FedcarError("--epsilon: class sums know no pseudo-queries; leave --questions-from out")
    if resume:
        raise FedcarError("--epsilon: no checkpoint is kept, as it takes seconds; start again without --resume")


def refuse_with_epsilon_only(epsilon: float | None, **options: bool) -> None:
    """Refuse an option that would be taken for privacy where there is none: training would be un-noised."""
    for option in (name.replace("_", "-") for name, given in options.items() if given and epsilon is None):
        raise FedcarError(f"--{option}: is for training under --epsilon; give that too, or leave it out")


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


def is_small(encoder: Encoder) -> bool:
    """Whether the encoder is small: then it is weak, an adapter helps it much and costs seconds, so `auto` tries it.

    stories260K gains .076 on BANKING77, all-MiniLM-L6-v2 (23 million parameters) .005 for minutes (docs/log.md).
    """
    return parameter_count(encoder.folder) <= SMALL_ENCODER


def of_adapter(settings: Settings) -> Settings:
    """What gradient training through the encoder takes: fewer epochs, smaller batches."""
    return replace(settings, method="adapter", epochs=6, batch_size=64)


def with_mixture(untrained: Retriever, training: Questions) -> Retriever:
    """The untrained retriever with weights of the evidence learned on the training questions."""
    weights = fit_mixture(untrained.features(training), training.relevance, untrained.weights)
    return replace(untrained, weights=weights_of(weights[:LEARNED]))


@dataclass(frozen=True)
class FoldView:
    """The collection by document folds, and the standard that they set; no folds where every document has questions."""

    folds: tuple[Fold, ...] = ()
    standard: Standard = field(default_factory=Standard)

    @classmethod
    def of(cls, untrained: Retriever, training: Questions, seed: int) -> FoldView:
        rows = {document.id: row for row, document in enumerate(untrained.documents)}
        targets = training.targets(rows)
        folds = Folds.of(training.counts(rows), seed, len(training))
        if not folds.share:
            return cls()
        sample = folds.sample(targets, np.random.default_rng(seed))
        parts = [Fold(fold.outside, np.intersect1d(fold.inside, sample)) for fold in folds.split(targets)]
        held = training.take(np.concatenate([fold.inside for fold in parts]))
        return cls(tuple(one for one in parts if len(one.inside)), Standard.of(folds.share, held, untrained.empty))


def suited(settings: Settings, untrained: Retriever) -> Settings:
    """The settings that fit the encoder and the documents, see `suited_to`."""
    return suited_to(settings, untrained.encoder, untrained.evidence.deep)


def suited_to(settings: Settings, encoder: Encoder, deep: bool) -> Settings:
    """For labels rows are trained; for texts (`deep`), where a document has few questions, a query map instead.

    An adapter on an encoder that is not small moves slowly and is pulled harder to the identity, or it over-fits.
    """
    if settings.method == "adapter" and not is_small(encoder):
        settings = replace(settings, adapter_rate=1e-3, adapter_decay=0.1)
    if not deep:
        return settings
    if settings.method == "adapter":
        return replace(settings, query_map=True)
    return replace(settings, query_map=True, epochs=min(settings.epochs, MAP_EPOCHS), batch_size=128, head_rate=3e-3)


def candidate(name: str, fitted: Fitted, selection: Questions, standard: Standard, report: Silent) -> Candidate:
    found = Candidate(name, *best_weights(fitted, selection, standard))
    unseen = f", {found.score.unseen:.3f} on documents left out" if standard.share else ""
    below = "" if found.score.allowed else f" (hybrid {standard.least:.3f}: not kept)"
    report.say(f"{name}: {found.score.success:.3f} of the selection questions right{unseen}{below}")
    return found


def select(
    untrained: Retriever, selection: Questions, candidates: Sequence[Candidate], standard: Standard, report: Silent
) -> Candidate:
    """The best on the selection questions and document folds, baselines included; of equal ones the cheapest."""
    if not len(selection):
        return Candidate("none", untrained, NOTHING)
    searches = standard.fitted(untrained, (untrained.weights, *baseline_weights()))
    before = Candidate("none", *best_weights(searches, selection, standard))
    kept = max((before, *candidates), key=lambda one: one.score)
    numbers = f"{kept.score.success:.3f} of the selection questions right, before {before.score.success:.3f}"
    report.say(f"kept: {kept.name} ({numbers})")
    if kept.name != "adapter" and untrained.encoder.adapter is not None:
        untrained.encoder.remove_adapter()
    return kept


def calibrated(retriever: Retriever, selection: Questions, unanswered: Questions) -> Retriever:
    """With confidence and answer threshold from the selection questions and those of dev that nothing answers."""
    if not len(selection):
        return retriever
    others = retriever.scores_of(unanswered) if len(unanswered) else None
    calibration = Calibration.fit(retriever.scores_of(selection), selection.relevance > 0, others)
    return replace(retriever, calibration=calibration)
