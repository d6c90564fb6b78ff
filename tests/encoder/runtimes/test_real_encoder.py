"""The encoder that fedcar brings along, by each runtime, beside transformers itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from fedcar.collection.collection import Collection
from fedcar.common.measure import multiplies_bfloat16
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.runtimes import choice

pytestmark = [pytest.mark.slow, pytest.mark.ci]
FLOAT32, BFLOAT16, INT8 = (0.999999, 0.99999), (0.9999, 0.999), (0.98, 0.95)  # the mean cosine and the least
AGREEMENT = {
    "torch": FLOAT32,
    "openvino": FLOAT32,
    "onnx": FLOAT32,
    "torch-bf16": BFLOAT16,
    "openvino-bf16": BFLOAT16,
    "onnx-int8": INT8,
}


@pytest.fixture(scope="module")
def model() -> Encoder:
    return Encoder.load()


@pytest.fixture(scope="module")
def texts(toy_collection: Path) -> list[str]:
    """Questions of a few words, documents, and one that fills the encoder."""
    toy = Collection.read(toy_collection)
    questions = [query.text for query in toy.queries.values()]
    return [*questions, *(document.text for document in toy.documents), " ".join(questions)]


@pytest.fixture(scope="module")
def batch(model: Encoder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    token_ids = model.tokenize(texts)
    width = max(map(len, token_ids))
    assert width > 200 and min(map(len, token_ids)) < 12
    ids = np.full((len(texts), width), model.model.padding_id, dtype=np.int64)
    for row, text in enumerate(token_ids):
        ids[row, : len(text)] = text
    return ids, np.array([[place < len(text) for place in range(width)] for text in token_ids], dtype=np.int64)


@pytest.fixture(scope="module")
def wanted(model: Encoder, texts: list[str]) -> np.ndarray:
    """The mean of the last layer's states (n, d) by transformers, in float64 behind the model."""
    tokenizer = AutoTokenizer.from_pretrained(model.model.folder)
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(model.model.folder).eval()(**inputs).last_hidden_state.double()
    mask = inputs["attention_mask"].double()[:, :, None]
    return np.asarray((states * mask).sum(1) / mask.sum(1))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("name", AGREEMENT)
def test_a_real_encoder_agrees_with_float32(
    name: str,
    model: Encoder,
    batch: tuple[np.ndarray, np.ndarray],
    wanted: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name.endswith("bf16") and not multiplies_bfloat16():
        pytest.skip("this processor multiplies no bfloat16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # what it is converted to is made anew
    assert choice.is_installed(name), f"{name}: its packages belong to the dev extra"
    found = choice.built(model.model, name).run(*batch).pooled
    cosines = (unit(found) * unit(wanted)).sum(axis=1)
    print(f"{name}: cosine mean {cosines.mean():.7f}, least {cosines.min():.7f}")
    mean, least = AGREEMENT[name]
    assert cosines.mean() >= mean and cosines.min() >= least
