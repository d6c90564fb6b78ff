"""The bundle: a retriever in one folder that needs neither torch nor the encoder's own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fedcar.collection.collection import Document
from fedcar.collection.wording import Wording
from fedcar.common.folders import ReplacedError, opened_folder, seal_of
from fedcar.common.tensors import mapped_tensors
from fedcar.encoder.stored import StoredEncoder
from fedcar.export.vocabulary import ARRAYS, StoredWords
from fedcar.head.frozen import FrozenHead
from fedcar.head.ridge_rows import RidgeRows
from fedcar.head.rows import Rows
from fedcar.retriever.calibration import Calibration
from fedcar.retriever.evidence import Evidence
from fedcar.retriever.row_index import RowIndex
from fedcar.retriever.searcher import Searcher
from fedcar.retriever.weights import WEIGHT_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray


KIND = "bundle"
VIEWED = "viewed"  # what the evidence compares, where these are not the embeddings
ON_DISK = ("late.tokens", "late.sentences")  # large, and read for a question's candidates alone


class StoredDocuments(Sequence[Document]):
    """Documents in a file of lines, each read when it is asked for.

    `starts` (N + 1,) says where each begins, `empty` (N,) which have no text.
    """

    def __init__(self, file: Path, starts: NDArray[np.int64], empty: NDArray[np.bool_]) -> None:
        self.starts = starts
        self.empty = empty
        self._content: NDArray[np.uint8] = np.memmap(file, np.uint8, "r")

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.empty)

    @overload
    def __getitem__(self, place: int) -> Document: ...
    @overload
    def __getitem__(self, place: slice) -> list[Document]: ...
    def __getitem__(self, place: int | slice) -> Document | list[Document]:
        """Return the document at this place."""
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        first, last = self.starts[place % len(self) : place % len(self) + 2]
        return _document(json.loads(self._content[first:last].tobytes()))


@dataclass
class Bundle(Searcher):
    """A searcher that lies in a bundle's files; it cannot be trained, changed or saved."""

    encoder: StoredEncoder
    documents: StoredDocuments
    head: FrozenHead
    origin: Mapping[str, Any] = field(default_factory=dict, kw_only=True)  # of which retriever it was made
    folder: Path = field(kw_only=True)
    seal: str | None = field(default=None, kw_only=True)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process, and a copy, read the files anew; ReplacedError where they are no longer those."""
        return _load_again, (self.folder, self.seal)


def load_bundle(folder: str | Path) -> Bundle:
    """What searches as the exported retriever did; it imports no torch.

    Raises FedcarError for a folder that is not a bundle or has changed, and where ONNX Runtime or the tokenizers are
    missing.

    Formal guarantees:
        bundle_equals_retriever: in fp32 the same hits, up to ties of 1e-5 in the score.
        bundle_imports_no_torch: neither reading nor searching it.
    """
    folder = Path(folder).absolute()
    with opened_folder(folder, KIND) as place:
        bundle = replace(read_bundle(place), folder=folder, seal=seal_of(place))
    bundle.encoder.lies_in(folder)
    return bundle


def _load_again(folder: Path, seal: str | None) -> Bundle:
    bundle = load_bundle(folder)
    if bundle.seal != seal:
        raise ReplacedError(f"{folder}: replaced since it was loaded, so it cannot be copied; load it again")
    return bundle


def read_bundle(folder: Path) -> Bundle:
    """What `load_bundle` gives, of a folder that is not sealed yet."""
    settings = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    tensors = mapped_tensors(folder / "rows.safetensors")
    encoder = StoredEncoder.of(folder, settings["encoder"])
    encoder.open()
    embeddings = Rows.from_arrays(tensors, "embeddings")
    head = FrozenHead.from_arrays(tensors, embeddings)
    ridge, wording = None, Wording(**settings.get("wording", {}))
    compared = Rows.from_arrays(tensors, VIEWED) if VIEWED in tensors else embeddings
    if settings["feature_seed"] is not None:
        ridge = RidgeRows.from_tensors(_ridge(tensors), settings["feature_seed"], len(embeddings), wording)
    documents = StoredDocuments(folder / "documents.jsonl", tensors["document_starts"], tensors["empty"])
    return Bundle(
        encoder,
        documents,
        _evidence(mapped_tensors(folder / "evidence.safetensors", ON_DISK), compared, wording),
        head,
        np.array([settings["weights"][name] for name in WEIGHT_NAMES], dtype=np.float32),
        ridge,
        Calibration.of_json(settings["calibration"]),
        row_index=RowIndex.read(folder, mapped=True),
        origin=settings.get("origin", {}),
        folder=folder,
    )


def _document(record: Mapping[str, Any]) -> Document:
    return Document(record["_id"], record["title"], record["text"], record.get("metadata", {}))


def _ridge(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    prefix = "ridge."
    arrays = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
    for name in ("hidden_frequencies", "layer_frequencies"):
        arrays[name] = arrays[name].astype(np.float32, copy=False)
    return arrays


def _evidence(tensors: dict[str, NDArray[Any]], embeddings: Rows, wording: Wording) -> Evidence:
    vocabularies = {}
    for name in sorted({name.partition(".")[0] for name in tensors if ".words." in name}):
        vocabularies[name] = StoredWords({part: tensors.pop(f"{name}.words.{part}") for part in ARRAYS})
    stand_in: Any = embeddings  # an index gives vectors, as with an array
    return Evidence.from_tensors({**tensors, "embeddings": stand_in}, vocabularies, wording)
