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
from fedcar.head.losses import candidate_losses
from fedcar.head.rows import Rows
from fedcar.training.row_step import RowStep

SHAPES: list[dict[str, Any]] = [
    {"kind": "linear"},
    {"kind": "cosine"},
    {"kind": "linear", "query_map": True},
    {"kind": "cosine", "query_map": True, "pre_classifier": 5},
    {"kind": "linear", "pre_classifier": 3},
]
SHAPES += [{**shape, "beside": 6} for shape in SHAPES]
UNTRAINED = np.random.default_rng(0).standard_normal((4, 14)).astype(np.float32)
ADAPTED = UNTRAINED + np.random.default_rng(1).standard_normal((4, 14)).astype(np.float32)
CANDIDATES = np.array([[0, 5, 2], [1, 1, 9], [3, 8, 0], [9, 4, 7]])


def trained(**shape: Any) -> Head:
    generator = np.random.default_rng(2)
    embeddings = generator.standard_normal((10, 8)).astype(np.float32)
    centre = generator.standard_normal(8 + shape.get("beside", 0)).astype(np.float32) / 5
    head = Head(embeddings, centre=centre, **shape)
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
    untrained = UNTRAINED[:, : head.rows.shape[1]]
    adapted = ADAPTED[:, : head.rows.shape[1]] if moved else untrained
    expected = head.learned_scores(adapted, untrained)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(frozen.learned_scores(adapted, untrained), expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(
        frozen.learned_scores(adapted, untrained, CANDIDATES),
        head.learned_scores(adapted, untrained, CANDIDATES),
        rtol=1e-4,
        atol=2e-5,
    )
    assert frozen.query_map == head.query_map and frozen.active.tolist() == [1, 4, 9]


def test_an_untouched_head_adds_exactly_nothing() -> None:
    head = Head(np.random.default_rng(2).standard_normal((10, 8)).astype(np.float32))
    frozen, untrained = FrozenHead.of(head, Rows.of(head.embeddings.numpy())), UNTRAINED[:, :8]
    assert not frozen.active.any() and not frozen.learned_scores(untrained, untrained).any()


def records(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What two encoders beside each other give, without the layers, which a head does not read."""
    kinds = [("pooled", np.float32, (first.shape[1],)), ("beside", [("pooled", np.float32, (second.shape[1],))])]
    states = np.empty(len(first), kinds)
    states["pooled"], states["beside"]["pooled"] = first, second
    return states


def test_over_two_encoders_each_counts_as_much_as_the_other_less_its_usual_direction() -> None:
    head = trained(beside=6)
    first, second = UNTRAINED[:, :8], 1000 * UNTRAINED[:, 8:]
    inputs = head.inputs(records(first, second))
    for side, states, centre in ((inputs[:, :8], first, head.centres[:8]), (inputs[:, 8:], second, head.centres[8:])):
        moved = states / np.linalg.norm(states, axis=1, keepdims=True) - centre.numpy()
        np.testing.assert_allclose(side, moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=1e-6)
    frozen = FrozenHead.of(head, Rows.of(head.embeddings.numpy()))
    np.testing.assert_array_equal(frozen.inputs(records(first, second)), inputs)
    alone = trained()
    np.testing.assert_array_equal(alone.inputs(records(first, second)), first)


def test_documents_come_and_go_in_a_head_over_two_encoders() -> None:
    head = trained(beside=6, query_map=True)
    more = head.added(np.ones((2, 8), dtype=np.float32))
    assert more.rows.shape == (12, 14) and more.layers == head.layers
    scores, before = (one.learned_scores(UNTRAINED, UNTRAINED) for one in (more, head))
    np.testing.assert_allclose(scores[:, :10], before, rtol=1e-5)
    np.testing.assert_allclose(more.without([10, 11]).learned_scores(UNTRAINED, UNTRAINED), before, rtol=1e-5)
    updated = head.updated([4], np.ones((1, 8), dtype=np.float32))
    np.testing.assert_array_equal(updated.rows[-1].detach(), head.rows[4].detach())


def test_a_row_over_two_encoders_learns_of_both_by_the_step_for_rows_alone_too() -> None:
    head = trained(beside=6)
    head.active[:] = True
    offset, relevance = torch.zeros(4, 10), torch.eye(10)[:4]
    step = RowStep(head, offset, relevance, 4)
    loss = step.gradients(np.arange(4), torch.tensor(UNTRAINED), 0.0)
    gradients = [head.rows.grad, head.log_scale.grad]
    head.rows.grad = head.log_scale.grad = None
    expected = candidate_losses(head.learned(torch.tensor(UNTRAINED), torch.tensor(UNTRAINED)), relevance).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for found, wanted in zip(gradients, (head.rows.grad, head.log_scale.grad), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert bool(head.rows.grad[:, 8:].any())
