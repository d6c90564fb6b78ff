"""The contestants of `fedcar bench train`: fedcar and what a user would pick instead, each as one small function."""

# mypy: disable-error-code="import-untyped,import-not-found"
# the peers are optional, and some have no types

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.collection.collection import Collection, Judged, Query
from fedcar.collection.splits import split_for_selection
from fedcar.common.progress import Console, Silent
from fedcar.common.vectors import top_k, unit
from fedcar.encoder.runtimes import names
from fedcar.evaluation import metrics
from fedcar.evaluation.baselines import CHUNK, HYBRID_WEIGHTS
from fedcar.evaluation.metrics import DEPTH
from fedcar.retriever.lexical import LexicalIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    Encode = Callable[[Sequence[str]], NDArray[np.float32]]

LEAST_QUESTIONS_A_DOCUMENT = 10
ADDED_WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
USUAL_STRENGTH = 30.0
BATCH = 64
LEARNING_RATE = 2e-5  # with a tenth of the steps to warm up: the example in the library's manual
SHOTS = 8
PAIRS_A_SHOT = 20
BUDGET_SECONDS = 900
STEPS_TIMED = 5


@dataclass(frozen=True)
class Task:
    """What one process does.

    `encoder` is a folder; `limit` bounds the training questions, 0 for no bound; `budget` the seconds that SetFit may
    take.
    """

    peer: str
    collection: str
    encoder: str
    pooling: str
    epochs: int = 1
    limit: int = 0
    seed: int = 0
    budget: int = BUDGET_SECONDS


@dataclass(frozen=True)
class Ready:
    """A system that can answer: texts -> the ten best document ids of each."""

    name: str
    rank: Callable[[Sequence[str]], list[list[str]]]


class PeerLeftOut(Exception):
    """Why a peer cannot take part; one line."""


# ---------------------------------------------------------------- fedcar and what needs no training


def of_fedcar(task: Task, collection: Collection) -> Iterator[Ready]:
    """What `fedcar train` gives without any option; nothing is cached, so that encoding and choosing how counts."""
    from fedcar.encoder.cache import FeatureCache
    from fedcar.retriever.prepare import prepare
    from fedcar.training.train import train

    names.use("auto")
    cache = Path("cache")
    retriever = train(
        collection, encoder=task.encoder, pooling=task.pooling, seed=task.seed, cache=cache, report=Console()
    )

    def rank(texts: Sequence[str]) -> list[list[str]]:
        asked = Judged(tuple(Query(str(row), text) for row, text in enumerate(texts)), ({},) * len(texts))
        questions = prepare(retriever, asked, FeatureCache(cache), Silent(), "test questions")
        return retriever.ranked(questions, retriever.scores_of(questions))

    yield Ready("fedcar", rank)


def of_bm25s(task: Task, collection: Collection) -> Iterator[Ready]:
    """The library with its defaults and English stop words."""
    import bm25s

    ids, texts, empty = documents_of(collection)
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)

    def scores(query: str) -> NDArray[np.float32]:
        (words,) = bm25s.tokenize([query], stopwords="en", show_progress=False, return_ids=False)
        known = [word for word in words if word in index.vocab_dict]
        lexical = index.get_scores(known) if known else np.zeros(len(ids))  # the library cannot do without a known word
        return np.where(empty, -np.inf, lexical).astype(np.float32)

    yield Ready("bm25s", lambda texts: [best(scores(text)[None], ids)[0] for text in texts])


def of_hybrid(task: Task, collection: Collection) -> Iterator[Ready]:
    """The hybrid of the contract: cosine + w * BM25 / (its maximum), w of .2 and .4 chosen on dev, .2 without dev."""
    search = Search(collection, frozen(task))
    weight = search.best_weight(collection.judged("dev"), HYBRID_WEIGHTS)
    yield Ready("hybrid", lambda texts: search.rank(texts, weight))


class Search:
    """Dense search over the documents of the collection, with BM25 added where it has a weight."""

    def __init__(self, collection: Collection, encode: Encode) -> None:
        self.ids, self.texts, self.empty = documents_of(collection)
        self.encode = encode
        self.embeddings = unit(encode(self.texts))

    @cached_property
    def index(self) -> LexicalIndex:
        return LexicalIndex.build(self.texts)

    def rank(self, texts: Sequence[str], weight: float = 0.0) -> list[list[str]]:
        return self.ranked(unit(self.encode(texts)), texts, (weight,))[0]

    def ranked(
        self, questions: NDArray[np.float32], texts: Sequence[str], weights: Sequence[float]
    ) -> list[list[list[str]]]:
        """Question vectors (n, d) of unit length -> for each weight the ten best document ids of each question."""
        rankings: list[list[list[str]]] = [[] for _ in weights]
        for start in range(0, len(texts), CHUNK):
            cosines = questions[start : start + CHUNK] @ self.embeddings.T
            cosines[:, self.empty] = -np.inf
            lexical = self.index.relative_scores(texts[start : start + CHUNK]) if any(weights) else cosines
            for place, weight in enumerate(weights):
                rankings[place] += best(cosines + np.float32(weight) * lexical if weight else cosines, self.ids)
        return rankings

    def best_weight(self, dev: Judged, weights: Sequence[float]) -> float:
        """The weight with the most right first documents, of equal ones the first; .2 without dev."""
        if not len(dev):
            return HYBRID_WEIGHTS[0]
        ranked = self.ranked(unit(self.encode(dev.texts)), dev.texts, weights)
        return weights[int(np.argmax([success(ranking, dev) for ranking in ranked]))]


