"""The head: rows that have not been trained are the documents' embeddings, and the loss is what its formula says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcar.errors import FedcarError
from fedcar.head.head import KINDS, MANY_TIMES, Head
from fedcar.head.losses import Relevant, candidate_losses, candidate_slopes
from fedcar.training.row_step import RowStep


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_head(seed: int = 0, documents: int = 7, **options: object) -> tuple[Head, np.ndarray, torch.Tensor]:
    """A head, the embeddings it was made of (n, d) and five hidden states, none of unit length."""
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(documents, 6)).astype(np.float32) * 3
    centre = generator.normal(size=6).astype(np.float32) * 0.3
    hidden_states = torch.tensor(generator.normal(size=(5, 6)).astype(np.float32) * 2)
    return Head(embeddings, centre=centre, **options), embeddings, hidden_states  # type: ignore[arg-type]


@pytest.mark.parametrize("query_map", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pre_classifier", [0, 4])
def test_untrained_head_equals_mips(kind: str, pre_classifier: int, query_map: bool) -> None:
    head, embeddings, hidden_states = random_head(kind=kind, pre_classifier=pre_classifier, query_map=query_map, seed=3)
    cosine = unit(hidden_states.numpy()) @ unit(embeddings).T
    with torch.no_grad():
        scores = head(hidden_states)
        np.testing.assert_allclose(scores.numpy(), 20 * cosine, atol=1e-5)
        learned = head.learned(hidden_states, hidden_states)
        assert learned.abs().max() <= (1e-5 if pre_classifier else 0), "exactly 0 where no layer is in between"
    np.testing.assert_array_equal(scores.argsort(dim=1, descending=True).numpy(), (-cosine).argsort(axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_active_is_its_embedding_whatever_stands_in_it(kind: str) -> None:
    head, _, hidden_states = random_head(kind=kind)
    with torch.no_grad():
        before = head(hidden_states)
        head.rows.normal_()
        head.active[[1, 4]] = True
        after = head(hidden_states)
    untouched = [0, 2, 3, 5, 6]
    assert torch.equal(after[:, untouched], before[:, untouched])
    assert not torch.isclose(after[:, [1, 4]], before[:, [1, 4]]).any()
    head(hidden_states).square().sum().backward()
    assert head.rows.grad is not None
    assert head.rows.grad[untouched].abs().max() == 0 < head.rows.grad[[1, 4]].abs().min()


def plain_score(head: Head, hidden_state: np.ndarray, document: int) -> float:
    """The docstring's formula for one question and one document."""
    query = hidden_state / np.linalg.norm(hidden_state)
    embedding = head.embeddings[document].numpy()
    row = head.rows[document].detach().numpy() * float(head.active[document])
    scale = math.exp(float(head.log_scale.detach()))
    if head.kind == "cosine":
        return float(scale * query @ (embedding + row) / np.linalg.norm(embedding + row))
    usual = query - head.centre.numpy()
    usual /= np.linalg.norm(usual)
    score = scale * (query @ embedding + usual @ row)
    return float(score + (head.map.detach().numpy() @ query) @ embedding if head.query_map else score)


