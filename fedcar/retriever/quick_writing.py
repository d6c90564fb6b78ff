"""What a quick start needs, left in the cache by a retriever that has torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fedcar.common.files import write_json
from fedcar.common.folders import check_folder, write_folder
from fedcar.common.progress import Silent
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import parameter_count
from fedcar.encoder.stored import StoredEncoder
from fedcar.encoder.stored_writing import check_encoder, write_encoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.retriever.quick import (
    FREQUENCIES,
    FREQUENCIES_KIND,
    KIND,
    SETTINGS,
    place_of,
    place_of_frequencies,
)
from fedcar.retriever.retriever import Retriever

PACKAGES = ("onnxruntime", "onnx", "onnxscript", "tokenizers")
MOST_PARAMETERS = 150_000_000  # 600 MB in the cache; a larger model takes longer to read than torch does
PROBES = 16


def leave_quick_start(retriever: Retriever, report: Silent | None = None) -> None:
    """Write what `quick_searcher` needs into the user's cache, the first time that it is asked for this encoder.

    The encoder is checked on the first documents before it stays; one that ONNX cannot express is remembered and not
    tried again. Nothing where packages are missing, the encoder is large, or the cache cannot be written.
    """
    if any(find_spec(package) is None for package in PACKAGES):
        return
    if any(parameter_count(encoder.folder) > MOST_PARAMETERS for encoder in _encoders(retriever)):
        return
    with suppress(FedcarError):  # no cache at all
        _leave_parts(retriever, report or Silent())


def _leave_parts(retriever: Retriever, report: Silent) -> None:
    if retriever.ridge is not None:
        hidden, layers = retriever.ridge.feature_map.frequencies
        drawn = {"hidden": np.ascontiguousarray(hidden), "layers": np.ascontiguousarray(layers)}  # or it is garbled
        place = place_of_frequencies(retriever.ridge.feature_map)
        _leave(place, FREQUENCIES_KIND, lambda folder: save_file(drawn, folder / FREQUENCIES))

    texts = [text for document in retriever.documents[:PROBES] if (text := document.full_text)]
    for encoder in _encoders(retriever):

        def write(folder: Path, encoder: Encoder = encoder) -> None:
            with report.track("keeping the encoder for quick starts", 1) as advance:
                write_json(folder / SETTINGS, _written(encoder, folder, texts))
                advance(1)

        _leave(place_of(encoder.state_fingerprint, encoder.pooling), KIND, write)


def _encoders(retriever: Retriever) -> list[Encoder]:
    """Its encoder, and the one beside it; each is kept by itself."""
    encoder = retriever.encoder
    return [encoder.alone] if encoder.beside is None else [encoder.alone, encoder.beside]


def _leave(place: Path, kind: str, write: Callable[[Path], None]) -> None:
    with suppress(FedcarError):
        check_folder(place, kind)
        return
    with suppress(FedcarError, OSError):
        for folder in (place.parent.parent, place.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_folder(place, kind, write)


def _written(encoder: Encoder, folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """The settings of the encoder written into the folder, or the reason why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FedcarWarning)  # about long texts, said when they were first read
            settings = write_encoder(encoder, folder)
            stored = StoredEncoder.of(folder, settings)
            check_encoder(encoder, stored, "the quick start", [*texts, "who?", "3.5 % or"])
    except FedcarError as error:
        if isinstance(error.__cause__, OSError | MemoryError):  # another time there may be room
            raise
        for file in folder.iterdir():
            file.unlink()
        return {"reason": str(error)}
    return settings
