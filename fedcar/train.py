"""Training: the step ladder train -> fit -> epoch -> step -> loss."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedcar.adapter import Adapter, parse_variant
from fedcar.calibration import fit_temperature
from fedcar.checkpoint import Best, Checkpoint
from fedcar.collection import Collection
from fedcar.encoder import DEFAULT_ENCODER, Encoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.features import FeatureCache
from fedcar.head import softmax_loss
from fedcar.history import History
from fedcar.measure import Clock, peak_memory_mb
from fedcar.progress import Silent
from fedcar.questions import Questions, prepare, split_for_selection, warn_of_narrow_data
from fedcar.retriever import Retriever
from fedcar.selection import TRAINED, UNTRAINED, Choice, choose

METHODS = ("auto", "head", "adapter")
BATCHES_OF_LIKE_LENGTH = 16


@dataclass(frozen=True)
class Settings:
    """What training does, all of it: equal settings on equal data give the same retriever.

    `inverse_penalty` is the C of logistic regression: the penalty on the rows is s^2 |r|^2 / (2 C n) with temperature s
    and n training questions. `adapter_decay` pulls the adapter to the identity (decoupled weight decay). Rates fall to
    0 along a cosine.
    """

    method: str = "head"
    epochs: int = 20
    seed: int = 0
    batch_size: int = 256
    head_rate: float = 0.01
    inverse_penalty: float = 30.0
    head: str = "cosine"
    pre_classifier: int = 0
    adapter: str = "full"
    adapter_rate: float = 1e-3
    adapter_decay: float = 0.01
    gradient_checkpointing: bool = False


def train(
    collection: Collection,
    *,
    encoder: str | Path | Encoder = DEFAULT_ENCODER,
    pooling: str | None = None,
    method: str = "auto",
    adapter: str = "full",
    head: str = "cosine",
    pre_classifier: int = 0,
    epochs: int | None = None,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    report: Silent | None = None,
) -> Retriever:
    """Train a retriever on the collection's training questions; without any, the retriever is hybrid search.

    `method`: `head` (rows, on cached hidden states), `adapter` (adapter and head, through the frozen blocks) or `auto`.
    `cache` is the folder of the hidden states; `checkpoint` a folder written after every epoch, from which `resume`
    goes on.

    Formal guarantees:
        never_below_baselines_on_selection_data: BM25, MIPS, hybrid and every epoch are candidates; what is best on dev
            is kept (on a tenth of the training questions where there is no dev split).
        same_seed_same_model, resumed_equals_uninterrupted: bitwise, on the same machine.
    """
    report = report or Silent()
    settings = choose_settings(method, adapter, head, pre_classifier, epochs, seed, gradient_checkpointing)
    clock = Clock()
    model = encoder if isinstance(encoder, Encoder) else Encoder.load(encoder, pooling)
    features = FeatureCache(Path(cache) if cache else None)
    retriever = Retriever.untrained(
        collection.documents, model, features, report, head=head, pre_classifier=pre_classifier, seed=seed
    )
    train_split, selection_split = split_for_selection(collection, seed)
    training = prepare(retriever, train_split, features, report, "training questions")
    selection = prepare(retriever, selection_split, features, report, "selection questions")
    clock.lap("encode")
    history = History()
    if len(training) and len(selection):
        warn_of_narrow_data(collection)
        store = Checkpoint(Path(checkpoint), fingerprints(collection, model, settings)) if checkpoint else None
        retriever = fit(retriever, training, selection, settings, history, store, resume, report)
    else:
        if len(training):
            _warn(f"{len(training)} training questions without a dev split are too few to learn from and to check; "
                  "the retriever is hybrid search")
        retriever = untrained_choice(retriever, selection)
    clock.lap("train")
    retriever.training = {
        "method": settings.method if retriever.head.active.any() else "none",
        "settings": asdict(settings),
        "collection": {"name": collection.name, "fingerprint": collection.fingerprint},
        "questions": len(training),
        "selection_questions": len(selection),
        "history": history.records,
        "seconds": clock.seconds,
        "peak_memory_mb": peak_memory_mb(),
    }
    return retriever


def choose_settings(
    method: str, adapter: str, head: str, pre_classifier: int, epochs: int | None, seed: int, gradient_checkpointing: bool
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
        seed=seed, head=head, pre_classifier=pre_classifier, adapter=adapter, gradient_checkpointing=gradient_checkpointing
    )
    if method == "adapter":
        settings = replace(settings, method="adapter", epochs=4, batch_size=32)
    return settings if epochs is None else replace(settings, epochs=epochs)


def plan(collection: Collection, *, encoder: str, cache: str | Path | None = None, **options: object) -> dict[str, object]:
    """What `train` would do with the same arguments, without doing it: counts, encoder and settings."""
    pooling = options.pop("pooling", None)
    settings = choose_settings(**options)  # type: ignore[arg-type]
    model = Encoder.load(encoder, pooling)  # type: ignore[arg-type]
    training, selection = split_for_selection(collection, settings.seed)
    return {
        "documents": len(collection.documents),
        "training questions": len(training),
        "selection questions": len(selection),
        "encoder": f"{model.name} ({model.dimension} wide, pooling {model.pooling}, {model.fingerprint[:12]})",
        **asdict(settings),
    }


def fingerprints(collection: Collection, encoder: Encoder, settings: Settings) -> dict[str, object]:
    """What a checkpoint belongs to; another collection, encoder or setting cannot be resumed from it."""
    return {"collection": collection.fingerprint, "encoder": encoder.fingerprint, "settings": asdict(settings)}


# -------------------------------------------------------------------- the ladder


def fit(
    retriever: Retriever,
    training: Questions,
    selection: Questions,
    settings: Settings,
    history: History,
    checkpoint: Checkpoint | None,
    resume: bool,
    report: Silent,
) -> Retriever:
    """Run all epochs, score each on the selection questions, return the best: an epoch or what stood before."""
    trainer = Trainer(retriever, training, settings)
    untrained = choose(retriever, selection, retriever.cosines(selection.hidden_states), UNTRAINED)
    best = Best(0, untrained, trainer.trained_tensors())
    if resume and checkpoint is not None:
        best = checkpoint.restore(trainer, history) or best
    report.say(
        f"{settings.method}: {len(training)} training questions, {len(retriever.documents)} documents, "
        f"selection before training {untrained.score.success:.3f}"
    )
    for epoch in range(len(history) + 1, settings.epochs + 1):
        start = time.monotonic()
        with report.track(f"epoch {epoch} of {settings.epochs}", len(training)) as advance:
            loss = sum(trainer.epoch(epoch, advance)) / len(training)
        chosen = choose(retriever, selection, trainer.cosines(selection), TRAINED)
        seconds = round(time.monotonic() - start, 3)
        history.add(epoch=epoch, loss=loss, selection=chosen.score.success, seconds=seconds)
        report.say(f"epoch {epoch} of {settings.epochs}: loss {loss:.4f}, selection {chosen.score.success:.3f}, {seconds:.1f} s")
        if chosen.score > best.choice.score:
            best = Best(epoch, chosen, trainer.trained_tensors())
        if checkpoint is not None:
            checkpoint.write(trainer, best, history)
    return finish(retriever, trainer, best, selection, report)


def finish(retriever: Retriever, trainer: Trainer, best: Best, selection: Questions, report: Silent) -> Retriever:
    """Put the best epoch into the retriever; with nothing gained, it is what it was before training."""
    if best.epoch:
        trainer.load_tensors(best.tensors)
        report.say(f"kept epoch {best.epoch}: selection {best.choice.score.success:.3f}")
        return calibrated(replace(retriever, weights=best.choice.weights), selection, trainer.cosines(selection))
    report.say("no epoch was better on the selection questions than before training: the untrained retriever is kept")
    trainer.reset()
    return untrained_choice(retriever, selection)


def untrained_choice(retriever: Retriever, selection: Questions) -> Retriever:
    """Hybrid search with the weights that the selection questions prefer; the default without any."""
    if not len(selection):
        return retriever
    cosines = retriever.cosines(selection.hidden_states)
    chosen: Choice = choose(retriever, selection, cosines, UNTRAINED)
    return calibrated(replace(retriever, weights=chosen.weights), selection, cosines)


def calibrated(retriever: Retriever, selection: Questions, cosines: np.ndarray) -> Retriever:
    rows = {document.id: row for row, document in enumerate(retriever.documents)}
    scores = retriever.mixed(cosines, selection.lexical)
    return replace(retriever, temperature=fit_temperature(scores, selection.relevance(rows) > 0))


class Trainer:
    """The state of a training: head, adapter and their optimiser; one public method a rung of the ladder."""

    def __init__(self, retriever: Retriever, training: Questions, settings: Settings) -> None:
        self.head = retriever.head
        self.encoder = retriever.encoder
        self.training = training
        self.settings = settings
        self.document_rows = {document.id: row for row, document in enumerate(retriever.documents)}
        self.head.active.copy_(torch.from_numpy((training.relevance(self.document_rows) > 0).any(0)))
        self.token_ids: list[list[int]] = []
        if settings.method == "adapter":
            self.encoder.insert(Adapter(settings.adapter, self.encoder.embedding_width, settings.seed))
            self.token_ids = self.encoder.tokenize(training.texts)
            if settings.gradient_checkpointing:
                self.encoder.checkpoint_gradients()
        self.hidden_states = torch.from_numpy(training.hidden_states)
        groups = [{"params": list(self.head.parameters()), "lr": settings.head_rate, "weight_decay": 0.0}]
        if self.encoder.adapter is not None:
            decay = settings.adapter_decay
            groups.append({"params": list(self.encoder.adapter.parameters()), "lr": settings.adapter_rate, "weight_decay": decay})
        self.optimizer = torch.optim.AdamW(groups)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.steps_an_epoch = math.ceil(len(training) / settings.batch_size)

    def epoch(self, epoch: int, advance: object) -> Iterator[float]:
        """One pass over the training questions, seeded by seed and epoch; yields each batch's summed loss."""
        generator = np.random.default_rng([self.settings.seed, epoch])
        for number, rows in enumerate(self.batches(generator)):
            self.set_rates(((epoch - 1) * self.steps_an_epoch + number) / (self.settings.epochs * self.steps_an_epoch))
            yield self.step(rows) * len(rows)
            advance(len(rows))

    def batches(self, generator: np.random.Generator) -> list[np.ndarray]:
        """Row numbers in batches; through the encoder, texts of like length share a batch."""
        order, size = generator.permutation(len(self.training)), self.settings.batch_size
        if self.token_ids:
            lengths = np.array([len(ids) for ids in self.token_ids])
            window = size * BATCHES_OF_LIKE_LENGTH
            parts = [order[start : start + window] for start in range(0, len(order), window)]
            order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        return [batches[place] for place in generator.permutation(len(batches))] if self.token_ids else batches

    def set_rates(self, progress: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))

    def step(self, rows: np.ndarray) -> float:
        """One update of everything that is trained; returns the batch's mean loss."""
        self.optimizer.zero_grad()
        loss = self.loss(rows)
        (loss + self.penalty()).backward()
        self.optimizer.step()
        return float(loss.detach())

    def loss(self, rows: np.ndarray) -> Tensor:
        relevance = torch.from_numpy(self.training.relevance(self.document_rows, rows.tolist()))
        return softmax_loss(self.head(self.batch(rows)), relevance, self.head.active)

    def batch(self, rows: np.ndarray) -> Tensor:
        """Hidden states (b, d): cached ones, or through the adapter."""
        if not self.token_ids:
            return self.hidden_states[torch.from_numpy(rows)]
        return self.encoder.hidden_states([self.token_ids[row] for row in rows]).cpu()

    def penalty(self) -> Tensor:
        strength = 1 / (2 * self.settings.inverse_penalty * len(self.training))
        penalty: Tensor = strength * (self.head.log_scale.exp() * self.head.rows).square().sum()
        return penalty

    # ---------------------------------------------------------------- what is trained, as named tensors

    def cosines(self, questions: Questions) -> np.ndarray:
        """The head's part of the score with what is trained so far (n, documents)."""
        hidden_states = self.encoder.encode(questions.texts) if self.token_ids else questions.hidden_states
        with torch.inference_mode():
            return self.head.cosines(torch.from_numpy(hidden_states)).numpy()

    def parameters(self) -> dict[str, Tensor]:
        """Everything trained, by name: the names of an update."""
        parameters = {f"head.{name}": tensor for name, tensor in self.head.named_parameters()}
        if self.encoder.adapter is not None:
            parameters.update({f"adapter.{name}": tensor for name, tensor in self.encoder.adapter.named_parameters()})
        return parameters

    def trained_tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.parameters().items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.parameters().items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the untrained retriever."""
        self.head.active.fill_(False)
        self.head.rows.zero_()
        if self.head.pre_classifier:
            self.head.outer.zero_()
        if self.encoder.adapter is not None:
            self.encoder.remove_adapter()


def _warn(message: str) -> None:
    warnings.warn(message, FedcarWarning, stacklevel=3)
