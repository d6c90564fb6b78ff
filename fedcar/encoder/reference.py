"""Reference texts: packaged, public, the same for everybody; what an encoder makes of them is its usual direction."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedcar.collection.collection import SPLITS, Collection
from fedcar.collection.demo import FOLDER
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUERIES = FOLDER / "queries.jsonl"
TEXTS = 256


class Pair(NamedTuple):
    """A reference text, its place among them, and the place of the reference document that answers it."""

    text: str
    question: int
    document: int


def reference_states(encoder: Encoder, cache: FeatureCache) -> NDArray[np.void]:
    """States (n,) of the untrained encoder on the reference texts."""
    with encoder.model.without_remarks():  # nobody asked about these texts: that one is cut is no news
        return cache.public.states(encoder.untrained, reference_texts())


def reference_texts() -> list[str]:
    """The first questions of the packaged collection."""
    with QUERIES.open(encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line, _ in zip(stream, range(TEXTS), strict=False)]


def reference_documents() -> list[str]:
    """The documents of the packaged collection, which are longer."""
    return [document.full_text for document in _packaged().documents]


def reference_pairs() -> list[Pair]:
    """The reference texts that a packaged document answers; all judgements count, since nothing is trained on them."""
    collection = _packaged()
    places = {document.id: place for place, document in enumerate(collection.documents)}
    texts = {text: place for place, text in enumerate(reference_texts())}
    pairs = []
    for split in SPLITS:
        judged = collection.judged(split)
        for text, scores in zip(judged.texts, judged.relevant, strict=True):
            if text in texts and scores:
                pairs.append(Pair(text, texts[text], places[max(scores, key=lambda name: scores[name])]))
    return sorted(pairs, key=lambda pair: pair.question)


@lru_cache(maxsize=1)
def _packaged() -> Collection:
    return Collection.read(FOLDER)