# ---------------------------------------------------------------- what is trained


def of_sentence_transformers(task: Task, collection: Collection) -> Iterator[Ready]:
    """Fine-tuned with MultipleNegativesRankingLoss as the manual has it, alone and with BM25 added."""
    training, selection = split_for_selection(collection, task.seed)
    pairs = positives(training)
    texts = {document.id: document.full_text for document in collection.documents}
    pairs = [(question, document) for question, document in pairs if texts[document]]
    if len({document for _, document in pairs}) < 2:
        raise PeerLeftOut("the training questions have fewer than two documents, and the loss compares documents")
    model = sentence_transformer(task)
    fine_tune(model, [(question, texts[document]) for question, document in pairs], task)
    search = Search(collection, lambda texts: encoded(model, texts))
    name = f"sentence-transformers, {task.epochs} epoch{'s' if task.epochs > 1 else ''}"
    yield Ready(name, search.rank)
    weight = search.best_weight(selection, ADDED_WEIGHTS)
    yield Ready(f"{name}, BM25", lambda texts: search.rank(texts, weight))


def fine_tune(model: SentenceTransformer, pairs: Sequence[tuple[str, str]], task: Task) -> None:
    """Batches without duplicates: a question's document must not stand among its negatives.

    Where there are fewer documents than fit a batch, a batch holds each document once.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.training_args import BatchSamplers

    documents = len({document for _, document in pairs})
    settings = SentenceTransformerTrainingArguments(
        output_dir="sentence-transformers",
        num_train_epochs=task.epochs,
        per_device_train_batch_size=min(BATCH, documents),
        learning_rate=LEARNING_RATE,
        warmup_steps=0.1,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        dataloader_drop_last=documents < BATCH,  # what is left of one document has no negative
        seed=task.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    dataset = Dataset.from_dict(
        {"anchor": [question for question, _ in pairs], "positive": [document for _, document in pairs]}
    )
    trainer = SentenceTransformerTrainer(model, settings, dataset, loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    model.eval()


def of_sklearn(task: Task, collection: Collection) -> Iterator[Ready]:
    """Logistic regression on frozen features; C chosen on dev."""
    from sklearn.linear_model import LogisticRegression

    training, selection = classes(task, collection)
    pairs = positives(training)
    encode = frozen(task)
    inputs, labels = unit(encode([question for question, _ in pairs])), [document for _, document in pairs]
    dev = unit(encode(selection.texts)) if len(selection) else np.empty((0, inputs.shape[1]), np.float32)
    ids, _, _ = documents_of(collection)

    def ranked(model: LogisticRegression, vectors: NDArray[np.float32]) -> list[list[str]]:
        return best(probabilities(model.classes_, model.predict_proba(vectors), ids), ids)

    def fitted(strength: float) -> tuple[float, LogisticRegression]:
        model = LogisticRegression(C=strength, max_iter=1000).fit(inputs, labels)
        return success(ranked(model, dev), selection) if len(selection) else 0.0, model

    tried = [fitted(strength) for strength in (STRENGTHS if len(selection) else (USUAL_STRENGTH,))]
    model = max(tried, key=lambda one: one[0])[1]
    yield Ready("sklearn logistic regression", lambda texts: ranked(model, unit(encode(texts))))


def of_setfit(task: Task, collection: Collection) -> Iterator[Ready]:
    """SetFit, few-shot: SHOTS questions a document, PAIRS_A_SHOT pairs of each kind a question."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    training, _ = classes(task, collection)
    ids, _, _ = documents_of(collection)
    texts, labels = few_shots(positives(training), task.seed)
    names = sorted(set(labels))
    model = SetFitModel(
        model_body=sentence_transformer(task), model_head=LogisticRegression(max_iter=1000), labels=names
    )
    settings = TrainingArguments(
        output_dir="setfit",
        batch_size=16,
        num_epochs=1,
        num_iterations=PAIRS_A_SHOT,
        seed=task.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        show_progress_bar=False,
    )
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict({"text": texts, "label": labels}),
        metric=lambda predicted, right: {"right": float(np.mean(np.asarray(predicted) == np.asarray(right)))},
        callbacks=[within_budget(task.budget)],  # the metric is a function because a named one is fetched from the hub
    )
    trainer.train()
    encode = model.model_body

    def rank(questions: Sequence[str]) -> list[list[str]]:
        shares = model.model_head.predict_proba(encoded(encode, questions))
        return best(probabilities(model.model_head.classes_, shares, ids), ids)

    yield Ready("setfit", rank)


