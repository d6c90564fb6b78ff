"""What a client trains with: the batches of a cohort make up one of central training where a query map is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.federated import World

from fedcar.collection.collection import Document
from fedcar.encoder.encoder import Encoder
from fedcar.federation.job.job import fitted, matched, of_a_client
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.head.head import Head
from fedcar.retriever.evidence import Evidence
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of

pytestmark = pytest.mark.filterwarnings("ignore:.* tokens and were cut")  # LONG is
LONG = "the pump of the second hall is opened with a dry cloth before its filter and its hose are cleaned " * 3


@pytest.fixture(scope="module")
def texts(encoder_folder: Path) -> Retriever:
    """An untrained retriever over documents of many words: its head is a query map."""
    encoder = Encoder.load(encoder_folder)
    documents = tuple(Document(f"d{number}", f"part {number}", LONG) for number in range(4))
    states = encoder.encode([document.full_text for document in documents])
    embeddings = states / np.linalg.norm(states, axis=1, keepdims=True)
    evidence = Evidence.build(documents, encoder, embeddings)
    weights = weights_of(np.eye(LEARNED, dtype=np.float32)[0])
    return Retriever(encoder, documents, evidence, Head(embeddings), weights)


@pytest.mark.parametrize(
    ("options", "clients", "smaller"),
    [
        ({}, 1, 1),
        ({}, 4, 4),
        ({}, 16, 16),
        ({"participation": 0.25}, 16, 4),
        ({"local_optimizer": "kept"}, 4, 1),
        ({}, 10_000, 128),
    ],
)
def test_the_batches_of_a_cohort_make_up_a_central_one(
    texts: Retriever, options: dict[str, object], clients: int, smaller: int
) -> None:
    """So that a round has as many steps as a central epoch; each of them longer by the root of the smaller batch."""
    settings = fitted("head", "full", 0, texts.encoder, texts.evidence.deep)
    central, rounds = matched(settings, RoundSettings(**options), 100_000, clients)  # type: ignore[arg-type]
    assert central.query_map and central.batch_size == 128 and central.epochs == rounds.rounds
    local = of_a_client(central, rounds)
    assert local.batch_size == rounds.batch_size == 128 // smaller
    assert local == replace(
        central, batch_size=local.batch_size, head_rate=pytest.approx(central.head_rate * smaller**0.5)
    )


@pytest.mark.parametrize("method", ["head", "adapter"])
def test_rows_are_trained_with_central_batches(encoder_folder: Path, method: str) -> None:
    """A row is moved by few questions; small batches gave it nothing and cost twice the time."""
    labels = World(encoder_folder, 24).retriever()
    settings = fitted(method, "full", 0, labels.encoder, labels.evidence.deep)
    central, rounds = matched(settings, RoundSettings(), 24, 10)
    assert not central.query_map and of_a_client(central, rounds) == central
