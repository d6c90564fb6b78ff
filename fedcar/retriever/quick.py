"""A quick start: a saved retriever searched without torch, where the cache has its encoder for ONNX Runtime."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fedcar.common.files import encoders_folder
from fedcar.common.folders import opened_folder
from fedcar.common.tensors import mapped_tensors
from fedcar.encoder.model_files import find, fingerprint, fingerprint_with
from fedcar.encoder.stored import StoredEncoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.head.frozen import FrozenHead
from fedcar.head.rows import Rows
from fedcar.retriever.parts import read_parts
from fedcar.retriever.searcher import Searcher

if TYPE_CHECKING:
    from fedcar.head.feature_map import FeatureMap

FORMAT = 1  # of what is kept in the cache
KIND, FREQUENCIES_KIND = "quick start", "frequencies"
SETTINGS, FREQUENCIES = "encoder.json", "frequencies.safetensors"


def quick_searcher(folder: str | Path, encoder: str | Path | None = None) -> Searcher | None:
    """A saved retriever as what searches alike without torch; None where the cache or the packages lack what it takes.

    The cache has an encoder by its fingerprint, so the encoder's own folder is not needed. One that is given all the
    same must be the one that the retriever was trained with; else None, and `Retriever.load` says so.

    Raises FedcarError for a folder that is not a retriever, and for a changed file.

    Formal guarantees:
        quick_start_equals_retriever: the same hits, up to ties of 1e-5 in the score.
        quick_start_imports_no_torch: neither reading nor searching it.
    """
    parts = read_parts(Path(folder), mapped=True)
    about = parts.encoder
    second = about.get("beside")
    if encoder is not None and second is not None:  # `Retriever.load` looks where both are
        return None
    if encoder is not None and fingerprint(find(str(encoder), offline=True)[0]) != about["fingerprint"]:
        return None
    states = about.get("state_fingerprint", about["fingerprint"])
    states = fingerprint_with(states, parts.adapter) if parts.adapter else states
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FedcarWarning)  # of a cache that is not the user's: nothing is kept here
            stored = stored_encoder(place_of(states, about["pooling"]))
            if stored is not None and second is not None:
                of_second = second.get("state_fingerprint", second["fingerprint"])
                stored.beside = stored_encoder(place_of(of_second, second["pooling"]))
    except FedcarError:  # no cache at all
        return None
    if stored is None or (second is not None and stored.beside is None):
        return None
    ridge = parts.ridge
    if ridge is not None:
        ridge = replace(ridge, feature_map=with_frequencies(ridge.feature_map))
    head = FrozenHead.of_state(parts.head, parts.head_layers["kind"], Rows(parts.head["embeddings"]))
    return Searcher(
        stored,
        parts.documents,
        parts.evidence,
        head,
        parts.weights,
        ridge,
        parts.calibration,
        row_index=parts.row_index,
    )


def place_of(state_fingerprint: str, pooling: str) -> Path:
    """Where the cache keeps an encoder for quick starts."""
    return encoders_folder() / f"{state_fingerprint[:24]}-{pooling}-quick-{FORMAT}"


def place_of_frequencies(feature_map: FeatureMap) -> Path:
    """Where it keeps the random frequencies of a map, which are the same for equal widths and seeds."""
    widths = len(feature_map.centre), feature_map.layer_centre.size
    return encoders_folder() / f"frequencies-{widths[0]}-{widths[1]}-{feature_map.seed}-{FORMAT}"


def stored_encoder(place: Path) -> StoredEncoder | None:
    """The encoder that was left there; None where there is none, or one that ONNX cannot express."""
    if any(find_spec(package) is None for package in ("onnxruntime", "tokenizers")):
        return None
    try:
        with opened_folder(place, KIND) as opened:
            settings = json.loads((opened / SETTINGS).read_text(encoding="utf-8"))
            if "reason" in settings:
                return None
            stored = StoredEncoder.of(opened, settings)
            stored.open()
    except (FedcarError, KeyError, TypeError, ValueError):  # not there, changed, or of another making
        return None
    stored.folder = place  # where a copy finds the files
    return stored


def with_frequencies(feature_map: FeatureMap) -> FeatureMap:
    """The map with its frequencies from the cache, where they are; otherwise they are drawn again."""
    with suppress(FedcarError):
        place = place_of_frequencies(feature_map)
        with opened_folder(place, FREQUENCIES_KIND) as opened:
            tensors = mapped_tensors(opened / FREQUENCIES)
        return replace(feature_map, drawn=(tensors["hidden"], tensors["layers"]))
    return feature_map
