"""The head: rows that have not been trained are the documents' embeddings, and the loss is what its formula says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcar.errors import FedcarError
from fedcar.head import Head, softmax_loss

KINDS = ("cosine", "linear")


def random_head(seed: int = 0, documents: int = 7, **options: object) -> tuple[Head, np.ndarray, torch.Tensor]:
    """A head, the embeddings it was made of (n, d) and five hidden states, none of unit length."""
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(documents, 6)).astype(np.float32) * 3
    return Head(embeddings, **options), embeddings, torch.tensor(generator.normal(size=(5, 6)).astype(np.float32) * 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pre_classifier", [0, 4])
def test_untrained_head_equals_mips(kind: str, pre_classifier: int) -> None:
    head, embeddings, hidden_states = random_head(kind=kind, pre_classifier=pre_classifier, seed=3)
    queries = hidden_states.numpy()
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    ).T
    with torch.no_grad():
        np.testing.assert_allclose(head.cosines(hidden_states).numpy(), cosine, atol=1e-6)
        order = head(hidden_states).argsort(dim=1, descending=True).numpy()
    np.testing.assert_array_equal(order, (-cosine).argsort(axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_active_is_its_embedding_whatever_stands_in_it(kind: str) -> None:
    head, _, hidden_states = random_head(kind=kind)
    with torch.no_grad():
        before = head.document_vectors().clone()
        head.rows.normal_()
        head.active[[1, 4]] = True
        after = head.document_vectors()
    untouched = [0, 2, 3, 5, 6]
    assert torch.equal(after[untouched], before[untouched])
    assert not torch.isclose(after[[1, 4]], before[[1, 4]]).all()
    head(hidden_states).sum().backward()
    assert head.rows.grad is not None
    assert head.rows.grad[untouched].abs().max() == 0 < head.rows.grad[[1, 4]].abs().min()


def test_the_cosine_kind_forgets_lengths_and_the_linear_kind_keeps_them() -> None:
    for kind in KINDS:
        head, _, _ = random_head(kind=kind)
        head.active.fill_(True)
        with torch.no_grad():
            head.rows.copy_(head.embeddings)  # each vector twice as long
            lengths = head.document_vectors().norm(dim=1)
        torch.testing.assert_close(lengths, torch.full((7,), 1.0 if kind == "cosine" else 2.0))


def test_an_empty_document_has_a_row_of_zeros() -> None:
    head = Head(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    assert torch.equal(head.document_vectors(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def plain_loss(scores: list[list[float]], relevance: list[list[float]], active: list[bool]) -> float:
    """The formula, one term at a time."""
    losses = []
    for query, judged in zip(scores, relevance, strict=True):
        negatives = sum(math.exp(s) for s, r, a in zip(query, judged, active, strict=True) if a and not r)
        losses.append(
            sum(
                r / sum(judged) * -math.log(math.exp(s) / (math.exp(s) + negatives))
                for s, r in zip(query, judged, strict=True)
                if r
            )
        )
    return sum(losses) / len(losses)


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_the_loss_is_the_formula(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(4, 6)) * 3
    relevance = generator.integers(0, 3, (4, 6)) * (generator.random((4, 6)) < 0.4)
    relevance[np.arange(4), generator.integers(0, 6, 4)] = 2
    active = generator.random(6) < 0.7
    active |= (relevance > 0).any(0)
    found = softmax_loss(torch.tensor(scores), torch.tensor(relevance, dtype=torch.float64), torch.tensor(active))
    assert float(found) == pytest.approx(plain_loss(scores.tolist(), relevance.tolist(), active.tolist()), rel=1e-6)


def test_the_loss_of_a_query_without_negatives_is_zero_and_has_a_gradient() -> None:
    scores = torch.tensor([[5.0, -5.0]], requires_grad=True)
    loss = softmax_loss(scores, torch.tensor([[1.0, 0.0]]), torch.tensor([True, False]))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("options", [{"kind": "square"}, {"pre_classifier": -1}])
def test_what_is_not_known_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(FedcarError, match="--head|--pre-classifier"):
        random_head(**options)
