"""The head without torch gives the head's own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fedcar.common.tensors import mapped_tensors
from fedcar.head.frozen import FrozenHead
from fedcar.head.head import Head
from fedcar.head.rows import Rows

SHAPES: list[dict[str, Any]] = [
    {"kind": "linear"},
    {"kind": "cosine"},
    {"kind": "linear", "query_map": True},
    {"kind": "cosine", "query_map": True, "pre_classifier": 5},
    {"kind": "linear", "pre_classifier": 3},
]
UNTRAINED = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
ADAPTED = UNTRAINED + np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
CANDIDATES = np.array([[0, 5, 2], [1, 1, 9], [3, 8, 0], [9, 4, 7]])


def trained(**shape: Any) -> Head:
    generator = np.random.default_rng(2)
    embeddings = generator.standard_normal((10, 8)).astype(np.float32)
    head = Head(embeddings, centre=generator.standard_normal(8).astype(np.float32) / 5, **shape)
    torch.manual_seed(0)
    for name, parameter in head.named_parameters():
        if name != "log_scale":
            parameter.data = torch.randn(parameter.shape)
    head.active[[1, 4, 9]] = True
    return head


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_frozen_head_equals_head(shape: dict[str, Any], moved: bool, tmp_path: Path) -> None:
    head = trained(**shape)
    embeddings = Rows.of(head.embeddings.numpy())
    save_file(FrozenHead.of(head, embeddings).arrays(), tmp_path / "head.safetensors")
    frozen = FrozenHead.from_arrays(mapped_tensors(tmp_path / "head.safetensors"), embeddings)
    adapted = ADAPTED if moved else UNTRAINED
    expected = head.learned_scores(adapted, UNTRAINED)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(frozen.learned_scores(adapted, UNTRAINED), expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(
        frozen.learned_scores(adapted, UNTRAINED, CANDIDATES),
        head.learned_scores(adapted, UNTRAINED, CANDIDATES),
        rtol=1e-4,
        atol=2e-5,
    )
    assert frozen.query_map == head.query_map and frozen.active.tolist() == [1, 4, 9]


def test_an_untouched_head_adds_exactly_nothing() -> None:
    head = Head(np.random.default_rng(2).standard_normal((10, 8)).astype(np.float32))
    frozen = FrozenHead.of(head, Rows.of(head.embeddings.numpy()))
    assert not frozen.active.any() and not frozen.learned_scores(UNTRAINED, UNTRAINED).any()
