"""The retriever: encoder, head and documents together; search, scores, save and load."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from fedcar.adapter import Adapter
from fedcar.baselines import HYBRID_WEIGHT_WITHOUT_DEV
from fedcar.calibration import DEFAULT_TEMPERATURE, confidences
from fedcar.collection import Document
from fedcar.encoder import Encoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.features import FeatureCache
from fedcar.head import Head
from fedcar.lexical import LexicalIndex
from fedcar.metrics import top_k
from fedcar.progress import Silent
from fedcar.storage import check_folder, write_folder, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND = "retriever"


@dataclass(frozen=True)
class Weights:
    """How the parts of the score are added: head * cosine + lexical * BM25 / (its maximum for the query)."""

    head: float = 1.0
    lexical: float = HYBRID_WEIGHT_WITHOUT_DEV

    def mix(self, cosines: NDArray[np.float32], lexical: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.float32(self.head) * cosines + np.float32(self.lexical) * lexical


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
    """Everything that answers a question. Make one with `fedcar.train` or `Retriever.load`.

    Formal guarantees:
        untrained_retriever_equals_hybrid: before training the scores are those of hybrid search.
        load_rejects_a_changed_file: one changed byte in a saved retriever, or another encoder, is refused.
        no_network_at_search: loading and searching look on this machine only.
    """

    encoder: Encoder
    head: Head
    documents: tuple[Document, ...]
    lexical: LexicalIndex
    weights: Weights = field(default_factory=Weights)
    temperature: float = DEFAULT_TEMPERATURE
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def untrained(
        cls,
        documents: Sequence[Document],
        encoder: Encoder,
        cache: FeatureCache,
        report: Silent | None = None,
        *,
        head: str = "cosine",
        pre_classifier: int = 0,
        seed: int = 0,
    ) -> Retriever:
        """Hybrid search over the documents: each row is the document's frozen embedding."""
        texts = [document.full_text for document in documents]
        with (report or Silent()).track("encoding documents", len(texts)) as advance:
            embeddings = cache.hidden_states(encoder, texts, advance)
        embeddings[[not text for text in texts]] = 0.0
        rows = Head(embeddings, kind=head, pre_classifier=pre_classifier, seed=seed)
        return cls(encoder, rows, tuple(documents), LexicalIndex.build(texts))

    def search(self, question: str, k: int = 5) -> Answer:
        """The k best documents for the question; fewer where there are fewer, never an empty document."""
        if not question.strip():
            raise FedcarError("the question is empty; ask something")
        if k < 1:
            raise FedcarError(f"k is {k}; it must be 1 or more")
        if k > len(self.documents):
            message = f"k is {k}, but there are only {len(self.documents)} documents; all that fit are returned"
            warnings.warn(message, FedcarWarning, stacklevel=2)
        scores = self.scores([question], self.encoder.encode([question]))
        confidence = confidences(scores, self.temperature)[0]
        hits = tuple(
            Hit(document.id, float(scores[0, row]), float(confidence[row]), document.title, document.text)
            for row in top_k(scores, k)[0]
            if np.isfinite(scores[0, row])
            for document in [self.documents[row]]
        )
        return Answer(question, bool(hits), hits)

    @torch.inference_mode()
    def scores(self, questions: Sequence[str], hidden_states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Questions and their hidden states (n, d) -> scores (n, documents); -inf for an empty document."""
        return self.mixed(self.cosines(hidden_states), self.lexical.relative_scores(questions))

    @torch.inference_mode()
    def cosines(self, hidden_states: NDArray[np.float32]) -> NDArray[np.float32]:
        """The head's part of the score: (n, d) -> (n, documents)."""
        result: NDArray[np.float32] = self.head.cosines(torch.from_numpy(hidden_states)).numpy()
        return result

    def mixed(
        self, cosines: NDArray[np.float32], lexical: NDArray[np.float32], weights: Weights | None = None
    ) -> NDArray[np.float32]:
        """The parts of the score added up; -inf for an empty document."""
        scores = (weights or self.weights).mix(cosines, lexical)
        scores[:, self.empty] = -np.inf
        return scores

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Which documents have no text: kept, never returned."""
        return np.array([not document.full_text for document in self.documents], dtype=bool)

    # ---------------------------------------------------------------- on disk

    def save(self, folder: str | Path) -> None:
        """Write a folder of safetensors and json; replaces a retriever that stands there in one step."""
        write_folder(Path(folder), KIND, self._write)

    def _write(self, folder: Path) -> None:
        save_file({name: tensor.detach().numpy() for name, tensor in self.head.state_dict().items()}, folder / "head.safetensors")
        adapter = self.encoder.adapter
        if adapter is not None:
            state = {name: tensor.detach().cpu().numpy() for name, tensor in adapter.state_dict().items()}
            save_file(state, folder / "adapter.safetensors")
        save_file({name: np.ascontiguousarray(array) for name, array in self.lexical.arrays.items()}, folder / "lexical.safetensors")
        write_json(folder / "vocabulary.json", self.lexical.vocabulary)
        with (folder / "documents.jsonl").open("w", encoding="utf-8") as stream:
            for document in self.documents:
                record = {"_id": document.id, "title": document.title, "text": document.text, "metadata": dict(document.metadata)}
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
                "head": {"kind": self.head.kind, "pre_classifier": self.head.pre_classifier},
                "weights": asdict(self.weights),
                "temperature": self.temperature,
                "training": self.training,
            },
        )

    @classmethod
    def load(cls, folder: str | Path, encoder: str | Path | None = None) -> Retriever:
        """Read a saved retriever, offline. `encoder` names the encoder's folder where it has moved.

        Raises FedcarError for a folder that is not a retriever, a changed file, and an encoder that is missing or not
        the one the retriever was trained with.
        """
        folder = Path(folder)
        check_folder(folder, KIND)
        settings = json.loads((folder / "retriever.json").read_text(encoding="utf-8"))
        found = Encoder.load(encoder or settings["encoder"]["name"], settings["encoder"]["pooling"], offline=True)
        if found.fingerprint != settings["encoder"]["fingerprint"]:
            raise FedcarError(
                f"{folder}: trained with an encoder of fingerprint {settings['encoder']['fingerprint'][:12]}, but "
                f"{found.name} has {found.fingerprint[:12]}; give the original encoder's folder"
            )
        state = load_file(folder / "head.safetensors")
        head = Head(state["embeddings"], **settings["head"])
        head.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        if settings["adapter"]:
            tensors = load_file(folder / "adapter.safetensors")
            width = next(iter(tensors.values())).shape[0]
            adapter = Adapter(settings["adapter"], width)
            adapter.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
            found.insert(adapter)
        with (folder / "documents.jsonl").open(encoding="utf-8") as stream:
            records = [json.loads(line) for line in stream]
        documents = tuple(Document(record["_id"], record["title"], record["text"], record["metadata"]) for record in records)
        vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        lexical = LexicalIndex(vocabulary, load_file(folder / "lexical.safetensors"), len(documents))
        weights = Weights(**settings["weights"])
        return cls(found, head, documents, lexical, weights, settings["temperature"], settings["training"])
