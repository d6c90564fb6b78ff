"""Reference texts: packaged, public, the same for everybody. What an encoder makes of them tells its usual direction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedcar.encoder import Encoder
from fedcar.features import FeatureCache

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUERIES = Path(__file__).parent / "demo_collection" / "queries.jsonl"
TEXTS = 256


def reference_states(encoder: Encoder, cache: FeatureCache) -> NDArray[np.void]:
    """States (n,) of the untrained encoder on the first questions of the packaged collection."""
    with QUERIES.open(encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line, _ in zip(stream, range(TEXTS), strict=False)]
    with encoder.untrained():
        return cache.states(encoder, texts)
