"""A retriever written as a bundle, and the checks that the bundle passes before it takes its name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from fedcar.collection.collection import Document, document_line
from fedcar.common.files import write_json
from fedcar.common.folders import write_folder
from fedcar.encoder.stored_writing import check_encoder, write_encoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.export.bundle import KIND, VIEWED, Bundle, read_bundle
from fedcar.export.vocabulary import StoredWords
from fedcar.head.frozen import FrozenHead
from fedcar.head.rows import Rows
from fedcar.retriever.weights import WEIGHT_NAMES
from fedcar.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.encoder import Encoder
    from fedcar.retriever.retriever import Retriever

ROWS = {"fp32": "float32", "int8": "int8"}
PROBES = 16
REQUIREMENTS = ("click", "numpy", "onnxruntime", "rich", "safetensors", "scipy", "tokenizers")  # what searching needs
SEARCHED, TOLERANCE = 3, 1e-3  # own texts, for which the scores must agree so far in fp32


def write_bundle(retriever: Retriever, folder: str | Path, precision: str = "fp32") -> None:
    """Write the retriever as a bundle: encoder and rows in 32 bits or in 8, documents, words, tokenizer, calibration.

    What training has learned goes in, the mean of the training questions' states too; they themselves do not. The
    bundle is checked before it takes its name: the tokenizer must make the same tokens, and in fp32 the search the same
    scores of some documents' own texts.

    Raises FedcarError where ONNX cannot express the encoder, or its tokenizer is not one of the `tokenizers` library.
    """
    write_folder(Path(folder), KIND, lambda temporary: _write(retriever, temporary, precision))


def _write(retriever: Retriever, folder: Path, precision: str) -> None:
    encoder, kind = retriever.encoder, ROWS[precision]
    (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    about = write_encoder(encoder, folder, precision)
    embeddings = Rows.of(retriever.head.embeddings.numpy(), kind)
    arrays = {**embeddings.arrays("embeddings"), **FrozenHead.of(retriever.head, embeddings, kind).arrays()}
    if retriever.evidence.view is not None:
        arrays |= Rows.of(np.asarray(retriever.evidence.embeddings), kind).arrays(VIEWED)
    arrays |= _ridge_arrays(retriever, precision)
    arrays |= _write_documents(retriever.documents, folder / "documents.jsonl")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "rows.safetensors")
    if (index := retriever.index()) is not None:
        index.write(folder)
    if retriever.training.privacy:
        write_json(folder / "privacy.json", retriever.training.privacy)
    evidence = retriever.evidence.tensors()
    del evidence["embeddings"]  # they stand among the rows
    for name, words in retriever.evidence.vocabularies().items():
        evidence |= {f"{name}.words.{part}": array for part, array in StoredWords.of(words).arrays.items()}
    save_file(evidence, folder / "evidence.safetensors")
    settings = {
        "encoder": about,
        "feature_seed": retriever.ridge.feature_map.seed if retriever.ridge is not None else None,
        "weights": dict(zip(WEIGHT_NAMES, map(float, retriever.weights), strict=True)),
        "wording": asdict(retriever.evidence.wording),
        "calibration": vars(retriever.calibration),
        "origin": _origin(retriever),
    }
    write_json(folder / "bundle.json", settings)
    _check(retriever, folder, precision)


def _origin(retriever: Retriever) -> dict[str, Any]:
    """What `info` tells of the retriever that it was made of; under epsilon questions are not counted there either."""
    encoder, training = retriever.encoder, retriever.training
    return {
        **_named(encoder),
        "method": training.method,
        "collection": (training.collection or {}).get("name"),
        "questions": training.questions,
        "privacy": {name: (training.privacy or {}).get(name) for name in ("epsilon", "delta", "unit")},
        "fedcar": __version__,
        **({} if encoder.beside is None else {"beside": _named(encoder.beside)}),
    }


def _named(encoder: Encoder) -> dict[str, str]:
    name = Path(encoder.name).name if Path(encoder.name).exists() else encoder.name
    return {"encoder": name, "fingerprint": encoder.fingerprint}


def _write_documents(documents: Sequence[Document], file: Path) -> dict[str, NDArray[Any]]:
    starts = [0]
    with file.open("wb") as stream:
        for document in documents:
            starts.append(starts[-1] + stream.write(f"{document_line(document)}\n".encode()))
    empty = np.array([not document.full_text for document in documents], dtype=bool)
    return {"document_starts": np.array(starts, dtype=np.int64), "empty": empty}


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


def _check(retriever: Retriever, folder: Path, precision: str) -> None:
    """Refuse a bundle that would not read and search as the retriever does."""
    texts = [*_own_texts(retriever), "who?", "3.5 % or"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FedcarWarning)  # about long texts, said when they were first read
        bundle, encoder = read_bundle(folder), retriever.encoder
        check_encoder(encoder, bundle.encoder, "the bundle", texts)
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