def within_budget(seconds: int) -> Any:  # noqa: ANN401 - a class of an optional library
    """A callback that times a few steps and gives up where all would take longer than the budget."""
    from transformers import TrainerCallback

    class TimeBudget(TrainerCallback):
        start = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            if state.global_step == 1:  # the first one warms up
                self.start = time.monotonic()
            elif state.global_step == 1 + STEPS_TIMED:
                expected = (time.monotonic() - self.start) / STEPS_TIMED * state.max_steps
                if expected > seconds:
                    raise PeerLeftOut(f"would train for about {expected:.0f} s; the budget is {seconds} s (--budget)")

    return TimeBudget()


def few_shots(pairs: Sequence[tuple[str, str]], seed: int) -> tuple[list[str], list[str]]:
    """SHOTS questions of each document, chosen at random."""
    chosen: dict[str, list[str]] = {}
    for row in np.random.default_rng(seed).permutation(len(pairs)).tolist():
        question, document = pairs[row]
        if len(chosen.setdefault(document, [])) < SHOTS:
            chosen[document].append(question)
    texts = [question for questions in chosen.values() for question in questions]
    return texts, [document for document, questions in chosen.items() for _ in questions]


# ---------------------------------------------------------------- what they share


def documents_of(collection: Collection) -> tuple[list[str], list[str], NDArray[np.bool_]]:
    """Ids, texts, and which are empty: those are never returned."""
    texts = [document.full_text for document in collection.documents]
    return [document.id for document in collection.documents], texts, np.array([not text for text in texts], dtype=bool)


def best(scores: NDArray[np.float32], ids: Sequence[str]) -> list[list[str]]:
    """Scores (n, documents) -> the ten best ids of each, without those that score -inf."""
    highest = top_k(scores, DEPTH)
    return [
        [ids[place] for place in places if np.isfinite(row[place])] for row, places in zip(scores, highest, strict=True)
    ]


def success(ranking: list[list[str]], judged: Judged) -> float:
    return float(metrics.per_query(ranking, judged.relevant)["success@1"].mean())


def positives(judged: Judged) -> list[tuple[str, str]]:
    """Each question with each document that answers it."""
    return [
        (query.text, document)
        for query, scores in zip(judged.queries, judged.relevant, strict=True)
        for document, score in scores.items()
        if score > 0
    ]


def classes(task: Task, collection: Collection) -> tuple[Judged, Judged]:
    """Training and selection questions for a classifier, which needs several questions of every class."""
    training, selection = split_for_selection(collection, task.seed)
    pairs = positives(training)
    seen = len({document for _, document in pairs})
    if seen < 2:
        raise PeerLeftOut("the training questions have fewer than two documents, and a classifier tells two apart")
    if (each := len(pairs) / seen) < LEAST_QUESTIONS_A_DOCUMENT:
        message = (
            f"is for labels: {each:.1f} training questions a seen document, {LEAST_QUESTIONS_A_DOCUMENT} are needed"
        )
        raise PeerLeftOut(message)
    return training, selection


def probabilities(known: Sequence[str], shares: NDArray[Any], ids: Sequence[str]) -> NDArray[np.float32]:
    """Probabilities of the known classes (n, classes) -> (n, documents), -inf for a document that is no class."""
    places = {document: place for place, document in enumerate(ids)}
    scores = np.full((len(shares), len(ids)), -np.inf, dtype=np.float32)
    scores[:, [places[str(name)] for name in known]] = shares
    return scores


def frozen(task: Task) -> Encode:
    """The encoder as fedcar reads it, without prompts: its peer has none either."""
    from fedcar.encoder.encoder import Encoder
    from fedcar.encoder.manner import Manner

    return Encoder.load(task.encoder, task.pooling, offline=True, manner=Manner()).encode


def sentence_transformer(task: Task) -> SentenceTransformer:
    """The same encoder for sentence-transformers: same files, pooling and length limit."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    from fedcar.encoder.encoder import Encoder
    from fedcar.encoder.manner import Manner

    encoder = Encoder.load(task.encoder, task.pooling, offline=True, manner=Manner())
    transformer = Transformer(task.encoder)
    transformer.max_seq_length = encoder.model.max_tokens
    if transformer.tokenizer.pad_token is None:
        transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    mode = {"last": "lasttoken"}.get(task.pooling, task.pooling)
    return SentenceTransformer(modules=[transformer, Pooling(encoder.dimension, mode)])


def encoded(model: SentenceTransformer, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeddings of unit length (n, d)."""
    vectors = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
    return np.asarray(vectors, dtype=np.float32)


Peer = Callable[[Task, Collection], Iterator[Ready]]
PEERS: dict[str, Peer] = {
    "fedcar": of_fedcar,
    "sentence-transformers": of_sentence_transformers,
    "sklearn": of_sklearn,
    "setfit": of_setfit,
    "bm25s": of_bm25s,
    "hybrid": of_hybrid,
}
