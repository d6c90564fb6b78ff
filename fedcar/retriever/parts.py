"""What a retriever's folder holds, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedcar.collection.collection import Document
from fedcar.common.folders import RESTORE, opened_folder
from fedcar.common.tensors import read_tensors
from fedcar.errors import FedcarError
from fedcar.head.ridge_rows import RidgeRows
from fedcar.retriever.calibration import Calibration
from fedcar.retriever.evidence import Evidence
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.row_index import RowIndex
from fedcar.retriever.weights import WEIGHT_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND = "retriever"


class Parts(NamedTuple):
    """A saved retriever as values and plain arrays; `adapter` is None where it has none."""

    encoder: dict[str, Any]  # its name, fingerprint and pooling
    head_layers: dict[str, Any]
    head: dict[str, NDArray[Any]]
    adapter_variant: str | None
    adapter: dict[str, NDArray[Any]]
    documents: tuple[Document, ...]
    evidence: Evidence
    weights: NDArray[np.float32]
    ridge: RidgeRows | None
    calibration: Calibration
    training: TrainingRecord
    row_index: RowIndex | None
    version: str | None  # of the fedcar that wrote it

    @property
    def has_row(self) -> NDArray[np.bool_]:
        """Which documents have a row that questions trained (N,)."""
        active: NDArray[np.bool_] = self.head["active"]
        return active if self.ridge is None else self.ridge.has_row


def read_parts(folder: Path, mapped: bool = False) -> Parts:
    """Read a sealed folder. Raises FedcarError for one that is not a retriever, and for a changed file.

    With `mapped` the evidence is read from the disk when it is needed: for who does not stay, since a file that is
    written over in its place would then be seen.

    Formal guarantees:
        what_is_checked_is_what_is_read: also while others replace the folder; its parts are those of one version.
    """
    with opened_folder(folder, KIND) as place:
        parts = _parts(place, mapped)
    numbers = {len(parts.head["rows"]), len(parts.evidence.embeddings), len(parts.documents)}
    if parts.ridge is not None:
        numbers.add(parts.ridge.words.counts.shape[0])
    if len(numbers) > 1:
        raise FedcarError(f"{folder}: its parts have {' and '.join(map(str, sorted(numbers)))} documents; {RESTORE}")
    return parts


def _parts(folder: Path, mapped: bool) -> Parts:
    settings = json.loads((folder / "retriever.json").read_text(encoding="utf-8"))
    head, ridge, evidence = read_tensors(folder / "head.safetensors"), None, Evidence.read(folder, mapped)
    if (seed := settings["feature_seed"]) is not None:
        ridge = RidgeRows.from_tensors(
            read_tensors(folder / "ridge.safetensors"), seed, len(head["rows"]), evidence.wording
        )
    with (folder / "documents.jsonl").open(encoding="utf-8") as stream:
        records = [json.loads(line) for line in stream]
    return Parts(
        settings["encoder"],
        settings["head"],
        head,
        settings["adapter"],
        read_tensors(folder / "adapter.safetensors") if settings["adapter"] else {},
        tuple(Document(record["_id"], record["title"], record["text"], record["metadata"]) for record in records),
        evidence,
        np.array([settings["weights"][name] for name in WEIGHT_NAMES], dtype=np.float32),
        ridge,
        Calibration.of_json(settings["calibration"]),
        TrainingRecord.from_json(settings["training"]),
        RowIndex.read(folder),
        settings.get("fedcar"),
    )
