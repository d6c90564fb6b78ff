"""The attacks recover what un-noised updates give away, and a coin's worth of what noise hides."""

import math

import numpy as np
import pytest
import torch

from fedcar.privacy import attack as k
from fedcar.privacy.errors import PrivacyError

WIDTH, VOCABULARY = 64, 400


def adapter_update(seed=0, tokens=30, positions=90, steps=1, noise=0.0):
    """A sum of outer products g_t x_t^T, over some SGD-like steps, float32 as training makes it."""
    draw = np.random.default_rng(seed)
    table = draw.standard_normal((VOCABULARY, WIDTH))
    present = draw.choice(VOCABULARY, tokens, replace=False)
    update = np.zeros((WIDTH, WIDTH), np.float32)
    for _ in range(steps):
        used = np.concatenate([present, draw.choice(present, positions - tokens)])
        update += (draw.standard_normal((len(used), WIDTH)).T @ table[used]).astype(np.float32)
    return update + noise * draw.standard_normal(update.shape), table, present


@pytest.mark.parametrize("steps", [1, 20])
def test_an_unnoised_adapter_update_gives_every_word_away(steps):
    update, table, present = adapter_update(steps=steps)
    found = k.row_space_tokens(torch.tensor(update), table)
    result = k.quality(found, present)
    assert (result.precision, result.recall, result.auc) == (1.0, 1.0, 1.0) and found.rank == 30


def test_the_adapter_of_a_real_backward_gives_every_word_away():
    torch.manual_seed(0)
    table, labels = torch.randn(VOCABULARY, WIDTH), torch.tensor([0, 1, 2, 1])
    ids = torch.randint(0, VOCABULARY, (4, 6))
    adapter = torch.eye(WIDTH, requires_grad=True)
    block = torch.nn.TransformerEncoderLayer(WIDTH, 4, 32, dropout=0.0, batch_first=True)
    logits = block(table[ids] @ adapter.T).mean(1) @ torch.randn(WIDTH, 3)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    result = k.quality(k.row_space_tokens(adapter.grad, table), set(ids.flatten().tolist()))
    assert (result.precision, result.recall) == (1.0, 1.0)


def test_with_much_noise_a_coin_does_as_well():
    areas = []
    for seed in range(5):
        update, table, present = adapter_update(seed, noise=1e4)
        found = k.row_space_tokens(update, table, noise_deviation=1e4)
        assert len(found.recovered) == 0
        areas.append(k.quality(found, present).auc)
    assert abs(np.mean(areas) - 0.5) < 0.06


def test_little_noise_does_not_hide_the_words():
    update, table, present = adapter_update(noise=0.1)
    result = k.quality(k.row_space_tokens(update, table, noise_deviation=0.1), present)
    assert result.recall == 1.0 and result.auc > 0.99


def test_nothing_is_called_recovered_from_nothing_or_at_full_rank():
    assert len(k.row_space_tokens(np.zeros((8, 8)), np.eye(8)).recovered) == 0
    assert len(k.row_space_tokens(np.eye(8), np.eye(8)).recovered) == 0
    update, table, present = adapter_update(tokens=70, positions=200)  # more tokens than dimensions
    update -= update.mean(axis=0)  # as behind a LayerNorm: one dimension less, and still no row space to speak of
    found = k.row_space_tokens(update, table)
    assert found.rank == WIDTH - 1 and len(found.recovered) == 0 and k.quality(found, present).auc > 0.6


def head_step(noise=0.0):
    draw = np.random.default_rng(2)
    rows = draw.standard_normal((40, 32)) + 3 * np.ones(32)
    present = draw.choice(40, 8, replace=False)
    queries = rows[present] + 0.8 * draw.standard_normal((8, 32))
    logits = queries @ rows.T / 20
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True) - np.eye(40)[present]
    return -(p.T @ queries) + noise * draw.standard_normal(rows.shape), rows, present, queries


def test_head_rows_give_the_labels_away():
    update, rows, present, queries = head_step()
    result = k.quality(k.row_labels(update, rows), present)
    assert (result.precision, result.recall, result.auc) == (1.0, 1.0, 1.0)
    found, cosines = k.nearest_texts(update[present[0]], np.concatenate([rows, queries]), 3)
    assert 40 in found.tolist() and len(cosines) == 3


def test_noise_hides_the_labels():
    update, rows, present, _ = head_step(noise=1e4)
    assert k.quality(k.row_labels(update, rows, noise_deviation=1e4), present).recall == 0.0


def test_a_class_sum_over_one_question_is_its_embedding():
    draw = np.random.default_rng(4)
    candidates = draw.standard_normal((50, 24))
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    sums = np.zeros((6, 24))
    sums[0], sums[2], sums[3] = candidates[7], candidates[11], candidates[20] + candidates[21]
    found = k.class_sum_questions(sums, candidates)
    assert found.recovered.tolist() == [7, 11]
    assert k.quality(found, [7, 11, 20, 21]).auc == 1.0
    noised = k.class_sum_questions(sums + draw.standard_normal(sums.shape), candidates)
    assert len(noised.recovered) == 0


def test_quality_counts_candidates_only():
    found = k.Attack(np.array([0.9, 0.1, 0.8, 0.7]), np.array([0, 2]))
    assert k.quality(found, [0, 3], candidates=[0, 1, 3]) == k.Quality(1.0, 0.5, 1.0)
    assert math.isnan(k.quality(found, []).recall)


def test_area_under_curve_matches_sklearn():
    from sklearn.metrics import roc_auc_score

    draw = np.random.default_rng(0)
    scores, present = draw.integers(0, 9, 200).astype(float), draw.random(200) < 0.3
    assert k.area_under_curve(scores, present) == pytest.approx(roc_auc_score(present, scores))


def test_bad_input_is_refused():
    with pytest.raises(PrivacyError, match="must be a matrix"):
        k.row_space_tokens(np.zeros(3), np.zeros((3, 3)))
    with pytest.raises(PrivacyError, match="not finite"):
        k.row_labels(np.full((2, 2), math.nan), np.zeros((2, 2)))
    with pytest.raises(PrivacyError, match="differ in width"):
        k.row_space_tokens(np.zeros((3, 3)), np.zeros((3, 4)))