@pytest.mark.parametrize(("kind", "query_map"), [("cosine", False), ("linear", False), ("linear", True)])
def test_the_score_is_the_formula(kind: str, query_map: bool) -> None:
    head, _, hidden_states = random_head(kind=kind, query_map=query_map)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
        head.active[[0, 2, 5]] = True
        found = head(hidden_states).numpy()
    expected = [[plain_score(head, state, document) for document in range(7)] for state in hidden_states.numpy()]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("times", [MANY_TIMES, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_chosen_rows_score_as_among_all(kind: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcar.head.head.MANY_TIMES", times)  # with 0 only the chosen rows are multiplied
    head, _, hidden_states = random_head(kind=kind, query_map=True, pre_classifier=3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
        head.active[[0, 2, 5]] = True
        chosen = torch.tensor([[0, 3], [6, 1], [2, 2], [5, 4], [1, 0]])
        everything = head(hidden_states)
        torch.testing.assert_close(head(hidden_states, chosen), everything.gather(1, chosen))
        learned = head.learned(hidden_states, hidden_states, chosen)
        torch.testing.assert_close(learned, head.learned(hidden_states, hidden_states).gather(1, chosen))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_document_scores_zero(kind: str) -> None:
    head = Head(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), kind=kind)
    assert head(torch.tensor([[1.0, 2.0]]))[0, 1] == 0
    torch.testing.assert_close(head.embeddings, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def plain_loss(scores: list[float], judged: list[float]) -> float:
    """The formula, one term at a time."""
    negatives = sum(math.exp(score) for score, one in zip(scores, judged, strict=True) if not one)
    return sum(
        one / sum(judged) * -math.log(math.exp(score) / (math.exp(score) + negatives))
        for score, one in zip(scores, judged, strict=True)
        if one
    )


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_the_loss_is_the_formula(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(4, 6)) * 3
    relevance = generator.integers(0, 3, (4, 6)) * (generator.random((4, 6)) < 0.4)
    relevance[np.arange(4), generator.integers(0, 6, 4)] = 2
    found = candidate_losses(torch.tensor(scores), torch.tensor(relevance, dtype=torch.float64))
    expected = [plain_loss(one, judged) for one, judged in zip(scores.tolist(), relevance.tolist(), strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_the_slopes_are_those_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn((6, 7), generator=generator) * 3).requires_grad_(True)
    relevance = (torch.rand((6, 7), generator=generator) - 0.6).clamp(min=0)
    relevance[0], relevance[1] = 0.0, 1.0
    with torch.no_grad():
        scores[2, 5] = -torch.inf
        relevance[2, 5] = 0.0
    importance = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.0, 1.0])
    loss = candidate_losses(scores, relevance) @ importance
    (expected,) = torch.autograd.grad(loss, scores)
    slopes = scores.detach().clone()
    found = candidate_slopes(slopes, Relevant.of(relevance), importance.numpy())
    assert found == pytest.approx(float(loss.detach()), rel=1e-6)
    torch.testing.assert_close(slopes, expected)


def test_the_relevant_candidates_of_a_batch_are_those_of_its_questions() -> None:
    relevance = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 2.0]])
    found, expected = Relevant.of(relevance).take(np.array([3, 1, 0])), Relevant.of(relevance[[3, 1, 0]])
    for part in ("starts", "questions", "candidates", "shares"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
    assert expected.shares.tolist() == [0.25, 0.25, 0.5, np.float32(2 / 3), np.float32(1 / 3)]


@pytest.mark.parametrize("every_row", [True, False])
def test_the_written_gradient_of_the_rows_is_that_of_autograd(every_row: bool) -> None:
    head, _, hidden_states = random_head(documents=9)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        head.rows.normal_(std=0.3, generator=generator)  # those of rows that are not active too: they must not count
        head.active[: 9 if every_row else 4] = True
    hidden_states[3] = 0.0
    offset, relevance = torch.randn((5, 9), generator=generator), torch.zeros((5, 9))
    offset[1, 4] = -torch.inf
    relevance[torch.arange(4), torch.tensor([0, 2, 7, 3])] = 1.0
    relevance[0, 3] = 0.5
    loss = candidate_losses(offset + head.learned(hidden_states, hidden_states), relevance).mean()
    (loss + 0.3 * (head.log_scale.exp() * head.rows).square().sum()).backward()  # type: ignore[no-untyped-call]
    expected = {name: parameter.grad for name, parameter in head.named_parameters()}
    head.zero_grad()
    step, rows = RowStep(head, offset, relevance, batch_size=6), np.arange(5)
    for order in (rows[3:], rows):  # what is held from one batch does not show in the next
        found = step.gradients(order, hidden_states[order].clone(), strength=0.3)
    assert found == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("scores", "relevance"),
    [
        ([5.0, -5.0], [1.0, 1.0]),  # no negatives
        ([5.0, -5.0], [0.0, 0.0]),  # no relevant candidate
        ([5.0, -torch.inf], [1.0, 0.0]),  # the only negative is an empty document
    ],
)
def test_where_nothing_competes_the_loss_is_zero(scores: list[float], relevance: list[float]) -> None:
    inputs = torch.tensor([scores], requires_grad=True)
    loss = candidate_losses(inputs, torch.tensor([relevance]))
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert inputs.grad is not None and torch.isfinite(inputs.grad).all()


@pytest.mark.parametrize("options", [{"kind": "square"}, {"pre_classifier": -1}])
def test_what_is_not_known_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(FedcarError, match="--head|--pre-classifier"):
        random_head(**options)  # type: ignore[arg-type]
