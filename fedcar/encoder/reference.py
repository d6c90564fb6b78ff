"""Reference texts: packaged, public, the same for everybody; what an encoder makes of them is its usual direction."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from fedcar.collection.demo import FOLDER
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUERIES = FOLDER / "queries.jsonl"
TEXTS = 256


def reference_states(encoder: Encoder, cache: FeatureCache) -> NDArray[np.void]:
    """States (n,) of the untrained encoder on the reference texts."""
    with encoder.model.without_remarks():  # nobody asked about these texts: that one is cut is no news
        return cache.public.states(encoder.untrained, reference_texts())


def reference_texts() -> list[str]:
    """The first questions of the packaged collection."""
    with QUERIES.open(encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line, _ in zip(stream, range(TEXTS), strict=False)]
