"""The bundle: a retriever in one folder that needs neither torch nor the encoder's own folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fedcar.collection.collection import Document, document_line
from fedcar.common.files import write_json
from fedcar.common.folders import check_folder, write_folder
from fedcar.common.tensors import mapped_tensors
from fedcar.common.vectors import unit
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.export.bundle_encoder import BundleEncoder
from fedcar.export.vocabulary import ARRAYS, StoredWords
from fedcar.head.frozen import FrozenHead
from fedcar.head.rows import Rows
from fedcar.retriever.calibration import Calibration
from fedcar.retriever.evidence import Evidence
from fedcar.retriever.row_index import RowIndex
from fedcar.retriever.searcher import Searcher
from fedcar.retriever.weights import WEIGHT_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.encoder import Encoder
    from fedcar.retriever.retriever import Retriever

KIND = "bundle"
ON_DISK = ("late.tokens", "late.sentences")  # large, and read for a question's candidates alone
ROWS = {"fp32": "float32", "int8": "int8"}
PROBES = 16
REQUIREMENTS = ("click", "numpy", "onnxruntime", "rich", "safetensors", "scipy", "tokenizers")  # what searching needs
LEAST_COSINE = {"fp32": 0.999999, "int8": 0.9}
SEARCHED, TOLERANCE = 3, 1e-3  # own texts, for which the scores must agree so far in fp32


class StoredDocuments(Sequence[Document]):
    """Documents in a file of lines, each read when it is asked for.

    `starts` (N + 1,) says where each begins, `empty` (N,) which have no text.
    """

    def __init__(self, file: Path, starts: NDArray[np.int64], empty: NDArray[np.bool_]) -> None:
        self.file = file
        self.starts = starts
        self.empty = empty

    @cached_property
    def _content(self) -> NDArray[np.uint8]:
        return np.memmap(self.file, np.uint8, "r")

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
            return [self[one] for one in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        first, last = self.starts[place % len(self) : place % len(self) + 2]
        return _document(json.loads(self._content[first:last].tobytes()))


@dataclass
class Bundle(Searcher):
    """A searcher that lies in a bundle's files; it cannot be trained, changed or saved."""

    encoder: BundleEncoder
    documents: StoredDocuments
    head: FrozenHead

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process, and a copy, read the files anew."""
        return load_bundle, (self.encoder.folder,)


def load_bundle(folder: str | Path) -> Bundle:
    """What searches as the exported retriever did; it imports no torch.

    Raises FedcarError for a folder that is not a bundle or has changed, and where ONNX Runtime or the tokenizers are
    missing.

    Formal guarantees:
        bundle_equals_retriever: in fp32 the same hits, up to ties of 1e-5 in the score.
        bundle_imports_no_torch: neither reading nor searching it.
    """
    folder = Path(folder)
    check_folder(folder, KIND)
    return _read(folder)


def _read(folder: Path) -> Bundle:
    settings = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    tensors, about = mapped_tensors(folder / "rows.safetensors"), settings["encoder"]
    about["layers"] = tuple(about["layers"])
    encoder = BundleEncoder(folder, **about)
    embeddings = Rows.from_arrays(tensors, "embeddings")
    head = FrozenHead.from_arrays(tensors, embeddings)
    ridge = None
    if settings["feature_seed"] is not None:
        from fedcar.head.ridge_rows import RidgeRows

        ridge = RidgeRows.from_tensors(_ridge(tensors), settings["feature_seed"], len(embeddings))
    documents = StoredDocuments(folder / "documents.jsonl", tensors["document_starts"], tensors["empty"])
    return Bundle(
        encoder,
        documents,
        _evidence(mapped_tensors(folder / "evidence.safetensors", ON_DISK), embeddings),
        head,
        np.array([settings["weights"][name] for name in WEIGHT_NAMES], dtype=np.float32),
        ridge,
        Calibration(**settings["calibration"]),
        row_index=RowIndex.read(folder, mapped=True),
    )


def write_bundle(retriever: Retriever, folder: str | Path, precision: str = "fp32") -> None:
    """Write the retriever as a bundle: encoder and rows in 32 bits or in 8, documents, words, tokenizer, calibration.

    What training has learned goes in, training questions do not. The bundle is checked before it takes its name: the
    tokenizer must make the same tokens, and in fp32 the search the same scores of some documents' own texts.

    Raises FedcarError where ONNX cannot express the encoder, or its tokenizer is not one of the `tokenizers` library.
    """
    write_folder(Path(folder), KIND, lambda temporary: _write(retriever, temporary, precision))


def _write(retriever: Retriever, folder: Path, precision: str) -> None:
    from safetensors.numpy import save_file

    from fedcar.encoder.runtimes.onnx_file import write

    encoder, kind = retriever.encoder, ROWS[precision]
    (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    _write_tokenizer(encoder, folder)
    write(encoder.model, folder / "encoder.onnx", precision, encoder.adapter)
    embeddings = Rows.of(np.asarray(retriever.evidence.embeddings), kind)
    arrays = {**embeddings.arrays("embeddings"), **FrozenHead.of(retriever.head, embeddings, kind).arrays()}
    arrays |= _ridge_arrays(retriever, precision)
    arrays |= _write_documents(retriever.documents, folder / "documents.jsonl")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "rows.safetensors")
    if (index := retriever.index()) is not None:
        index.write(folder)
    if retriever.training.get("privacy"):
        write_json(folder / "privacy.json", retriever.training["privacy"])
    evidence = retriever.evidence.tensors()
    del evidence["embeddings"]  # they stand among the rows
    for name, words in retriever.evidence.vocabularies().items():
        evidence |= {f"{name}.words.{part}": array for part, array in StoredWords.of(words).arrays.items()}
    save_file(evidence, folder / "evidence.safetensors")
    end = encoder.tokenizer.eos_token_id if encoder.pooling == "last" and not encoder.model.adds_end else None
    settings = {
        "encoder": {
            "pooling": encoder.pooling,
            "precision": precision,
            "dimension": encoder.dimension,
            "layers": encoder.model.layers,
            "max_tokens": encoder.model.max_tokens,
            "padding_id": encoder.model.padding_id,
            "end": end,
            "adapter": encoder.adapter.variant if encoder.adapter is not None else None,
        },
        "feature_seed": retriever.ridge.feature_map.seed if retriever.ridge is not None else None,
        "weights": dict(zip(WEIGHT_NAMES, map(float, retriever.weights), strict=True)),
        "calibration": vars(retriever.calibration),
    }
    write_json(folder / "bundle.json", settings)
    _check(retriever, folder, precision)


def _write_tokenizer(encoder: Encoder, folder: Path) -> None:
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if backend is None:
        message = "its tokenizer has no tokenizer.json; take --format transformers"
        raise FedcarError(f"{encoder.folder}: {message}")
    content = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_documents(documents: Sequence[Document], file: Path) -> dict[str, NDArray[Any]]:
    starts = [0]
    with file.open("wb") as stream:
        for document in documents:
            starts.append(starts[-1] + stream.write(f"{document_line(document)}\n".encode()))
    empty = np.array([not document.full_text for document in documents], dtype=bool)
    return {"document_starts": np.array(starts, dtype=np.int64), "empty": empty}


def _document(record: Mapping[str, Any]) -> Document:
    return Document(record["_id"], record["title"], record["text"], record.get("metadata", {}))


def _ridge_arrays(retriever: Retriever, precision: str) -> dict[str, NDArray[Any]]:
    """The rows in closed form and their random frequencies, which take longer to draw than to read."""
    if retriever.ridge is None:
        return {}
    hidden, layers = retriever.ridge.feature_map.frequencies
    arrays: dict[str, NDArray[Any]] = {**retriever.ridge.tensors()}
    frequencies = {"hidden_frequencies": hidden, "layer_frequencies": layers}
    arrays |= {
        name: array.astype(np.float32 if precision == "fp32" else np.float16) for name, array in frequencies.items()
    }
    return {f"ridge.{name}": array for name, array in arrays.items()}


def _ridge(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    prefix = "ridge."
    found = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
    for name in ("hidden_frequencies", "layer_frequencies"):
        found[name] = found[name].astype(np.float32, copy=False)
    return found


def _evidence(tensors: dict[str, NDArray[Any]], embeddings: Rows) -> Evidence:
    vocabularies = {}
    for name in sorted({name.partition(".")[0] for name in tensors if ".words." in name}):
        vocabularies[name] = StoredWords({part: tensors.pop(f"{name}.words.{part}") for part in ARRAYS})
    stand_in: Any = embeddings  # an index gives vectors, as with an array
    return Evidence.from_tensors({**tensors, "embeddings": stand_in}, vocabularies)


def _check(retriever: Retriever, folder: Path, precision: str) -> None:
    """Refuse a bundle that would not read and search as the retriever does."""
    texts = [*_own_texts(retriever), "who?", "3.5 % or"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FedcarWarning)  # about long texts, said when they were first read
        bundle, encoder = _read(folder), retriever.encoder
        if bundle.encoder.tokenize(texts) != encoder.tokenize(texts):
            message = "its tokenizer cannot be written so that it makes the same tokens; take --format transformers"
            raise FedcarError(f"{encoder.folder}: {message}")
        check_states(encoder, "the bundle", precision, texts, bundle.encoder.encode(texts))
        if precision == "fp32":
            check_search(retriever, bundle)


def check_search(retriever: Retriever, bundle: Bundle) -> None:
    """Refuse a bundle whose search gives some documents' own texts other scores."""
    texts = _own_texts(retriever)[:SEARCHED]
    ours, theirs = ([one.search(text, 1).hits[0].score for text in texts] for one in (bundle, retriever))
    if not np.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE):
        raise FedcarError(f"{retriever.encoder.folder}: the bundle gives other scores; use the retriever itself")


def _own_texts(retriever: Retriever) -> list[str]:
    return [text for document in retriever.documents[:PROBES] if (text := document.full_text)]


def check_states(encoder: Encoder, what: str, precision: str, texts: Sequence[str], found: NDArray[np.float32]) -> None:
    """Refuse hidden states (n, d), found by what was exported, that are not those that the encoder gives."""
    least = float(np.einsum("nd,nd->n", unit(found), unit(encoder.encode(texts))).min())
    if least < LEAST_COSINE[precision]:
        instead = "take --precision fp32" if precision == "int8" else "use the retriever itself"
        raise FedcarError(f"{encoder.folder}: {what} gives other hidden states (cosine {least:.4f}); {instead}")
