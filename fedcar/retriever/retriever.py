"""The retriever: a searcher that can be trained, changed, saved and loaded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedcar.collection.collection import Document
from fedcar.collection.languages import name_of
from fedcar.collection.lines import check_identifier, check_text
from fedcar.common.files import write_json
from fedcar.common.folders import ANYTHING, write_folder
from fedcar.common.progress import Silent
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.both import Both, names_of
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.manner import Manner
from fedcar.encoder.reference import reference_states
from fedcar.errors import FedcarError, FedcarWarning, quoted
from fedcar.head.feature_map import FeatureMap
from fedcar.head.head import Head
from fedcar.retriever.evidence import Evidence, reads_tokens
from fedcar.retriever.foreign import warn_of_unread_documents
from fedcar.retriever.hopeless import view_for
from fedcar.retriever.late_interaction import LateInteraction
from fedcar.retriever.parts import KIND, read_parts
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.row_index import RowIndex, is_installed
from fedcar.retriever.searcher import Searcher
from fedcar.retriever.weights import WEIGHT_NAMES, weights_of
from fedcar.retriever.windows import Windows, several, windows_of
from fedcar.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.cache import FeatureCache

INDEX_FROM = 200_000  # rows; below, all products take under 12 ms a question on one core (docs/performance.md)


@dataclass
class Retriever(Searcher):
    """Everything that answers a question, and how it came about. Make one with `fedcar.train` or `Retriever.load`.

    Formal guarantees:
        load_rejects_a_changed_file: one changed byte in a saved retriever, or another encoder, is refused.
        no_network_at_search: loading and searching look on this machine only.
    """

    encoder: Encoder
    documents: tuple[Document, ...]
    head: Head
    training: TrainingRecord = field(default_factory=TrainingRecord)

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
        report, encoder = report or Silent(), encoder.untrained
        texts = [document.full_text for document in documents]
        parts = windows_of(documents, encoder, report)
        of_windows = [window.text for window in several(parts)]
        late = None
        with encoder.model.cutting():
            if reads_tokens(documents, encoder):  # the same passes give what the cache keeps

                def keep(read: Sequence[str], states: NDArray[np.void]) -> None:
                    cache.public.keep(encoder.for_documents, read, states)

                late = LateInteraction.build(documents, encoder, report, keep, parts)
            with report.track("encoding documents", len(texts) + len(of_windows)) as advance:
                embeddings = cache.public.hidden_states(encoder.for_documents, texts, advance)
                vectors = cache.public.hidden_states(encoder.for_documents, of_windows, advance)
        embeddings[[not text for text in texts]] = 0.0
        centre = FeatureMap.of_reference(reference_states(encoder, cache)).centre
        rows = Head(embeddings, centre=centre, kind=head, pre_classifier=pre_classifier, seed=seed)
        compared, view = rows.embeddings.numpy(), view_for(encoder, cache, report)
        if view is not None:
            compared = view(without_empty(cache.public.states(encoder.for_documents, texts), texts))
            vectors = view(cache.public.states(encoder.for_documents, of_windows))
        evidence = Evidence.build(documents, encoder, compared, report, late, Windows.of(parts, vectors), view)
        if (language := evidence.wording.language) is not None:
            report.say(f"language of the documents: {name_of(language)}")
            warn_of_unread_documents(encoder, language)
        weights = Evidence.default_weights(documents, hopeless=view is not None)
        return cls(encoder, tuple(documents), evidence, rows, weights_of(weights))

    # ---------------------------------------------------------------- documents come and go

    def add(self, documents: Sequence[Document], report: Silent | None = None) -> Retriever:
        """A new retriever that has these documents behind the others; this one stays as it is.

        A new document has its embedding, its evidence and an untouched row: it is found at once, as one that nobody
        asked about in training. Rows and vectors of the others stay bit for bit; their scores change only as far as how
        rare words are among the documents does. Nothing is written into the hidden-state cache. An empty document is
        kept and never returned. Trained rows compete with the new ones' evidence; `training.refine` solves rows for
        the new ones.

        Raises FedcarError for no document at all, and for an id that is taken or stands there twice.

        Formal guarantees:
            added_document_found_without_training: a question in the words of a new document finds it.
            add_then_remove_gives_the_original_hits: and files with the same content.
        """
        report = report or Silent()
        _check_new(self, documents)
        states = self._states(documents, report)
        head = self.head.added(states["pooled"])
        embeddings = self._embeddings(states, head)
        evidence = self.evidence.added(documents, self.encoder, embeddings, report)
        return replace(
            self,
            documents=(*self.documents, *documents),
            evidence=evidence,
            head=head,
            ridge=self.ridge.added(len(documents)) if self.ridge is not None else None,
            row_index=self.row_index.added(evidence.embeddings) if self.row_index is not None else None,
        )

    def remove(self, ids: Sequence[str]) -> Retriever:
        """A new retriever that never had these documents' texts, vectors, rows and words; this one stays as it is.

        What the questions about them taught the parts that all documents share (adapter, query map, mixture, other
        documents' rows) stays: that goes only with a new training.

        Raises FedcarError for an id that is not there, and where no document would be left.

        Formal guarantees:
            removed_document_never_returns: and nothing of it stands in any file of the retriever.
        """
        wanted = dict.fromkeys([ids] if isinstance(ids, str) else ids)
        rows = {document.id: row for row, document in enumerate(self.documents)}
        if not wanted:
            raise FedcarError("no document to remove; give the id of at least one")
        if unknown := [identifier for identifier in wanted if identifier not in rows]:
            raise FedcarError(f"{_named(unknown)}: not in the retriever; nothing was removed, check the id")
        if len(wanted) == len(rows):
            message = f"all {len(rows)} documents would be removed; leave one, or delete the retriever's folder"
            raise FedcarError(message)
        gone = sorted(rows[identifier] for identifier in wanted)
        return replace(
            self,
            documents=tuple(document for document in self.documents if document.id not in wanted),
            evidence=self.evidence.without(gone),
            head=self.head.without(gone),
            ridge=self.ridge.without(gone) if self.ridge is not None else None,
            row_index=self.row_index.without(gone) if self.row_index is not None else None,
        )

    def update(self, documents: Sequence[Document], report: Silent | None = None, *, forget: bool = False) -> Retriever:
        """A new retriever that has these documents instead of those with their ids; this one stays as it is.

        A document whose title or text has changed is read anew and stands behind the others; of its former text no
        vector, sentence or word is left. What questions taught about it stays, for they ask for the document and not
        for its wording: its row, and the words of its questions. A row that was solved from its former text (ridge,
        `refine`) goes; a linear head does not tell such a row from one of questions, and keeps it. Of a document whose
        title and text are the same only the metadata changes. With `forget` all that was learned of each of these
        documents goes, as with `remove` and `add`.

        Raises FedcarError for no document at all, and for an id that is not there or stands there twice.

        Formal guarantees:
            updated_document_found_by_its_new_text: and no file has its former text, vectors or words.
            update_keeps_what_questions_taught: its row moves with it bit for bit, those of the others stay.
        """
        report = report or Silent()
        _check_documents(documents, "update")
        given = {document.id: document for document in documents}
        places = {document.id: place for place, document in enumerate(self.documents)}
        if unknown := [identifier for identifier in given if identifier not in places]:
            raise FedcarError(f"{_named(unknown)}: not in the retriever; nothing was changed, add it or check the id")
        changed = [one for one in documents if forget or not one.reads_as(self.documents[places[one.id]])]
        alike = {**given, **{one.id: self.documents[places[one.id]] for one in changed}}  # metadata may be another
        present = tuple(alike.get(one.id, one) for one in self.documents)
        if not changed:
            return replace(self, documents=present)
        gone = [places[document.id] for document in changed]
        moved = set(gone)
        states = self._states(changed, report)
        ridge, index = self.ridge, self.row_index
        if forget:
            head = self.head.added(states["pooled"]).without(gone)
            ridge = ridge.added(len(gone)).without(gone) if ridge is not None else None
        else:
            head = self.head.updated(gone, states["pooled"])
            ridge = ridge.updated(gone) if ridge is not None else None
        embeddings = self._embeddings(states, head)
        evidence = self.evidence.added(changed, self.encoder, embeddings, report)
        return replace(
            self,
            documents=(*(one for one in present if places[one.id] not in moved), *changed),
            evidence=evidence.without(gone),
            head=head,
            ridge=ridge,
            row_index=index.added(evidence.embeddings).without(gone) if index is not None else None,
        )

    def _states(self, documents: Sequence[Document], report: Silent) -> NDArray[np.void]:
        """Untrained states (m,), 0 for an empty document."""
        texts = [document.full_text for document in documents]
        cutting = self.encoder.model.cutting()
        with cutting, report.track("encoding documents", len(texts)) as advance:
            return without_empty(self.encoder.untrained.for_documents.encode_states(texts, advance), texts)

    def _embeddings(self, states: NDArray[np.void], head: Head) -> NDArray[np.float32]:
        """What the evidence compares of these documents, which stand last in the head: (m, d)."""
        view = self.evidence.view
        return head.embeddings[-len(states) :].numpy() if view is None else view(states)

    # ---------------------------------------------------------------- on disk

    def save(self, folder: str | Path, *, replaces: str | None = ANYTHING) -> None:
        """Write a folder of safetensors and json; replaces a retriever that stands there in one step.

        With `replaces`, a `common.folders.seal_of`, only that one, or None: ReplacedError where somebody was faster.
        """
        write_folder(Path(folder), KIND, self._write, replaces)

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
        if (index := self.index()) is not None:
            index.write(folder)
        if self.training.privacy:
            write_json(folder / "privacy.json", self.training.privacy)
        with (folder / "documents.jsonl").open("w", encoding="utf-8") as stream:
            for document in self.documents:
                record = {"_id": document.id, "title": document.title, "text": document.text}
                record["metadata"] = dict(document.metadata)  # type: ignore[assignment]
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        write_json(
            folder / "retriever.json",
            {
                "encoder": _about(self.encoder),
                "adapter": adapter.variant if adapter is not None else None,
                "head": self.head.layers,
                "feature_seed": self.ridge.feature_map.seed if self.ridge is not None else None,
                "weights": dict(zip(WEIGHT_NAMES, map(float, self.weights), strict=True)),
                "calibration": asdict(self.calibration),
                "training": self.training.to_json(),
                "fedcar": __version__,
            },
        )

    @classmethod
    def load(cls, folder: str | Path, encoder: str | Path | None = None) -> Retriever:
        """Read a saved retriever, offline. `encoder` names the encoder's folder where it has moved.

        Raises FedcarError for a folder that is not a retriever, a changed file, and an encoder that is missing or not
        the one the retriever was trained with.
        """
        folder = Path(folder)
        parts = read_parts(folder)
        about, second = parts.encoder, parts.encoder.get("beside")
        name, *further = names_of(encoder) if encoder else (about["name"],)
        if further and second is None:
            raise FedcarError(f"{folder}: keeps one encoder alone; give its folder, without '+'")
        found = _encoder_of(folder, about, name)
        if parts.adapter_variant is not None:
            adapter = Adapter(parts.adapter_variant, next(iter(parts.adapter.values())).shape[0])
            adapter.load_state_dict({name: torch.from_numpy(array) for name, array in parts.adapter.items()})
            found = found.with_adapter(adapter)
        if second is not None:
            found = Both(found, _encoder_of(folder, second, further[0] if further else second["name"]))
        state = {name: torch.from_numpy(array) for name, array in parts.head.items()}
        return cls(
            found,
            parts.documents,
            parts.evidence,
            Head.of_state(state, **parts.head_layers),
            parts.weights,
            parts.ridge,
            parts.calibration,
            training=parts.training,
            row_index=parts.row_index,
        )

    def index(self) -> RowIndex | None:
        """Its index, or a new one where it has none but many documents, and faiss is there."""
        if self.row_index is not None or len(self.documents) < INDEX_FROM or not is_installed():
            return self.row_index
        return RowIndex.build(self.evidence.embeddings)


def without_empty(states: NDArray[np.void], texts: Sequence[str]) -> NDArray[np.void]:
    """The states (n,) of these texts, with 0 for those that are empty."""
    states[[not text for text in texts]] = np.zeros(1, states.dtype)
    return states


def _encoder_of(folder: Path, about: Mapping[str, Any], name: str) -> Encoder:
    """The encoder that a retriever's folder tells of, found under this name; refused where it is another one."""
    found = Encoder.load(name, about["pooling"], offline=True, manner=Manner.of(about.get("manner")))
    if found.fingerprint != about["fingerprint"]:
        raise FedcarError(
            f"{folder}: trained with an encoder of fingerprint {about['fingerprint'][:12]}, but "
            f"{found.name} has {found.fingerprint[:12]}; give the original encoder's folder"
        )
    if "state_fingerprint" in about and found.state_fingerprint != about["state_fingerprint"]:
        message = "trained with other modules behind the encoder's pooling; give the original encoder's folder"
        raise FedcarError(f"{folder}: {message}")
    return found


def _about(encoder: Encoder) -> dict[str, Any]:
    """What a retriever's folder tells of its encoder, and of one beside it."""
    return {
        "name": str(encoder.folder) if Path(encoder.name).is_dir() else encoder.name,
        "revision": encoder.model.revision,
        "weights_sha256": encoder.model.weight_hash,
        "fingerprint": encoder.fingerprint,
        "pooling": encoder.pooling,
        **_manner_of(encoder),
        **({} if encoder.beside is None else {"beside": _about(encoder.beside)}),
    }


def _manner_of(encoder: Encoder) -> dict[str, object]:
    """How the encoder reads, where that is not the plain way, and what tells it from others."""
    manner = encoder.model.manner.to_json()
    return {} if manner is None else {"manner": manner, "state_fingerprint": encoder.untrained.state_fingerprint}


def _check_new(retriever: Retriever, documents: Sequence[Document]) -> None:
    _check_documents(documents, "add")
    here, taken = {document.id for document in documents}, {document.id for document in retriever.documents}
    if there := sorted(here & taken):
        message = "in the retriever already; nothing was added, update it or take another id"
        raise FedcarError(f"{_named(there)}: {message}")


def _check_documents(documents: Sequence[Document], doing: str) -> None:
    if not documents:
        raise FedcarError(f"no document to {doing}; give at least one")
    here = set()
    for document in documents:
        check_identifier(document.id, f"documents to {doing}")
        for key, text in (("title", document.title), ("text", document.text)):
            check_text(text, key, f"document {quoted(document.id)}")
        if document.id in here:
            raise FedcarError(f"document {quoted(document.id)}: given twice; nothing was done, make the ids unique")
        here.add(document.id)
    if empty := sum(not document.full_text for document in documents):
        message = f"{empty} of {len(documents)} documents to {doing} are empty; kept, never returned"
        warnings.warn(message, FedcarWarning, stacklevel=4)


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    return f"document {quoted(ids[0])}{more}"
