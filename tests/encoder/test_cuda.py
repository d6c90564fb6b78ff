"""What runs on the processor runs on a GPU where torch finds one, and comes to the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import fedcar, learnable

from fedcar import train
from fedcar.collection.collection import Collection
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.runtimes import choice
from fedcar.export.bundle import load_bundle
from fedcar.retriever.retriever import Retriever

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]
TEXTS = ["the fan is broken", "who charges the battery over night?", "water", ""]


@pytest.fixture
def encoder(tiny_model: Callable[..., Path]) -> Encoder:
    return Encoder.load(tiny_model("bert"), "mean")


@pytest.fixture
def beside(tiny_model: Callable[..., Path]) -> Encoder:
    """The same encoder, on the processor."""
    encoder = Encoder.load(tiny_model("bert"), "mean")
    encoder.model.device = torch.device("cpu")
    return encoder


def test_states_are_those_of_the_processor(encoder: Encoder, beside: Encoder) -> None:
    assert encoder.model.device.type == "cuda" and next(encoder.model.transformer.parameters()).is_cuda
    np.testing.assert_allclose(encoder.encode(TEXTS), beside.encode(TEXTS), rtol=1e-3, atol=1e-4)
    assert choice.candidates(encoder.model) == ["torch", "torch-bf16"]
    encoder = Encoder(encoder.model, runtime="torch-bf16")
    np.testing.assert_allclose(encoder.encode(TEXTS), beside.encode(TEXTS), rtol=0.1, atol=0.05)


def test_the_adapters_gradient_is_that_of_the_processor(encoder: Encoder, beside: Encoder) -> None:
    gradients = []
    for one in (encoder, beside):
        adapter = Adapter("full", one.embedding_width)
        one = one.with_adapter(adapter)
        one.hidden_states(one.tokenize(TEXTS)).square().sum().backward()
        assert adapter.difference.grad is not None
        gradients.append(adapter.difference.grad.cpu())
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)
    encoder = encoder.with_adapter(Adapter("full", encoder.embedding_width), halved=True)
    encoder.hidden_states(encoder.tokenize(TEXTS)).square().sum().backward()


@pytest.mark.parametrize("method", ["ridge", "head", "adapter"])
def test_trained_saved_and_loaded_it_searches_the_same(
    method: str, toy_collection: Path, encoder: Encoder, tmp_path: Path
) -> None:
    collection = learnable(Collection.read(toy_collection))
    trained = train(collection, encoder=encoder, method=method, epochs=2, cache=tmp_path / "cache")
    trained.save(tmp_path / "retriever")
    found = Retriever.load(tmp_path / "retriever")
    for text in TEXTS[:3]:
        assert [hit.id for hit in found.search(text)] == [hit.id for hit in trained.search(text)]


def test_a_stopped_training_is_resumed(toy_collection: Path, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    words = ["train", toy_collection, "--encoder", tiny_model("bert"), "--method", "adapter", "--cache", tmp_path / "c"]
    assert fedcar(*words, "-o", tmp_path / "out", "--epochs", 2, "--resume").code == 0


def test_clients_federate(toy_collection: Path, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    words = ["federate", toy_collection, "-o", tmp_path / "out", "--clients", 2, "--rounds", 2, "--method", "adapter"]
    result = fedcar(*words, "--encoder", tiny_model("bert"), "--cache", tmp_path / "c", "--json")
    assert result.code == 0 and len(result.json["rounds"]) == 2, result.err


def test_a_bundle_is_exported(toy_collection: Path, encoder: Encoder, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    collection = learnable(Collection.read(toy_collection))
    trained = train(collection, encoder=encoder, method="adapter", epochs=2, cache=tmp_path / "cache")
    trained.save(tmp_path / "retriever")
    assert fedcar("export", tmp_path / "retriever", "--format", "bundle", "--out", tmp_path / "bundle").code == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert [hit.id for hit in bundle.search("fan")] == [hit.id for hit in trained.search("fan")]
