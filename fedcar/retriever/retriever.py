"""The retriever: encoder, evidence, head and documents together; search, scores, save and load.

Searching imports no torch, so that a bundle (see `fedcar.export.bundle`) is searched by this very code.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.collection.collection import Document
from fedcar.common.files import write_json
from fedcar.common.folders import check_folder, write_folder
from fedcar.common.progress import Silent
from fedcar.common.tensors import read_tensors
from fedcar.common.vectors import top_k
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.head.rows import products
from fedcar.retriever.calibration import Calibration
from fedcar.retriever.evidence import Evidence, at_once, reads_tokens
from fedcar.retriever.late_interaction import LateInteraction, unit
from fedcar.retriever.row_index import RowIndex, is_installed
from fedcar.retriever.weights import LEARNED, WEIGHT_NAMES, mixed_features, weights_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.cache import FeatureCache
    from fedcar.encoder.encoder import Encoder
    from fedcar.encoder.runtimes.protocol import TokenStates
    from fedcar.head.head import Head
    from fedcar.head.ridge_rows import RidgeRows
    from fedcar.retriever.questions import Questions

KIND = "retriever"
CHUNK = 256
INDEX_FROM = 200_000  # rows; below, all products take under 12 ms a question on one core (docs/performance.md)
POOL = 400  # documents nearest by encoder, and by words, among which the candidates are chosen


@dataclass(frozen=True)
class Hit:
    """One document found; `confidence` is the estimated probability that it answers the question."""

    id: str
    score: float
    confidence: float
    title: str
    text: str


@dataclass(frozen=True)
class Answer:
    """The hits of one question, best first; not `answered` where the retriever does not know."""

    query: str
    answered: bool
    hits: tuple[Hit, ...]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)


@dataclass
class Retriever:
    """Everything that answers a question. Make one with `fedcar.training.train` or `Retriever.load`.

    The score of a document is weights . (evidence, learned): the evidence of encoder and words, and what training has
    learned (`head` or `ridge`). Where some documents have trained rows, the others stand apart: they are mixed with
    weights of their own and a constant, which put both kinds on one scale. All documents are compared; past
    `row_index.INDEX_FROM` of them, and where faiss is installed, a saved retriever has an index that says which.

    Formal guarantees:
        load_rejects_a_changed_file: one changed byte in a saved retriever, or another encoder, is refused.
        no_network_at_search: loading and searching look on this machine only.
    """

    encoder: Encoder
    documents: tuple[Document, ...]
    evidence: Evidence
    head: Head
    weights: NDArray[np.float32]
    ridge: RidgeRows | None = None
    calibration: Calibration = field(default_factory=Calibration)
    training: dict[str, Any] = field(default_factory=dict)
    row_index: RowIndex | None = None

    @classmethod
    def untrained(
        cls,
        documents: Sequence[Document],
        encoder: Encoder,
        cache: FeatureCache,
        report: Silent | None = None,
        *,
        head: str = "linear",
        pre_classifier: int = 0,
        seed: int = 0,
    ) -> Retriever:
        """Search over the documents by the evidence alone, with fixed weights: hybrid search and more."""
        from fedcar.encoder.reference import reference_states
        from fedcar.head.feature_map import FeatureMap
        from fedcar.head.head import Head

        report = report or Silent()
        texts = [document.full_text for document in documents]
        late = None
        if reads_tokens(documents, encoder):  # the same passes give what the cache keeps

            def keep(read: Sequence[str], states: NDArray[np.void]) -> None:
                cache.keep(encoder, read, states)

            late = LateInteraction.build(documents, encoder, report, keep)
        with report.track("encoding documents", len(texts)) as advance:
            embeddings = cache.hidden_states(encoder, texts, advance)
        embeddings[[not text for text in texts]] = 0.0
        centre = FeatureMap.of_reference(reference_states(encoder, cache)).centre
        rows = Head(embeddings, centre=centre, kind=head, pre_classifier=pre_classifier, seed=seed)
        evidence = Evidence.build(documents, encoder, rows.embeddings.numpy(), report, late)
        return cls(encoder, tuple(documents), evidence, rows, weights_of(Evidence.default_weights(documents)))

    def search(self, question: str, k: int = 5) -> Answer:
        """The k best documents for the question; fewer where there are fewer, never an empty document."""
        if not question.strip():
            raise FedcarError("the question is empty; ask something")
        if k < 1:
            raise FedcarError(f"k is {k}; it must be 1 or more")
        if k > len(self.documents):
            message = f"k is {k}, but there are {len(self.documents)} documents; all are returned"
            warnings.warn(message, FedcarWarning, stacklevel=2)
        with self.encoder.untrained():
            states = self.encoder.encode_states([question])
        candidates, evidence = self.evidence_for([question], states)
        scores = self.scores([question], states, candidates, evidence)
        confidence = self.calibration.confidences(scores)[0]
        hits = tuple(
            Hit(document.id, float(scores[0, place]), float(confidence[place]), document.title, document.text)
            for place in top_k(scores, k)[0]
            if np.isfinite(scores[0, place])
            for document in [self.documents[candidates[0, place]]]
        )
        answered = bool(hits) and self.calibration.answers(scores)[0]
        return Answer(question, bool(answered), hits)

    # ---------------------------------------------------------------- scores

    def evidence_for(
        self,
        texts: Sequence[str],
        states: NDArray[np.void],
        advance: Callable[[int], None] | None = None,
        tokens: Sequence[TokenStates] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Questions and their untrained states -> candidate rows (n, c) and their evidence (n, c, F).

        `tokens` are their token states where they are known already.
        """
        candidates, evidence = [], []
        for start in range(0, len(texts), step := at_once(CHUNK, len(self.documents))):
            part, chunk = slice(start, start + step), list(texts[start : start + step])
            found = np.sort(self.candidates(chunk, states[part]), axis=1)  # ties go to the first, as in the baselines
            candidates.append(found)
            known = None if tokens is None else tokens[part]
            evidence.append(self.evidence.features(chunk, states["pooled"][part], found, known))
            if advance is not None:
                advance(len(chunk))
        if not candidates:
            return np.empty((0, 0), dtype=np.int64), np.empty((0, 0, LEARNED), dtype=np.float32)
        return np.concatenate(candidates), np.concatenate(evidence)

    def candidates(self, texts: Sequence[str], states: NDArray[np.void]) -> NDArray[np.int64]:
        """The documents worth a closer look (n, c), by encoder and words: those that training and selection looked at.

        What was learned has no say: a map or rows that were never seen to rank others would crowd out right ones.
        """
        hidden_states, lexical = unit(states["pooled"]), self.evidence.lexical(texts)
        if self.row_index is not None:
            return indexed_candidates(self, self.row_index, hidden_states, lexical)
        return self.evidence.candidates(products(hidden_states, self.evidence.embeddings), lexical)

    def learned(
        self, texts: Sequence[str], states: NDArray[np.void], candidates: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """What training has learned, by rows and by words: (n, documents, 2), or (n, c, 2) for the candidates."""
        if self.ridge is not None:
            scores = self.ridge.scores(texts, states)
            return scores if candidates is None else np.take_along_axis(scores, candidates[..., None], axis=1)
        shape = (len(texts), len(self.documents)) if candidates is None else candidates.shape
        learned = np.zeros((*shape, 2), dtype=np.float32)
        if self.is_trained:
            adapted = states["pooled"] if self.encoder.adapter is None else self.encoder.encode(texts)
            learned[..., 0] = self.head.learned_scores(adapted, states["pooled"], candidates)
        return learned

    @property
    def is_trained(self) -> bool:
        return self.ridge is not None or self.head.query_map or bool(self.head.has_row.any())

    @property
    def apart(self) -> NDArray[np.bool_]:
        """Which documents have no row of their own while others have one (N,)."""
        if self.ridge is not None:
            rows = np.zeros(len(self.documents), dtype=bool)
            rows[self.ridge.documents] = True
        else:
            rows = self.head.has_row
        return ~rows if rows.any() else np.zeros(len(rows), dtype=bool)

    def features(self, questions: Questions) -> NDArray[np.float32]:
        """All that the weights mix, (n, c, F), in the order of `WEIGHT_NAMES`."""
        learned = self.learned(questions.texts, questions.states, questions.candidates)
        return mixed_features(questions.evidence, learned, self.apart[questions.candidates])

    def scores(
        self,
        texts: Sequence[str],
        states: NDArray[np.void],
        candidates: NDArray[np.int64],
        evidence: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Scores of the candidates (n, c); -inf for an empty document."""
        learned = self.learned(texts, states, candidates)
        mixed = mixed_features(evidence, learned, self.apart[candidates]) @ self.weights
        return np.where(self.empty[candidates], -np.inf, mixed).astype(np.float32)

    def scores_of(self, questions: Questions) -> NDArray[np.float32]:
        """Scores of prepared questions (n, c)."""
        return self.scores(questions.texts, questions.states, questions.candidates, questions.evidence)

    def ranked(self, questions: Questions, scores: NDArray[np.float32], k: int = 10) -> list[list[str]]:
        """Scores (n, c) -> the ids of the k best candidates of each question, without those that score -inf."""
        return [
            [self.documents[candidates[place]].id for place in places if np.isfinite(row[place])]
            for candidates, row, places in zip(questions.candidates, scores, top_k(scores, k), strict=True)
        ]

    @cached_property
    def empty(self) -> NDArray[np.bool_]:
        """Which documents have no text: kept, never returned."""
        stored: NDArray[np.bool_] | None = getattr(self.documents, "empty", None)  # a bundle's, read when asked for
        return np.array([not one.full_text for one in self.documents], dtype=bool) if stored is None else stored

    # ---------------------------------------------------------------- documents come and go

    def add(self, documents: Sequence[Document], refine: bool = False, report: Silent | None = None) -> Retriever:
        """A new retriever with these documents too, found without training; see `editing.with_added`."""
        from fedcar.retriever import editing

        return editing.with_added(self, documents, refine, report)

    def remove(self, ids: Sequence[str]) -> Retriever:
        """A new retriever without these documents, for good; see `editing.without`."""
        from fedcar.retriever import editing

        return editing.without(self, ids)

    # ---------------------------------------------------------------- on disk

    def save(self, folder: str | Path) -> None:
        """Write a folder of safetensors and json; replaces a retriever that stands there in one step."""
        write_folder(Path(folder), KIND, self._write)

    def _write(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        state = {name: tensor.detach().numpy() for name, tensor in self.head.state_dict().items()}
        save_file(state, folder / "head.safetensors")
        adapter = self.encoder.adapter
        if adapter is not None:
            state = {name: tensor.detach().cpu().numpy() for name, tensor in adapter.state_dict().items()}
            save_file(state, folder / "adapter.safetensors")
        if self.ridge is not None:
            save_file(self.ridge.tensors(), folder / "ridge.safetensors")
        self.evidence.write(folder)
        if (index := index_for(self)) is not None:
            index.write(folder)
        if self.training.get("privacy"):
            write_json(folder / "privacy.json", self.training["privacy"])
        with (folder / "documents.jsonl").open("w", encoding="utf-8") as stream:
            for document in self.documents:
                record = {"_id": document.id, "title": document.title, "text": document.text}
                record["metadata"] = dict(document.metadata)  # type: ignore[assignment]
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        write_json(
            folder / "retriever.json",
            {
                "encoder": {
                    "name": str(self.encoder.folder) if Path(self.encoder.name).is_dir() else self.encoder.name,
                    "revision": self.encoder.revision,
                    "weights_sha256": self.encoder.weight_hash,
                    "fingerprint": self.encoder.fingerprint,
                    "pooling": self.encoder.pooling,
                },
                "adapter": adapter.variant if adapter is not None else None,
                "head": {
                    "kind": self.head.kind,
                    "pre_classifier": self.head.pre_classifier,
                    "query_map": self.head.query_map,
                },
                "feature_seed": self.ridge.feature_map.seed if self.ridge is not None else None,
                "weights": dict(zip(WEIGHT_NAMES, map(float, self.weights), strict=True)),
                "calibration": asdict(self.calibration),
                "training": self.training,
            },
        )

    @classmethod
    def load(cls, folder: str | Path, encoder: str | Path | None = None) -> Retriever:
        """Read a saved retriever, offline. `encoder` names the encoder's folder where it has moved.

        Raises FedcarError for a folder that is not a retriever, a changed file, and an encoder that is missing or not
        the one the retriever was trained with.
        """
        import torch

        from fedcar.encoder.adapter import Adapter
        from fedcar.encoder.encoder import Encoder
        from fedcar.head.head import Head
        from fedcar.head.ridge_rows import RidgeRows

        folder = Path(folder)
        check_folder(folder, KIND)
        settings = json.loads((folder / "retriever.json").read_text(encoding="utf-8"))
        found = Encoder.load(encoder or settings["encoder"]["name"], settings["encoder"]["pooling"], offline=True)
        if found.fingerprint != settings["encoder"]["fingerprint"]:
            raise FedcarError(
                f"{folder}: trained with an encoder of fingerprint {settings['encoder']['fingerprint'][:12]}, but "
                f"{found.name} has {found.fingerprint[:12]}; give the original encoder's folder"
            )
        state = read_tensors(folder / "head.safetensors")
        head = Head(state["embeddings"], **settings["head"])
        head.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        if settings["adapter"]:
            tensors = read_tensors(folder / "adapter.safetensors")
            adapter = Adapter(settings["adapter"], next(iter(tensors.values())).shape[0])
            adapter.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
            found.insert(adapter)
        ridge = None
        if settings["feature_seed"] is not None:
            tensors = read_tensors(folder / "ridge.safetensors")
            ridge = RidgeRows.from_tensors(tensors, settings["feature_seed"], len(head.rows))
        with (folder / "documents.jsonl").open(encoding="utf-8") as stream:
            records = [json.loads(line) for line in stream]
        return cls(
            found,
            tuple(Document(record["_id"], record["title"], record["text"], record["metadata"]) for record in records),
            Evidence.read(folder, found),
            head,
            np.array([settings["weights"][name] for name in WEIGHT_NAMES], dtype=np.float32),
            ridge,
            Calibration(**settings["calibration"]),
            settings["training"],
            RowIndex.read(folder),
        )


def index_for(retriever: Retriever) -> RowIndex | None:
    """The retriever's index, or a new one where it has none but many documents, and faiss is there."""
    if retriever.row_index is not None or len(retriever.documents) < INDEX_FROM or not is_installed():
        return retriever.row_index
    return RowIndex.build(retriever.evidence.embeddings)


def indexed_candidates(
    retriever: Retriever,
    index: RowIndex,
    hidden_states: NDArray[np.float32],
    lexical: NDArray[np.float32],
) -> NDArray[np.int64]:
    """`Evidence.candidates` among the documents nearest by encoder and by words: (n, c).

    Hidden states (n, d) have unit length, `lexical` is (n, N).
    """
    embeddings = retriever.evidence.embeddings
    _, near = index.search(hidden_states, embeddings, POOL, rescored=1)
    candidates = []
    for row, state in enumerate(hidden_states):
        places = np.unique(np.concatenate([near[row], _highest(lexical[row])]))
        scores = embeddings[places] @ state
        candidates.append(places[retriever.evidence.candidates(scores[None], lexical[row, places][None])[0]])
    return np.stack(candidates)


def _highest(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """The places of the POOL highest scores, as far as they are above 0."""
    places = np.argpartition(-scores, POOL)[:POOL]
    return places[scores[places] > 0]
