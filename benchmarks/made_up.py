"""A retriever over N real documents whose states are drawn at random: sizes and times are real, quality is none.

python benchmarks/made_up.py RETRIEVER N COLLECTION...      (documents are repeated where there are too few)
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from fedcar.collection.collection import Document, read_documents
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.encoder.reading import States
from fedcar.retriever.retriever import Retriever


def made_up_encoder(name: str = DEFAULT_ENCODER) -> Encoder:
    """An encoder's tokens, and states that cost nothing."""
    encoder = Encoder.load(name)
    generator = np.random.default_rng(0)
    pool = generator.standard_normal((1 << 16, encoder.dimension), dtype=np.float32)

    def run(token_ids: np.ndarray, mask: np.ndarray) -> States:
        tokens = pool[(token_ids * 31 + np.arange(token_ids.shape[1])) % len(pool)]
        pooled = np.einsum("ntd,nt->nd", tokens, mask.astype(np.float32))
        return States(tokens, pooled, np.repeat(pooled[:, None], len(encoder.model.layers), axis=1))

    class MadeUp:
        run = staticmethod(run)

    encoder.model.once("runtime torch", MadeUp)
    return encoder


def documents_of(collections: Sequence[str], number: int) -> list[Document]:
    real = [document for name in collections for document in read_documents(Path(name) / "corpus.jsonl")]
    return [Document(f"d{row}", one.title, one.text) for row, one in enumerate(islice(cycle(real), number))]


def made_up(collections: Sequence[str], number: int) -> Retriever:
    with tempfile.TemporaryDirectory() as cache, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Retriever.untrained(documents_of(collections, number), made_up_encoder(), FeatureCache(Path(cache)))


if __name__ == "__main__":
    made_up(sys.argv[3:], int(sys.argv[2])).save(sys.argv[1])
