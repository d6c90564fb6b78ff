"""What the tests of the federation share: a world of planted directions, of an encoder's width, and clients in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedcar.collection.collection import Document
from fedcar.encoder.encoder import Encoder
from fedcar.federation.job.job import run_rounds
from fedcar.federation.rounds.client import Client
from fedcar.federation.rounds.clock import VirtualClock
from fedcar.federation.rounds.in_process import LocalNetwork
from fedcar.federation.rounds.run_folder import RunFolder
from fedcar.federation.rounds.server_selection import ServerSelection
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import Enrolled, Update
from fedcar.head.head import Head
from fedcar.retriever.evidence import Evidence
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of
from fedcar.training.settings import Settings

DOCUMENTS, WIDTH = 6, 32


class World:
    """Six documents whose questions gather around directions of their own, far from the documents' embeddings."""

    def __init__(self, encoder: Path, questions: int = 240, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.encoder = Encoder.load(encoder)
        self.documents = tuple(Document(f"d{number}", f"d{number}", "") for number in range(DOCUMENTS))
        embeddings = generator.normal(size=(DOCUMENTS, WIDTH)).astype(np.float32)
        self.embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        self.evidence = Evidence.build(self.documents, self.encoder, self.embeddings)
        self.directions = generator.normal(size=(DOCUMENTS, WIDTH))
        self.training = self.ask(generator, questions)
        self.selection = self.ask(generator, 120)

    def ask(self, generator: np.random.Generator, questions: int) -> Questions:
        """Every document is a candidate; the evidence is the cosine alone."""
        about = np.arange(questions) % DOCUMENTS
        states = np.zeros(questions, dtype=np.dtype([("pooled", np.float32, (WIDTH,)), ("layers", np.float16, (1, 1))]))
        states["pooled"] = self.directions[about] + generator.normal(size=(questions, WIDTH))
        evidence = np.zeros((questions, DOCUMENTS, len(Evidence.NAMES)), dtype=np.float32)
        pooled = states["pooled"]
        evidence[..., 0] = pooled @ self.embeddings.T / np.linalg.norm(pooled, axis=1, keepdims=True)
        candidates = np.tile(np.arange(DOCUMENTS), (questions, 1))
        relevance = (candidates == about[:, None]).astype(np.float32)
        relevant = tuple({f"d{document}": 1} for document in about)
        texts = tuple(f"q{number}" for number in range(questions))
        return Questions(texts, states, candidates, evidence, relevance, relevant)

    def retriever(self) -> Retriever:
        weights = weights_of(np.eye(LEARNED, dtype=np.float32)[0] * 20)
        return Retriever(self.encoder, self.documents, self.evidence, Head(self.embeddings), weights)

    def clients(self, parts: list[Any], settings: Settings) -> tuple[dict[str, Client], ServerSelection]:
        retriever = self.retriever()
        members = {
            f"client-{number:02}": Client(
                f"client-{number:02}", retriever, self.training.take(np.asarray(rows)), settings
            )
            for number, rows in enumerate(parts, 1)
        }
        return members, ServerSelection(retriever, self.selection, settings)

    def run(
        self,
        folder: Path,
        parts: list[Any],
        *,
        spoil: dict[str, Any] | None = None,
        resume: bool = False,
        clock: VirtualClock | None = None,
        **options: Any,
    ) -> tuple[ServerSelection, list[dict[str, Any]], RunFolder]:
        """All rounds; `spoil` replaces what a client sends by a function of its honest update."""
        rounds = replace(RoundSettings(rounds=4), questions=len(self.training), **options)
        settings = local(rounds)
        members, selection = self.clients(parts, settings)
        for name, how in (spoil or {}).items():
            members[name].train = spoiled(members[name].train, how)  # type: ignore[method-assign]
        run = RunFolder(folder, {"collection": "world", "encoder": "none", "settings": {"rounds": rounds.rounds}})
        run.start(resume)
        network = LocalNetwork(members, rounds, clock or VirtualClock())
        records = run_rounds(network, selection, rounds, run, resume, lambda record, beside: None, {})
        return selection, [record.to_json() for record in records], run


def final(folder: Path) -> dict[str, Tensor]:
    """The state in which a run ended."""
    return load_file(folder / "checkpoint" / "state.safetensors")


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def untrained(world: World) -> float:
    """Success of MIPS on the selection questions."""
    return float((world.selection.evidence[..., 0].argmax(1) == world.selection.relevance.argmax(1)).mean())


def local(rounds: RoundSettings, **options: Any) -> Settings:
    return Settings(epochs=rounds.rounds * rounds.local_epochs, batch_size=32, head_rate=0.05, **options)


def spoiled(train: Any, how: Any) -> Any:
    return lambda state, settings, number: how(train(state, settings, number), state)


def shares(questions: int, clients: int) -> list[np.ndarray]:
    """Equal shares; every client has questions of every document."""
    return [np.arange(questions)[(np.arange(questions) // DOCUMENTS) % clients == client] for client in range(clients)]


def update(client: str = "a", questions: int = 10, **tensors: Tensor) -> Update:
    return Update(client, tensors, questions, {"loss": 1.0}, 0.1, 100)


def enrolled(**questions: int) -> dict[str, Enrolled]:
    return {name: Enrolled(name, count, torch.tensor([count, 0, 0])) for name, count in questions.items()}
